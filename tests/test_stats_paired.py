"""p-values, equivalence and effect sizes of pairs, against other libraries, exact integers, brute force, simulation."""

from __future__ import annotations

import copy
import json
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import binomtest, nct

from stepwell.stats import (
    Estimate,
    PairTable,
    PValue,
    cohens_dz,
    cohens_h,
    compare_pairs,
    discordant_odds,
    holm,
    holm_p,
    mcnemar_exact,
    p_text,
    pair_table,
    permutation_p,
    tost_crossed,
    tost_means,
    tost_proportions,
)
from stepwell.stats.equivalence import tango_interval, tango_score


def table_of(both: int, only_first: int, only_second: int, neither: int) -> PairTable:
    return PairTable(both=both, only_first=only_first, only_second=only_second, neither=neither)


def rows_of(table: PairTable) -> tuple[list[int], list[int]]:
    cells = [((1, 1), table.both), ((1, 0), table.only_first), ((0, 1), table.only_second), ((0, 0), table.neither)]
    rows = [pair for pair, count in cells for _ in range(count)]
    return [a for a, _ in rows], [b for _, b in rows]


def ends(estimate: Estimate) -> tuple[float, float]:
    assert estimate.low is not None and estimate.high is not None
    return estimate.low, estimate.high


# --- p-values


@pytest.mark.parametrize(("fewer", "more"), [(0, 5), (3, 30), (10, 1200), (0, 3000), (700, 4000), (1, 20_000)])
def test_mcnemar_is_exact_far_below_what_a_float_can_hold(fewer: int, more: int):
    total = fewer + more
    tail, term = 0, 1
    for k in range(fewer + 1):
        tail += term
        term = term * (total - k) // (k + 1)
    expected = math.log10(2 * tail) - total * math.log10(2)
    for found in (mcnemar_exact(fewer, more), mcnemar_exact(more, fewer)):
        assert found.exact and found.log10 == pytest.approx(expected, rel=1e-11)
        assert 0 < found <= 1 and p_text(found) not in ("0", "0.0")
        assert float(found) == pytest.approx(max(10**expected, 1e-300), rel=1e-9)


def test_mcnemar_is_that_of_statsmodels():
    tables = pytest.importorskip("statsmodels.stats.contingency_tables")
    for b, c in [(0, 1), (4, 9), (10, 10), (25, 60), (7, 7), (300, 250)]:
        assert mcnemar_exact(b, c) == pytest.approx(tables.mcnemar([[5, b], [c, 9]], exact=True).pvalue, rel=1e-9)


def test_a_p_value_never_reads_nought():
    shown = {0.0: "< 1e-300", 5e-324: "< 1e-300", 1e-300: "1.0e-300", 3.14e-12: "3.1e-12", 9.99e-6: "1.0e-05"}
    shown |= {0.00012: "0.00012", 0.0321: "0.032", 0.049: "0.049", 0.999: "1", 1.0: "1"}
    assert {p: p_text(p) for p in shown} == shown
    assert p_text(PValue.of_log10(-512.3)) == "5.0e-513"
    assert p_text(PValue.of_log10(-399.0001)) == "1.0e-399"
    assert p_text(None) == "undefined"
    assert f"{PValue(0.0)}" == str(PValue(0.0)) == "< 1e-300"
    assert json.loads(json.dumps({"p": PValue(0.0)})) == {"p": 1e-300}
    for p in (PValue(0.0), PValue(0.3), PValue.of_log10(-512.3)):
        for again in (copy.deepcopy(p), PValue(p)):
            assert (again.log10, again.exact, float(again)) == (p.log10, p.exact, float(p))
    for wrong in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
            PValue(wrong)


