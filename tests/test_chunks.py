"""Chunks of items: the queue alone, the loop over a pool that fails at random, and workers that raise, die and stop."""

from __future__ import annotations

import os
import random
import signal
import time
import tracemalloc
from collections import Counter, deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import pytest

from stepwell.engine.chunks import DIED, HOPELESS, Ended, InOrder, Queue, run_chunks
from stepwell.engine.pool import LocalPool, attempt
from stepwell.engine.process_pool import visible_devices
from stepwell.errors import Interrupted, StageFailed, StepwellError
from stepwell.plan import Plan
from stepwell.runner import run
from stepwell.store import read_records
from toy import events_of, one_stage


def never(*what: object) -> None:
    pytest.fail(f"called with {what}")


# ---- the queue


def everything(queue: Queue) -> list[range]:
    found = []
    while (chunk := queue.take()) is not None:
        found.append(chunk)
    return found


def test_chunks_are_cut_in_order_and_cover_all():
    assert everything(Queue(count=10, size=4)) == [range(4), range(4, 8), range(8, 10)]
    assert everything(Queue(count=0, size=4)) == []
    queue = Queue(count=8, size=4)
    assert [queue.many, queue.take(), queue.many, queue.take(), queue.many] == [
        True,
        range(4),
        True,
        range(4, 8),
        False,
    ]


