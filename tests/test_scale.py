"""Scheduling against brute force and bounds, shares against trainings' own code, and the page that shows it all."""

from __future__ import annotations

import itertools
import random
import re
import shlex
from pathlib import Path

import pytest

import toy_kinds
from stepwell.cli import run
from stepwell.devices import DEVICES, LINKS, Chunks, Memory, Steps, Work
from stepwell.engine.chunks import Queue
from stepwell.errors import StepwellError
from stepwell.plan import load_plan
from stepwell.scale import WAITING, scale
from stepwell.scale.dispatch import Task, longest_path, schedule
from stepwell.scale.shares import (
    LOAD_BYTES_PER_SECOND,
    START_SECONDS,
    can_share,
    dealt_rows,
    evenly,
    held_by_one,
    taken,
)

PAGE = Path(__file__).resolve().parents[1] / "docs" / "scale.md"
H100 = DEVICES["h100"]


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEPWELL_HOME", str(tmp_path / "home"))


def drawn(seed: int, n: int, devices: int = 1) -> list[Task]:
    """A random graph: each task needs some of those before it."""
    of = random.Random(seed)
    return [
        Task(
            id=str(place), seconds=of.choice([1.0, 2.0, 3.0, 5.0, 8.0]), devices=of.randint(1, devices),
            needs=tuple(str(other) for other in range(place) if of.random() < 0.25),
        )
        for place in range(n)
    ]  # fmt: skip


def best_time(tasks: list[Task], devices: int) -> float:
    """The best there is for tasks of one device each: every order in which devices may take them."""

    def of_order(order: tuple[Task, ...]) -> float:
        free, ended = [0.0] * devices, {}
        for task in order:
            if any(need not in ended for need in task.needs):
                return float("inf")
            place = free.index(min(free))
            begins = max([free[place], *(ended[need] for need in task.needs)])
            free[place] = ended[task.id] = begins + task.seconds
        return max(free)

    return min(map(of_order, itertools.permutations(tasks)))


@pytest.mark.parametrize("seed", range(12))
def test_schedule_lies_between_the_best_and_grahams_bound(seed: int) -> None:
    tasks, devices = drawn(seed, 6), 2 + seed % 2
    best, found = best_time(tasks, devices), schedule(tasks, devices, 8).seconds
    assert best <= found <= (2 - 1 / devices) * best


@pytest.mark.parametrize("seed", range(20))
def test_schedule_keeps_needs_and_devices_and_is_no_faster_than_chain_or_work(seed: int) -> None:
    tasks, devices = drawn(seed, 40, devices=3), 5
    made = schedule(tasks, devices, 8)
    ends = {task.id: made.began[task.id] + task.seconds for task in tasks}
    for task in tasks:
        assert all(ends[need] <= made.began[task.id] for need in task.needs)
        at = made.began[task.id]
        assert sum(one.devices for one in tasks if made.began[one.id] <= at < ends[one.id]) <= devices
    chain = sum(task.seconds for task in longest_path(tasks))
    assert (
        max(chain, sum(task.seconds * task.devices for task in tasks) / devices) <= made.seconds == max(ends.values())
    )
    assert schedule(tasks, 200, 8).seconds == chain
    assert schedule([Task(id=task.id, seconds=task.seconds) for task in tasks], 1, 8).seconds == sum(
        task.seconds for task in tasks
    )


def test_longest_chain_is_that_of_all_chains() -> None:
    tasks = drawn(3, 9)
    by_id = {task.id: task for task in tasks}

    def to(task: Task) -> float:
        return task.seconds + max((to(by_id[need]) for need in task.needs), default=0.0)

    path = longest_path(tasks)
    assert sum(task.seconds for task in path) == max(map(to, tasks))
    assert all(before.id in after.needs for before, after in itertools.pairwise(path))


