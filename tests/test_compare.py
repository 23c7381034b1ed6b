"""`stepwell compare` on run folders made by hand: what it finds on comparable runs, and each thing that it refuses."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from stepwell.cli import run as command
from stepwell.compare import compare, frozen_margins
from stepwell.errors import StepwellError
from stepwell.stats import mcnemar_exact

SHARES = {"continuous": 0.9, "shared": 0.6}
MODEL: dict[str, Any] = {"kind": "symbols", "prompt": "pairs"}
GATE = {
    "name": "difference",
    "criteria": [{"metric": "correct", "minus": {"arm": "shared"}}],
    "bands": [
        {"low": 0.05, "high": 1, "route": "next"},
        {"low": -0.05, "high": 0.05, "route": "equivalent"},
    ],
}


class Run:
    """A finished run of two arms over two sets."""

    def __init__(self, path: Path, *, seeds: tuple[int, ...] = (0,), n: int = 200, salt: int = 0) -> None:
        self.path = path
        for name in ("records", "jobs"):
            (path / name).mkdir(parents=True)
        self.write_plan(seeds, MODEL)
        (path / "policy.json").write_text(json.dumps({"sha256": "x", "gates": [GATE], "overrides": []}))
        rows = [{"kind": "dataset", "set": name, "n": n, "sha256": f"5ba{name}"} for name in ("test", "dag")]
        self.write_job("data", rows)
        rng = np.random.default_rng(salt)
        for arm, share in SHARES.items():
            for seed in seeds:
                self.write_job(f"evaluate.{arm}.{seed}", [
                    {"kind": "item", "arm": arm, "seed": seed, "set": name, "id": f"{name}-{i}", "condition": "clean",
                     "correct": bool(rng.random() < share), "margin": float(rng.normal(share, 1)), "chain_valid": None}
                    for name in ("test", "dag") for i in range(n)
                ])  # fmt: skip

    def write_plan(self, seeds: tuple[int, ...], model: Mapping[str, Any]) -> None:
        each = {"arm": "arm", "seed": "seed"}
        stages = [
            {"name": "data", "kind": "prosqa.data"},
            {"name": "model", "kind": "thoughts.model", "each": {"arm": "arm"}, "params": {"model": dict(model)}},
            {"name": "evaluate", "kind": "thoughts.evaluate", "each": each},
        ]
        plan = {"axes": {"arm": list(SHARES), "seed": list(seeds)}, "stages": stages}
        (self.path / "plan.yaml").write_text(yaml.safe_dump(plan))

    def write_job(self, job: str, rows: list[dict[str, Any]]) -> None:
        text = "".join(json.dumps(row) + "\n" for row in rows).encode()
        (self.path / "records" / f"{job}.jsonl").write_bytes(text)
        marker = {"job": job, "records": {"sha256": hashlib.sha256(text).hexdigest()}}
        (self.path / "jobs" / f"{job}.json").write_text(json.dumps(marker))

    def rows(self, job: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.path / "records" / f"{job}.jsonl").read_text().splitlines()]

    def change(self, job: str, edit: Callable[[dict[str, Any]], dict[str, Any] | None]) -> None:
        self.write_job(job, [new for row in self.rows(job) if (new := edit(row)) is not None])

    def __call__(self, arm: str, seed: int | None = None) -> str:
        return f"{self.path}:arm={arm}" + ("" if seed is None else f",seed={seed}")


@pytest.fixture
def one(tmp_path: Path) -> Run:
    return Run(tmp_path / "one")


@pytest.fixture
def other(tmp_path: Path) -> Run:
    return Run(tmp_path / "other", salt=1)


def refused(first: str, second: str, **asked: Any) -> str:
    with pytest.raises(StepwellError) as caught:
        compare(first, second, **asked)
    assert caught.value.exit_code == 3
    return str(caught.value)


def test_two_arms_of_a_run_are_joined_item_by_item(one: Run):
    found = compare(one("continuous"), one("shared"), only="test", margin=0.05)
    (of_set,) = found.sets
    sides = [
        {r["id"]: r["correct"] for r in one.rows(f"evaluate.{arm}.0") if r["set"] == "test"}
        for arm in ("continuous", "shared")
    ]
    b = sum(sides[0][i] and not sides[1][i] for i in sides[0])
    c = sum(sides[1][i] and not sides[0][i] for i in sides[0])
    assert of_set.found.table is not None
    assert (of_set.found.table.only_first, of_set.found.table.only_second, of_set.found.items) == (b, c, 200)
    assert of_set.found.p_value == mcnemar_exact(b, c) and of_set.found.test == "mcnemar"
    assert of_set.found.difference.value == pytest.approx((b - c) / 200)
    assert of_set.found.equivalence is not None and of_set.found.equivalence.equivalent is False


def test_the_order_of_the_records_does_not_matter(one: Run):
    before = compare(one("continuous"), one("shared")).to_json()
    one.write_job("evaluate.shared.0", one.rows("evaluate.shared.0")[::-1])
    assert compare(one("continuous"), one("shared")).to_json()["sets"][0]["p_value"] == before["sets"][0]["p_value"]


def test_several_sets_are_adjusted_for_their_number(one: Run, other: Run):
    found = compare(one("shared"), other("shared"))
    assert [each.set for each in found.sets] == ["test", "dag"]
    smallest = min(found.sets, key=lambda each: each.found.p_value or 1.0)
    assert smallest.found.p_value is not None
    assert smallest.p_adjusted == pytest.approx(min(1.0, 2 * smallest.found.p_value))


def test_several_seeds_are_compared_over_items_and_seeds(tmp_path: Path):
    run = Run(tmp_path / "three", seeds=(0, 1, 2))
    (found, _) = compare(run("continuous"), run("shared")).sets
    assert (found.found.items, found.found.seeds, found.found.test) == (200, 3, "crossed-t")
    (single, _) = compare(run("continuous", 1), run("continuous", 2)).sets
    assert (single.found.seeds, single.found.test) == (1, "mcnemar")
    assert "seeds 0, 1, 2" in refused(run("continuous"), run("shared", 0))
    assert "Name one seed of each" in refused(run("continuous"), run("shared", 0))


def test_a_number_is_compared_by_its_mean(one: Run):
    (found, _) = compare(one("continuous"), one("shared"), metric="margin").sets
    assert (found.found.test, found.found.table) == ("t", None)


# --- what is not comparable


def test_other_data_are_refused(one: Run, other: Run):
    other.change("data", lambda row: {**row, "sha256": "f00d" + row["set"]} if row["set"] == "test" else row)
    said = refused(one("shared"), other("shared"))
    assert "not comparable: set `test` is not the same data: sha256 5batest" in said and "f00dtest" in said
    assert [each.set for each in compare(one("shared"), other("shared"), only="dag").sets] == ["dag"]
    other.write_job("data", [])
    assert "has no `dataset` records of set `dag`" in refused(one("shared"), other("shared"), only="dag")


def test_other_items_are_refused_and_the_overlap_told(one: Run, other: Run):
    other.change("evaluate.shared.0", lambda row: None if row["id"].endswith("7") else row)
    said = refused(one("shared"), other("shared"), only="test")
    assert "different items of set `test`: 200 in" in said and "180 in" in said and "of which 180 are shared" in said


def test_an_item_asked_twice_is_refused(one: Run):
    rows = one.rows("evaluate.shared.0")
    one.write_job("evaluate.shared.0", [*rows, rows[0]])
    assert "several records of item test-0 of set `test`" in refused(one("continuous"), one("shared"))


def test_another_condition_is_refused(one: Run):
    said = refused(one("continuous"), one("shared"), condition="zeroed")
    assert "has no answers under condition `zeroed`" in said and "Conditions there: clean." in said


def test_interventions_are_compared_under_one_condition(one: Run):
    for arm in SHARES:
        clean = one.rows(f"evaluate.{arm}.0")
        changed = [{**r, "kind": "intervention", "condition": c, "vacuous": c == "order" and arm == "shared"}
                   for r in clean for c in ("clean", "order")]  # fmt: skip
        one.write_job(f"intervene.{arm}.0", changed)
    found = compare(one("continuous"), one("shared"), condition="order")
    assert [each.found.items for each in found.sets] == [200, 200]
    assert found.notes == (
        f"{one('shared')}: in 400 records the edit changes nothing, for all vectors of the item are equal",
    )
    # The clean answers, which both stages record, are those of the evaluation.
    assert compare(one("continuous"), one("shared")).sets[0].found.items == 200


def test_another_prompt_is_refused(one: Run, other: Run):
    other.write_plan((0,), {"kind": "symbols", "prompt": "facts"})
    assert "different protocol: the prompt is pairs in" in refused(one("shared"), other("shared"))
    other.write_plan((0,), {"kind": "text", "name": "gpt2"})
    assert "different protocol: the kind of model is symbols in" in refused(one("shared"), other("shared"))
    other.write_plan((0,), {"kind": "symbols"})  # pairs, by default
    assert compare(one("shared"), other("shared")).sets


def test_an_unfinished_stage_is_refused(one: Run, tmp_path: Path):
    (one.path / "jobs" / "evaluate.shared.0.json").unlink()
    assert "stage evaluate.shared.0 has not finished" in refused(one("continuous"), one("shared"))
    (one.path / "records" / "evaluate.shared.0.jsonl").unlink()
    assert "stage evaluate.shared.0 has not finished" in refused(one("continuous"), one("shared"))
    two = Run(tmp_path / "two", seeds=(0, 1))
    (two.path / "jobs" / "evaluate.shared.1.json").unlink()
    assert "stage evaluate.shared.1 has not finished" in refused(two("continuous"), two("shared"))
    assert compare(two("continuous", 0), two("shared", 0)).sets


def test_records_changed_by_hand_are_refused(one: Run):
    path = one.path / "records" / "evaluate.shared.0.jsonl"
    path.write_text(path.read_text().replace('"correct": false', '"correct": true'))
    said = refused(one("continuous"), one("shared"))
    assert "the records of evaluate.shared.0 were changed after it finished" in said


def test_a_selection_must_mean_one_arm(one: Run):
    assert "holds several values of arm: continuous, shared" in refused(str(one.path), one("shared"))
    said = refused(one("continous"), one("shared"))
    assert "no record is meant by it" in said and "arm: continuous, shared; seed: 0" in said
    assert "both name the same jobs of the same run" in refused(one("shared"), one("shared", 0))
    assert "no such run folder" in refused(str(one.path / "none"), one("shared"))


def test_a_metric_must_be_recorded(one: Run):
    said = refused(one("continuous"), one("shared"), metric="corect")
    assert "records no `corect`" in said and "Metrics there: correct, margin." in said
    said = refused(one("continuous"), one("shared"), metric="chain_valid")
    assert "`chain_valid` has no value in 200 of 200 records" in said
    assert "was not asked set `nine`" in refused(one("continuous"), one("shared"), only="nine")


# --- margins


def test_a_margin_chosen_after_the_run_is_refused(one: Run, other: Run):
    said = refused(one("continuous"), one("shared"), margin=0.2)
    assert "the margin 0.2 for `correct` was not fixed before" in said and "frozen gates: 0.05" in said
    assert "frozen gates: none" in refused(one("continuous"), one("shared"), metric="margin", margin=0.05)
    (other.path / "policy.json").write_text(json.dumps({"gates": [], "overrides": []}))
    assert "frozen gates: none" in refused(one("continuous"), other("shared"), margin=0.05)


def test_a_margin_that_was_overridden_no_longer_counts():
    policy: dict[str, Any] = {"gates": [GATE], "overrides": []}
    assert frozen_margins(policy, "correct") == (0.05,)
    policy["overrides"] = [{"reason": "r", "changes": ["gates.difference.bands.1.high: 0.02 -> 0.05"]}]
    assert frozen_margins(policy, "correct") == ()
    policy["overrides"] = [{"reason": "r", "changes": ["gates.different.threshold: 0.02 -> 0.05"]}]
    assert frozen_margins(policy, "correct") == (0.05,)


# --- the command


def test_the_command_prints_what_is_shown(one: Run, capsys: pytest.CaptureFixture[str]):
    assert command(["compare", one("continuous"), one("shared"), "--margin", "0.05"]) == 0
    printed = capsys.readouterr().out
    assert "(mcnemar)" in printed and "p (Holm)" in printed and "not shown" in printed
    assert "test: the first is higher, at the 0.05 level" in printed
    assert "that takes 3 seeds" in printed


def test_the_command_prints_json_without_a_p_value_of_nought(one: Run, capsys: pytest.CaptureFixture[str]):
    for arm, right in (("continuous", True), ("shared", False)):
        rows = [{**r, "set": "test", "correct": right, "id": str(i)} for r in one.rows(f"evaluate.{arm}.0")[:1]
                for i in range(1200)]  # fmt: skip
        one.write_job(f"evaluate.{arm}.0", rows)
    assert command(["compare", one("continuous"), one("shared"), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["sets"]
    assert found["p_value"] > 0 and found["log10_p"] == pytest.approx(-1199 * np.log10(2))
    assert found["p_text"].endswith("e-361")
    assert found["effects"]["discordant_odds"]["value"] is None
    assert found["difference"]["value"] == 1.0


def test_the_command_refuses_with_three(one: Run, capsys: pytest.CaptureFixture[str]):
    assert command(["compare", one("continuous"), one("shared"), "--margin", "0.3"]) == 3
    assert "A margin chosen after the run proves nothing" in capsys.readouterr().err
