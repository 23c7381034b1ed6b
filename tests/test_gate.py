"""Gates: what the records show decides, with the interval and never the point, and nothing is never zero."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from stepwell import stats
from stepwell.errors import StepwellError
from stepwell.gate import Verdict, decide
from stepwell.plan import Band, Criterion, GateSpec, Selector

Record = dict[str, Any]


def criterion(**fields: Any) -> Criterion:
    return Criterion(**({"metric": "correct", "stage": "evaluate", "comparison": ">=", "threshold": 0.7} | fields))


def gate(*criteria: Criterion, **fields: Any) -> GateSpec:
    after = (Selector(stage="evaluate"),)
    return GateSpec(**({"name": "early", "asks": "Is it good?", "after": after, "criteria": criteria} | fields))


def verdict(records: list[Record], *, gate_fields: dict[str, Any] | None = None, **fields: Any) -> Verdict:
    return decide(gate(criterion(**fields), **(gate_fields or {})), {"evaluate": records})


def items(right: int, n: int, **fields: Any) -> list[Record]:
    return [{"kind": "item", "id": f"{i}", "correct": i < right, **fields} for i in range(n)]


def curve(*accuracies: float, n: int = 300, **fields: Any) -> list[Record]:
    return [
        {
            "kind": "validation",
            "step": 10 * i,
            "epoch": i,
            "accuracy": accuracy,
            "n": n,
            "loss": 1.0 / (i + 1),
            **fields,
        }
        for i, accuracy in enumerate(accuracies, 1)
    ]


# --- one criterion


def test_an_interval_wholly_on_one_side_decides():
    assert verdict(items(240, 300)).decision == "go"
    assert verdict(items(180, 300)).decision == "no-go"
    assert verdict(items(215, 300)).decision == "inconclusive"


def test_a_verdict_tells_what_it_rests_on():
    found = verdict(items(240, 300, arm="cot"), where={"arm": "cot", "kind": "item"})
    assert found.reason == (
        "go: correct (arm=cot) is 0.8 [0.7511, 0.8413] at 95% (n 300, wilson), lies wholly on the right side of >= 0.7"
    )
    assert (found.gate, found.route, found.mode, found.n_to_decide) == ("early", "next", "interval", None)
    (finding,) = found.criteria
    wilson = stats.wilson(240, 300)
    assert (finding.value, finding.low, finding.high, finding.n) == (wilson.value, wilson.low, wilson.high, 300)


def test_inconclusive_names_the_n_that_would_decide():
    found = verdict(items(37, 50))
    assert found.decision == "inconclusive" and found.route == "next"
    needed = found.n_to_decide
    assert needed is not None and needed > 50
    assert f"does not settle >= 0.7; about {needed} in all would decide" in found.reason
    assert verdict(items(round(0.74 * (needed + 60)), needed + 60)).decision == "go"
    assert verdict(items(round(0.74 * (needed - 60)), needed - 60)).decision == "inconclusive"


def test_an_estimate_on_the_threshold_has_no_n():
    found = verdict(items(210, 300))
    assert (found.decision, found.n_to_decide) == ("inconclusive", None)
    assert "no n up to 1000000 would decide at this estimate" in found.reason


@pytest.mark.parametrize("fields", [{}, {"mode": "point"}, {"statistic": "every"}, {"looks": "repeated"}])
@pytest.mark.parametrize("records", [[], [{"kind": "step", "loss": 1.0}], items(3, 4, arm="direct")])
def test_no_records_is_inconclusive_and_never_zero(fields: dict[str, Any], records: list[Record]):
    found = verdict(records, where={"arm": "cot"}, comparison="<=", **fields)
    assert (found.decision, found.n_to_decide) == ("inconclusive", None)
    assert found.reason == "inconclusive: correct (arm=cot) has no records"
    assert (found.criteria[0].value, found.criteria[0].low, found.criteria[0].n) == (None, None, 0)


def test_a_stage_that_never_ran_has_no_records():
    assert decide(gate(criterion()), {}).reason == "inconclusive: correct has no records"


def test_routes_follow_the_decision():
    routes = {"go": "phase2", "no-go": "rescue"}
    assert verdict(items(290, 300), gate_fields={"routes": routes}).route == "phase2"
    assert verdict(items(10, 300), gate_fields={"routes": routes}).route == "rescue"
    assert verdict(items(10, 300)).route == "stop"


def test_a_point_estimate_decides_literally_and_says_so():
    found = verdict(items(36, 50), mode="point")
    assert (found.decision, found.mode) == ("go", "point")
    assert found.reason == "go: correct is 0.72 (n 50), meets >= 0.7 (a point estimate, not an interval)"
    assert found.criteria[0].low is None and found.criteria[0].method == "point"
    assert verdict(items(35, 50), mode="point").decision == "go"
    assert verdict(items(35, 50), mode="point", comparison=">").decision == "no-go"
    assert "misses > 0.7" in verdict(items(35, 50), mode="point", comparison=">").reason


def test_too_few_items_never_decide():
    found = verdict(items(40, 40), smallest_n=100)
    assert (found.decision, found.n_to_decide) == ("inconclusive", 100)
    assert "below the smallest n of 100" in found.reason
    assert verdict(items(40, 40), smallest_n=100, mode="point").n_to_decide == 100
    assert verdict(items(100, 100), smallest_n=100).decision == "go"


def test_one_hundred_percent_cannot_be_shown_by_any_n():
    below_all = {"comparison": "<", "threshold": 1.0}
    assert verdict(items(290, 300), **below_all).decision == "go"
    assert verdict(items(300, 300), **below_all).decision == "inconclusive"


def test_at_most_and_membership_choose_the_records():
    records = items(300, 300, hops=3) + items(0, 300, hops=8) + items(0, 300, hops=None)
    assert verdict(records, where={"hops": (3, 4)}).decision == "go"
    assert verdict(records, at_most={"hops": 4}).criteria[0].n == 300
    assert "hops at most 4" in verdict(records, at_most={"hops": 4}).reason


def test_a_misspelt_metric_is_an_error_where_the_kind_is_named():
    with pytest.raises(StepwellError, match="metric corect: none of the 4 records has this field") as caught:
        verdict(items(3, 4), metric="corect", where={"kind": "item"})
    assert caught.value.way_out == "Did you mean `correct`? Fields: correct, id, kind."
    assert caught.value.stage == "evaluate"


# --- random records against brute force


def brute_force(records: list[Record], comparison: str, threshold: float, confidence: float) -> str:
    """Count, ask scipy for the interval, compare: nothing of stepwell's."""
    right = sum(1 for record in records if record["correct"])
    interval = binomtest(right, len(records)).proportion_ci(confidence, method="wilson")
    compare = {">=": "__ge__", ">": "__gt__", "<=": "__le__", "<": "__lt__"}[comparison]
    sides = {getattr(float(end), compare)(threshold) for end in (interval.low, interval.high)}
    return "inconclusive" if len(sides) == 2 else "go" if sides == {True} else "no-go"