def test_one_training_stays_in_one_machine_and_chunks_need_not() -> None:
    # Two machines of 4; after three tasks of 2 devices, 2 are free.
    small = [Task(id=str(n), seconds=1.0, devices=2, together=True) for n in range(3)]
    large = {"id": "large", "seconds": 1.0, "devices": 4}
    assert schedule([*small, Task(**large, together=True)], 8, 4).seconds == 2.0
    assert schedule([Task(id="x", seconds=1.0, devices=3), Task(id="y", seconds=1.0, devices=5)], 8, 4).seconds == 1.0
    with pytest.raises(ValueError, match="large needs 4 devices"):
        schedule([Task(**large, together=True)], 3, 8)
    with pytest.raises(ValueError, match="waits for itself"):
        schedule([Task(id="a", seconds=1.0), Task(id="x", seconds=1.0, needs=("x",))], 3, 8)


def test_chunks_are_shared_as_the_queue_cuts_them() -> None:
    of = random.Random(0)
    for _ in range(200):
        items, size, workers = of.randint(1, 300), of.randint(1, 70), of.randint(1, 12)
        queue, busy = Queue(count=items, size=size), [0] * workers
        while (chunk := queue.take()) is not None:
            busy[busy.index(min(busy))] += len(chunk)
        assert evenly(items, size, workers) == max(busy)


def test_rows_are_dealt_as_a_training_deals_them() -> None:
    assert dealt_rows(Steps(n=1, batches=4, rows=8, trained=0), 4) == [8] * 4
    assert dealt_rows(Steps(n=1, batches=3, rows=8, trained=0), 4) == [6] * 4
    assert sorted(dealt_rows(Steps(n=1, batches=2, rows=1, trained=0), 4)) == [0, 0, 1, 1]
    for devices in range(1, 9):
        assert sum(dealt_rows(Steps(n=1, batches=3, rows=7, trained=0), devices)) == 21


def test_a_training_on_four_devices_by_hand() -> None:
    steps = Steps(n=100, batches=2, rows=3, trained=1e9, repeated=2e15)
    work = Work(flop=1e18, precision="bf16", memory=Memory(weights=2e9), shared=steps)
    alone, found = taken(work, H100, 1), taken(work, H100, 4)
    rate = 989e12 * 0.30
    assert (alone.work, alone.lost) == (1e18 / rate, dict.fromkeys(alone.lost, 0.0))
    assert found.start == alone.start == START_SECONDS + 2e9 / LOAD_BYTES_PER_SECOND
    # Of 6 rows, 2 micro-batches in 3 parts each, dealt to 4 devices: one of them has two.
    assert found.work + found.uneven == pytest.approx((1e18 - 2e15) / rate * 2 / 6)
    assert found.repeated == pytest.approx(2e15 / rate)
    assert found.messages == pytest.approx(100 * 4e9 * 1.5 / (LINKS["h100"] * 0.80))
    # No device hour is unaccounted for.
    assert 4 * found.seconds == pytest.approx(alone.seconds + sum(found.lost.values()))


def test_no_more_devices_than_rows_chunks_or_a_machine_can_use() -> None:
    assert can_share(Work(shared=Steps(n=1, batches=1, rows=3, trained=0)), H100) == 3
    assert can_share(Work(shared=Steps(n=1, batches=8, rows=8, trained=0)), H100) == 8
    assert can_share(Work(shared=Steps(n=1, batches=8, rows=8, trained=0)), DEVICES["cpu"]) == 1
    assert can_share(Work(shared=Chunks(items=1_000_000, size=64)), H100) == 15_625
    assert can_share(Work(flop=1.0), H100) == 1
    found = taken(Work(flop=1e18, shared=Chunks(items=100, size=64)), H100, 8)
    assert found.devices == 2
    assert found.work + found.uneven == pytest.approx(0.64 * H100.seconds(Work(flop=1e18)))


