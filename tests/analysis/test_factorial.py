"""The factorial reading: differences of the same item under the same seed, and no mechanism below three seeds."""

from __future__ import annotations

import random
from typing import Any

import pytest

from stepwell import stats
from stepwell.analysis.factorial import CELLS, CONTRASTS, main_effects

Record = dict[str, Any]
RATES = {"continuous": 0.95, "shared": 0.7, "removal": 0.68, "direct": 0.5, "cot": 0.9}


def records(seeds: int, items: int = 120, rates: dict[str, float] = RATES) -> list[Record]:
    draw = random.Random(5)
    return [
        {"kind": "item", "arm": arm, "seed": seed, "set": "test", "id": f"i{row}", "correct": draw.random() < rate}
        for arm, rate in rates.items()
        for seed in range(seeds)
        for row in range(items)
    ]


def test_contrasts_change_one_factor_each_and_neighbours_make_the_whole():
    of = {cell.arm: (cell.content, cell.positions, cell.curriculum) for cell in CELLS}
    for contrast in CONTRASTS:
        pairs = list(zip(of[contrast.arm], of[contrast.without], strict=True))
        assert [a != b for a, b in pairs].count(True) == 1 and all(a >= b for a, b in pairs)
    assert [CONTRASTS[0].arm, *(contrast.without for contrast in CONTRASTS)] == [cell.arm for cell in CELLS]


def test_effects_are_means_of_paired_differences_and_add_up():
    found = records(seeds=3)
    random.Random(1).shuffle(found)
    effects = main_effects(found)
    means = {arm: sum(r["correct"] for r in found if r["arm"] == arm) / 360 for arm in RATES}
    for effect in effects:
        assert effect.runs is not None and effect.claim is not None
        difference = means[effect.contrast.arm] - means[effect.contrast.without]
        assert effect.runs.value == pytest.approx(difference)
        assert effect.claim.estimate.value == pytest.approx(difference)
        assert (effect.items, effect.seeds, effect.undefined) == (120, 3, "")
    total = sum(e.runs.value or 0 for e in effects if e.runs is not None)
    assert total == pytest.approx(means["continuous"] - means["direct"])


def test_p_values_are_holm_adjusted_over_the_effects_and_never_zero():
    effects = main_effects(records(seeds=4))
    raw = [effect.claim.p_value for effect in effects if effect.claim is not None and effect.claim.p_value is not None]
    assert [effect.adjusted for effect in effects] == [pytest.approx(p) for p in stats.holm(raw)]
    assert all(p > 0 for p in raw)


@pytest.mark.parametrize("seeds", [1, 2])
def test_fewer_than_three_seeds_claim_no_mechanism_however_clear(seeds: int):
    sure = records(seeds, rates={"continuous": 1.0, "shared": 0.1, "removal": 0.1, "direct": 0.1})
    content = main_effects(sure)[0]
    assert content.runs is not None and content.runs.low is not None and content.runs.low > 0.7
    assert content.claim is not None and (content.claim.verdict, content.adjusted) == ("undefined", None)
    assert content.claim.reason.endswith("a claim about a mechanism needs at least 3")


def test_what_cannot_be_paired_is_undefined_with_its_reason():
    whole = records(seeds=2)
    no_removal = [r for r in whole if r["arm"] != "removal"]
    assert [effect.undefined for effect in main_effects(no_removal)] == [
        "",
        "arm removal was not evaluated",
        "arm removal was not evaluated",
    ]
    lacking = [r for r in whole if (r["arm"], r["seed"], r["id"]) != ("shared", 1, "i3")]
    assert main_effects(lacking)[0].undefined == "1 of 240 items under their seeds lack a partner"
    assert main_effects([*whole, whole[0]])[0].undefined == "arm continuous has several records of one item and seed"
    null = [{**r, "correct": None} if (r["arm"], r["id"]) == ("shared", "i3") else r for r in whole]
    assert main_effects(null)[0].undefined == "2 of 240 pairs have no value"
    uneven = [r for r in whole if (r["seed"], r["id"]) != (1, "i3")]
    assert main_effects(uneven)[0].undefined == "2 seeds were not evaluated on the same items"