def test_random_proportions_against_brute_force():
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(300):
        records = [
            {"kind": "item", "id": str(i), "arm": rng.choice(["cot", "direct"]), "correct": bool(rng.random() < 0.7)}
            for i in range(int(rng.integers(3, 200)))
        ]
        chosen = [record for record in records if record["arm"] == "cot"]
        comparison, threshold = str(rng.choice([">=", ">", "<=", "<"])), float(rng.choice([0.5, 0.6, 0.7, 0.8]))
        confidence = float(rng.choice([0.8, 0.95]))
        if not chosen:
            continue
        found = verdict(
            records, where={"arm": "cot"}, comparison=comparison, threshold=threshold, confidence=confidence
        )
        assert found.decision == brute_force(chosen, comparison, threshold, confidence)
        assert found.criteria[0].value == pytest.approx(np.mean([record["correct"] for record in chosen]))
        shuffled = [records[i] for i in rng.permutation(len(records))]
        again = verdict(
            shuffled, where={"arm": "cot"}, comparison=comparison, threshold=threshold, confidence=confidence
        )
        assert again == found
        seen.add(found.decision)
    assert seen == {"go", "no-go", "inconclusive"}


def test_random_families_against_holm_on_p_values():
    # p-values of the score test that Wilson's interval inverts, two-sided, adjusted by stats.holm.
    rng = np.random.default_rng(1)
    adjusted_away = 0
    for _ in range(200):
        m, n = int(rng.integers(2, 5)), 200
        rights = rng.binomial(n, 0.5, size=m)
        records = [record for arm, right in enumerate(rights) for record in items(int(right), n, arm=arm)]
        criteria = [criterion(where={"arm": arm}, threshold=0.55) for arm in range(m)]
        found = decide(gate(*criteria, combine="all"), {"evaluate": records})
        z = (rights / n - 0.55) / math.sqrt(0.55 * 0.45 / n)
        p = np.array([math.erfc(abs(score) / math.sqrt(2)) for score in z])
        family = np.where(z < 0, p, 1.0)
        no_go, go = stats.holm(family) <= 0.05, (z > 0) & (p <= 0.05)
        expected = ["no-go" if bad else "go" if good else "inconclusive" for bad, good in zip(no_go, go, strict=True)]
        assert [finding.decision for finding in found.criteria] == expected
        assert found.decision == ("no-go" if no_go.any() else "go" if go.all() else "inconclusive")
        adjusted_away += bool(((family <= 0.05) & ~no_go).any())
    assert adjusted_away > 5


