"""The budget: runs stop before they pass it, go on to the same bytes, and count by no clock that can be set."""

from __future__ import annotations

import datetime
import functools
import json
import os
import random
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from stepwell.engine.inline import InlineEngine
from stepwell.errors import StepwellError
from stepwell.plan import Plan, dump_plan, jobs, load_plan
from stepwell.plan.check import checked
from stepwell.report.spending import spending_table
from stepwell.report.view import read_folder
from stepwell.runner import job_fingerprints, run, spent_hours, status
from stepwell.runner.budget import Watch, limit_hours
from stepwell.runner.spending import Meter, Spent
from stepwell.store import RunFolder
from toy import contents, drive, events_of, one_stage, started, toy_plan

SECOND = 1 / 3600


def timed(steps: int, seeds: tuple[int, ...] = (0, 1), **changes: Any) -> Plan:
    """Walks whose estimate is an hour for ten steps, times seed + 1."""
    stage = {"name": "walk", "kind": "toy.timed", "each": {"seed": list(seeds)}, "params": {"steps": steps}}
    return toy_plan(stages=[stage], gates=[], axes={}, workers=1, **changes)


def with_budget(plan: Plan, **budget: float) -> Plan:
    return Plan.model_validate({**plan.model_dump(mode="json"), "budget": budget})


def from_first_step(folder: Path, patch: pytest.MonkeyPatch, job: str = "") -> None:
    """Let the watch's clock stand until a job has written its first record: how long a worker starts is not tested."""
    began: list[float] = []

    def clock() -> float:
        if not began and not list((folder / "records").glob(f"{job}*.jsonl")):
            return 0.0
        began[:] = began or [time.monotonic()]
        return time.monotonic() - began[0]

    patch.setattr("stepwell.runner.walk.Watch", functools.partial(Watch, clock=clock))


def refusal(plan: Plan, folder: Path) -> StepwellError:
    with pytest.raises(StepwellError) as refused:
        run(plan, folder)
    assert refused.value.exit_code == 3
    return refused.value


# Stopping and going on


@pytest.mark.parametrize("engine", ["inline", "process"])
def test_a_run_stops_at_a_checkpoint_before_its_budget_and_goes_on(
    tmp_path: Path, engine: str, monkeypatch: pytest.MonkeyPatch
):
    plan = toy_plan(engine=engine, walk={"steps": 600, "save_every": 20}, axes={"seed": [0]}, threshold=0.0)
    folder = tmp_path / "run"
    folder.mkdir()
    RunFolder(folder).event("spent", device_seconds=0.0, stages={}, gaps={"walk": 3.0})
    with monkeypatch.context() as slow:
        slow.setenv("TOY_SECONDS_PER_STEP", "0.01")
        from_first_step(folder, slow)
        error = refusal(with_budget(plan, hours=6 * SECOND), folder)
    assert [event["job"] for event in events_of(folder, "job-stopped")] == ["walk.0"]
    assert len((folder / "records" / "walk.0.jsonl").read_text().splitlines()) % 20 == 0
    assert (folder / "checkpoints" / "walk.0" / "last.ckpt").exists()
    (told,) = events_of(folder, "budget")
    assert told["limit_hours"] == pytest.approx(6 * SECOND) and 1.9 * SECOND < told["spent_hours"] < 6 * SECOND
    assert told["undone"] == ["walk.0", "sum.0"] and told["left_hours"] is None
    assert error.path == folder and error.cause.startswith("the budget of 0.001667 device hours ends the run: 0.000")
    assert error.cause.endswith("are spent, how much is left to do is not known")
    assert error.way_out == (
        "Run the same command with a larger budget.hours: it goes on from where it stopped, nothing is lost."
    )
    assert [row.state for row in status(folder)] == ["stopped", "blocked"]
    assert run(with_budget(plan, hours=1), folder).decision == "go"
    assert len(events_of(folder, "job-restored")) == len(events_of(folder, "budget")) == 1
    run(plan.model_copy(update={"engine": "inline"}), tmp_path / "fresh")
    assert contents(folder) == contents(tmp_path / "fresh")


