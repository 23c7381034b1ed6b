"""What dealing out chunks costs: the queue of a run with a million pairs whose fitting is replaced by sleep.

`real`: workers beside this process (Ray actors, or processes) that sleep. Between two chunks a worker waits for nothing
but its queue; those gaps, and the processor time of this process, are measured a chunk. Sleep is a measured time, so
much `--faster` that a minute holds many chunks. `simulated`: 64 workers on a clock that jumps from event to event, with
the same queue and loop, and as much time of the coordinator for a chunk as `real` has measured. Aim: less than 2% more
time than if all work were shared evenly; peak memory the same for 100 thousand pairs and for a million. Compared: every
item is counted once, with workers that die, and with items that always kill theirs.
"""

from __future__ import annotations

import heapq
import json
import logging
import random
import statistics
import sys
import tempfile
import time
import tracemalloc
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Self

import common
from sleepers import SleepParams, seconds_of
from stepwell.engine.base import JobCall
from stepwell.engine.chunks import DIED, Ended, InOrder, Pool, Queue, run_chunks
from stepwell.plan import Plan
from stepwell.store import RunFolder

CHUNK = 64
GPU = 250.0
"""A GPU beside two CPU cores, about: what `stepwell plan` says of an H100 against a step in bench_fit.py."""
RELOAD = 30.0
"""Seconds until a worker that took a dead one's place has its model: assumed."""
DEATHS = 1 / 200
"""Of chunks that are begun, in the run with deaths: assumed, and far more than machines have."""


@dataclass(kw_only=True)
class Counted:
    """What was told of chunks: whether each item came once, and how many chunks were dealt out again."""

    count: int
    order: InOrder = field(default_factory=InOrder)
    items: int = 0
    poisoned: list[int] = field(default_factory=list)

    def done(self, chunk: range) -> None:
        self.items += len(chunk)
        for _ in self.order.add(chunk):
            pass

    def lost(self, item: int, cause: str) -> None:
        assert cause == DIED
        self.poisoned.append(item)
        self.done(range(item, item + 1))

    @property
    def once(self) -> bool:
        """No item is missing, and none came twice."""
        return self.items == self.order.at == self.count


def deal(pool: Pool, count: int, size: int) -> Counted:
    """The loop of a run."""
    counted = Counted(count=count)
    run_chunks(
        pool, Queue(count=count, size=size), done=counted.done, poisoned=counted.lost, stop=lambda: False
    )  # fmt: skip
    return counted