# --- several criteria


def test_all_needs_every_one_and_any_needs_one():
    good, bad, open_ = ({"where": {"arm": arm}} for arm in ("good", "bad", "open"))
    records = items(290, 300, arm="good") + items(10, 300, arm="bad") + items(212, 300, arm="open")

    def decision(combine: str, *parts: dict[str, Any]) -> str:
        return decide(gate(*(criterion(**part) for part in parts), combine=combine), {"evaluate": records}).decision

    assert [decision("all", good, other) for other in (good, open_, bad)] == ["go", "inconclusive", "no-go"]
    assert [decision("any", bad, other) for other in (bad, open_, good)] == ["no-go", "inconclusive", "go"]
    assert decision("all", open_, bad) == "no-go"
    assert decision("any", open_, good) == "go"


def test_any_of_many_is_held_to_a_stricter_level():
    # 75.3% of 300 is shown to be above 70% at 95%, but not as the luckiest of five.
    assert verdict(items(227, 300)).decision == "go"
    records = [record for arm in range(5) for record in items(227 if arm == 0 else 190, 300, arm=arm)]
    criteria = [criterion(where={"arm": arm}) for arm in range(5)]
    found = decide(gate(*criteria, combine="any"), {"evaluate": records})
    assert found.decision == "inconclusive"
    assert found.criteria[0].confidence == pytest.approx(0.99)
    assert found.n_to_decide is not None and found.n_to_decide > 300


def test_any_of_useless_arms_rarely_goes():
    # All five arms sit on the threshold: unadjusted, one of them is above it by luck in 12% of the families.
    rng = np.random.default_rng(2)
    criteria = [criterion(where={"arm": arm}, threshold=0.5) for arm in range(5)]
    family = gate(*criteria, combine="any")
    goes = unadjusted = 0
    for _ in range(300):
        rights = rng.binomial(200, 0.5, size=5)
        counts = [{"arm": arm, "correct": right / 200, "n": 200} for arm, right in enumerate(rights.tolist())]
        goes += decide(family, {"evaluate": counts}).decision == "go"
        unadjusted += any((stats.wilson(right, 200).low or 0) > 0.5 for right in rights.tolist())
    assert goes / 300 <= 0.025 + 3 * math.sqrt(0.025 * 0.975 / 300)
    assert unadjusted > 2 * goes


def test_facts_do_not_use_up_the_error_level():
    records = [*items(227, 300), {"kind": "check", "passed": True}]
    fact = criterion(metric="passed", statistic="every", where={"kind": "check"})
    found = decide(gate(fact, criterion(where={"kind": "item"}), combine="any"), {"evaluate": records})
    assert found.criteria[1].confidence == 0.95


def test_n_of_a_gate_is_that_of_its_slowest_or_fastest():
    records = items(74, 100, arm="near") + items(78, 100, arm="far")
    parts = [criterion(where={"arm": arm}) for arm in ("near", "far")]
    slow = decide(gate(*parts), {"evaluate": records})
    near, far = (finding.n_to_decide for finding in slow.criteria)
    assert near is not None and far is not None and slow.n_to_decide == near > far
    fast = decide(gate(*parts, combine="any"), {"evaluate": records})
    assert fast.n_to_decide == fast.criteria[1].n_to_decide


# --- facts


