"""Intervals against other libraries, brute force and simulation: an interval that does not cover decides wrongly."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from stepwell import stats
from stepwell.stats import (
    Estimate,
    bootstrap_mean,
    confidence_sequence,
    holm,
    intervals,
    mcnemar_exact,
    n_to_decide,
    n_to_refute,
    paired_difference,
    proportion,
    proportion_sequence,
    wilson,
)


def ends(estimate: Estimate) -> tuple[float, float]:
    assert estimate.low is not None and estimate.high is not None
    return estimate.low, estimate.high


def covers(estimate: Estimate, truth: float) -> bool:
    low, high = ends(estimate)
    return low <= truth <= high


# --- proportions


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.999])
def test_wilson_is_that_of_scipy(confidence: float):
    for n in (1, 2, 7, 50, 300):
        for successes in sorted({0, 1, n // 3, n - 1, n}):
            found = wilson(successes, n, confidence)
            interval = binomtest(successes, n).proportion_ci(confidence, method="wilson")
            assert ends(found) == pytest.approx((interval.low, interval.high), abs=1e-12)
            assert (found.value, found.n, found.method) == (successes / n, n, "wilson")


def test_wilson_is_that_of_statsmodels():
    proportions = pytest.importorskip("statsmodels.stats.proportion")
    for successes, n in [(0, 10), (7, 10), (240, 300), (300, 300)]:
        expected = proportions.proportion_confint(successes, n, 0.05, method="wilson")
        assert ends(wilson(successes, n)) == pytest.approx(expected, abs=1e-12)


def test_wilson_ends_are_exact_at_none_and_all():
    assert wilson(0, 3000).low == 0.0
    assert wilson(3000, 3000).high == 1.0


def test_nothing_seen_is_undefined_and_not_zero():
    for estimate in (
        wilson(0, 0),
        proportion([]),
        bootstrap_mean([]),
        paired_difference([], []),
        confidence_sequence([]),
        proportion_sequence(0, 0),
    ):
        assert (estimate.value, estimate.low, estimate.high, estimate.n) == (None, None, None, 0)


@given(st.integers(1, 400), st.floats(0, 1), st.floats(0.001, 0.999), st.floats(0.5, 0.999))
@settings(max_examples=200, deadline=None)
def test_n_to_decide_of_a_proportion_is_the_smallest(n: int, share: float, threshold: float, confidence: float):
    estimate = wilson(round(share * n), n, confidence)
    assert estimate.value is not None
    needed = n_to_decide(estimate, threshold)
    if abs(estimate.value - threshold) <= 1e-12:
        assert needed is None
    elif needed is not None and needed > 2:
        assert stats.excludes(wilson(estimate.value * (needed + 1), needed + 1, confidence), threshold)
        assert not stats.excludes(wilson(estimate.value * (needed - 2), needed - 2, confidence), threshold)


def test_an_estimate_on_the_threshold_is_never_decided():
    assert n_to_decide(wilson(210, 300), 0.7) is None
    assert n_to_decide(proportion_sequence(210, 300), 0.7) is None
    assert n_to_decide(wilson(700_001, 1_000_000), 0.7) is None  # not within a million items
    assert n_to_refute([0.0, 1.0], 0.5) is None


def test_clusters_of_like_items_are_no_more_than_one_item_each():
    rng = np.random.default_rng(0)
    items = (rng.random(300) < 0.8).astype(float)
    thrice, labels = np.repeat(items, 3), np.repeat(np.arange(300), 3).tolist()
    low, high = ends(proportion(thrice, clusters=labels))
    naive_low, naive_high = ends(proportion(thrice))
    assert (high - low) / (naive_high - naive_low) == pytest.approx(math.sqrt(3), rel=0.05)
    assert ends(proportion(thrice, clusters=labels)) == pytest.approx(ends(proportion(items)), abs=0.012)


def test_clusters_without_spread_count_as_one_item_each():
    found = proportion([1] * 900, clusters=list(range(300)) * 3)
    assert (found.value, found.low, found.n) == (1.0, wilson(300, 300).low, 300)


# --- means


def test_bootstrap_agrees_with_the_normal_interval_where_that_is_right():
    values = np.random.default_rng(1).normal(2.0, 3.0, size=400)
    half = 1.96 * values.std(ddof=1) / 20
    assert ends(bootstrap_mean(values)) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.03)


def test_bootstrap_is_the_same_for_a_seed_and_for_any_order():
    rng = np.random.default_rng(2)
    values, labels = rng.exponential(size=120), rng.integers(0, 60, size=120).tolist()
    found = bootstrap_mean(values, clusters=labels, seed=5)
    order = rng.permutation(120)
    again = bootstrap_mean(values[order], clusters=[labels[i] for i in order], seed=5)
    assert ends(found) == pytest.approx(ends(again), abs=1e-12)
    assert ends(found) == ends(bootstrap_mean(values, clusters=labels, seed=5))
    assert ends(found) != ends(bootstrap_mean(values, clusters=labels, seed=6))


def test_bootstrap_follows_the_skew():
    values = np.random.default_rng(3).exponential(size=60)
    low, high = ends(bootstrap_mean(values))
    assert high - values.mean() > 1.1 * (values.mean() - low)


@pytest.mark.parametrize(("n", "distribution"), [(5, "normal"), (30, "normal"), (40, "exponential")])
def test_bootstrap_covers(n: int, distribution: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(intervals, "RESAMPLES", 999)
    rng = np.random.default_rng(4)
    truth = 0.0 if distribution == "normal" else 1.0
    trials = 300
    hits = sum(covers(bootstrap_mean(getattr(rng, distribution)(size=n)), truth) for _ in range(trials))
    # A bootstrap of few skewed values is known to fall a little short of 95%; it must not fall far.
    assert hits / trials >= 0.92 - 2 * math.sqrt(0.95 * 0.05 / trials)


def test_clustered_bootstrap_covers_where_the_plain_one_does_not(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(intervals, "RESAMPLES", 999)
    rng = np.random.default_rng(5)
    labels = np.repeat(np.arange(40), 5).tolist()
    trials, clustered, plain = 200, 0, 0
    for _ in range(trials):
        values = np.repeat(rng.normal(size=40), 5) + 0.3 * rng.normal(size=200)
        clustered += covers(bootstrap_mean(values, clusters=labels), 0.0)
        plain += covers(bootstrap_mean(values), 0.0)
    assert clustered / trials >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / trials)
    assert plain / trials < 0.8


def test_clusters_of_differing_sizes_keep_the_mean_over_values():
    values, labels = [1.0, 2.0, 3.0, 10.0], ["a", "a", "a", "b"]
    assert bootstrap_mean(values, clusters=labels).value == 4.0
    assert bootstrap_mean(values, clusters=labels).n == 2


def test_one_value_or_no_spread_has_no_interval():
    for values in ([0.05], [0.05, 0.05, 0.05]):
        found = bootstrap_mean(values)
        assert found.value == pytest.approx(0.05)
        assert (found.low, found.high) == (None, None)
        assert n_to_decide(found, 0.01) is None


def test_values_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="1 of 3 values are not finite"):
        bootstrap_mean([1.0, math.nan, 2.0])
    with pytest.raises(ValueError, match="2 values but 3 cluster labels"):
        bootstrap_mean([1.0, 2.0], clusters=[1, 2, 3])
    with pytest.raises(ValueError, match="values 0 and 1 only"):
        proportion([0.5])
    with pytest.raises(ValueError, match=r"confidence must lie in \(0, 1\), found 95"):
        wilson(1, 2, 95)
    with pytest.raises(ValueError, match="found 3 of 2"):
        wilson(3, 2)


def test_n_to_decide_of_a_mean_halves_the_width_with_four_times_the_values():
    found = Estimate(value=1.0, low=0.6, high=1.4, n=100, method="bca", confidence=0.95)
    assert n_to_decide(found, 0.8) == 401
    assert n_to_decide(found, 1.2) == 401


# --- pairs


def pairs(both: int, only_first: int, only_second: int, neither: int) -> tuple[list[int], list[int]]:
    cells = [((1, 1), both), ((1, 0), only_first), ((0, 1), only_second), ((0, 0), neither)]
    rows = [pair for pair, count in cells for _ in range(count)]
    return [a for a, _ in rows], [b for _, b in rows]


def test_paired_proportions_as_published():
    # Airway hyper-responsiveness before and after transplantation: Fagerland, Lydersen & Laake 2014, table 5.
    found = paired_difference(*pairs(1, 1, 7, 12))
    assert found.value == pytest.approx(-0.286, abs=5e-4)
    assert ends(found) == pytest.approx((-0.507, -0.026), abs=5e-4)


def test_paired_proportions_cover_and_beat_the_unpaired():
    rng = np.random.default_rng(6)
    trials, hits = 600, 0
    for _ in range(trials):
        hard = rng.random(150)
        hits += covers(
            paired_difference((hard < 0.8).astype(int), (hard + rng.normal(0, 0.1, 150) < 0.8).astype(int)), 0
        )
    assert hits / trials >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / trials)


def test_pairs_that_never_differ_leave_room_for_those_not_seen():
    low, high = ends(paired_difference([1] * 50, [1] * 50))
    assert low < 0 < high and high - low > 0.1
    clustered = paired_difference([1] * 150, [1] * 150, clusters=list(range(50)) * 3)
    assert ends(clustered) == (low, high)


def test_pairs_with_three_seeds_are_clustered():
    rng = np.random.default_rng(7)
    first, second = (rng.random(100) < 0.8).astype(int), (rng.random(100) < 0.6).astype(int)
    once = paired_difference(first, second)
    labels = np.repeat(np.arange(100), 3).tolist()
    thrice = paired_difference(np.repeat(first, 3), np.repeat(second, 3), clusters=labels)
    assert (thrice.value, thrice.n) == (pytest.approx(once.value), 100)
    assert ends(thrice) == pytest.approx(ends(once), abs=0.02)


def test_pairs_need_partners():
    with pytest.raises(ValueError, match="3 values cannot be paired with 2"):
        paired_difference([1, 0, 1], [1, 0])


# --- tests


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
@settings(max_examples=200, deadline=None)
def test_holm_rejects_what_the_step_down_rejects(p_values: list[float]):
    adjusted = holm(p_values)
    alpha = 0.05
    remaining = sorted(range(len(p_values)), key=lambda i: p_values[i])
    rejected = set(
        itertools.takewhile(lambda i: p_values[i] * (len(p_values) - remaining.index(i)) <= alpha, remaining)
    )
    assert {i for i, p in enumerate(adjusted) if p <= alpha} == rejected
    assert (adjusted >= np.asarray(p_values) - 1e-15).all() and (adjusted <= 1).all()


def test_holm_is_that_of_statsmodels():
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    rng = np.random.default_rng(8)
    for size in (1, 2, 5, 30):
        p = rng.random(size) ** 3
        assert holm(p) == pytest.approx(multitest.multipletests(p, method="holm")[1], abs=1e-14)


def test_mcnemar_is_the_sum_of_binomial_tails():
    for only_first, only_second in itertools.product(range(12), repeat=2):
        total = only_first + only_second
        tail = 2 * binom.cdf(min(only_first, only_second), total, 0.5)
        assert mcnemar_exact(only_first, only_second) == pytest.approx(min(1.0, tail), abs=1e-12)
    assert mcnemar_exact(0, 0) == 1.0


# --- looking again and again

LOOKS, TRIALS = 500, 400
SLACK = 3 * math.sqrt(0.95 * 0.05 / TRIALS)


def test_a_repeated_wilson_interval_fails():
    rng = np.random.default_rng(9)
    n = np.arange(1, LOOKS + 1)
    hits = 0
    for _ in range(TRIALS):
        successes = np.cumsum(rng.random(LOOKS) < 0.7)
        hits += all(covers(wilson(int(successes[i]), int(n[i])), 0.7) for i in range(9, LOOKS, 5))
    assert hits / TRIALS < 0.85


@pytest.mark.parametrize("truth", [0.02, 0.7])
def test_the_proportion_sequence_covers_at_every_look(truth: float):
    rng = np.random.default_rng(10)
    # Every n from 1 to LOOKS is a look; the interval depends on the counts only, so each count is computed once.
    inside = {
        n: [covers(proportion_sequence(successes, n), truth) for successes in range(n + 1)]
        for n in (*range(1, 40), *range(40, LOOKS + 1, 20))
    }
    hits = 0
    for _ in range(TRIALS):
        successes = np.cumsum(rng.random(LOOKS) < truth)
        hits += all(covered[successes[n - 1]] for n, covered in inside.items())
    assert hits / TRIALS >= 0.95 - SLACK


@pytest.mark.parametrize(("a", "b"), [(2.0, 2.0), (0.5, 4.0), (10.0, 1.0)])
def test_the_betting_sequence_covers_at_every_look(a: float, b: float):
    rng = np.random.default_rng(11)
    # Intersected over all prefixes: what the last interval covers, every one before it covered (tested below).
    hits = sum(covers(confidence_sequence(rng.beta(a, b, size=LOOKS)), a / (a + b)) for _ in range(TRIALS))
    assert hits / TRIALS >= 0.95 - SLACK


def test_the_betting_sequence_only_ever_shrinks():
    values = np.random.default_rng(12).beta(2, 3, size=200)
    intervals = [ends(confidence_sequence(values[:n])) for n in range(1, 201)]
    for (low, high), (later_low, later_high) in itertools.pairwise(intervals):
        assert low <= later_low and later_high <= high
    assert intervals[0][0] < 0.1 and intervals[0][1] > 0.9
    assert intervals[-1][1] - intervals[-1][0] < 0.2


def test_the_betting_sequence_is_the_set_of_means_not_refuted():
    values = np.random.default_rng(13).beta(5, 2, size=80)
    n, alpha = len(values), 0.05
    # The paper's algorithm, one value at a time, on a grid of means.
    grid = np.linspace(0.0005, 0.9995, 1000)
    up, down, refuted = np.ones(1000), np.ones(1000), np.zeros(1000, dtype=bool)
    variance, total, squares = 0.25, 0.5, 0.25
    for t in range(1, n + 1):
        bet = math.sqrt(2 * math.log(2 / alpha) / (variance * t * math.log(1 + t)))
        up *= 1 + np.minimum(bet, 0.5 / grid) * (values[t - 1] - grid)
        down *= 1 - np.minimum(bet, 0.5 / (1 - grid)) * (values[t - 1] - grid)
        refuted |= np.maximum(up / 2, down / 2) >= 1 / alpha
        total += values[t - 1]
        squares += (values[t - 1] - total / (t + 1)) ** 2
        variance = squares / (t + 1)
    kept = grid[~refuted]
    assert ends(confidence_sequence(values)) == pytest.approx((kept[0], kept[-1]), abs=0.0011)


def test_sequences_move_with_their_bounds_and_mirror():
    values = np.random.default_rng(14).beta(5, 2, size=100)
    low, high = ends(confidence_sequence(values))
    assert ends(confidence_sequence(2 * values - 1, bounds=(-1, 1))) == pytest.approx((2 * low - 1, 2 * high - 1))
    assert ends(confidence_sequence(1 - values)) == pytest.approx((1 - high, 1 - low))
    one, other = ends(proportion_sequence(30, 100)), ends(proportion_sequence(70, 100))
    assert one == pytest.approx((1 - other[1], 1 - other[0]))


def test_values_outside_their_bounds_are_refused():
    with pytest.raises(ValueError, match=r"values lie in \[-0.1, 1.2\], outside the bounds \[0, 1\]"):
        confidence_sequence([-0.1, 1.2])


def test_values_that_drift_have_no_interval():
    found = confidence_sequence([0.05] * 300 + [0.95] * 300)
    assert (found.low, found.high) == (None, None)
    assert found.value == pytest.approx(0.5)


@pytest.mark.parametrize("threshold", [0.52, 0.6])
def test_n_to_refute_is_the_smallest(threshold: float):
    values = np.random.default_rng(15).beta(6, 5, size=50)
    needed = n_to_refute(values, threshold)
    assert needed is not None and needed > 20
    repeated = np.resize(values, needed)
    assert stats.excludes(confidence_sequence(repeated), threshold)
    assert not stats.excludes(confidence_sequence(repeated[:-1]), threshold)
    half = n_to_refute(2 * values - 1, 2 * threshold - 1, bounds=(-1, 1))
    assert half == needed


def test_n_to_decide_of_a_proportion_sequence_is_the_smallest():
    needed = n_to_decide(proportion_sequence(240, 300), 0.75)
    assert needed is not None and needed > 300
    assert stats.excludes(proportion_sequence(0.8 * needed, needed), 0.75)
    assert not stats.excludes(proportion_sequence(0.8 * (needed - 1), needed - 1), 0.75)


def test_a_sequence_of_ten_thousand_values_takes_milliseconds():
    import time

    values = np.random.default_rng(16).random(10_000)
    began = time.perf_counter()
    confidence_sequence(values)
    assert time.perf_counter() - began < 1.0
