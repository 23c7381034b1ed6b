"""References of `tune`: answers from a file, an endpoint or a model here; and nothing is asked twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tiny import records, write_plan
from tiny_wire import wire_model
from tune_answers import asked_at, data_stage, maths_file, open_file, plan_of, recorded, stage

from fake_endpoint import completion, own_environment, serving
from stepwell.grading.records import read_result
from stepwell.plan import load_plan
from stepwell.runner import run

__all__ = ["own_environment"]

SOURCE = Path(__file__).resolve().parents[2] / "src"


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One benchmark answered from a file, by endpoints that are silent once or cut off, and by a model here."""
    here = tmp_path_factory.mktemp("references")

    def reply(request: Any) -> str:
        (asked,) = request["messages"]
        assert asked["role"] == "user" and asked["content"].endswith("\nEnd with ####.")
        return {"Box 0": "<think>9</think>#### 0", "Box 1": " "}.get(asked["content"][:5], "It is 5.")

    wrote = recorded(here / "old.jsonl", {"m2": "2 nuts", "m0": "7", "x": "of another set", "m1": "1"}, "old model")
    model = {"kind": "model", "model": str(wire_model(here / "tiny")), "max_tokens": 4, "retries": 0}
    with serving(reply) as server, serving(completion("It is", finish="length")) as short:
        plan = plan_of(
            data_stage(here, {"maths": {"kind": "gsm8k", "file": str(maths_file(here / "m.jsonl", 3))}},
                       ask="\nEnd with ####."),
            stage("file", "reference", ["data"], source=wrote),
            stage("endpoint", "reference", ["data"], source=asked_at(server.port, retries=0)),
            stage("model", "reference", ["data"], source=model),
            stage("cut", "reference", ["data"], source=asked_at(short.port, retries=0)),
        )  # fmt: skip
        run(plan, here / "run")
        assert len(server.asked) == 3
    return here / "run"


def test_recorded_answers_are_marked(references: Path) -> None:
    rows = {row["id"]: row for row in records(references, "file", "item")}
    assert {name: row["status"] for name, row in rows.items()} == {"m0": "wrong", "m1": "right", "m2": "right"}
    assert rows["m2"]["prediction"] == "2 nuts" and rows["m2"]["stop"] == ""
    (told,) = records(references, "file", "result")
    assert (told["model"], told["n"], told["accuracy"], told["by"]) == ("old model", 3, 2 / 3, None)
    assert [row["passed"] for row in records(references, "file", "check")] == [True]


def test_an_endpoint_that_does_not_answer_is_not_wrong(references: Path) -> None:
    rows = {row["id"]: row for row in records(references, "endpoint", "item")}
    assert {name: row["status"] for name, row in rows.items()} == {"m0": "right", "m1": "unanswered", "m2": "wrong"}
    assert rows["m0"]["prediction"] == "#### 0", "without its thinking"
    assert rows["m1"]["correct"] is None and "it is empty" in rows["m1"]["why"]
    (told,) = records(references, "endpoint", "result")
    assert (told["n"], told["accuracy"], told["unmarked"]) == (2, 0.5, 1)
    assert "1 of 3 answers could not be marked (unanswered 1)" in told["warning"]
    (check,) = records(references, "endpoint", "check")
    assert not check["passed"] and "1 of 3 items have no answer: no usable answer in 1 try" in check["detail"]


def test_how_the_answers_of_a_reference_end_is_recorded(references: Path) -> None:
    told = {name: records(references, name, "result")[0] for name in ("file", "endpoint", "model", "cut")}
    ends = {name: {row["stop"] for row in records(references, name, "item")} for name in told}
    assert (told["file"]["cut"], told["file"]["stops_warning"], ends["file"]) == (None, None, {""})
    assert (told["endpoint"]["cut"], told["endpoint"]["stops_warning"], ends["endpoint"]) == (0, "", {"end"})
    assert (told["cut"]["cut"], told["cut"]["looping"], ends["cut"]) == (1, None, {"length"})
    assert told["cut"]["stops_warning"].startswith("3 of 3 answers (100%) were cut off by a limit")
    # Four tokens are no whole answer of a model of random weights.
    assert told["model"]["cut"] == 1 and ends["model"] == {"length"}


def test_a_model_here_answers_under_the_same_items_and_scorer(references: Path) -> None:
    found = {name: read_result(references / f"artifacts/{name}/maths.jsonl") for name in ("file", "endpoint", "model")}
    assert len({one.protocol for one in found.values()}) == 1 and found["file"].protocol.template == "elsewhere"
    assert found["model"].model.endswith("tiny") and len(found["model"].records) == 3
    assert len(list((references / "artifacts/model/asked").glob("*.json"))) == 3
    assert len(records(references, "model", "item")) == 3


# ---- killed and gone on


def begun(plan: Path) -> subprocess.Popen[str]:
    """The run in a process of its own."""
    command = [sys.executable, "-m", "stepwell", "run", str(plan), "--out", str(plan.parent / "run"), "--quiet"]
    return subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, cwd=plan.parent,
    )  # fmt: skip


def test_killed_and_gone_on_nothing_is_asked_twice(tmp_path: Path) -> None:
    """Killed while a reference answers, and again while a judge does: only what was then on its way is asked again."""
    asked: list[tuple[str, str]] = []
    deaths = {("teacher", 2): "alive", ("judge", 3): "alive"}
    running: list[subprocess.Popen[str]] = []

    def reply(request: Any) -> str:
        who = request["model"]
        asked.append((who, request["messages"][-1]["content"]))
        number = len([one for one in asked if one[0] == who])
        if deaths.get((who, number)) == "alive":
            deaths[who, number] = "killed"
            running[-1].kill()
            running[-1].wait()
        return "[[C]]" if who == "judge" else f"Good day {len(asked)}."

    with serving(reply) as server:
        plan = plan_of(
            data_stage(tmp_path, {"talk": {"kind": "open", "file": str(open_file(tmp_path / "o.jsonl", 3))}}),
            stage("ours", "reference", ["data"],
                  source=recorded(tmp_path / "ours.jsonl", {f"o{i}": f"Hi {i}." for i in range(3)}, "we")),
            stage("theirs", "reference", ["data"], source=asked_at(server.port, model="teacher")),
            stage("versus", "versus", ["data", "ours", "theirs"], ours="ours", theirs="theirs",
                  judge=asked_at(server.port, model="judge")),
        )  # fmt: skip
        file = write_plan(plan, tmp_path / "plan.yaml")
        for who in ("teacher", "judge"):
            running.append(begun(file))
            running[-1].communicate(timeout=200)
            assert asked[-1][0] == who and running[-1].returncode == -signal.SIGKILL
            assert not (tmp_path / "run/jobs" / ("theirs.json" if who == "teacher" else "versus.json")).exists()
        run(load_plan(str(file)), tmp_path / "run")
    assert set(deaths.values()) == {"killed"}
    times = Counter(asked)
    again = [one for one, n in times.items() if n == 2]
    assert len(times) == 3 + 6 and sorted(who for who, _ in again) == ["judge", "teacher"] and max(times.values()) == 2
    assert len(records(tmp_path / "run", "theirs", "item")) == 3, "no record of the run that was killed is left"
    (told,) = records(tmp_path / "run", "versus", "judge")
    assert (told["pairs"], told["unparsed"]) == (3, 0)
    run(load_plan(str(file)), tmp_path / "run")
    assert sum(times.values()) == len(asked), "a run that is done asks nothing"