def test_a_job_without_a_checkpoint_in_time_is_ended_before_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    plan = one_stage("toy.walk", "process", steps=300, save_every=1000)
    folder = tmp_path / "run"
    with monkeypatch.context() as slow:
        slow.setenv("TOY_SECONDS_PER_STEP", "0.1")
        slow.setattr("stepwell.runner.budget.FLOOR_SHARE", 0.5)  # ended when a second is left: this machine is busy
        from_first_step(folder, slow)
        began = time.monotonic()
        refusal(with_budget(plan, hours=4 * SECOND), folder)
        assert time.monotonic() - began < 20, "the walk alone takes 30 s"
    assert [event["job"] for event in events_of(folder, "job-stopped")] == ["only"]
    assert events_of(folder, "spent")[-1]["device_seconds"] < 4.0
    plan = plan.model_copy(update={"engine": "inline"})
    run(plan, folder)
    run(plan, tmp_path / "fresh")
    assert contents(folder) == contents(tmp_path / "fresh")


def test_a_used_up_budget_starts_nothing_and_a_finished_run_needs_none(tmp_path: Path):
    folder = tmp_path / "run"
    first = run(one_stage("toy.walk"), folder)
    RunFolder(folder).event("spent", device_seconds=7200.0, stages={"only": 7200.0}, gaps={})
    small = with_budget(one_stage("toy.walk"), hours=1)
    assert run(small, folder) == first
    longer = with_budget(one_stage("toy.walk", steps=40), hours=1)
    error = refusal(longer, folder)
    assert error.cause == (
        "the budget of 1 device hours ends the run: 2 are spent, how much is left to do is not known"
    )
    assert started(folder) == ["only"]
    assert run(with_budget(longer, hours=3), folder).jobs == {"only": "done"}


def test_a_checkpoint_that_cannot_be_reached_is_not_begun_for(tmp_path: Path):
    folder = tmp_path / "run"
    plan = with_budget(one_stage("toy.walk"), hours=1)
    refusal(with_budget(one_stage("toy.walk"), hours=1e-9), folder)
    RunFolder(folder).event("spent", device_seconds=3000.0, stages={}, gaps={"only": 475.0})
    refusal(plan, folder)  # 600 s are left: 1.25 x 475 s, and the 10 s of the floor, are more
    assert started(folder) == []
    RunFolder(folder).event("spent", device_seconds=3000.0, stages={}, gaps={"only": 465.0})
    run(plan, folder)
    assert started(folder) == ["only"]


def test_a_job_is_not_begun_whose_estimate_passes_what_is_left(tmp_path: Path):
    folder = tmp_path / "run"
    error = refusal(with_budget(timed(20), hours=3), folder)  # estimated at 2 and at 4 hours
    assert started(folder) == ["walk.0"]
    assert re.fullmatch(
        r"the budget of 3 device hours ends the run: \S+ are spent, about 4 are left to do"
        r"; walk\.1 alone is estimated at 4",
        error.cause,
    )
    assert error.way_out.startswith("Run the same command with budget.hours=7 or more: it goes on")
    assert run(with_budget(timed(20), hours=7), folder).jobs == {"walk.0": "done", "walk.1": "done"}


def test_a_price_is_a_budget_in_hours_and_the_smaller_one_counts(tmp_path: Path):
    plan = timed(20, hourly_price=2.5, currency="EUR")
    assert limit_hours(plan) is None
    assert limit_hours(with_budget(plan, hours=3, price=5)) == 2
    assert limit_hours(with_budget(plan, hours=1, price=5)) == 1
    error = refusal(with_budget(plan, hours=5, price=6), tmp_path / "run")  # of 2 + 4 h, 2.4 h are paid for
    assert error.cause.startswith("the budget of 6 EUR ends the run: ") and "about 10 are left to do" in error.cause
    assert "with budget.hours=6.4 or more and budget.price=16 or more:" in error.way_out


def test_what_a_checkpoint_holds_is_not_estimated_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "run"
    plan = timed(500, seeds=(0,))  # estimated at 50 hours
    refusal(with_budget(plan, hours=49), folder)
    assert started(folder) == []
    with monkeypatch.context() as slow:
        slow.setenv("TOY_SECONDS_PER_STEP", "0.01")
        slow.setattr("stepwell.runner.budget.hours_alone", lambda plan: {})
        from_first_step(folder, slow, job="walk.0")
        refusal(with_budget(plan, hours=2 * SECOND), folder)
    told = events_of(folder, "progress")[-1]
    left = 50 * (1 - told["done"] / told["total"])
    assert 0 < left < 50
    error = refusal(with_budget(plan, hours=left - 0.01), folder)
    assert f"about {left:.3g} are left to do" in error.cause
    assert run(with_budget(plan, hours=left + 0.01), folder).jobs == {"walk.0": "done"}


