"""Gates over analyses: differences of differences, shares of positions at any layer, equivalence."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from stepwell import stats
from stepwell.errors import StepwellError
from stepwell.gate import decide
from stepwell.plan import Criterion, GateSpec, load_plan

Record = dict[str, Any]


def gate(**criterion: Any) -> GateSpec:
    fields = {"metric": "correct", "stage": "intervene", "comparison": ">=", "threshold": 0.1} | criterion
    return GateSpec.model_validate(
        {"name": "difference", "asks": "Do they differ?", "after": ["intervene"], "criteria": [fields]}
    )


def answers(rates: dict[tuple[str, str], float], n: int = 400, seeds: int = 1) -> list[Record]:
    rng = np.random.default_rng(3)
    return [
        {"kind": "intervention", "arm": arm, "seed": seed, "set": "test", "id": f"i{row}", "condition": condition}
        | {"correct": bool(rng.random() < rate)}
        for (arm, condition), rate in rates.items()
        for seed in range(seeds)
        for row in range(n)
    ]


SENSITIVITY: dict[str, Any] = {
    "where": {"kind": "intervention", "set": "test", "condition": "clean", "arm": "continuous"},
    "minus": [{"condition": "zeroed"}, {"arm": "shared"}],
}
RATES = {
    ("continuous", "clean"): 0.95,
    ("continuous", "zeroed"): 0.5,
    ("shared", "clean"): 0.9,
    ("shared", "zeroed"): 0.85,
}


def test_a_difference_of_differences_is_that_of_each_item():
    records = answers(RATES)
    verdict = decide(gate(**SENSITIVITY), {"intervene": records})
    of = {(r["arm"], r["condition"], r["id"]): int(r["correct"]) for r in records}
    lost = [
        [of[arm, "clean", f"i{row}"] - of[arm, "zeroed", f"i{row}"] for row in range(400)]
        for arm in ("continuous", "shared")
    ]
    (found,) = verdict.criteria
    expected = stats.bootstrap_mean(np.subtract(lost[0], lost[1]))
    assert (found.value, found.low, found.high) == (expected.value, expected.low, expected.high)
    assert (verdict.decision, found.n) == ("go", 400)
    assert "minus condition=zeroed less the same of arm=shared" in found.about


def test_a_difference_of_differences_needs_all_four_partners():
    records = answers(RATES)
    lacking = [r for r in records if (r["arm"], r["condition"], r["id"]) != ("shared", "zeroed", "i7")]
    with pytest.raises(StepwellError, match="1 of 400 items lack a partner"):
        decide(gate(**SENSITIVITY), {"intervene": lacking})
    no_arm = [r for r in records if r["arm"] == "continuous"]
    assert decide(gate(**SENSITIVITY), {"intervene": no_arm}).decision == "inconclusive"


def test_looking_repeatedly_at_a_difference_of_differences_allows_two_points_of_reach():
    verdict = decide(gate(**SENSITIVITY, looks="repeated"), {"intervene": answers(RATES, n=3000)})
    assert verdict.criteria[0].method == "betting" and verdict.decision == "go"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"minus": [{"arm": "a"}, {"arm": "b"}]}, "replace the same field"),
        ({"minus": [{"arm": "a"}, {"set": "b"}, {"seed": 1}]}, "a list of two"),
        ({"share": 0.5}, "`share` is about the values of `per`, which is missing"),
        ({"any_of": "layer"}, "`any_of` is about the values of `per`, which is missing"),
        ({"per": "seed", "need": 1, "share": 0.5}, "give one"),
        ({"claim": "mechanism", "mode": "point"}, "needs statistic mean, mode interval and looks once"),
    ],
)
def test_criteria_that_make_no_sense_are_refused(fields: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        Criterion(metric="correct", stage="s", comparison=">=", threshold=0, **fields)


# --- gate 5: causal sanity


SANITY: dict[str, Any] = {
    "metric": "effect",
    "where": {"kind": "trace", "role": "reasoning"},
    "per": "position_name",
    "any_of": "layer",
    "share": 0.5,
    "comparison": ">",
    "threshold": 0.3,
}


def traces(best: list[float], n: int = 80, layers: int = 3, noise: float = 0.2) -> list[Record]:
    """`best` is the effect of each position at its best layer; at the others it is nil."""
    rng = np.random.default_rng(8)
    return [
        {"kind": "trace", "id": f"i{row}", "role": "reasoning", "layer": layer, "position_name": f"step {place}"}
        | {"effect": float((effect if layer == place % layers else 0.0) + rng.normal(0, noise))}
        for place, effect in enumerate(best)
        for layer in range(layers)
        for row in range(n)
    ]


@pytest.mark.parametrize(
    ("best", "decision"),
    [
        ([0.8, 0.7, 0.0, 0.1], "go"),
        ([0.8, 0.1, 0.0, 0.1], "no-go"),
        ([0.8, 0.31, 0.0, 0.1], "inconclusive"),
        ([0.8, 0.7, 0.1, 0.0, 0.0], "no-go"),
    ],
)
def test_half_of_the_positions_at_any_layer(best: list[float], decision: str):
    verdict = decide(gate(**SANITY), {"intervene": traces(best)})
    assert verdict.decision == decision
    (found,) = verdict.criteria
    assert [part.about for part in found.parts] == [f"position_name=step {place}" for place in range(len(best))]
    assert [part.about for part in found.parts[0].parts] == ["layer=0", "layer=1", "layer=2"]
    needed = -(-len(best) // 2)
    assert f"of {len(best)} values of position_name, {needed} needed (at any layer)" in found.reason


def test_the_best_of_many_layers_is_held_to_a_stricter_level():
    """Noise alone: the best of 40 layers must not pass for an effect more often than the level allows."""
    fields = {**SANITY, "threshold": 0.0}
    went = 0
    for draw in range(60):
        rng = np.random.default_rng(draw)
        records = [
            {"kind": "trace", "id": row, "role": "reasoning", "layer": layer, "position_name": "step 1"}
            | {"effect": float(rng.normal())}
            for layer in range(20)
            for row in range(25)
        ]
        went += decide(gate(**fields), {"intervene": records}).decision == "go"
    assert went <= 5  # at 2.5%: 1.5 expected, more than 5 in 1 of 200 such tests


def test_effects_without_a_value_are_left_out_and_said():
    records = traces([0.8, 0.7, 0.0, 0.1])
    for record in records[:10]:
        record["effect"] = None
    verdict = decide(gate(**SANITY), {"intervene": records})
    assert verdict.decision == "go"
    assert "(10 records without a value left out)" in verdict.criteria[0].parts[0].parts[0].reason


def test_no_trace_is_no_verdict():
    assert decide(gate(**SANITY), {"intervene": []}).decision == "inconclusive"


# --- a claim about a mechanism


def trained(seeds: int, gap: float, between_seeds: float = 0.0) -> list[Record]:
    rng = np.random.default_rng(12)
    shifts = rng.normal(0, between_seeds, seeds)
    return [
        {"kind": "item", "arm": arm, "seed": seed, "set": "test", "id": row}
        | {"correct": bool(rng.random() < 0.5 + (gap + shifts[seed] if arm == "continuous" else 0.0))}
        for arm in ("continuous", "shared")
        for seed in range(seeds)
        for row in range(300)
    ]


MECHANISM: dict[str, Any] = {
    "stage": "intervene",
    "where": {"arm": "continuous"},
    "minus": {"arm": "shared"},
    "threshold": 0.05,
    "claim": "mechanism",
}


def test_a_mechanism_needs_three_seeds_however_clear_the_difference():
    for seeds, decision in ((1, "inconclusive"), (2, "inconclusive"), (3, "go")):
        verdict = decide(gate(**MECHANISM), {"intervene": trained(seeds, 0.4)})
        assert verdict.decision == decision
        if seeds < 3:
            assert "a claim about a mechanism needs 3 seeds or more" in verdict.reason
            assert verdict.n_to_decide is None
    assert decide(gate(**{**MECHANISM, "claim": "runs"}), {"intervene": trained(1, 0.4)}).decision == "go"


def test_a_mechanism_is_judged_over_items_and_seeds():
    records = trained(3, 0.2, between_seeds=0.1)
    (found,) = decide(gate(**MECHANISM), {"intervene": records}).criteria
    of = {(r["arm"], r["seed"], r["id"]): int(r["correct"]) for r in records}
    keys = [(seed, row) for seed in range(3) for row in range(300)]
    values = [of["continuous", *key] - of["shared", *key] for key in keys]
    expected = stats.crossed_mean(values, items=[k[1] for k in keys], seeds=[k[0] for k in keys])
    assert (found.value, found.low, found.high, found.method) == (
        pytest.approx(expected.value),
        pytest.approx(expected.low),
        pytest.approx(expected.high),
        "crossed-t",
    )
    runs = decide(gate(**{**MECHANISM, "claim": "runs"}), {"intervene": records}).criteria[0]
    assert runs.low is not None and found.low is not None and found.low < runs.low
    between = (found.low + runs.low) / 2
    for claim, decision in (("runs", "go"), ("mechanism", "inconclusive")):
        verdict = decide(gate(**{**MECHANISM, "threshold": between, "claim": claim}), {"intervene": records})
        assert verdict.decision == decision
    assert verdict.reason.endswith("more seeds would tell more")


def test_a_mechanism_wants_every_item_under_every_seed():
    records = [r for r in trained(3, 0.2) if (r["seed"], r["id"]) != (2, 7)]
    with pytest.raises(StepwellError, match="300 items under 3 seeds make 900 records, found 899"):
        decide(gate(**MECHANISM), {"intervene": records})


# --- equivalence


EQUIVALENCE = """
study: equal
title: t
question: q
axes: {arm: [continuous, shared], seed: [0]}
stages:
  - {name: data, kind: prosqa.data}
  - {name: model, kind: thoughts.model, each: {arm: arm}, params: {model: {kind: symbols}}}
  - {name: train, kind: thoughts.train, needs: [data, model], each: {arm: arm, seed: seed}, params: {steps: 5}}
  - {name: evaluate, kind: thoughts.evaluate, needs: [data, model, train], each: {arm: arm, seed: seed}}
