"""Generated programs graded in the real sandbox: what a limit ended is no wrong answer, and nobody's win."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tiny import records
from tiny_wire import wire_model
from tune_answers import data_stage, plan_of, recorded, stage, write_lines

from sandbox_means import need_sandbox
from stepwell.errors import StageFailed
from stepwell.grading.records import read_result
from stepwell.plan import Plan
from stepwell.runner import run
from stepwell.sandbox import Limits, check, execute
from stepwell.sandbox.check import PROBES, Probe

SECONDS = 3.0
BODIES = {"twice": "return 2 * x", "square": "return x * x", "minus": "return -x"}
VALUES = {"twice": (-6, 0, 10), "square": (9, 0, 25), "minus": (3, 0, -5)}
"""At -3, 0 and 5."""
LOOP = "    while True:\n        pass\n"


def problem(name: str, body: str) -> dict[str, Any]:
    """One in HumanEval's format."""
    known = zip((-3, 0, 5), VALUES[name], strict=True)
    values = "".join(f"    assert candidate({x}) == {y}\n" for x, y in known)
    return {
        "task_id": f"Made/{name}", "entry_point": name, "test": f"def check(candidate):\n{values}",
        "prompt": f'def {name}(x: int) -> int:\n    """The {name} of x."""\n', "canonical_solution": f"    {body}\n",
    }  # fmt: skip


@pytest.fixture(scope="module")
def graded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three problems: one side is right, wrong and does not end; the other right, right and right."""
    need_sandbox()
    here = tmp_path_factory.mktemp("code")
    file = write_lines(here / "problems.jsonl", [problem(name, body) for name, body in BODIES.items()])
    right = {f"Made/{name}": f"    {body}\n" for name, body in BODIES.items()}
    ours = right | {"Made/square": "```python\ndef square(x):\n    return x + x\n```", "Made/minus": LOOP}
    with pytest.MonkeyPatch.context() as patch:
        # The stage takes the sandbox's own limits, of which a test need not wait for the longest.
        patch.setattr("stepwell.sandbox.execute", partial(execute, limits=Limits(seconds=SECONDS)))
        run(
            plan_of(
                data_stage(here, {"code": {"kind": "humaneval", "file": str(file)}}),
                stage("ours", "reference", ["data"], source=recorded(here / "ours.jsonl", ours, "we")),
                stage("theirs", "reference", ["data"], source=recorded(here / "theirs.jsonl", right, "they")),
                stage("versus", "versus", ["data", "ours", "theirs"], ours="ours", theirs="theirs", bands=True),
            ),
            here / "run",
        )
    return here / "run"


def test_right_wrong_and_without_end(graded: Path) -> None:
    rows = {row["id"]: row for row in records(graded, "ours", "item")}
    assert {name: (row["status"], row["correct"]) for name, row in rows.items()} == {
        "Made/twice": ("right", True), "Made/square": ("wrong", False), "Made/minus": ("timeout", None),
    }  # fmt: skip
    assert rows["Made/minus"]["why"] == f"not done after {SECONDS:g} s"
    assert {row["status"] for row in records(graded, "theirs", "item")} == {"right"}
    assert {row["category"] for row in rows.values()} == {"code"}


def test_a_limit_is_no_wrong_answer(graded: Path) -> None:
    (told,) = records(graded, "ours", "result")
    assert (told["n"], told["accuracy"], told["unmarked"]) == (2, 0.5, 1)
    assert told["warning"].startswith("1 of 3 answers could not be marked (timeout 1)")
    assert read_result(graded / "artifacts/ours/code.jsonl").protocol.scorer == "code-tests/1"


def test_what_a_limit_ended_is_undecided(graded: Path) -> None:
    outcomes = {row["id"]: (row["outcome"], row["by"]) for row in records(graded, "versus", "match")}
    assert outcomes == {
        "Made/twice": ("tie", "truth"), "Made/square": ("loss", "truth"), "Made/minus": ("undecided", "none"),
    }  # fmt: skip
    bands = {row["outcome"]: row for row in records(graded, "versus", "band")}
    assert bands.keys() == {"win", "tie"} and bands["win"]["n"] == 3, "shares are of all items"


CLEAN = {
    "sandbox-holds": (True, "20 probes, none got out"),
    "references-pass": (True, "3 of 3 reference solutions pass"),
}


def checks(folder: Path, job: str) -> dict[str, tuple[bool, str]]:
    return {row["name"]: (row["passed"], row["detail"]) for row in records(folder, job, "check")}


def test_both_controls_run_before_code_is_executed(graded: Path) -> None:
    assert {name: told for name, told in checks(graded, "ours").items() if name in CLEAN} == CLEAN
    kinds = [row["kind"] for row in records(graded, "ours")]
    assert kinds[:2] == ["check", "check"] and "item" in kinds[2:]


def of_recorded(here: Path, *, broken: tuple[str, ...] = ()) -> Plan:
    """Recorded right answers to the three problems, of which some have a broken reference solution."""
    problems = [problem(name, "return None" if name in broken else body) for name, body in BODIES.items()]
    file = write_lines(here / "problems.jsonl", problems)
    right = {f"Made/{name}": f"    {body}\n" for name, body in BODIES.items()}
    return plan_of(
        data_stage(here, {"code": {"kind": "humaneval", "file": str(file)}}),
        stage("ours", "reference", ["data"], source=recorded(here / "ours.jsonl", right, "we")),
    )


def test_a_broken_reference_solution_is_named(tmp_path: Path) -> None:
    need_sandbox()
    run(of_recorded(tmp_path, broken=("square",)), tmp_path / "run")
    passed, detail = checks(tmp_path / "run", "ours")["references-pass"]
    assert not passed and detail.startswith("2 of 3 reference solutions pass; not Made/square (failed: AssertionError")
    assert {row["status"] for row in records(tmp_path / "run", "ours", "item")} == {"right"}


def test_a_sandbox_that_leaks_executes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: a probe whose program says that it reached something."""
    need_sandbox()
    monkeypatch.setattr(Probe, "code", lambda self: "def escape(arena):\n    return 'the moon'\n")
    monkeypatch.setattr(check.check, "__defaults__", (PROBES[:1],))
    executed: list[Any] = []
    monkeypatch.setattr("stepwell.sandbox.execute", executed.append)
    with pytest.raises(StageFailed, match="ours: the sandbox does not hold: network: AssertionError: the moon"):
        run(of_recorded(tmp_path), tmp_path / "run")
    assert executed == [] and not (tmp_path / "run/jobs/ours.json").exists()
    assert checks(tmp_path / "run", "ours").keys() == {"sandbox-holds"}
    assert not checks(tmp_path / "run", "ours")["sandbox-holds"][0]


def test_a_model_that_is_graded_on_code_is_controlled_first(tmp_path: Path) -> None:
    need_sandbox()
    file = write_lines(tmp_path / "problems.jsonl", [problem(name, body) for name, body in BODIES.items()])
    source = {"code": {"kind": "humaneval", "file": str(file)}}
    run(
        plan_of(
            data_stage(tmp_path, source), stage("model", "model", name=str(wire_model(tmp_path / "tiny"))),
            stage("before", "grade", ["data", "model"], decoding={"max_tokens": 2}),
        ),
        tmp_path / "run",
    )  # fmt: skip
    assert checks(tmp_path / "run", "before") == CLEAN
    assert len(records(tmp_path / "run", "before", "item")) == 3