def test_memory_of_one_device() -> None:
    memory = Memory(weights=100.0, training=10.0, layers=4.0, activations=8.0, logits=4.0)
    even = Work(memory=memory, shared=Steps(n=1, batches=4, rows=8, trained=0))
    cut = Work(memory=memory, shared=Steps(n=1, batches=1, rows=8, trained=0))
    assert held_by_one(even, 4, shard=False) == 122.0
    assert held_by_one(cut, 4, shard=False) == 113.0
    assert held_by_one(cut, 4, shard=True) == 35.0
    assert held_by_one(Work(memory=memory), 1, shard=True) == 122.0
    assert held_by_one(Work(), 1, shard=False) is None


def toy(tmp_path: Path, *overrides: str):
    (tmp_path / "toy.yaml").write_text(toy_kinds.PLAN)
    return load_plan(tmp_path / "toy.yaml", rung="demo", overrides=overrides)


def test_a_plan_by_hand(tmp_path: Path) -> None:
    plan = toy(tmp_path, "train.shape.width=1e18", "evaluate.shape.width=1e18")
    found = scale(plan, (1, 2, 64), hourly_price=2.0)
    # As in tests/test_estimate.py: 2 FLOP x width x 3 steps x 10 items; train: 1, 1, 2, 2; evaluate: 1, 2.
    one = 2 * 1e18 * 3 * 10 / (67e12 * 0.30) / 3600
    hours = [point.hours for point in found.points]
    assert hours == pytest.approx([9 * one, 5 * one, 4 * one], rel=1e-4)
    assert [point.efficiency for point in found.points] == pytest.approx([1, 9 / 10, 9 / (64 * 4)], rel=1e-4)
    assert [point.price for point in found.points] == pytest.approx(
        [2 * 9 * one, 2 * 10 * one, 2 * 256 * one], rel=1e-4
    )
    assert found.unknown == {"data": (1, 1)}
    assert found.conditional == ("more",)
    assert found.half is not None
    assert found.half.devices == 5  # 9 / (4 x 5)
    assert max(found.half.lost.items(), key=lambda pair: pair[1])[0] == WAITING
    assert [stage for stage, _ in found.half.chain] == ["train", "evaluate"]


@pytest.mark.parametrize("study", ["squeeze", "tune", "wire"])
def test_device_hours_of_a_study_are_all_accounted_for(study: str) -> None:
    found = scale(load_plan(study, rung="hero"), (1, 3, 8, 100))
    alone = found.points[0].held
    for point in found.points:
        assert point.held == pytest.approx(alone + sum(point.lost.values()))
        assert point.used <= point.held * (1 + 1e-9)
        assert sum(hours for _, hours in point.chain) <= point.hours * (1 + 1e-9)
    assert found.half is not None
    assert found.half.efficiency < 0.5


def test_a_plan_without_estimates_has_no_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = toy(tmp_path)
    found = scale(whole.model_copy(update={"stages": whole.stages[:1], "gates": ()}))
    assert (found.points, found.half) == ((), None)
    assert found.unknown == {"data": (1, 1)}


def test_what_is_wrong_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(StepwellError, match="`cpu` is no device of which a machine has 8"):
        scale(load_plan("tune", rung="hero"), device="cpu")
    assert run(["scale", "tune", "--rung", "hero", "--gpus", "8,0"]) == 3
    assert "--gpus 8,0: expected numbers from 1 on" in capsys.readouterr().err


def shown_on_page() -> list[tuple[str, str]]:
    """(command, output) of every block of the page that begins with one."""
    return re.findall(r"^```text\n\$ stepwell ([^\n]*)\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.DOTALL)


def test_page_shows_every_study() -> None:
    studies = {shlex.split(command)[1] for command, _ in shown_on_page()}
    assert studies == {"thoughts", "imprint", "squeeze", "wire", "tune"}


@pytest.mark.parametrize(("command", "output"), shown_on_page(), ids=lambda text: text if "\n" not in text else "")
def test_page_shows_what_the_command_prints(command: str, output: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(shlex.split(command)) == 0
    printed = [line.rstrip() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert output.splitlines() == printed, "python benchmarks/scale_tables.py writes the page anew"
