"""Intervals that hold at every look at once, however often one looks."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import betaln, xlog1py, xlogy

from stepwell.stats.estimate import Estimate, Floats, estimated, finite, normal_quantile, undefined


def confidence_sequence(
    values: ArrayLike, confidence: float = 0.95, *, bounds: tuple[float, float] = (0.0, 1.0)
) -> Estimate:
    """Interval for the mean of bounded values that holds at every look at once, however often one looks.

    Hedged capital with predictable plug-in bets (Waudby-Smith & Ramdas 2023, JRSS-B, theorem 3, theta = c = 1/2),
    intersected over all prefixes: it only ever shrinks, so what was decided stays decided. The values count in the
    order given, each a new independent unit; bounds are [low, high], and values outside raise ValueError. Should no
    constant mean fit all prefixes (the values drift), there is no interval.
    """
    normal_quantile(confidence)
    low, high = bounds
    array = finite(values)
    if array.size == 0:
        return undefined(None, 0, "betting", confidence)
    if array.min() < low or array.max() > high:
        raise ValueError(f"values lie in [{array.min():g}, {array.max():g}], outside the bounds [{low:g}, {high:g}]")
    unit = (array - low) / (high - low)
    bets = bets_on(unit, confidence)
    bottom, top = _lower_end(unit, bets, confidence), 1 - _lower_end(1 - unit, bets, confidence)
    value, n = float(array.mean()), array.size
    if bottom >= top:
        return undefined(value, n, "betting", confidence)
    return estimated(value, low + (high - low) * bottom, low + (high - low) * top, n, "betting", confidence)


def bets_on(unit: Floats, confidence: float) -> Floats:
    """The stake on each value, from the values before it alone. The same for `unit` and for 1 - `unit`."""
    t = np.arange(1, len(unit) + 1)
    mean = (0.5 + np.cumsum(unit)) / (t + 1)
    variance = (0.25 + np.cumsum((unit - mean) ** 2)) / (t + 1)
    before = np.concatenate(([0.25], variance[:-1]))
    return np.sqrt(2 * math.log(2 / (1 - confidence)) / (before * t * np.log1p(t)))


def log_capital(unit: Floats, bets: Floats, mean: float) -> Floats:
    """Log capital after each value of a gambler who bets that the true mean lies above `mean`; falls with `mean`."""
    stakes = np.minimum(bets, 0.5 / max(mean, 1e-300))
    return np.cumsum(np.log1p(stakes * (unit - mean)))


def _lower_end(unit: Floats, bets: Floats, confidence: float) -> float:
    """The largest mean known to be refuted from below: half of the capital (theta) has reached 1/alpha at some time."""
    refuted = math.log(2 / (1 - confidence))
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        if log_capital(unit, bets, middle).max() >= refuted:
            low = middle
        else:
            high = middle
    return low


def proportion_sequence(successes: float, n: float, confidence: float = 0.95) -> Estimate:
    """Interval for a proportion that holds at every n at once; needs the counts only, not their order.

    The proportions against which a Beta(1/2, 1/2) mixture has not won 1/alpha times its stake (Robbins 1970; Ville).
    """
    normal_quantile(confidence)
    if not 0 <= successes <= n:
        raise ValueError(f"successes must lie in [0, n], found {successes} of {n}")
    if n == 0:
        return undefined(None, 0, "beta-binomial", confidence)
    p = successes / n

    def end(inside: float, outside: float) -> float:
        for _ in range(60):
            middle = (inside + outside) / 2
            refuted = mixture_refutes(successes, n, middle, confidence)
            inside, outside = (inside, middle) if refuted else (middle, outside)
        return outside

    low = 0.0 if successes == 0 else end(p, 0.0)
    high = 1.0 if successes == n else end(p, 1.0)
    return estimated(p, low, high, n, "beta-binomial", confidence)


def mixture_refutes(successes: float, n: float, p: float, confidence: float) -> bool:
    """Whether the mixture has won 1/alpha times its stake against proportion p."""
    failures = n - successes
    won = betaln(0.5 + successes, 0.5 + failures) - betaln(0.5, 0.5) - xlogy(successes, p) - xlog1py(failures, -p)
    return bool(won >= -math.log(1 - confidence))