def test_holm_in_logarithms_is_holm():
    rng = np.random.default_rng(0)
    for size in (1, 2, 7, 30):
        p = rng.random(size) ** 4
        assert [float(q) for q in holm_p(p.tolist())] == pytest.approx(holm(p), rel=1e-12)
    small = holm_p([PValue.of_log10(-400), PValue.of_log10(-350), 0.02])
    assert [q.log10 for q in small] == pytest.approx([math.log10(3) - 400, math.log10(2) - 350, math.log10(0.02)])
    assert p_text(holm_p([0.0, 0.5])[0]) == "< 1e-300"
    assert holm_p([]) == ()


def test_a_permutation_counts_the_order_that_was_seen():
    assert permutation_p(0, 999) == 0.001
    assert permutation_p(999, 999) == 1
    with pytest.raises(ValueError, match=r"as_extreme must lie in \[0, 9\], found 10"):
        permutation_p(10, 9)


# --- equivalence


def likeliest(table: PairTable, difference: float) -> float:
    """The probability of `only_second` in the likeliest table with this difference, by search."""
    b, c, rest = table.only_first, table.only_second, table.both + table.neither

    def cost(q: float) -> float:
        cells = [(b, q + difference), (c, q), (rest, 1 - 2 * q - difference)]
        return -sum(count * math.log(max(p, 1e-300)) for count, p in cells if count)

    low, high = max(0.0, -difference), (1 - difference) / 2
    found: Any = minimize_scalar(cost, bounds=(low, high), method="bounded", options={"xatol": 1e-12})
    return float(found.x)


def test_tangos_score_uses_the_likeliest_table():
    rng = np.random.default_rng(1)
    for _ in range(60):
        table = table_of(*rng.integers(1, 40, 4).tolist())
        difference = float(rng.uniform(-0.6, 0.6))
        q = likeliest(table, difference)
        variance = table.n * (2 * q + difference - difference**2)
        z = (table.only_first - table.only_second - table.n * difference) / math.sqrt(variance)
        assert tango_score(table, difference) == pytest.approx(z, abs=2e-4)


def test_tangos_interval_as_published():
    # Airway hyper-responsiveness before and after transplantation: Fagerland, Lydersen & Laake 2014, table 5.
    assert tango_interval(table_of(1, 1, 7, 12), 0.95) == pytest.approx((-0.517, -0.026), abs=5e-4)


def test_tangos_interval_at_the_edges():
    for table in (table_of(50, 0, 0, 0), table_of(0, 20, 0, 0), table_of(0, 0, 20, 0), table_of(5, 0, 3, 5)):
        low, high = tango_interval(table, 0.9)
        value = (table.only_first - table.only_second) / table.n
        assert -1 <= low <= value <= high <= 1 and high - low > 0.01


def test_equivalent_just_when_the_interval_lies_within_the_margin():
    rng = np.random.default_rng(2)
    seen = set()
    for _ in range(150):
        table = table_of(*rng.multinomial(int(rng.integers(20, 500)), [0.7, 0.1, 0.08, 0.12]).tolist())
        found = tost_proportions(*rows_of(table), margin=0.1)
        low, high = ends(found.estimate)
        assert found.equivalent == (low > -0.1 and high < 0.1)
        assert found.estimate.confidence == pytest.approx(0.9)
        seen.add(found.equivalent)
    assert seen == {True, False}


def test_too_few_items_are_no_equivalence():
    first, second = rows_of(table_of(20, 2, 2, 6))
    found = tost_proportions(first, second, margin=0.05)
    assert mcnemar_exact(2, 2) == 1 and found.equivalent is False
    said = compare_pairs(first, second, items=list(range(30)), seeds=[0] * 30, margin=0.05).conclusion
    assert said.startswith("no difference is shown at the 0.05 level; not shown to lie within the margin of 0.05")
    without = compare_pairs(first, second, items=list(range(30)), seeds=[0] * 30).conclusion
    assert "without a margin fixed before the run nothing says that they are equivalent" in without