def test_facts():
    records = [{"kind": "check", "name": f"c{i}", "passed": True} for i in range(4)]
    fields: dict[str, Any] = {"metric": "passed", "statistic": "every", "comparison": ">=", "threshold": 1}
    found = verdict(records, **fields)
    assert (found.decision, found.reason) == ("go", "go: passed is true in all 4 records")
    assert (found.criteria[0].value, found.criteria[0].n, found.criteria[0].method) == (None, 4, "fact")
    found = verdict([*records, {"kind": "check", "passed": False}], **fields, smallest_n=50)
    assert (found.decision, found.reason) == ("no-go", "no-go: passed is true in 4 of 5 records")
    assert verdict(records, **fields, smallest_n=50).n_to_decide == 50


@pytest.mark.parametrize("loss", [math.nan, math.inf, None])
def test_a_loss_that_is_not_finite_is_a_no_go_of_the_finite_check(loss: float | None):
    records = curve(0.5, 0.6)
    finite = {"metric": "loss", "statistic": "every", "comparison": "<", "threshold": 1e9}
    assert verdict(records, **finite).decision == "go"
    found = verdict([*records, {**records[-1], "loss": loss}], **finite)
    assert found.decision == "no-go"
    assert "loss is true in 2 of 3 records" in found.reason


def test_a_mean_of_what_is_not_finite_is_refused():
    records = [*curve(0.5, 0.6), {"kind": "validation", "step": 30, "loss": math.nan}]
    with pytest.raises(StepwellError, match="metric loss: not finite in 1 of 3 records, so its mean is undefined"):
        verdict(records, metric="loss", comparison="<", threshold=1)
    with pytest.raises(StepwellError, match="metric arm: 'cot' is not a number"):
        verdict(items(1, 2, arm="cot"), metric="arm")


def test_null_is_left_out_of_a_mean_and_said():
    records = [*items(240, 300), *({"kind": "item", "id": f"x{i}", "correct": None} for i in range(7))]
    found = verdict(records)
    assert (found.decision, found.criteria[0].n) == ("go", 300)
    assert "(7 records without a value left out)" in found.reason
    found = verdict(records[300:])
    assert found.reason == "inconclusive: correct is null in all 7 records"


# --- what hangs together


def test_items_seen_under_three_seeds_are_not_three_items():
    records = [record for seed in range(3) for record in items(220, 300, seed=seed)]
    once, thrice = verdict(items(220, 300)), verdict(records)
    assert once.decision == thrice.decision == "inconclusive"
    assert thrice.criteria[0].n == 300
    naive = verdict([{**record, "id": i} for i, record in enumerate(records)])
    assert naive.decision == "go"  # what pretended independence would have said
    sets = [record for name in "abc" for record in items(220, 300, set=name)]
    assert verdict(sets).criteria[0].n == 900  # the same number in another set is another item


def test_proportions_over_n_are_counted():
    found = verdict(curve(0.8), metric="accuracy").criteria[0]
    assert (found.value, found.n, found.method) == (0.8, 300, "wilson")
    assert (found.low, found.high) == (stats.wilson(240, 300).low, stats.wilson(240, 300).high)
    # Three seeds on (maybe) the same 300 items: the mean accuracy, but not 900 items.
    seeds = [record for seed in range(3) for record in curve(0.8, seed=seed)]
    assert verdict(seeds, metric="accuracy").criteria[0].n == 300
    assert verdict(curve(0.8, 0.8, n=1), metric="loss").criteria[0].method != "wilson"


def test_shared_items_bound_the_spread_of_mean_accuracies():
    rng = np.random.default_rng(3)
    trials, hits = 300, 0
    for _ in range(trials):
        right = rng.random((3, 100)) < 0.7
        right[1] = right[0]  # two seeds that know the same items, one of its own
        records = [{"seed": seed, "accuracy": row.mean(), "n": 100} for seed, row in enumerate(right)]
        finding = verdict(records, metric="accuracy").criteria[0]
        assert finding.low is not None and finding.high is not None
        hits += finding.low <= 0.7 <= finding.high
    assert hits / trials >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / trials)


