"""Phase B is kept only where it is shown not to have broken anything; what is not known is rolled back."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stepwell.errors import StepwellError
from stepwell.gate import decide
from stepwell.grading.benchmarks import grade, gsm8k
from stepwell.grading.protocol import Decoding
from stepwell.grading.records import write_result
from stepwell.plan import load_plan
from stepwell.stage import Input, Memory, StageContext
from stepwell.studies.tune.params import RegressParams
from stepwell.studies.tune.versus import regress
from stepwell.tasks.gsm8k import MathItem


def graded(folder: Path, right: str, *, name: str = "maths", **decoding: Any) -> Input:
    """A graded result on disk: `+` where an item is right."""
    items = [
        MathItem(id=f"m{i}", question=f"Box {i}?", answers=(str(i),), solution=f"#### {i}") for i in range(len(right))
    ]
    asked = gsm8k(items, split="test", name=name)
    answers = {f"m{i}": str(i) if mark == "+" else "-1" for i, mark in enumerate(right)}
    protocol = asked.protocol("template", Decoding(**decoding))
    folder.mkdir(exist_ok=True)
    write_result(folder / f"{name}.jsonl", grade(asked, answers, model=folder.name, protocol=protocol))
    job: Any = SimpleNamespace(id=folder.name, kind="tune.grade", params={})
    return Input(job=job, folder=folder, records_path=folder / "none")


def regressed(here: Path, before: Input, after: Input, **params: Any) -> Memory:
    """What the stage writes."""
    memory, job = Memory(axes={"seed": 0}), SimpleNamespace(id="regress", kind="tune.regress", params={})
    inputs = {"before": (before,), "after": (after,)}
    ctx = StageContext(job=job, folder=here, inputs=inputs, threads=1, seed=0, recorder=memory)  # pyright: ignore[reportArgumentType]
    regress(RegressParams(before="before", after="after", **params), ctx)
    return memory


def by_kind(memory: Memory, kind: str) -> list[dict[str, Any]]:
    return [row for row in memory.records if row["kind"] == kind]


@pytest.mark.parametrize(
    ("before", "after", "verdict", "told"),
    [
        ("+" * 300 + "-" * 100, "-" * 3 + "+" * 300 + "-" * 97, "pass", "the loss is shown to be below 5%"),
        ("+" * 300 + "-" * 100, "-" * 30 + "+" * 272 + "-" * 98, "roll back", "the new model is worse"),
        ("+" * 9 + "-" * 3, "-" + "+" * 9 + "-" * 2, "inconclusive", "inconclusive, so rolled back: 1 of 9 items"),
    ],
    ids=["pass", "roll back", "inconclusive"],
)  # fmt: skip
def test_only_what_is_shown_not_to_be_worse_is_kept(
    tmp_path: Path, before: str, after: str, verdict: str, told: str
) -> None:
    memory = regressed(tmp_path, graded(tmp_path / "first", before), graded(tmp_path / "second", after))
    (row,), (kept,) = by_kind(memory, "regression"), by_kind(memory, "kept")
    keep = verdict == "pass"
    assert row["verdict"] == verdict and told in row["reason"]
    assert (kept["model"], kept["rolled_back"]) == (("after", False) if keep else ("before", True))
    lost = sum(one == "+" and two == "-" for one, two in zip(before, after, strict=True))
    gained = sum(one == "-" and two == "+" for one, two in zip(before, after, strict=True))
    assert (row["lost"], row["gained"], row["right_before"], row["n"]) == (lost, gained, before.count("+"), len(before))
    moved = Counter(row["difference"] for row in by_kind(memory, "change"))
    assert moved == {-1: lost, 1: gained, 0: len(before) - lost - gained}, "what a gate reads, item by item"
    few, n = min(lost, gained), lost + gained
    exact = min(1.0, 2 * sum(math.comb(n, k) for k in range(few + 1)) / 2**n)
    assert math.isclose(row["p_value"], exact, rel_tol=1e-9)
    assert (row["needed"] is not None) == (verdict == "inconclusive")


def test_one_benchmark_in_doubt_rolls_all_back(tmp_path: Path) -> None:
    sound = "+" * 300 + "-" * 100
    first, second = graded(tmp_path / "first", sound), graded(tmp_path / "second", sound)
    graded(tmp_path / "first", "++-", name="small")
    graded(tmp_path / "second", "+-+", name="small")
    memory = regressed(tmp_path, first, second)
    assert {row["benchmark"]: row["verdict"] for row in by_kind(memory, "regression")} == {
        "maths": "pass", "small": "inconclusive",
    }  # fmt: skip
    (kept,) = by_kind(memory, "kept")
    assert (kept["model"], kept["rolled_back"], kept["verdict"], kept["passed"]) == (
        "before", True, "inconclusive", False,
    )  # fmt: skip


def marks(lost: int, gained: int, n: int) -> tuple[str, str]:
    """Three quarters of n right before; so many of them lost after, and so many newly right."""
    right = 3 * n // 4
    before = "+" * right + "-" * (n - right)
    return before, "-" * lost + "+" * (right - lost + gained) + "-" * (n - right - gained)


@pytest.mark.parametrize(
    ("benchmarks", "verdict", "decision", "pooled"),
    [
        ({"maths": (3, 0, 400)}, "pass", "go", "go"),
        # The loss is below the margin, and no accident: the test rolls back where the interval alone would go on.
        ({"maths": (40, 10, 1000)}, "roll back", "no-go", "go"),
        # One bad benchmark among many items of a good one.
        ({"maths": (3, 3, 800), "small": (12, 0, 40)}, "roll back", "no-go", "go"),
        # One in doubt: it is not shown to be worse, so the gate says that too.
        ({"maths": (3, 3, 800), "small": (2, 1, 40)}, "inconclusive", "inconclusive", "go"),
        ({"maths": (2, 2, 40)}, "inconclusive", "inconclusive", "inconclusive"),
    ],
    ids=["clean", "mcnemar", "one bad", "one in doubt", "too few"],
)  # fmt: skip
def test_the_gate_of_the_plan_is_of_the_stages_mind(
    tmp_path: Path, benchmarks: dict[str, tuple[int, int, int]], verdict: str, decision: str, pooled: str
) -> None:
    sides: dict[str, Input] = {}
    for name, counts in benchmarks.items():
        for side, right in zip(("first", "second"), marks(*counts), strict=True):
            sides[side] = graded(tmp_path / side, right, name=name)
    memory = regressed(tmp_path, sides["first"], sides["second"])
    (kept,) = by_kind(memory, "kept")
    assert (kept["verdict"], kept["rolled_back"]) == (verdict, decision != "go")
    assert all(row["passed"] == (row["verdict"] == "pass") for row in by_kind(memory, "regression"))
    (gate,) = [one for one in load_plan("tune", rung="demo").gates if one.name == "kept"]
    found = decide(gate, {"regress": memory.records})
    assert found.decision == decision and found.criteria[0].decision == pooled
    assert found.route == ("next" if decision == "go" else "stop")
    if pooled == "inconclusive":
        assert "in all would decide" in found.reason and found.criteria[0].n_to_decide is not None


def test_results_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    before = graded(tmp_path / "first", "++-")
    with pytest.raises(StepwellError) as error:
        regressed(tmp_path, before, graded(tmp_path / "second", "+++", max_tokens=64))
    assert error.value.cause == (
        "the two results are of different protocols (decoding: max_tokens 64 and 512)"
    ) and error.value.way_out.startswith("grade both again under one protocol")
    with pytest.raises(StepwellError, match="different protocols \\(items: "):
        regressed(tmp_path, before, graded(tmp_path / "third", "++++"))
    graded(tmp_path / "first", "++-", name="more")
    with pytest.raises(StepwellError, match="stage regress: after has not graded more\n"):
        regressed(tmp_path, before, graded(tmp_path / "fourth", "+++"))
