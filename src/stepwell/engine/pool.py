"""Pools of workers for the chunks of one job: in this process here; beside it in process_pool and ray_pool.

What crosses to a worker is text: the job, as an engine names it, and `module:function` of the work, with signature
(params, context) -> (chunk) -> None. The function loads what the chunks have in common, the model above all, once; what
it returns works on a chunk and leaves the results as whole files in the job's folder.
"""

from __future__ import annotations

import sys
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from typing import Literal, Self, TypedDict

from stepwell.engine.base import JobCall
from stepwell.engine.chunks import Ended, Pool
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
        cause = error.cause if isinstance(error, StepwellError) else f"{type(error).__name__}: {error}"
        return Ended(chunk, "failed", cause)
    return Ended(chunk, "done")


def answer_of(ended: Ended) -> Answer:
    """What a worker says of a chunk that it has tried."""
    return Answer(told="failed" if ended.how == "failed" else "done", cause=ended.cause, way_out="")


def cannot_go_on(answer: Answer) -> StepwellError:
    """The job's error where a worker is `gone`."""
    return StepwellError(f"a worker cannot go on: {answer['cause']}", answer["way_out"])


def never_ready(cause: str) -> StepwellError:
    """The job's error where workers die before they are ready."""
    return StepwellError(
        f"{STARTS} workers died while they loaded: {cause}",
        "Read the job's log; give them more memory or take fewer `devices`; then run the same command again.",
    )


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