def test_last_and_best_of_a_curve():
    records = curve(0.6, 0.95, 0.7, arm="cot") + curve(0.5, 0.5, 0.5, arm="direct")
    fields: dict[str, Any] = {"metric": "accuracy", "where": {"arm": "cot"}}
    last, best = verdict(records, **fields, pick="last"), verdict(records, **fields, pick="best")
    assert (last.criteria[0].value, best.criteria[0].value) == (0.7, 0.95)
    assert "(the best step, selected on these same records: optimistic)" in best.reason
    assert "optimistic" not in last.reason
    assert verdict(records, **fields, pick="best", at_most={"epoch": 1}).criteria[0].value == 0.6
    least = verdict(records, metric="loss", pick="best", comparison="<", mode="point", where={"arm": "cot"})
    assert least.criteria[0].value == 0.25


def test_curves_that_cannot_be_told_apart_are_refused():
    records = curve(0.6, lr=0.1) + curve(0.9, lr=0.2)
    with pytest.raises(StepwellError, match="several records share step 10, so they are of several curves"):
        verdict(records, metric="accuracy", pick="last")
    assert verdict(records, metric="accuracy", pick="last", per="lr", need=1).decision == "go"
    with pytest.raises(StepwellError, match="pick: last needs records with a `step`"):
        verdict(items(1, 2), pick="last")


def test_means_are_bootstrapped_and_need_more_than_one_value():
    values = np.random.default_rng(4).normal(0.5, 0.1, size=80).tolist()
    records = [{"id": i, "margin": value} for i, value in enumerate(values)]
    found = verdict(records, metric="margin", threshold=0.4).criteria[0]
    expected = stats.bootstrap_mean(values)
    assert (found.decision, found.method, found.low) == ("go", "bca", expected.low)
    moved = [{"moved": 0.2}]
    alone = verdict(moved, metric="moved", comparison=">", threshold=0.01)
    assert alone.reason == "inconclusive: moved is 0.2 (n 1, no interval from a single value)"
    assert verdict(moved, metric="moved", comparison=">", threshold=0.01, mode="point").decision == "go"
    same = verdict(3 * moved, metric="moved", comparison=">", threshold=0.01)
    assert "no interval: the values do not vary" in same.reason


# --- pairs


def arms(n: int, first: float, second: float, seeds: int = 1) -> list[Record]:
    rng = np.random.default_rng(5)
    hard = rng.random(n)
    return [
        {"kind": "item", "arm": arm, "seed": seed, "id": i, "correct": bool(hard[i] + rng.normal(0, 0.02) < share)}
        for arm, share in (("continuous", first), ("shared", second))
        for seed in range(seeds)
        for i in range(n)
    ]


DIFFERENCE: dict[str, Any] = {"where": {"arm": "continuous"}, "minus": {"arm": "shared"}, "threshold": 0.05}


def test_a_paired_difference_uses_what_is_shared():
    records = arms(300, 0.85, 0.75)
    found = verdict(records, **DIFFERENCE)
    (finding,) = found.criteria
    a, b = ([r["correct"] for r in records if r["arm"] == arm] for arm in ("continuous", "shared"))
    assert (finding.value, finding.low) == (stats.paired_difference(a, b).value, stats.paired_difference(a, b).low)
    assert (found.decision, finding.method, finding.n) == ("go", "newcombe", 300)
    assert "correct (arm=continuous minus arm=shared) is" in found.reason
    rng = np.random.default_rng(6)
    assert verdict([records[i] for i in rng.permutation(600)], **DIFFERENCE) == found


def test_a_paired_difference_over_seeds_is_clustered_by_item():
    finding = verdict(arms(120, 0.85, 0.75, seeds=3), **DIFFERENCE).criteria[0]
    assert (finding.n, finding.method) == (120, "bca")


def test_missing_partners_are_refused():
    records = arms(50, 0.85, 0.75)
    with pytest.raises(StepwellError, match="3 of 50 items lack a partner to be paired with") as caught:
        verdict(records[:-3], **DIFFERENCE)
    assert caught.value.way_out == "Evaluate both sides on the same items and seeds."
    with pytest.raises(StepwellError, match="several records of one side for item 49"):
        verdict([*records, records[49]], **DIFFERENCE)
    with pytest.raises(StepwellError, match="pairs records by `id`, which some lack"):
        verdict([{"arm": arm, "correct": True} for arm in ("continuous", "shared")], **DIFFERENCE)
    with pytest.raises(StepwellError, match="of which `every` makes no sense"):
        verdict(records, **DIFFERENCE, statistic="every")
    one_arm = verdict([record for record in records if record["arm"] == "continuous"], **DIFFERENCE)
    assert one_arm.reason == "inconclusive: correct (arm=continuous minus arm=shared) has no records"