gates:
  - name: equivalence
    asks: Are they equivalent within 5 points?
    after: [evaluate]
    criteria:
      - metric: correct
        stage: evaluate
        where: {kind: item, set: test, condition: clean, arm: continuous}
        minus: {arm: shared}
        comparison: "<"
        threshold: 0.05
        confidence: 0.9
    bands: [{low: -0.05, high: 0.05, route: equivalent}]
"""


def planned(tmp_path: Any, *changes: tuple[str, str]) -> Any:
    text = EQUIVALENCE
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = tmp_path / "equal.yaml"
    path.write_text(text)
    return load_plan(path, rung=None)


def test_equivalence_is_a_band_of_a_difference_with_its_margin_in_the_plan(tmp_path: Any):
    spec = planned(tmp_path).gate("equivalence")
    item = {"kind": "item", "set": "test", "condition": "clean", "seed": 0}
    same = [
        {**item, "arm": arm, "id": row, "correct": (row + shift) % 10 != 0}
        for arm, shift in (("continuous", 0), ("shared", 1))
        for row in range(2000)
    ]
    verdict = decide(spec, {"evaluate": same})
    assert (verdict.decision, verdict.route) == ("go", "equivalent")
    few = [record for record in same if record["id"] < 60]
    assert (decide(spec, {"evaluate": few}).decision, decide(spec, {"evaluate": few}).route) == ("inconclusive", "next")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("        minus: {arm: shared}\n", ""), "equivalence is about a difference: the criterion needs `minus`"),
        (("        confidence: 0.9\n", "        mode: point\n"), "equivalence needs an interval"),
        (("low: -0.05", "low: -0.5"), "the same on both sides of zero; found -0.5 to 0.05"),
        (
            ("    bands: [{low: -0.05, high: 0.05, route: equivalent}]", "    routes: {no-go: equivalent}"),
            "a no-go is no proof of equivalence",
        ),
        (
            ("    bands: [{low: -0.05, high: 0.05, route: equivalent}]", "    routes: {inconclusive: equivalent}"),
            "an inconclusive is no proof of equivalence",
        ),
    ],
)
def test_a_null_result_cannot_be_called_equivalence(tmp_path: Any, change: tuple[str, str], message: str):
    with pytest.raises(StepwellError, match=message):
        planned(tmp_path, change)
