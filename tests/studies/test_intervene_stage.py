"""The stage `thoughts.intervene` on tiny trained models, symbols and text: what is recorded, and for whom."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tiny import records, tiny

from stepwell.plan import Plan, jobs, load_plan
from stepwell.runner import run
from stepwell.studies.thoughts import params as stage_params
from stepwell.studies.thoughts.cost import of_interventions
from stepwell.tasks.prosqa import load_items

ARMS = ("continuous", "shared", "removal")
ALL = ", ".join(stage_params.FAMILIES)
SAME = ("averaged", "order", "swap", "between", "transplant-matched", "transplant-unmatched")


@pytest.fixture(scope="module", params=["symbols", "text"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three arms through training and all interventions, once."""
    text = request.param == "text"
    more = ("intervene.decode=false",) if text else ()
    plan = tiny("engine=inline", f"intervene.families=[{ALL}]", *more, text=text, arms=ARMS)
    wanted = {"data", "audit", "model", "train", "intervene"}
    stages = tuple(stage for stage in plan.stages if stage.name in wanted)
    plan = Plan.model_validate(plan.model_copy(update={"stages": stages}).model_dump())
    return run(plan, tmp_path_factory.mktemp(request.param) / "run").folder


def found(folder: Path, arm: str, kind: str = "intervention") -> list[dict[str, Any]]:
    return records(folder, f"intervene.{arm}.0", kind)


def test_every_family_is_recorded_for_every_item_that_it_can_be_done_to(whole: Path) -> None:
    items = {item.id: item.hops for item in load_items(whole / "artifacts" / "data" / "test.json")}
    alone = [name for name, hops in items.items() if list(items.values()).count(hops) == 1]
    for arm in ("continuous", "shared"):
        rows = found(whole, arm)
        assert {row["family"] for row in rows} == {"clean", *stage_params.FAMILIES}
        for condition, n in Counter(row["condition"] for row in rows).items():
            mine = [row for row in rows if row["condition"] == condition]
            assert n == len(items) - (len(alone) if condition == "transplant-matched" else 0)
            assert {row["id"]: row["hops"] for row in mine}.items() <= items.items()
            fields = ("family", "k", "position", "scale", "propagates")
            assert len({tuple(row[field] for field in fields) for row in mine}) == 1, "one label, one intervention"
        for row in rows:
            assert row["latents"] == (int(row["condition"].split()[1]) if row["family"] == "thoughts" else 2)
            assert (row["k"] or 0) <= row["latents"] and row["forced_correct"] is (row["margin"] > 0)
            if row["donor"] is not None:
                assert row["donor"] != row["id"] and row["donor"] in items
                same = items[row["donor"]] == row["hops"]
                assert {"transplant-matched": same, "transplant-unmatched": not same}.get(row["family"], True)
            assert (row["donor"] is None) == (row["family"] not in SAME[3:])
    assert found(whole, "removal") == [] and found(whole, "removal", "thought") == []


def test_flips_are_counted_against_the_same_items_clean_answer(whole: Path) -> None:
    rows = found(whole, "continuous")
    clean = {row["id"]: row for row in rows if row["condition"] == "clean"}
    for row in rows:
        assert row["flipped"] is (row["forced_correct"] != clean[row["id"]]["forced_correct"])
        if row["correct"] is not None and clean[row["id"]]["correct"] != row["correct"]:
            assert row["answer_changed"] is True
    assert any(row["margin"] != clean[row["id"]]["margin"] for row in rows)
    decoded = {row["correct"] is not None for row in rows} | {row["answer_changed"] is not None for row in rows}
    assert len(decoded) == 1


def test_what_changes_nothing_is_vacuous_and_measured_all_the_same(whole: Path) -> None:
    for arm in ("continuous", "shared"):
        rows = found(whole, arm)
        clean = {row["id"]: row for row in rows if row["condition"] == "clean"}
        for row in rows:
            assert row["vacuous"] is (arm == "shared" and row["family"] in SAME), row["condition"]
            if row["vacuous"]:
                assert row["margin"] == pytest.approx(clean[row["id"]]["margin"], abs=1e-4)
    by: dict[tuple[bool, str], list[float]] = {}
    for row in found(whole, "shared"):
        if row["scale"] is not None:
            by.setdefault((row["propagates"], row["condition"].rpartition(" ")[0]), []).append(row["margin"])
    for (put_in, condition), margins in by.items():
        assert margins == pytest.approx(by[not put_in, condition], abs=1e-4), "nothing recycled could hear of it"


def test_the_first_items_thoughts_are_named_by_the_tokens_nearest_to_them(whole: Path) -> None:
    ids = [item.id for item in load_items(whole / "artifacts" / "data" / "test.json")][:3]
    for arm in ("continuous", "shared"):
        rows = found(whole, arm, "thought")
        assert [(row["id"], row["position"]) for row in rows] == [(name, k) for name in ids for k in (1, 2)]
        for row in rows:
            texts, cosines = zip(*row["nearest"], strict=True)
            assert len(texts) == len(set(texts)) == 5 and all(isinstance(text, str) for text in texts)
            assert list(cosines) == sorted(cosines, reverse=True) and -1 <= cosines[-1] <= cosines[0] <= 1.0001


def test_a_shared_vector_that_has_not_moved_is_nearest_to_the_token_it_was_copied_from(tmp_path: Path) -> None:
    plan = tiny("engine=inline", "train.lr=1e-12", "intervene.items=2", arms=("shared",), gates=())
    wanted = {"data", "audit", "model", "train", "intervene"}
    stages = tuple(stage for stage in plan.stages if stage.name in wanted)
    plan = Plan.model_validate(plan.model_copy(update={"stages": stages}).model_dump())
    rows = found(run(plan, tmp_path / "run").folder, "shared", "thought")
    assert {tuple(row["nearest"][0]) for row in rows} == {("<|start-latent|>", 1.0)}
    names = {text for row in rows for text, _ in row["nearest"]}
    assert any(name.startswith("node ") for name in names), "a symbol of the item is its node"


@pytest.mark.parametrize("rung", ["demo", "smoke", "laptop", "pilot", "hero"])
def test_every_rung_intervenes_and_knows_what_it_costs(rung: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = load_plan("thoughts", rung=rung)
    spec = plan.stage("intervene")
    assert {job.axes["arm"] for job in jobs(plan) if job.stage == "intervene"} == set(plan.axes["arm"])
    given = stage_params.InterveneParams.model_validate(spec.params)
    inputs = {
        "model": stage_params.ModelParams.model_validate(plan.stage("model").params),
        "data": stage_params.DataParams.model_validate(plan.stage("data").params),
    }
    work = of_interventions(given, {"arm": "continuous"}, inputs)
    nothing = of_interventions(given, {"arm": "removal"}, inputs)
    assert (work is None) == (nothing is None)
    if work is not None and nothing is not None:
        assert nothing.flop == 0 < work.flop
        fewer = of_interventions(given.model_copy(update={"families": ("zeroed",)}), {"arm": "shared"}, inputs)
        assert fewer is not None and 0 < fewer.flop < work.flop