def test_pairs_without_a_value_are_left_out():
    records = arms(100, 0.9, 0.6)
    records[0]["correct"] = None
    found = verdict(records, **DIFFERENCE)
    assert found.criteria[0].n == 99 and "(1 records without a value left out)" in found.reason


# --- per and need


def per_seed(*rights: int) -> list[Record]:
    return [record for seed, right in enumerate(rights) for record in items(right, 300, seed=seed)]


def test_seeds_decide_one_by_one():
    need: dict[str, Any] = {"per": "seed", "need": 2}
    assert verdict(per_seed(270, 270, 100), **need).decision == "go"
    assert verdict(per_seed(270, 100, 100), **need).decision == "no-go"
    found = verdict(per_seed(270, 218, 100), **need)
    assert found.decision == "inconclusive"
    assert found.n_to_decide == found.criteria[0].parts[1].n_to_decide
    assert "correct goes for 1 of 3 values of seed, 2 needed: correct (seed=0) is 0.9" in found.reason
    assert [part.about for part in found.criteria[0].parts] == ["seed=0", "seed=1", "seed=2"]
    assert verdict(per_seed(270, 270, 100), per="seed").decision == "no-go"
    assert verdict(per_seed(270, 270, 270), per="seed").decision == "go"
    assert verdict(per_seed(270), **need).decision == "inconclusive"
    assert verdict([], **need).reason == "inconclusive: correct has no records"


def test_the_luckiest_of_many_seeds_is_held_to_a_stricter_level():
    found = verdict(per_seed(227, 190, 190, 190, 190), per="seed", need=1)
    assert found.decision == "inconclusive"
    assert found.criteria[0].parts[0].confidence == pytest.approx(0.99)
    assert verdict(per_seed(227, 227), per="seed").criteria[0].parts[0].confidence == 0.95


def test_per_needs_its_field():
    with pytest.raises(StepwellError, match="a record has no field `seed` to decide per"):
        verdict(items(1, 2), per="seed")
    with pytest.raises(StepwellError, match="`minus` replaces arm, so it cannot be decided per arm"):
        verdict(arms(10, 0.9, 0.8), **DIFFERENCE, per="arm")


# --- bands

BANDS: dict[str, Any] = {
    "bands": (
        Band(low=0.7, high=1, route="done"),
        Band(low=0.5, high=0.7, route="phase2"),
        Band(low=0, high=0.5, route="stop"),
    )
}


def test_bands_route():
    for right, decision, route in [(290, "go", "done"), (180, "go", "phase2"), (60, "no-go", "stop")]:
        found = verdict(items(right, 300), gate_fields=BANDS)
        assert (found.decision, found.route, found.n_to_decide) == (decision, route, None)
    assert found.reason.endswith("lies in the band [0, 0.5], which routes to stop")
    found = verdict(items(204, 300), gate_fields=BANDS)
    assert (found.decision, found.route) == ("inconclusive", "next")
    needed = found.n_to_decide
    assert needed is not None and f"lies wholly in no band; about {needed} in all would decide" in found.reason
    more = verdict(items(round(0.68 * (needed + 50)), needed + 50), gate_fields=BANDS)
    assert more.route == "phase2"


def test_bands_of_a_point_and_of_nothing():
    assert verdict(items(36, 50), gate_fields=BANDS, mode="point").route == "done"
    assert verdict([], gate_fields=BANDS).reason == "inconclusive: correct has no records"
    gap = {"bands": (Band(low=0.9, high=1, route="done"), Band(low=0, high=0.5, route="stop"))}
    found = verdict(items(210, 300), gate_fields=gap)
    assert (found.decision, found.n_to_decide) == ("inconclusive", None)
    assert verdict(items(36, 50), gate_fields=gap, mode="point").reason.startswith(
        "inconclusive: correct is 0.72 (n 50)"
    )
    few = verdict(items(50, 50), gate_fields=BANDS, smallest_n=100)
    assert (few.decision, few.n_to_decide) == ("inconclusive", 100)
    with pytest.raises(StepwellError, match="bands route one estimate, not one per value"):
        verdict(items(1, 2, seed=0), gate_fields=BANDS, per="seed")


