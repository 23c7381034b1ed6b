"""Estimates with intervals, exact tests, and the number of items that would decide. Undefined is None, never zero.

`n` always counts independent units: items, pairs, or clusters where the values of a cluster hang together. All
intervals are two-sided, so a claim on one side errs with half of 1 - confidence at most.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaln, ndtri, stdtrit, xlog1py, xlogy

Floats = NDArray[np.float64]

# Below this the bootstrap is too sure of itself: simulated, BCa at 95% covers 87% with 5 normal values, 91% with 15.
FEWEST_FOR_BOOTSTRAP = 30
# Beyond this the acceleration is negligible, and its jackknife (n x n) is what takes the time.
MOST_FOR_BCA = 5_000
RESAMPLES = 9_999
# Numbers held at once while resampling: 32 MB of float64.
BATCH_ELEMENTS = 4_000_000
MOST_ITEMS = 1_000_000
"""No more items than this are ever proposed: what they cannot decide sits on the threshold for all practical ends."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number with its interval.

    Args:
        value: the estimate; None where there are no data.
        low, high: the ends of the interval; None where the data cannot give one (one value, or no spread).
        n: independent units behind it.
        method: how the interval was found.
        confidence: of the interval, in (0, 1).
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    method: str
    confidence: float


def _estimate(value: float, low: float, high: float, n: float, method: str, confidence: float) -> Estimate:
    return Estimate(
        value=float(value), low=float(low), high=float(high), n=int(n), method=method, confidence=confidence
    )


def _undefined(value: float | None, n: int, method: str, confidence: float) -> Estimate:
    return Estimate(value=value, low=None, high=None, n=n, method=method, confidence=confidence)


