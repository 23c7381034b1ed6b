"""Chunks of items that workers pull: the queue, which is pure, and the loop that deals it out to a pool.

An item is a number from 0; what it stands for is the stage's business. Nothing is lost when a worker fails or dies: its
chunk is tried again, then halved, until single items are left; one that fails twice alone is poisoned, and becomes a
record with its error instead of ending the job.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, Self

from stepwell.errors import StepwellError

SECONDS_BETWEEN_LOOKS = 0.5
TRIES = 2
"""Of a chunk as it was cut, and of a single item. What lies between is halved at its first failure."""
HOPELESS = 16
"""Poisoned items after which the job fails, where no chunk has ended well: then it is not the items' fault."""

DIED = "the worker that had it died: killed, or out of memory"
"""The cause of a chunk whose worker is gone, in every pool; what is known of the death stands in the job's log."""


@dataclass(frozen=True)
class Ended:
    """What a pool tells of a chunk.

    Attributes:
        chunk: its items.
        how: `done`; `failed`, for `cause`; or `returned`: never begun, for its worker died before.
        cause: in one sentence; empty unless failed.
    """

    chunk: range
    how: Literal["done", "failed", "returned"]
    cause: str = ""


class Pool(Protocol):
    """Workers, each with the model, that take chunks. Used as a context manager: they live no longer than its block."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *error: object) -> None: ...

    def idlest(self) -> int:
        """Chunks in flight at the worker that has the fewest."""
        ...

    def submit(self, chunk: range) -> None:
        """Give a chunk to the worker that has the fewest."""
        ...

    def wait(self, seconds: float) -> Sequence[Ended]:
        """What became of chunks; returns as soon as there is something to tell, or after about `seconds`.

        Raises:
            StepwellError: no worker can be had, or what went wrong has nothing to do with the items (a full disk).
        """
        ...


@dataclass(kw_only=True)
class Queue:
    """The items 0 to `count`, in chunks of `size`, cut when they are taken: a million items need no list.

    Attributes:
        count: items.
        size: of a chunk; its borders are multiples of it, so that the same chunks come in every run.
        before: chunks that are done already, in their order.
    """

    count: int
    size: int
    before: Iterable[range] = ()
    _holes: Iterator[range] = field(init=False, repr=False)
    _next: range | None = field(init=False, repr=False)
    _new: bool = field(default=False, init=False, repr=False)
    _again: deque[range] = field(default_factory=deque, init=False, repr=False)
    _failures: dict[range, int] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        self._holes = _holes(self.count, self.size, self.before)
        self._next = next(self._holes, None)

    @property
    def many(self) -> bool:
        """Whether chunks are left that nobody has had yet."""
        return self._next is not None

    def take(self) -> range | None:
        """The next chunk; None when all are taken.

        What failed and what is new take turns: bad items end near their neighbours, and hold up no others.
        """
        self._new = not self._new
        if self._again and not (self._new and self._next is not None):
            return self._again.popleft()
        chunk, self._next = self._next, next(self._holes, None)
        return chunk

    def done(self, chunk: range) -> None:
        """A chunk came to its end."""
        self._failures.pop(chunk, None)

    def returned(self, chunk: range) -> None:
        """A chunk comes back that nobody has begun."""
        self._again.appendleft(chunk)

    def failed(self, chunk: range) -> int | None:
        """A chunk failed: it is taken again, whole or in halves. An item that is given up is given back."""
        failures = self._failures.pop(chunk, 0) + 1
        if failures < (TRIES if len(chunk) == 1 or self._whole(chunk) else 1):
            self._failures[chunk] = failures
            self._again.appendleft(chunk)
        elif len(chunk) == 1:
            return chunk.start
        else:
            half = len(chunk) // 2
            self._again.extendleft((chunk[half:], chunk[:half]))
        return None

    def _whole(self, chunk: range) -> bool:
        return chunk.start % self.size == 0 and chunk.stop == min(chunk.start + self.size, self.count)


def _holes(count: int, size: int, done: Iterable[range]) -> Iterator[range]:
    """What is left of each chunk, in order; `done` are ranges in order that do not overlap."""
    rest = iter(done)
    taken = next(rest, None)
    for start in range(0, count, size):
        at, stop = start, min(start + size, count)
        while taken is not None and taken.start < stop:
            if taken.start > at:
                yield range(at, taken.start)
            at = max(at, taken.stop)
            if taken.stop > stop:
                break
            taken = next(rest, None)
        if at < stop:
            yield range(at, stop)


@dataclass
class InOrder:
    """Gives chunks on in the order of their items, whatever the order in which they end."""

    at: int = 0
    _early: dict[int, range] = field(default_factory=dict, repr=False)

    def add(self, chunk: range) -> Iterator[range]:
        """Those that have ended with none before them missing, this one perhaps among them."""
        self._early[chunk.start] = chunk
        while (found := self._early.pop(self.at, None)) is not None:
            self.at = found.stop
            yield found


def run_chunks(
    pool: Pool,
    queue: Queue,
    *,
    done: Callable[[range], None],
    poisoned: Callable[[int, str], None],
    stop: Callable[[], bool],
) -> None:
    """Deal a queue out to a pool, until it is empty or a stop is asked for.

    A worker has one chunk, and a second one to go on with at once while there are chunks that nobody has had.

    Args:
        pool: entered here, and left before this returns: what is in flight at a stop is dropped.
        queue: of the items.
        done: called with each chunk that ended well, in whatever order.
        poisoned: called with each item that is given up, and its last error.
        stop: asked after each chunk, and twice a second.

    Raises:
        StepwellError: the pool's, or every item fails from the first on.
    """
    flying, well, hopeless = 0, False, 0
    with pool:
        while not stop():
            while pool.idlest() < (2 if queue.many else 1) and (chunk := queue.take()) is not None:
                pool.submit(chunk)
                flying += 1
            if not flying:
                return
            for told in pool.wait(SECONDS_BETWEEN_LOOKS):
                flying -= 1
                if told.how == "done":
                    queue.done(told.chunk)
                    well = True
                    done(told.chunk)
                elif told.how == "returned":
                    queue.returned(told.chunk)
                elif (item := queue.failed(told.chunk)) is not None:
                    hopeless += not well
                    if hopeless == HOPELESS:
                        raise _all_fail(told.cause)
                    poisoned(item, told.cause)


def _all_fail(cause: str) -> StepwellError:
    return StepwellError(
        f"the first {HOPELESS} items that were tried all failed, the last with: {cause}",
        "Read the job's log and correct the cause; then run the same command again.",
    )