@dataclass(kw_only=True)
class Simulated:
    """A pool on a clock of its own. What the loop takes between two waits passes on that clock as well.

    Attributes:
        workers: how many.
        cost: seconds of the coordinator that a chunk takes besides the loop: messages.
        deaths: probability that a worker dies in a chunk.
        killers: items that always kill their worker.
        now, worked, again: seconds on the clock; of work that was kept; of work that was lost.
    """

    workers: int
    cost: float = 0.0
    deaths: float = 0.0
    killers: frozenset[int] = frozenset()
    now: float = 0.0
    worked: float = 0.0
    again: float = 0.0
    own_seconds: float = 0.0
    begun: int = 0
    _chunks: list[deque[range]] = field(default_factory=list)
    _busy: list[bool] = field(default_factory=list)
    _ready: list[float] = field(default_factory=list)
    _events: list[tuple[float, int, bool]] = field(default_factory=list)
    _returned: float = 0.0
    _new: list[range] = field(default_factory=list)
    _given: dict[range, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._chunks = [deque() for _ in range(self.workers)]
        self._busy, self._ready = [False] * self.workers, [0.0] * self.workers
        self._chance = random.Random(0)

    def __enter__(self) -> Self:
        self._returned = time.process_time()
        return self

    def __exit__(self, *error: object) -> None: ...

    def idlest(self) -> int:
        return min(map(len, self._chunks))

    def submit(self, chunk: range) -> None:
        self._chunks[min(range(self.workers), key=lambda worker: len(self._chunks[worker]))].append(chunk)
        self._new.append(chunk)

    def wait(self, seconds: float) -> Sequence[Ended]:
        passed = time.process_time() - self._returned + self.cost * len(self._new)
        self.now += passed
        self.own_seconds += passed
        self._given.update(dict.fromkeys(self._new, self.now))
        self._new.clear()
        for worker, chunks in enumerate(self._chunks):
            if chunks and not self._busy[worker]:
                self._begin(worker, self.now)
        told: list[Ended] = []
        self.now = max(self.now, min(self._events[0][0], self.now + seconds))
        while self._events and self._events[0][0] <= self.now:
            told += self._end(*heapq.heappop(self._events))
        self._returned = time.process_time()
        return told

    def _begin(self, worker: int, at: float) -> None:
        chunk = self._chunks[worker][0]
        at = max(at, self._ready[worker], self._given.pop(chunk))
        takes, self.begun = seconds_of(chunk, GPU), self.begun + 1
        dies = any(item in chunk for item in self.killers) or self._chance.random() < self.deaths
        takes *= self._chance.random() if dies else 1.0
        self.again, self.worked = self.again + takes * dies, self.worked + takes * (not dies)
        self._busy[worker] = True
        heapq.heappush(self._events, (at + takes, worker, dies))

    def _end(self, at: float, worker: int, dies: bool) -> list[Ended]:
        chunks = self._chunks[worker]
        chunk, self._busy[worker] = chunks.popleft(), False
        if dies:
            rest = [Ended(other, "returned") for other in chunks]
            for other in chunks:
                self._given.pop(other, None)
            chunks.clear()
            self._ready[worker] = at + RELOAD
            return [Ended(chunk, "failed", DIED), *rest]
        if chunks:
            self._begin(worker, at)
        return [Ended(chunk, "done")]

    @property
    def overhead(self) -> float:
        """The time it took, over the even share of the work that was kept, less 1."""
        return self.now * self.workers / self.worked - 1


def peak_mib(items: int, workers: int) -> float:
    """Most that Python held at a time in a deal of so many items: exact, and not hidden by what was freed before."""
    tracemalloc.start()
    try:
        deal(Simulated(workers=workers), items, CHUNK)
        return tracemalloc.get_traced_memory()[1] / 2**20
    finally:
        tracemalloc.stop()


def simulated(items: int, workers: int, cost: float, *, quick: bool) -> None:
    """All items; the memory of them and of a tenth; and all of them with workers that die."""
    print(
        f"simulated: {workers} workers, chunks of {CHUNK}; messages of a chunk take the coordinator {1e3 * cost:.3g} ms"
    )
    pool = Simulated(workers=workers, cost=cost)
    counted = deal(pool, items, CHUNK)
    common.same(f"every one of {items:,} items counted once", counted.once, f"{pool.begun:,} chunks begun")
    even, loop = pool.worked / workers / 60, 1e3 * (pool.own_seconds / pool.begun - cost)
    print(f"  {pool.now / 60:.4g} min, where an even share is {even:.4g}; the loop takes {loop:.3g} ms a chunk")
    common.aim("share of time lost to scheduling", pool.overhead, "<=", 0.02, meant=not quick)
    tenth, whole = peak_mib(items // 10, workers), peak_mib(items, workers)
    print(f"  peak memory of the deal: {tenth:.2f} MiB for {items // 10:,} items, {whole:.2f} MiB for {items:,}")
    common.aim("MiB more at ten times the items", whole - tenth, "<=", 1, meant=not quick)
    with_deaths(items, workers, cost)


def with_deaths(items: int, workers: int, cost: float) -> None:
    """Workers that die at random, and three items that always kill theirs."""
    killers = frozenset({items // 7, items // 3, items // 2})
    pool = Simulated(workers=workers, cost=cost, deaths=DEATHS, killers=killers)
    counted = deal(pool, items, CHUNK)
    common.same(
        f"every item counted once, while 1 chunk of {round(1 / DEATHS)} kills its worker",
        counted.once and sorted(counted.poisoned) == sorted(killers),
        f"{len(counted.poisoned)} items given up, those that always kill; {pool.begun:,} chunks begun",
    )
    lost = pool.again / pool.worked
    print(
        f"  {pool.overhead:.3%} more time: {lost:.3%} is work done again, the rest {RELOAD:.0f} s for each new worker"
    )


def real(kind: Literal["ray", "process"], workers: int, count: int, faster: float, *, quick: bool) -> float:
    """Sleeping workers; seconds of the coordinator's processor a chunk."""
    plan = Plan.model_validate({
        "study": "bench", "title": "Sleep", "question": "What does dealing out cost?", "extensions": ["sleepers"],
        "engine": kind, "devices": workers, "device": "cpu",
        "stages": [{"name": "only", "kind": "bench.sleep",
                    "params": SleepParams(faster=faster, kills_once=(count // 3, count // 2)).model_dump()}],
    })  # fmt: skip
    with tempfile.TemporaryDirectory() as place:
        run = RunFolder(Path(place))
        run.write_plan(plan)
        run.artifacts("only").mkdir(parents=True)
        call = JobCall(folder=place, job="only", fingerprint="f", threads=1)
        began = time.process_time()
        counted = deal(_pool(kind, call, plan), count, CHUNK)
        own = time.process_time() - began
        files = [path.read_text(encoding="utf-8") for path in run.artifacts("only").glob("slept-*.jsonl")]
    slept = [[json.loads(line) for line in text.splitlines()] for text in files]
    chunks = sum(map(len, slept))
    gaps = [later[2] - earlier[3] for lines in slept for earlier, later in pairwise(lines)]
    whole = [seconds_of(range(at, at + CHUNK), GPU) for at in range(0, count, CHUNK)]
    print(
        f"real: {workers} {'Ray actors' if kind == 'ray' else 'processes'}, {count:,} items, {faster:,.0f} times faster"
    )
    common.same("every item counted once, while two workers are killed", counted.once and not counted.poisoned,
                f"{chunks:,} chunks by {len(slept)} workers")  # fmt: skip
    late = sorted(gaps)[int(0.95 * len(gaps))]
    print(f"  between two chunks: median {1e3 * statistics.median(gaps):.3g} ms, 95% below {1e3 * late:.3g} ms")
    print(f"  the coordinator's processor: {1e3 * own / chunks:.3g} ms a chunk")
    mean, gap = statistics.fmean(whole), statistics.fmean(gaps)
    print(
        f"  extrapolated, not run: to chunks of {mean:.3g} s, as of a GPU, {gap / mean:.3%} lost between chunks; "
        f"one coordinator keeps up with {mean * chunks / own:,.0f} workers"
    )
    common.aim("time lost between chunks of a GPU", gap / mean, "<=", 0.02, meant=not quick)
    return own / chunks


def _pool(kind: str, call: JobCall, plan: Plan) -> Any:
    if kind == "ray":
        from stepwell.engine.ray_pool import RayPool

        logging.getLogger("ray").setLevel(logging.ERROR)
        return RayPool(call, "sleepers:work", plan)
    from stepwell.engine.process_pool import ProcessPool

    return ProcessPool(call, "sleepers:work", workers=plan.devices, device=plan.device)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--only", choices=("real", "simulated"), help="one part")
    parser.add_argument("--pool", choices=("ray", "process"), default="ray", help="of the part `real` (ray)")
    parser.add_argument("--items", type=int, help="of the part `simulated` (1,000,000)")
    parser.add_argument("--workers", type=int, default=64, help="of the part `simulated` (64)")
    parser.add_argument("--faster", type=float, default=4000.0, help="than measured, in the part `real` (4000)")
    given = parser.parse_args(arguments)
    common.header("bench_scheduling", given, arguments)
    quick, cost = given.quick, 0.0
    if given.only != "simulated":
        # --quick needs no Ray.
        kind, workers, chunks = ("process", 2, 24) if quick else (given.pool, 4, 960)
        cost = real(kind, workers, chunks * CHUNK, given.faster * (10 if quick else 1), quick=quick)
    if given.only != "real":
        simulated(given.items or (20_000 if quick else 1_000_000), given.workers, cost, quick=quick)


if __name__ == "__main__":
    if str(common.HERE) not in sys.path:
        sys.path.insert(0, str(common.HERE))  # where workers find `sleepers`
    main()