def _quantile(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie in (0, 1), found {confidence}")
    # From the small tail: at 1 - 1e-17 the other side would be infinite.
    return -float(ndtri((1 - confidence) / 2))


def _finite(values: ArrayLike) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(f"values must be a vector, found shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{int((~np.isfinite(array)).sum())} of {array.size} values are not finite")
    return array


def wilson(successes: float, n: float, confidence: float = 0.95) -> Estimate:
    """Wilson's score interval of a proportion, without continuity correction (Wilson 1927).

    `n` may be an effective number of items, not a whole one. n = 0 gives an undefined estimate.
    """
    z = _quantile(confidence)
    if not 0 <= successes <= n:
        raise ValueError(f"successes must lie in [0, n], found {successes} of {n}")
    if n == 0:
        return _undefined(None, 0, "wilson", confidence)
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # At 0 and n one end is exact; the formula leaves 1e-17 there.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return _estimate(p, low, high, n, "wilson", confidence)


def _clustered(values: Floats, clusters: Sequence[Hashable] | None) -> tuple[Floats, Floats]:
    """Sum and size of each cluster, in an order that does not depend on the order of the values."""
    if clusters is None:
        return np.sort(values), np.ones_like(values)
    if len(clusters) != len(values):
        raise ValueError(f"{len(values)} values but {len(clusters)} cluster labels")
    index: dict[Hashable, int] = {}
    codes = [index.setdefault(label, len(index)) for label in clusters]
    sums = np.bincount(codes, weights=values).astype(np.float64)
    sizes = np.bincount(codes).astype(np.float64)
    order = np.lexsort((sizes, sums))
    return sums[order], sizes[order]


def bootstrap_mean(
    values: ArrayLike, confidence: float = 0.95, *, clusters: Sequence[Hashable] | None = None, seed: int = 0
) -> Estimate:
    """The mean and its bootstrap interval (BCa, Efron 1987; percentile beyond 5,000 clusters), the same for a seed.

    With `clusters` (one label per value) whole clusters are resampled; the mean is still over all values. Fewer than
    30 clusters get Student's t on the linearised mean. One cluster, or clusters without any spread, have no interval.
    Values that are not finite raise ValueError.
    """
    _quantile(confidence)
    array = _finite(values)
    if array.size == 0:
        return _undefined(None, 0, "bootstrap", confidence)
    sums, sizes = _clustered(array, clusters)
    groups = len(sums)
    value = float(sums.sum() / sizes.sum())
    residual = sums - value * sizes
    if groups < 2 or np.abs(residual).max() <= 1e-12 * np.abs(sums).max():
        return _undefined(value, groups, "bootstrap", confidence)
    if groups < FEWEST_FOR_BOOTSTRAP:
        error = math.sqrt(float(residual @ residual) * groups / (groups - 1)) / float(sizes.sum())
        half = -float(stdtrit(groups - 1, (1 - confidence) / 2)) * error
        return _estimate(value, value - half, value + half, groups, "t", confidence)
    method = "BCa" if groups <= MOST_FOR_BCA else "percentile"
    low, high = _resampled(sums, sizes, confidence, seed, method)
    return _estimate(value, low, high, groups, method.lower(), confidence)


def _resampled(sums: Floats, sizes: Floats, confidence: float, seed: int, method: str) -> tuple[float, float]:
    # Imported here: scipy.stats takes a second to load, and `stepwell status` needs none of it.
    from scipy.stats import bootstrap

    result = bootstrap(
        (sums, sizes),
        lambda s, c, axis: s.sum(axis=axis) / c.sum(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=max(1, BATCH_ELEMENTS // len(sums)),
        confidence_level=confidence,
        method=method,
        rng=np.random.default_rng(seed),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def _newcombe(first: Floats, second: Floats, confidence: float) -> Estimate:
    """Newcombe's square-and-add interval for paired proportions (1998, Stat. Med. 17:2635, method 10)."""
    n = len(first)
    both, neither = float(first @ second), float((1 - first) @ (1 - second))
    only_first, only_second = float(first @ (1 - second)), float((1 - first) @ second)
    a, b = wilson(both + only_first, n, confidence), wilson(both + only_second, n, confidence)
    assert a.value is not None and a.low is not None and a.high is not None
    assert b.value is not None and b.low is not None and b.high is not None
    margins = (both + only_first) * (only_second + neither) * (both + only_second) * (only_first + neither)
    product = both * neither - only_first * only_second
    if product > 0:
        product = max(0.0, product - n / 2)
    phi = product / math.sqrt(margins) if margins else 0.0

    def root(x: float, y: float) -> float:
        return math.sqrt(max(0.0, x * x - 2 * phi * x * y + y * y))

    value = (only_first - only_second) / n
    low = value - root(a.value - a.low, b.high - b.value)
    high = value + root(b.value - b.low, a.high - a.value)
    return _estimate(value, max(-1.0, low), min(1.0, high), n, "newcombe", confidence)


def is_binary(values: ArrayLike) -> bool:
    """Whether every value is 0 or 1."""
    array = np.asarray(values, dtype=np.float64)
    return bool(((array == 0) | (array == 1)).all())


def paired_difference(
    first: ArrayLike,
    second: ArrayLike,
    confidence: float = 0.95,
    *,
    clusters: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> Estimate:
    """Mean of first - second over pairs: Newcombe's interval for 0/1 pairs, otherwise the (clustered) bootstrap.

    Clustered 0/1 pairs of which each shows the same difference have no spread to resample; then each cluster counts
    as one pair for Newcombe's interval.
    """
    a, b = _finite(first), _finite(second)
    if len(a) != len(b):
        raise ValueError(f"{len(a)} values cannot be paired with {len(b)}")
    if len(a) and is_binary(a) and is_binary(b):
        if clusters is None:
            return _newcombe(a, b, confidence)
        if np.ptp(a - b) == 0:
            firsts = list({label: row for row, label in reversed(list(enumerate(clusters)))}.values())
            return _newcombe(a[firsts], b[firsts], confidence)
    return bootstrap_mean(a - b, confidence, clusters=clusters, seed=seed)


def proportion(
    values: ArrayLike, confidence: float = 0.95, *, clusters: Sequence[Hashable] | None = None, seed: int = 0
) -> Estimate:
    """The share of ones among 0/1 values: Wilson, or the clustered bootstrap where `clusters` are given.

    Where all values are the same, clusters have no spread to resample: then Wilson's interval with one item a cluster.
    """
    array = _finite(values)
    if not is_binary(array):
        raise ValueError("a proportion is of values 0 and 1 only")
    if clusters is None:
        return wilson(float(array.sum()), array.size, confidence)
    if array.size and np.ptp(array) == 0:
        units = len(set(clusters))
        return wilson(float(array[0]) * units, units, confidence)
    return bootstrap_mean(array, confidence, clusters=clusters, seed=seed)


def holm(p_values: ArrayLike) -> Floats:
    """p-values adjusted for the family they form (Holm 1979): reject where adjusted <= alpha. Shape as given, (m,)."""
    p = _finite(p_values)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Two-sided exact p-value that two paired classifiers are right equally often (McNemar 1947, binomial version).

    Args:
        only_first: items that only the first got right.
        only_second: items that only the second got right. With no such item at all p = 1.
    """
    from scipy.stats import binomtest

    total = only_first + only_second
    return 1.0 if total == 0 else float(binomtest(only_first, total, 0.5).pvalue)


def confidence_sequence(
    values: ArrayLike, confidence: float = 0.95, *, bounds: tuple[float, float] = (0.0, 1.0)
) -> Estimate:
    """Interval for the mean of bounded values that holds at every look at once, however often one looks.

    Hedged capital with predictable plug-in bets (Waudby-Smith & Ramdas 2023, JRSS-B, theorem 3, theta = c = 1/2),
    intersected over all prefixes: it only ever shrinks, so what was decided stays decided. The values count in the
    order given, each a new independent unit; bounds are [low, high], and values outside raise ValueError. Should no
    constant mean fit all prefixes (the values drift), there is no interval.
    """
    _quantile(confidence)
    low, high = bounds
    array = _finite(values)
    if array.size == 0:
        return _undefined(None, 0, "betting", confidence)
    if array.min() < low or array.max() > high:
        raise ValueError(f"values lie in [{array.min():g}, {array.max():g}], outside the bounds [{low:g}, {high:g}]")
    unit = (array - low) / (high - low)
    bets = _bets(unit, confidence)
    bottom, top = _lower_end(unit, bets, confidence), 1 - _lower_end(1 - unit, bets, confidence)
    value, n = float(array.mean()), array.size
    if bottom >= top:
        return _undefined(value, n, "betting", confidence)
    return _estimate(value, low + (high - low) * bottom, low + (high - low) * top, n, "betting", confidence)


def _bets(unit: Floats, confidence: float) -> Floats:
    """The stake on each value, from the values before it alone. The same for `unit` and for 1 - `unit`."""
    t = np.arange(1, len(unit) + 1)
    mean = (0.5 + np.cumsum(unit)) / (t + 1)
    variance = (0.25 + np.cumsum((unit - mean) ** 2)) / (t + 1)
    before = np.concatenate(([0.25], variance[:-1]))
    return np.sqrt(2 * math.log(2 / (1 - confidence)) / (before * t * np.log1p(t)))


def _log_capital(unit: Floats, bets: Floats, mean: float) -> Floats:
    """Log capital after each value of a gambler who bets that the true mean lies above `mean`; falls with `mean`."""
    stakes = np.minimum(bets, 0.5 / max(mean, 1e-300))
    return np.cumsum(np.log1p(stakes * (unit - mean)))


def _lower_end(unit: Floats, bets: Floats, confidence: float) -> float:
    """The largest mean known to be refuted from below: half of the capital (theta) has reached 1/alpha at some time."""
    refuted = math.log(2 / (1 - confidence))
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        if _log_capital(unit, bets, middle).max() >= refuted:
            low = middle
        else:
            high = middle
    return low


def proportion_sequence(successes: float, n: float, confidence: float = 0.95) -> Estimate:
    """Interval for a proportion that holds at every n at once; needs the counts only, not their order.

    The proportions against which a Beta(1/2, 1/2) mixture has not won 1/alpha times its stake (Robbins 1970; Ville).
    """
    _quantile(confidence)
    if not 0 <= successes <= n:
        raise ValueError(f"successes must lie in [0, n], found {successes} of {n}")
    if n == 0:
        return _undefined(None, 0, "beta-binomial", confidence)
    p = successes / n

    def end(inside: float, outside: float) -> float:
        for _ in range(60):
            middle = (inside + outside) / 2
            refuted = _mixture_refutes(successes, n, middle, confidence)
            inside, outside = (inside, middle) if refuted else (middle, outside)
        return outside

    low = 0.0 if successes == 0 else end(p, 0.0)
    high = 1.0 if successes == n else end(p, 1.0)
    return _estimate(p, low, high, n, "beta-binomial", confidence)


def _mixture_refutes(successes: float, n: float, p: float, confidence: float) -> bool:
    """Whether the mixture has won 1/alpha times its stake against proportion p."""
    failures = n - successes
    won = betaln(0.5 + successes, 0.5 + failures) - betaln(0.5, 0.5) - xlogy(successes, p) - xlog1py(failures, -p)
    return bool(won >= -math.log(1 - confidence))


def n_to_decide(estimate: Estimate, threshold: float) -> int | None:
    """How many units in total would put the interval wholly on one side of the threshold, were the estimate to stay.

    Exact for Wilson's interval and for the beta-binomial sequence; for the others the half-width is taken to shrink
    with the root of n. None where the estimate sits on the threshold, where there is no interval, or beyond a million.
    """
    value, low, high = estimate.value, estimate.low, estimate.high
    if value is None or low is None or high is None:
        return None
    gap = abs(value - threshold)
    if gap <= 1e-12:
        return None
    if not 0 <= threshold <= 1 and estimate.method in ("wilson", "beta-binomial"):
        return 1
    if estimate.method == "wilson":
        z = _quantile(estimate.confidence)
        needed = math.floor(z * z * threshold * (1 - threshold) / gap**2) + 1
    elif estimate.method == "beta-binomial":
        needed = _smallest(lambda n: _mixture_refutes(value * n, n, threshold, estimate.confidence))
    else:
        half = value - low if threshold < value else high - value
        needed = math.floor(estimate.n * (half / gap) ** 2) + 1
    return max(1, needed) if needed is not None and needed <= MOST_ITEMS else None


def n_to_refute(
    values: ArrayLike, threshold: float, confidence: float = 0.95, *, bounds: tuple[float, float] = (0.0, 1.0)
) -> int | None:
    """As `n_to_decide`, for `confidence_sequence`: the values are repeated in order until it excludes the threshold."""
    low, high = bounds
    unit, mean = (_finite(values) - low) / (high - low), (threshold - low) / (high - low)
    if unit.size == 0 or abs(float(unit.mean()) - mean) <= 1e-12:
        return None
    if not 0 <= mean <= 1:
        return 1
    if unit.mean() < mean:
        unit, mean = 1 - unit, 1 - mean
    length = unit.size
    while True:
        repeated = np.resize(unit, min(length, MOST_ITEMS))
        capital = _log_capital(repeated, _bets(repeated, confidence), mean)
        reached = np.flatnonzero(capital >= math.log(2 / (1 - confidence)))
        if reached.size:
            return int(reached[0]) + 1
        if length >= MOST_ITEMS:
            return None
        length *= 2


def excludes(estimate: Estimate, threshold: float) -> bool:
    """Whether the interval lies wholly on one side of the threshold."""
    return estimate.low is not None and estimate.high is not None and not estimate.low <= threshold <= estimate.high


def _smallest(decides: Callable[[int], bool]) -> int | None:
    """The smallest n up to a million at which `decides` turns true and stays so."""
    high = 1
    while not decides(high):
        if high >= MOST_ITEMS:
            return None
        high = min(2 * high, MOST_ITEMS)
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if decides(middle) else (middle, high)
    return high