def test_the_budget_is_no_part_of_a_job_or_of_the_policy(tmp_path: Path):
    plan = toy_plan()
    paid = with_budget(plan, hours=2)
    assert job_fingerprints(plan, jobs(plan)) == job_fingerprints(paid, jobs(paid))
    run(plan, tmp_path / "run")
    policy = (tmp_path / "run" / "policy.json").read_bytes()
    run(paid, tmp_path / "run")
    assert (tmp_path / "run" / "policy.json").read_bytes() == policy
    assert started(tmp_path / "run") == ["walk.0", "walk.1", "sum.0", "sum.1"]


# Plans


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["budget.price=5"], "budget.price: hours cannot be told from a price: `hourly_price` is not given"),
        (["budget.price=5", "hourly_price=0"], "cannot be told from a price: `hourly_price` is 0"),
        (["budget.hours=0"], "budget.hours: must be greater than 0"),
        (["budget.price=-1", "hourly_price=2"], "budget.price: must be greater than 0"),
        (["budget={}"], "a budget has `hours`, `price` or both"),
        (["budget.days=2"], "unknown key `budget.days`"),
    ],
)
def test_a_budget_that_limits_nothing_is_refused(tmp_path: Path, overrides: list[str], text: str):
    (tmp_path / "plan.yaml").write_text(dump_plan(toy_plan()))
    with pytest.raises(StepwellError) as refused:
        load_plan(tmp_path / "plan.yaml", overrides=overrides)
    assert text in str(refused.value)


def test_a_budget_is_given_on_the_command_line_and_taken_away(tmp_path: Path):
    path = tmp_path / "plan.yaml"
    path.write_text(dump_plan(toy_plan()))
    plan = load_plan(path, overrides=["budget.hours=2", "budget.price=4.5", "hourly_price=2"])
    assert plan.budget is not None and (plan.budget.hours, plan.budget.price) == (2, 4.5)
    path.write_text(dump_plan(plan))
    assert load_plan(path) == plan and load_plan(path, overrides=["budget=null"]).budget is None


# What is counted


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("engine", ["process", "ray"])
def test_the_meter_gives_what_adding_up_moments_gives(engine: str):
    plan = toy_plan(engine=engine, devices=4)
    rng, clock = random.Random(20), Clock()
    meter = Meter(plan, Spent(device_seconds=50.0, stages={"a": 30.0}), clock)
    held: dict[str, tuple[str, int]] = {}
    total, stages = 50.0, {"a": 30.0}
    for turn in range(200):
        seconds = rng.randrange(1, 9)
        for _ in range(seconds):  # second by second
            devices = sum(number for _, number in held.values())
            rate = 4 if engine == "process" else devices
            total += rate
            for stage, number in held.values():
                stages[stage] = stages.get(stage, 0.0) + rate * number / devices
        clock.now += seconds
        if held and rng.random() < 0.5:
            meter.end(gone := rng.choice(sorted(held)))
            del held[gone]
        else:
            held[f"job{turn}"] = (rng.choice("abc"), rng.choice([1, 4]))
            meter.begin(f"job{turn}", *held[f"job{turn}"])
    assert meter.device_seconds() == pytest.approx(total)
    assert meter.stages() == pytest.approx(stages)


def test_a_job_that_queues_for_its_devices_holds_none(tmp_path: Path):
    plan, clock = with_budget(toy_plan(engine="ray", devices=2), hours=0.1), Clock()
    folder = RunFolder(tmp_path)
    (tmp_path / "jobs").mkdir()
    job = jobs(plan)[0]
    engine = InlineEngine()
    with Watch(checked(plan), folder, engine, clock) as watch:
        assert watch.may_begin(job, 2)
        watch.begun(job, 2)
        clock.now += 1000.0
        with folder.job_lock(job.id):
            time.sleep(1.2)  # a look
            clock.now += 100.0
            time.sleep(1.2)
            assert not watch.asked
            clock.now += 74.0  # 2 devices for 174 s: 6 s are left, less than the floor of 9 s
            deadline = time.monotonic() + 5
            while not watch.asked and time.monotonic() < deadline:
                time.sleep(0.05)
        assert watch.asked and not watch.over and not watch.may_begin(job, 2)
        watch.ended(job)
        clock.now += 5000.0
    assert events_of(tmp_path, "spent")[-1]["device_seconds"] == pytest.approx(348.0)


