"""Generated programs graded in the real sandbox: what a limit ended is no wrong answer, and nobody's win."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny import records
from tiny_wire import wire_model
from tune_answers import TEACHES, data_stage, maths_file, plan_of, recorded, stage, write_lines

from sandbox_means import need_sandbox
from stepwell.errors import StageFailed
from stepwell.grading.decoding import Writer, Written
from stepwell.grading.mining import read_failures
from stepwell.grading.protocol import Decoding
from stepwell.grading.records import read_result
from stepwell.plan import Plan
from stepwell.runner import run
from stepwell.sandbox import Limits, check, execute
from stepwell.sandbox.check import PROBES, Probe
from stepwell.sft.render import ChatFormat
from stepwell.stage import StageContext
from stepwell.studies.tune import mining
from stepwell.studies.tune.grading import opened
from stepwell.studies.tune.params import AnsweringParams

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


# ---- mined failures


TASKS = {11: "Give half of x.", 601: "Give twice x.", 602: "Give the square of x.", 603: "Give x with its sign turned."}
OF_TASK = {11: "half", 601: "twice", 602: "square", 603: "minus"}
HALF = {"half": ("return x // 2", 2)}


def task(number: int, text: str, name: str, body: str, at_five: int) -> dict[str, Any]:
    """One in MBPP's format."""
    return {"task_id": number, "text": text, "code": f"def {name}(x):\r\n    {body}\r\n",
            "test_list": [f"assert {name}(5) == {at_five}"], "test_setup_code": ""}  # fmt: skip


def tasks_file(path: Path) -> Path:
    """MBPP with one item of its test split, which item 604 of its training split has the words of, and 601 to 603."""
    known = HALF | {name: (body, VALUES[name][2]) for name, body in BODIES.items()}
    rows = [task(number, text, OF_TASK[number], *known[OF_TASK[number]]) for number, text in TASKS.items()]
    return write_lines(path, [*rows, {**rows[0], "task_id": 604}])


@dataclass
class Scripted:
    """In the place of the model: twice is right, the square wrong, and what turns the sign does not end."""

    form: ChatFormat
    prompts: list[str]
    name: str = "scripted"

    def write(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], decoding: Decoding) -> list[Written]:
        said = {TASKS[601]: "def twice(x):\n    return x + x", TASKS[602]: "def square(x):\n    return 2 * x",
                TASKS[603]: f"def minus(x):\n{LOOP}"}  # fmt: skip
        texts = [self.form.decode(prompt) for prompt in prompts]
        self.prompts += texts
        return [Written(text=next(code for asked, code in said.items() if asked in text), stop="end", tokens=9)
                for text in texts]  # fmt: skip


@pytest.fixture(scope="module")
def mined(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Failures of code and of maths out of one training set, and what the model was asked."""
    need_sandbox()
    here, prompts = tmp_path_factory.mktemp("mined"), list[str]()
    file, maths = tasks_file(here / "mbpp.jsonl"), maths_file(here / "m.jsonl", 2)
    source = {"kind": "mixed", "of": [{"kind": "mbpp", "file": str(file)}, {"kind": "gsm8k", "file": str(maths)}]}

    def instead(params: AnsweringParams, ctx: StageContext) -> tuple[Writer, ChatFormat]:
        by, form = opened(params, ctx)
        code = Scripted(form, prompts)
        only = SimpleNamespace(
            name="scripted",
            write=lambda asked, *rest: (by if "nuts" in form.decode(asked[0]) else code).write(asked, *rest),
        )
        return only, form

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stepwell.sandbox.execute", partial(execute, limits=Limits(seconds=SECONDS)))
        patch.setattr(mining, "opened", instead)
        run(
            plan_of(
                stage(
                    "data", "data", source=source, benchmarks={"mbpp": {"kind": "mbpp", "file": str(file)}}, n_held=0
                ),
                stage("model", "model", name=str(wire_model(here / "tiny"))),
                stage("mine", "mine", ["data", "model"], decoding={"max_tokens": 2}),
                stage("lint", "lint", ["data", "model", "mine"], max_tokens=400, replay=0),
            ),
            here / "run",
        )
    return here / "run", prompts


def test_failures_of_code_are_executed_losses_only(mined: tuple[Path, list[str]]) -> None:
    folder, _ = mined
    rows = {row["id"]: row["status"] for row in records(folder, "mine", "item") if row["category"] == "code"}
    assert rows == {"MBPP/601": "right", "MBPP/602": "wrong", "MBPP/603": "timeout"}
    failures = {one.id: one for one in read_failures(folder / "artifacts/mine/failures.jsonl")}
    assert failures.keys() == {"MBPP/602", "m0", "m1"}, "what a limit ended is no failure"
    one = failures["MBPP/602"]
    assert (one.category, one.wrong) == ("code", "def square(x):\n    return 2 * x") and "AssertionError" in one.why
    assert one.reference == "def square(x):\n    return x * x\n" and one.prompt.startswith(TASKS[602])
    told = {row["benchmark"]: (row["n"], row["failures"]) for row in records(folder, "mine", "mined")}
    assert told == {"pool": (2, 2), "pool-code": (3, 1)}
    (linted,) = records(folder, "lint", "linted")
    assert linted["n"] == 3 and records(folder, "lint", "check")[0]["passed"]


def test_items_of_a_benchmark_are_never_mined(mined: tuple[Path, list[str]]) -> None:
    """Planted: a problem of the training split in the words of one that is graded."""
    folder, prompts = mined
    assert len(prompts) == 3 and not any(TASKS[11] in one for one in prompts)
    (check,) = records(folder, "data", "check")
    assert check["passed"] and "1 were left out" in check["detail"]
    assert {row["split"] for row in records(folder, "mine", "item")} == {"train"}


def test_both_controls_run_before_what_is_mined_is_executed(mined: tuple[Path, list[str]]) -> None:
    assert checks(mined[0], "mine") == CLEAN
    assert [row["kind"] for row in records(mined[0], "mine")][:2] == ["check", "check"]


def test_two_sources_with_one_id_are_refused(tmp_path: Path) -> None:
    file = str(write_lines(tmp_path / "t.jsonl", TEACHES))
    of = [{"kind": "conversations", "file": file}, {"kind": "conversations", "file": file}]
    source = {"kind": "mixed", "of": of}
    with pytest.raises(StageFailed, match="2 conversations of the mixed sources have the id 't-000001'"):
        maths = {"maths": {"kind": "gsm8k", "file": str(maths_file(tmp_path / "m.jsonl", 2))}}
        run(plan_of(stage("data", "data", source=source, benchmarks=maths, n_held=0)), tmp_path / "run")
