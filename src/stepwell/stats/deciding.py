"""How many units in total would decide, were what has been seen to stay as it is."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from stepwell.stats.estimate import Estimate, finite, normal_quantile
from stepwell.stats.sequences import bets_on, log_capital, mixture_refutes

MOST_ITEMS = 1_000_000
"""No more items than this are ever proposed: what they cannot decide sits on the threshold for all practical ends."""


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
        z = normal_quantile(estimate.confidence)
        needed = math.floor(z * z * threshold * (1 - threshold) / gap**2) + 1
    elif estimate.method == "beta-binomial":
        needed = smallest(lambda n: mixture_refutes(value * n, n, threshold, estimate.confidence))
    else:
        half = value - low if threshold < value else high - value
        needed = math.floor(estimate.n * (half / gap) ** 2) + 1
    return max(1, needed) if needed is not None and needed <= MOST_ITEMS else None


def n_to_refute(
    values: ArrayLike, threshold: float, confidence: float = 0.95, *, bounds: tuple[float, float] = (0.0, 1.0)
) -> int | None:
    """As `n_to_decide`, for `confidence_sequence`: the values are repeated in order until it excludes the threshold."""
    low, high = bounds
    unit, mean = (finite(values) - low) / (high - low), (threshold - low) / (high - low)
    if unit.size == 0 or abs(float(unit.mean()) - mean) <= 1e-12:
        return None
    if not 0 <= mean <= 1:
        return 1
    if unit.mean() < mean:
        unit, mean = 1 - unit, 1 - mean
    length = unit.size
    while True:
        repeated = np.resize(unit, min(length, MOST_ITEMS))
        capital = log_capital(repeated, bets_on(repeated, confidence), mean)
        reached = np.flatnonzero(capital >= math.log(2 / (1 - confidence)))
        if reached.size:
            return int(reached[0]) + 1
        if length >= MOST_ITEMS:
            return None
        length *= 2


def smallest(decides: Callable[[int], bool], most: int = MOST_ITEMS) -> int | None:
    """The smallest n up to `most` at which `decides` turns true and stays so."""
    high = 1
    while not decides(high):
        if high >= most:
            return None
        high = min(2 * high, most)
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if decides(middle) else (middle, high)
    return high
