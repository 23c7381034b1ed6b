"""Pools of workers for the chunks of one job: in this process here; beside it in process_pool and ray_pool.

What crosses to a worker is text: the job, as an engine names it, and `module:function` of the work, with signature
(params, context) -> (chunk) -> None. The function loads what the chunks have in common, the model above all, once; what
it returns works on a chunk and leaves the results as whole files in the job's folder.
"""

from __future__ import annotations

import sys
import traceback
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, Literal, Protocol, Self, TypedDict, TypeVar

from stepwell.engine.base import JobCall
from stepwell.engine.chunks import DIED, Ended, Pool
from stepwell.errors import Interrupted, StepwellError
from stepwell.kinds import Kind
from stepwell.plan import Plan
from stepwell.store import is_disk_full

Work = Callable[[range], None]
STARTS = 3
"""Workers that may die in a row before they are ready; then none can be had."""


class Answer(TypedDict):
    """What a worker beside a job says.

    `ready`, once, when it has loaded; `done` or `failed` of a chunk; `gone` when it cannot go on, whatever the items.
    """

    told: Literal["ready", "done", "failed", "gone"]
    cause: str
    way_out: str


def pool_of(call: JobCall, kind: Kind, plan: Plan) -> Callable[[str], Pool] | None:
    """`module:function` of the work -> the workers that a plan gives a job; None where its own process does it all."""
    if kind.parallel != "chunks" or plan.devices == 1:
        return None
    if plan.engine == "ray":
        from stepwell.engine.ray_pool import RayPool

        return lambda reference: RayPool(call, reference, plan)
    from stepwell.engine.process_pool import ProcessPool

    return lambda reference: ProcessPool(call, reference, workers=plan.devices, device=plan.device)


def attempt(work: Work, chunk: range) -> Ended:
    """Work on a chunk; an exception is told as its failure, with the same text in every pool.

    Raises what other items could not mend either: a stop that was asked for, a full disk.
    """
    try:
        work(chunk)
    except Exception as error:  # whatever the work raises is the chunk's failure
        if isinstance(error, Interrupted) or is_disk_full(error):
            raise
        traceback.print_exception(error, file=sys.stderr)
        return Ended(chunk, "failed", cause_of(error))
    return Ended(chunk, "done")


def cause_of(error: Exception) -> str:
    """Why something failed, in one sentence."""
    return error.cause if isinstance(error, StepwellError) else f"{type(error).__name__}: {error}"


def answer_of(ended: Ended) -> Answer:
    """What a worker says of a chunk that it has tried."""
    return Answer(told="failed" if ended.how == "failed" else "done", cause=ended.cause, way_out="")


class Worker(Protocol):
    """One worker beside a job, with the chunks that it has, the one under way first."""

    @property
    def flying(self) -> int:
        """How many chunks it has."""
        ...

    def give(self, chunk: range) -> None:
        """Give it one more."""
        ...

    def end(self) -> None:
        """End it: what it has done is kept, and what it does is not."""
        ...


AWorker = TypeVar("AWorker", bound=Worker)


class Workers(ABC, Generic[AWorker]):
    """What pools of workers beside a job have in common: places, where a worker is begun when there is a chunk for it.

    Args:
        call: the job; each worker has its threads.
        reference: `module:function` of the work.
        count: of the places.
    """

    def __init__(self, call: JobCall, reference: str, count: int) -> None:
        self.call, self.reference = call, reference
        self.places: list[AWorker | None] = [None] * count
        self.deaths = 0

    @abstractmethod
    def _begin(self, place: int) -> AWorker:
        """A worker for a place."""

    def __enter__(self) -> Self:
        """Workers come with their first chunk."""
        return self

    def __exit__(self, *error: object) -> None:
        """End all of them."""
        for worker in self.places:
            if worker is not None:
                worker.end()
        self.places = [None] * len(self.places)

    def idlest(self) -> int:
        """Chunks in flight at the worker that has the fewest."""
        return min(map(self._flying, range(len(self.places))))

    def submit(self, chunk: range) -> None:
        """Give a chunk to the worker that has the fewest; begin it, where it is not there."""
        place = min(range(len(self.places)), key=self._flying)
        worker = self.places[place] = self.places[place] or self._begin(place)
        worker.give(chunk)

    def _flying(self, place: int) -> int:
        worker = self.places[place]
        return 0 if worker is None else worker.flying

    def _told(self, answer: Answer, chunks: deque[range]) -> Iterator[Ended]:
        """What a worker says of the first of its chunks. Raises StepwellError where it cannot go on."""
        if answer["told"] == "gone":
            raise StepwellError(f"a worker cannot go on: {answer['cause']}", answer["way_out"])
        if answer["told"] == "ready":
            self.deaths = 0
        else:
            yield Ended(chunks.popleft(), "done" if answer["told"] == "done" else "failed", answer["cause"])

    def _died(self, cause: str, chunks: deque[range], *, ready: bool) -> Iterator[Ended]:
        """A worker is dead: the chunk that it was at has failed, and the other one comes back."""
        if not ready:
            self.deaths += 1
            if self.deaths == STARTS:
                raise StepwellError(
                    f"{STARTS} workers died while they loaded: {cause}",
                    "Read the job's log; give them more memory or take fewer `devices`; then run the same command "
                    "again.",
                )
        elif chunks:
            yield Ended(chunks.popleft(), "failed", DIED)
        yield from (Ended(chunk, "returned") for chunk in chunks)


class LocalPool:
    """One worker: this process, in `wait`.

    Args:
        work: what is done with a chunk.
    """

    def __init__(self, work: Work) -> None:
        self.work = work
        self._waiting: deque[range] = deque()

    def __enter__(self) -> Self:
        """Nothing has to be started."""
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing has to be ended."""

    def idlest(self) -> int:
        """Chunks that wait here."""
        return len(self._waiting)

    def submit(self, chunk: range) -> None:
        """Put a chunk behind those that wait."""
        self._waiting.append(chunk)

    def wait(self, seconds: float) -> Sequence[Ended]:
        """Work on one chunk, however long that takes."""
        del seconds
        return [attempt(self.work, self._waiting.popleft())]