@pytest.mark.parametrize("seed", range(20))
def test_what_is_done_is_not_cut_again(seed: int):
    """Against sets of items: the holes are what is missing, within the borders of the chunks."""
    drawn = random.Random(seed)
    count, size = drawn.randrange(1, 60), drawn.randrange(1, 12)
    before, at = [], 0
    while (start := at + drawn.randrange(0, 9)) < count:
        before.append(range(start, min(count, start + drawn.randrange(1, 20))))
        at = before[-1].stop
    found = everything(Queue(count=count, size=size, before=before))
    done = {item for chunk in before for item in chunk}
    assert [item for chunk in found for item in chunk] == [item for item in range(count) if item not in done]
    assert all(chunk.start // size == (chunk.stop - 1) // size for chunk in found)


def test_a_chunk_is_tried_twice_then_halved_down_to_an_item_that_is_tried_twice():
    queue = Queue(count=8, size=8)
    tried = []
    while (chunk := queue.take()) is not None:
        tried.append((chunk.start, chunk.stop))
        if 5 not in chunk:
            queue.done(chunk)
        elif (item := queue.failed(chunk)) is not None:
            assert item == 5
            tried.append("poisoned")
    assert tried == [(0, 8), (0, 8), (0, 4), (4, 8), (4, 6), (4, 5), (5, 6), (5, 6), "poisoned", (6, 8)]


def test_what_failed_and_what_is_new_take_turns():
    queue, taken = Queue(count=20, size=4), []
    while (chunk := queue.take()) is not None:
        taken.append(chunk)
        if chunk == range(4) and taken.count(chunk) == 1:
            queue.failed(chunk)
    assert taken == [range(4), range(4), range(4, 8), range(8, 12), range(12, 16), range(16, 20)]
    queue = Queue(count=8, size=2)
    first = queue.take()
    assert first is not None and queue.failed(first) is None and queue.take() == first
    assert queue.failed(first) is None and [queue.take() for _ in range(5)] == [
        range(2, 4), range(0, 1), range(4, 6), range(1, 2), range(6, 8)
    ]  # fmt: skip


def test_a_chunk_that_comes_back_unbegun_has_not_failed():
    queue = Queue(count=1, size=1)
    for _ in range(5):
        chunk = queue.take()
        assert chunk is not None and chunk == range(1)
        queue.returned(chunk)
    chunk = queue.take()
    assert chunk is not None and queue.failed(chunk) is None
    chunk = queue.take()
    assert chunk is not None and queue.failed(chunk) == 0 and queue.take() is None


@pytest.mark.parametrize("seed", range(5))
def test_chunks_are_passed_on_in_order(seed: int):
    chunks = [range(at, at + 3) for at in range(0, 30, 3)]
    order, passed = InOrder(), []
    for chunk in random.Random(seed).sample(chunks, len(chunks)):
        passed += order.add(chunk)
        assert passed == chunks[: len(passed)]
    assert passed == chunks


# ---- the loop


class Shaky:
    """A pool of pretended workers: which of them is heard next, and what fails, is drawn."""

    def __init__(self, workers: int, seed: int, bad: Sequence[int] = (), share: float = 0.0) -> None:
        self.lines: list[deque[range]] = [deque() for _ in range(workers)]
        self.drawn, self.bad, self.share = random.Random(seed), set(bad), share
        self.done: Counter[int] = Counter()
        self.most, self.inside = 0, False

    def __enter__(self) -> Self:
        self.inside = True
        return self

    def __exit__(self, *error: object) -> None:
        self.inside = False

    def idlest(self) -> int:
        return min(map(len, self.lines))

    def submit(self, chunk: range) -> None:
        assert self.inside
        min(self.lines, key=len).append(chunk)
        self.most = max(self.most, *map(len, self.lines))

    def wait(self, seconds: float) -> Sequence[Ended]:
        line = self.drawn.choice([line for line in self.lines if line])
        chunk = line.popleft()
        if self.bad.intersection(chunk) or self.drawn.random() < self.share:
            back = [Ended(later, "returned") for later in line]
            line.clear()
            return [Ended(chunk, "failed", f"at {chunk.start}"), *back]
        self.done.update(chunk)
        return [Ended(chunk, "done")]


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("workers", [1, 3])
def test_every_item_is_done_once_or_given_up(seed: int, workers: int):
    bad = random.Random(seed).sample(range(200), 9)
    pool, passed, lost = Shaky(workers, seed, bad), [], {}
    run_chunks(pool, Queue(count=200, size=16), done=passed.append, poisoned=lost.__setitem__, stop=lambda: False)
    assert sorted(lost) == sorted(bad) and lost == {item: f"at {item}" for item in bad}
    assert sorted([item for chunk in passed for item in chunk] + list(lost)) == list(range(200))
    assert pool.done == Counter(item for chunk in passed for item in chunk)
    assert pool.most == 2 and not pool.inside


def test_a_worker_has_no_second_chunk_when_others_could_take_it():
    pool = Shaky(4, 0)
    run_chunks(pool, Queue(count=4, size=1), done=lambda chunk: None, poisoned=never, stop=lambda: False)
    assert pool.most == 1


def test_a_stop_ends_the_loop_and_the_pool():
    pool, passed = Shaky(2, 0), []
    run_chunks(pool, Queue(count=100, size=1), done=passed.append, poisoned=never, stop=lambda: len(passed) == 7)
    assert len(passed) == 7 and not pool.inside


def test_a_job_of_which_everything_fails_ends():
    lost: dict[int, str] = {}
    with pytest.raises(StepwellError) as caught:
        run_chunks(Shaky(2, 0, range(10**6)), Queue(count=10**6, size=64), done=never, poisoned=lost.__setitem__,
                   stop=lambda: False)  # fmt: skip
    assert len(lost) == HOPELESS - 1
    cause, way_out = str(caught.value).split("\n")
    assert cause.startswith(f"the first {HOPELESS} items that were tried all failed, the last with: at ")
    assert way_out == "  Way out: Read the job's log and correct the cause; then run the same command again."


def test_a_bad_beginning_is_no_reason_to_give_up():
    lost: dict[int, str] = {}
    run_chunks(Shaky(1, 0, range(40)), Queue(count=80, size=20), done=lambda chunk: None, poisoned=lost.__setitem__,
               stop=lambda: False)  # fmt: skip
    assert sorted(lost) == list(range(40))


def test_a_few_items_that_all_fail_are_all_given_up():
    lost: dict[int, str] = {}
    run_chunks(Shaky(2, 0, range(9)), Queue(count=9, size=4), done=never, poisoned=lost.__setitem__,
               stop=lambda: False)  # fmt: skip
    assert sorted(lost) == list(range(9))


def test_a_million_items_take_little_time_and_memory():
    """10,000 chunks of 100 over 64 workers: less than a millisecond a chunk, and no list of them."""
    pool, order = Shaky(64, 0), InOrder()
    pool.done = Counter()
    pool.done.update = lambda chunk: None  # pyright: ignore[reportAttributeAccessIssue]
    seen = 0

    def done(chunk: range) -> None:
        nonlocal seen
        seen += sum(len(each) for each in order.add(chunk))

    tracemalloc.start()
    began = time.process_time()
    run_chunks(pool, Queue(count=10**6, size=100), done=done, poisoned=never, stop=lambda: False)
    seconds = time.process_time() - began
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seen == 10**6
    assert seconds / 10_000 < 1e-3 and peak_bytes < 2e6


# ---- workers


def squares(folder: Path) -> list[dict[str, Any]]:
    return list(read_records(folder / "records" / "only.jsonl"))


def plan_of(devices: int, **params: Any) -> Plan:
    return one_stage("toy.chunks", **params).model_copy(update={"devices": devices})


RAISED = {"raises": [5, 18]}
ALL = [{"kind": "square", "item": item, "value": item * item, "why": None} for item in range(20)]


@pytest.mark.parametrize("devices", [1, 2])
def test_records_do_not_depend_on_the_workers(tmp_path: Path, devices: int):
    run(plan_of(devices), tmp_path / "clean")
    assert squares(tmp_path / "clean") == ALL
    workers = {event["worker"] for event in events_of(tmp_path / "clean", "worked")}
    assert workers == {os.getpid()} if devices == 1 else len(workers) == 2 and os.getpid() not in workers
    run(plan_of(devices, **RAISED), tmp_path / "raised")
    for record in squares(tmp_path / "raised"):
        lost = record["item"] in RAISED["raises"]
        why = f"ZeroDivisionError: item {record['item']} is planted"
        assert record == ({**ALL[record["item"]], "value": None, "why": why} if lost else ALL[record["item"]])
    log = (tmp_path / "raised" / "logs" / "only.log").read_text()
    assert "ZeroDivisionError: item 18 is planted" in log and "stepwell_toy_chunks.py" in log


def test_a_killed_worker_costs_nothing_but_its_chunk(tmp_path: Path):
    run(plan_of(2, kills_once=[1, 10, 11]), tmp_path / "run")
    assert squares(tmp_path / "run") == ALL
    first = Counter(event["first"] for event in events_of(tmp_path / "run", "worked"))
    assert first == dict.fromkeys((0, 4, 8, 10, 12, 16), 1), "the third chunk was hit twice, and halved"


def test_an_item_that_kills_its_workers_is_a_record_with_its_error(tmp_path: Path):
    run(plan_of(2, kills=[6]), tmp_path / "run")
    assert squares(tmp_path / "run") == [*ALL[:6], {**ALL[6], "value": None, "why": DIED}, *ALL[7:]]
    assert "its worker was killed by SIGKILL" in (tmp_path / "run" / "logs" / "only.log").read_text()


@pytest.mark.parametrize(
    ("loads", "cause", "way_out"),
    [
        ("dies", "3 workers died while they loaded: its worker was killed by SIGKILL", "give them more memory"),
        ("fails", "a worker cannot go on: the model is gone", "Pull it again."),
    ],
)
def test_a_pool_that_has_no_workers_fails_the_job(tmp_path: Path, loads: str, cause: str, way_out: str):
    with pytest.raises(StageFailed) as caught:
        run(plan_of(2, loads=loads), tmp_path / "run")
    assert cause in str(caught.value) and way_out in str(caught.value)


def test_what_is_kept_is_not_done_again(tmp_path: Path):
    """The job is killed with its workers in the middle of their chunks: none of them outlives it."""
    from toy import drive

    plan = plan_of(2, items=40, seconds=0.02)
    process = drive(plan, tmp_path / "run")
    deadline = time.monotonic() + 30
    while len(events_of(tmp_path / "run", "worked")) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    workers = {event["worker"] for event in events_of(tmp_path / "run", "worked")}
    os.killpg(process.pid, signal.SIGKILL) if not workers else os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    while any(_alive(worker) for worker in workers):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    before = {event["first"] for event in events_of(tmp_path / "run", "worked")}
    kept = {int(path.stem.split("-")[0]) for path in (tmp_path / "run").glob("artifacts/only/kept/[0-9]*.json")}
    assert 3 <= len(before) < 10 and kept <= before
    run(plan, tmp_path / "run")
    assert [record["value"] for record in squares(tmp_path / "run")] == [item * item for item in range(40)]
    after = Counter(event["first"] for event in events_of(tmp_path / "run", "worked"))
    assert {first for first, count in after.items() if count > 1} <= before - kept


def _alive(process: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False


def test_a_stop_and_a_full_disk_are_nobodys_fault():
    def stopped(chunk: range) -> None:
        raise Interrupted("stopped, as asked", "Run it again.")

    def full(chunk: range) -> None:
        raise OSError(28, "No space left on device")

    for work, error in ((stopped, Interrupted), (full, OSError)):
        with pytest.raises(error):
            attempt(work, range(3))
        with pytest.raises(error):
            run_chunks(LocalPool(work), Queue(count=9, size=3), done=never, poisoned=never,
                       stop=lambda: False)  # fmt: skip


def test_workers_share_the_gpus_that_the_job_may_see(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-abc")
    assert visible_devices("cuda") == visible_devices("auto") == ["3", "GPU-abc"]
    assert visible_devices("cpu") == visible_devices("mps") == []