def test_at_the_margin_equivalence_is_claimed_in_one_of_twenty():
    rng = np.random.default_rng(3)
    trials = 2000
    claims = 0
    for _ in range(trials):
        table = table_of(*rng.multinomial(300, [0.7, 0.15, 0.05, 0.1]).tolist())  # true difference: 0.1
        claims += tango_score(table, 0.1) < -1.6449 and tango_score(table, -0.1) > 1.6449
    assert abs(claims / trials - 0.05) <= 3 * math.sqrt(0.05 * 0.95 / trials)


def test_equivalence_of_means_is_that_of_statsmodels():
    weights = pytest.importorskip("statsmodels.stats.weightstats")
    rng = np.random.default_rng(4)
    for n in (5, 40):
        first = rng.normal(0.1, 1, n)
        second = first + rng.normal(0, 0.5, n)
        found = tost_means(first, second, margin=0.3)
        assert found.p_value == pytest.approx(weights.ttost_paired(first, second, -0.3, 0.3)[0], rel=1e-9)
        low, high = ends(found.estimate)
        assert found.equivalent == (low > -0.3 and high < 0.3)


def test_equivalence_over_seeds_errs_in_one_of_twenty_at_most():
    rng = np.random.default_rng(5)
    items, seeds = np.repeat(np.arange(60), 3).tolist(), list(range(3)) * 60
    claims, nothing = 0, [0.0] * 180
    for _ in range(400):
        table = 0.3 + rng.normal(0, 0.05, (1, 3)) + rng.normal(0, 0.5, (60, 3))
        claims += tost_crossed(table.ravel(), nothing, items=items, seeds=seeds, margin=0.3).equivalent is True
    assert claims / 400 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)
    near = rng.normal(0, 0.1, 180)
    assert tost_crossed(near, nothing, items=items, seeds=seeds, margin=0.3).equivalent is True
    one = tost_crossed(near[:60], nothing[:60], items=list(range(60)), seeds=[0] * 60, margin=0.3)
    assert (one.equivalent, one.p_value) == (None, None)


def test_a_margin_must_be_one():
    for margin in (0, -0.1, math.inf, math.nan):
        with pytest.raises(ValueError, match="the margin must lie in"):
            tost_means([1, 2], [1, 3], margin=margin)
    with pytest.raises(ValueError, match=r"the margin must lie in \(0, 1\), found 5"):
        tost_proportions([1], [0], margin=5)
    with pytest.raises(TypeError, match="margin"):
        tost_proportions([1], [0])  # pyright: ignore[reportCallIssue]
    assert tost_proportions([], [], margin=0.1).equivalent is None
    assert tost_means([1, 1], [1, 1], margin=0.1).equivalent is None


# --- effect sizes


def test_cohens_h_is_that_of_statsmodels():
    proportions = pytest.importorskip("statsmodels.stats.proportion")
    table = table_of(60, 20, 8, 12)
    assert cohens_h(table).value == pytest.approx(proportions.proportion_effectsize(0.8, 0.68))
    assert cohens_h(table_of(0, 10, 0, 0)).value == pytest.approx(math.pi)


def test_cohens_h_covers():
    rng = np.random.default_rng(6)
    truth = 2 * math.asin(math.sqrt(0.9)) - 2 * math.asin(math.sqrt(0.8))
    trials, hits = 800, 0
    for _ in range(trials):
        low, high = ends(cohens_h(table_of(*rng.multinomial(150, [0.75, 0.15, 0.05, 0.05]).tolist())))
        hits += low <= truth <= high
    assert hits / trials >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / trials)