def test_bands_tell_equivalence_from_no_difference_shown():
    # TOST: equivalent at 5% when the 90% interval of the difference lies within the margin.
    margin = {"bands": (Band(low=-0.05, high=0.05, route="equivalent"), Band(low=0.05, high=1, route="better"))}
    fields = DIFFERENCE | {"confidence": 0.9}
    assert verdict(arms(800, 0.8, 0.8), gate_fields=margin, **fields).route == "equivalent"
    assert verdict(arms(800, 0.9, 0.7), gate_fields=margin, **fields).route == "better"
    assert verdict(arms(30, 0.8, 0.8), gate_fields=margin, **fields).decision == "inconclusive"


# --- looking repeatedly


def test_looking_repeatedly_needs_a_confidence_sequence():
    once, repeated = verdict(items(227, 300)), verdict(items(227, 300), looks="repeated")
    assert (once.decision, repeated.decision) == ("go", "inconclusive")
    assert repeated.criteria[0].method == "beta-binomial"
    needed = repeated.n_to_decide
    assert needed is not None
    assert verdict(items(round(227 / 300 * needed) + 3, needed), looks="repeated").decision == "go"


def test_repeated_looks_rarely_err_where_single_ones_do():
    rng = np.random.default_rng(7)
    trials = 60
    wrong = {"once": 0, "repeated": 0}
    for _ in range(trials):
        records = [{"id": i, "correct": bool(rng.random() < 0.7)} for i in range(300)]
        for looks in ("once", "repeated"):
            decisions = {verdict(records[:n], looks=looks).decision for n in range(10, 301, 10)}
            wrong[looks] += decisions != {"inconclusive"}
    assert wrong["repeated"] / trials <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / trials)
    assert wrong["once"] / trials > 0.15


def test_repeated_looks_at_means_differences_and_seeds():
    rng = np.random.default_rng(8)
    records = [{"id": i, "score": float(rng.beta(8, 2))} for i in range(200)]
    found = verdict(records, metric="score", looks="repeated").criteria[0]
    assert (found.decision, found.method) == ("go", "betting")
    finding = verdict(arms(400, 0.95, 0.5), **DIFFERENCE, looks="repeated").criteria[0]
    assert (finding.decision, finding.method, finding.n) == ("go", "betting", 400)
    seeds = verdict(per_seed(270, 270, 270), looks="repeated").criteria[0]
    assert (seeds.decision, seeds.method, seeds.n) == ("go", "betting", 300)
    undecided = verdict(records[:20], metric="score", threshold=0.75, looks="repeated")
    assert undecided.decision == "inconclusive"
    assert undecided.n_to_decide is None or undecided.n_to_decide > 20
    drift = [{"id": i, "score": 0.05 if i < 300 else 0.95} for i in range(600)]
    found = verdict(drift, metric="score", looks="repeated")
    assert (found.decision, found.n_to_decide) == ("inconclusive", None)
    assert "no interval: the values drift" in found.reason
    with pytest.raises(StepwellError, match=r"needs values in \[0, 1\], found 3 to 3"):
        verdict([{"id": 1, "score": 3.0}], metric="score", looks="repeated")


# --- as a record


def test_a_verdict_is_json():
    for found in (
        verdict(items(227, 300)),
        verdict([]),
        verdict(per_seed(270, 100), per="seed"),
        verdict(items(240, 300), gate_fields=BANDS),
        verdict(arms(100, 0.9, 0.6), **DIFFERENCE),
    ):
        record = found.to_record()
        assert json.loads(json.dumps(record, allow_nan=False)) == record
        assert record["kind"] == "verdict" and record["override"] is None
        for finding in record["criteria"]:
            asked = {"value", "low", "high", "n", "threshold", "comparison", "metric", "decision", "n_to_decide"}
            assert asked <= finding.keys()
            assert ("parts" in finding) == (found.criteria[0].method == "per")


def test_deciding_changes_nothing():
    records = arms(60, 0.8, 0.7)
    before = json.dumps(records)
    spec = gate(criterion(**DIFFERENCE))
    assert decide(spec, {"evaluate": iter(records)}) == decide(spec, {"evaluate": records})
    assert json.dumps(records) == before
