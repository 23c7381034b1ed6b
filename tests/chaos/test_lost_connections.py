"""Trackers and endpoints that are lost in the middle of a run, and that come back or do not."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from alone import Study
from flaky import Line, line
from forks import Forks, Tail, held_locks, until
from tiny import events, records
from tune_answers import asked_at, data_stage, open_file, plan_of, recorded, stage
from wholeness import check_same, check_whole, unfinished

from fake_endpoint import own_environment, serving
from stepwell.plan import Plan

__all__ = ["own_environment"]

pytestmark = pytest.mark.slow
REQUESTS = 12


# ---- trackers


@pytest.mark.parametrize("lasts", [0, 7], ids=["never reached", "lost in the middle"])
def test_a_lost_tracker_changes_no_record(warm: Forks, study: Callable[[str], Study], lasts: int) -> None:
    """Killed once as well: what goes on asks the tracker anew."""
    alone = study("thoughts")
    params = {stage.name: stage.params for stage in alone.plan.stages}["train"] | {"trackers": ["wandb"]}
    stages = [
        stage.model_copy(update={"params": params}) if stage.name == "train" else stage for stage in alone.plan.stages
    ]
    plan = alone.plan.model_copy(update={"stages": tuple(stages)})
    folder, trained = alone.fresh(), ("train.cot.0", "train.continuous.0")
    lost = {"tracker": {"name": "wandb", "lasts": lasts}}
    tail, attempt = Tail(folder), warm.begin(plan, folder, lost)
    assert until(lambda: tail.saw("tracker-failed", trained[0]), attempt)
    attempt.kill()
    warm.run(plan, folder, lost)
    check_same(folder, alone.whole)
    assert unfinished(folder) == [] and held_locks(folder) == []
    told = events(folder, "tracker-failed")
    assert {each["job"] for each in told} == ({*trained} if lasts == 0 else {each["job"] for each in told})
    assert {(each["tracker"], each["error"]) for each in told} == {("wandb", "ConnectionError: the tracker is gone")}
    assert max(Counter(each["job"] for each in told).values()) <= 2, "once a session"


# ---- a judge, and a model that is compared with


def asking(here: Path, port: int, **options: Any) -> Plan:
    """A reference behind an endpoint, and a judge who compares its answers with recorded ones."""
    here.mkdir(exist_ok=True)
    n = REQUESTS
    return plan_of(
        data_stage(here, {"talk": {"kind": "open", "file": str(open_file(here / "o.jsonl", n))}}),
        stage("ours", "reference", ["data"],
              source=recorded(here / "ours.jsonl", {f"o{i}": f"Hi {i}." for i in range(n)}, "we")),
        stage("theirs", "reference", ["data"], source=asked_at(port, model="teacher", **options)),
        stage("versus", "versus", ["data", "ours", "theirs"], ours="ours", theirs="theirs",
              judge=asked_at(port, model="judge", **options)),
    )  # fmt: skip


def answer(request: dict[str, Any]) -> str:
    """The same to the same question, whenever it is asked."""
    asked = request["messages"][-1]["content"]
    number = sum(asked.encode())
    return f"Good day {number}." if request["model"] == "teacher" else f"[[{'ABC'[number % 3]}]]"


@pytest.fixture
def led() -> Any:
    """A line, and the server that it leads to."""
    with line() as connection, serving(answer) as server:
        connection.to = server.port
        yield connection, server


def undisturbed(warm: Forks, plan: Plan, here: Path) -> Path:
    """A run whose line holds, moved away."""
    warm.run(plan, here / "run")
    return (here / "run").rename(here / "whole")


def test_answers_that_are_cut_are_asked_for_again(warm: Forks, led: tuple[Line, Any], tmp_path: Path) -> None:
    connection, _ = led
    plan = asking(tmp_path, connection.port, retries=8)
    whole = undisturbed(warm, plan, tmp_path)
    rng, cuts = random.Random(4), []

    def cut(number: int) -> int | None:
        """Before the answer, in its header, or in its body."""
        allowed = rng.choice((0, 40, 200, None, None, None, None))
        cuts.extend([number] if allowed is not None else [])
        return allowed

    connection.cut = cut
    warm.run(plan, tmp_path / "run")
    check_same(tmp_path / "run", whole)
    assert len(cuts) >= 3, "no connection was cut: the test tests nothing"


@pytest.mark.parametrize("job", ["theirs", "versus"])
def test_an_endpoint_that_stays_away_ends_the_run_and_comes_back(
    warm: Forks, led: tuple[Line, Any], tmp_path: Path, job: str
) -> None:
    connection, server = led
    plan = asking(tmp_path, connection.port, retries=2)
    whole = undisturbed(warm, plan, tmp_path)
    before = len(server.asked)
    assert before == 3 * REQUESTS
    lives = {"theirs": REQUESTS // 2, "versus": 2 * REQUESTS}[job]
    connection.cut = lambda number: 0 if len(server.asked) - before >= lives else None
    folder = tmp_path / "run"
    attempt = warm.begin(plan, folder)
    assert attempt.wait() == 4
    said = attempt.said()
    assert f"http://127.0.0.1:{connection.port}/v1 failed 3 times in a row: it cannot be reached (" in said
    assert f"stage {job}: " in said and "Way out: see that it is up, and run again: what it answered is kept" in said
    assert "Traceback" not in said and said.count("stepwell: ") == 1
    check_whole(folder, plan)
    assert held_locks(folder) == [] and not (folder / "jobs" / f"{job}.json").exists()

    connection.cut = lambda number: None
    kept = {json.dumps(one["messages"]) for one in server.asked[before:]}
    asked = len(server.asked)
    warm.run(plan, folder)
    check_same(folder, whole)
    assert unfinished(folder) == []
    again = [one for one in server.asked[asked:] if json.dumps(one["messages"]) in kept]
    assert len(again) <= 1, "only what was on its way is asked again"
    (told,) = records(folder, "versus", "judge")
    assert told["pairs"] == REQUESTS