def test_the_odds_of_discordant_pairs_have_the_exact_interval():
    for b, c in [(1, 1), (12, 5), (3, 40)]:
        found = discordant_odds(table_of(50, b, c, 9))
        exact = binomtest(b, b + c).proportion_ci(0.95, method="exact")
        assert found.value == b / c and found.n == b + c
        assert ends(found) == pytest.approx((exact.low / (1 - exact.low), exact.high / (1 - exact.high)))
    one_sided = discordant_odds(table_of(5, 7, 0, 5))
    assert (one_sided.value, one_sided.high, one_sided.n) == (None, None, 7)
    assert one_sided.low is not None and one_sided.low > 1
    assert discordant_odds(table_of(5, 0, 7, 5)).low == 0
    nothing = discordant_odds(table_of(5, 0, 0, 5))
    assert (nothing.value, nothing.low, nothing.high, nothing.n) == (None, None, None, 0)


def test_cohens_dz_inverts_the_noncentral_t():
    rng = np.random.default_rng(7)
    for n, shift in [(3, 0.0), (20, 0.8), (300, -2.0)]:
        first, second = rng.normal(shift, 1, n), rng.normal(0, 0.3, n)
        differences = first - second
        found = cohens_dz(first, second)
        assert found.value == pytest.approx(differences.mean() / differences.std(ddof=1))
        low, high = ends(found)
        assert found.value is not None
        t, root = found.value * math.sqrt(n), math.sqrt(n)
        assert nct.sf(t, n - 1, low * root) == pytest.approx(0.025, rel=1e-5)
        assert nct.cdf(t, n - 1, high * root) == pytest.approx(0.025, rel=1e-5)
    assert cohens_dz([1.0], [0.0]).value is None
    assert cohens_dz([1.0, 2.0], [0.0, 1.0]).low is None


def test_cohens_dz_covers():
    rng = np.random.default_rng(8)
    trials, hits = 100, 0
    for _ in range(trials):
        low, high = ends(cohens_dz(rng.normal(0.5, 1, 15), np.zeros(15)))
        hits += low <= 0.5 <= high
    assert hits / trials >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / trials)


# --- all of it together


def test_a_comparison_of_pairs_tells_what_its_parts_tell():
    table = table_of(60, 25, 5, 10)
    found = compare_pairs(*rows_of(table), items=list(range(100)), seeds=[0] * 100)
    assert found.table == table == pair_table(*rows_of(table))
    assert (found.items, found.seeds, found.test) == (100, 1, "mcnemar")
    assert (found.first.value, found.second.value) == (0.85, 0.65)
    assert found.difference.value == pytest.approx(0.2)
    assert found.p_value == mcnemar_exact(25, 5)
    assert Fraction(25, 5) == found.effects["discordant_odds"].value
    assert found.conclusion == (
        "the first is higher, at the 0.05 level; about these trained models, not the arms: that takes 3 seeds"
    )


def test_numbers_are_compared_by_their_means():
    rng = np.random.default_rng(9)
    first = rng.normal(0.5, 1, 50)
    found = compare_pairs(first, np.zeros(50), items=list(range(50)), seeds=[0] * 50, margin=2.0)
    assert (found.test, found.table, set(found.effects)) == ("t", None, {"cohens_dz"})
    assert found.equivalence is not None and found.equivalence.equivalent is True
    assert found.conclusion.startswith("the first is higher, at the 0.05 level; shown to lie within the margin of 2")


def test_several_seeds_are_compared_over_items_and_seeds():
    rng = np.random.default_rng(10)
    items, seeds = np.repeat(np.arange(200), 3).tolist(), list(range(3)) * 200
    first, second = (rng.random(600) < 0.9).astype(int), (rng.random(600) < 0.6).astype(int)
    found = compare_pairs(first, second, items=items, seeds=seeds, margin=0.1)
    assert (found.items, found.seeds, found.test) == (200, 3, "crossed-t")
    assert found.conclusion == ("the first is higher, at the 0.05 level; not shown to lie within the margin of 0.1")
    assert set(found.effects) == {"cohens_dz"}


def test_nothing_compared_is_undefined():
    found = compare_pairs([], [], items=[], seeds=[], margin=0.1)
    assert (found.items, found.p_value, found.difference.value) == (0, None, None)
    assert found.conclusion.startswith("undefined")