def test_clocks_that_are_set_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class Jumping(datetime.datetime):
        """A system clock that jumps by years, forward and back, at each look."""

        jumps = random.Random(3)

        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.datetime(2020 + cls.jumps.randrange(20), 1, 1, tzinfo=tz)

    monkeypatch.setattr("stepwell.store.events.datetime.datetime", Jumping)
    monkeypatch.setattr(time, "time", lambda: float(Jumping.jumps.randrange(10**9)))
    plan = with_budget(one_stage("toy.walk", steps=100), hours=1)
    began = time.monotonic()
    for steps in (100, 101):
        run(with_budget(one_stage("toy.walk", steps=steps), hours=1), tmp_path / "run")
    took = time.monotonic() - began
    spent = spent_hours(tmp_path / "run")
    assert len({event["time"][:4] for event in events_of(tmp_path / "run", "job-done", "spent")}) > 1
    assert spent is not None and 0 < 3600 * spent <= took
    assert limit_hours(plan) == 1 and started(tmp_path / "run") == ["only"] * 2


def test_a_killed_run_counts_to_its_last_word_and_the_next_goes_on_from_there(tmp_path: Path):
    folder = tmp_path / "run"
    plan = one_stage("toy.walk", steps=200, save_every=5)
    with drive(plan, folder, seconds_per_step=0.05) as process:
        deadline = time.monotonic() + 20
        while not events_of(folder, "spent") and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    before = events_of(folder, "spent")[-1]
    assert before["device_seconds"] >= 1.0 and before["stages"]["only"] > 0.5
    run(plan, folder)
    after = events_of(folder, "spent")[-1]
    assert after["device_seconds"] > before["device_seconds"] and after["stages"]["only"] > before["stages"]["only"]


# What is shown


def test_the_report_sets_the_estimate_against_what_was_held(tmp_path: Path):
    stages = [
        {"name": "walk", "kind": "toy.timed", "each": {"seed": [0, 1]}, "params": {"steps": 20}},
        {"name": "other", "kind": "toy.walk"},
        {"name": "far", "kind": "toy.timed", "needs": ["walk"], "params": {"steps": 90}},
    ]
    plan = toy_plan(stages=stages, gates=[], axes={}, workers=1, hourly_price=1000.0)
    folder = tmp_path / "run"
    refusal(with_budget(plan, hours=8), folder)  # `far` alone takes 9
    spent = events_of(folder, "spent")[-1]
    table = spending_table(read_folder(folder))
    assert table is not None
    walk, other, far, whole = ([cell.text for cell in row.cells] for row in table.rows)
    held = spent["stages"]["walk"] / 3600
    assert walk[:2] == ["walk", "6"] and float(walk[2]) == pytest.approx(held, rel=0.02)
    assert float(walk[3]) == pytest.approx(held / 6, rel=0.02)
    assert walk[4] == (f"{1000 * held:.2f}" if 1000 * held >= 0.01 else "less than 0.01")
    assert other[:2] == ["other", "\u2013"] and other[3] == "\u2013" and other[2] != "\u2013"
    assert far == ["far", "9", "\u2013", "\u2013", "\u2013"]
    assert whole[:2] == ["the run", "15"] and whole[3] == "\u2013"
    whys = {row.cells[0].text: [cell.why for cell in row.cells[1:]] for row in table.rows}
    assert whys["other"][0] == "its kind gives no estimate" and whys["far"][1] == "it has not run"
    assert whys["the run"][2] == "not all of its jobs are done"
    run(with_budget(plan, hours=30), folder)
    whole = spending_table(read_folder(folder)).rows[-1].cells  # pyright: ignore[reportOptionalMemberAccess]
    total = events_of(folder, "spent")[-1]["device_seconds"] / 3600
    assert float(whole[3].text) == pytest.approx(total / 15, rel=0.02)


def test_an_old_log_gives_dashes_with_reasons(tmp_path: Path):
    folder = tmp_path / "run"
    run(timed(20), folder)
    kept = [event for event in events_of(folder, "estimate", "job-started", "job-done")]
    old = [{key: value for key, value in event.items() if key != "stages"} for event in kept]
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in old))
    table = spending_table(read_folder(folder))
    assert table is not None and spent_hours(folder) is None
    for row in table.rows[:-1]:
        assert [cell.why for cell in row.cells[1:3]] == [
            "no estimate of stages was logged",
            "the log does not say what was held",
        ]
    assert table.rows[-1].cells[1].text == "6"
    (folder / "events.jsonl").write_text("")
    assert spending_table(read_folder(folder)) is None
