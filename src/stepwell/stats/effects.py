"""Sizes of a paired difference, with intervals: how large it is, apart from how surely it was seen."""

from __future__ import annotations

import math

from numpy.typing import ArrayLike
from scipy.special import betaincinv

from stepwell.stats.estimate import Estimate, crossing, estimated, finite, normal_quantile, undefined
from stepwell.stats.intervals import PairTable, clustered_error, margins_of, square_and_add


def cohens_h(table: PairTable, confidence: float = 0.95) -> Estimate:
    """Cohen's h = 2 asin sqrt(p1) - 2 asin sqrt(p2) of paired proportions (Cohen 1988); .2 small, .5 medium, .8 large.

    The interval is square-and-add (Zou & Donner 2008) of Wilson's intervals on that scale, as Newcombe's is on the
    plain one. No pairs: undefined.
    """
    normal_quantile(confidence)
    if table.n == 0:
        return undefined(None, 0, "square-and-add", confidence)

    def angle(share: float | None) -> float:
        assert share is not None
        return 2 * math.asin(math.sqrt(share))

    one, other = (
        estimated(angle(e.value), angle(e.low), angle(e.high), e.n, "", confidence)
        for e in margins_of(table, confidence)
    )
    assert one.value is not None and other.value is not None
    low, high = square_and_add(one, other, table.correlation)
    low, high = max(-math.pi, low), min(math.pi, high)
    return estimated(one.value - other.value, low, high, table.n, "square-and-add", confidence)


def discordant_odds(table: PairTable, confidence: float = 0.95) -> Estimate:
    """Odds that it is the first that is right where just one is: only_first / only_second, `n` discordant pairs.

    The interval is exact (Clopper & Pearson 1934, conditional on n). Without a pair for the second alone value and
    upper end are unbounded, and so None; without any discordant pair all is undefined.
    """
    normal_quantile(confidence)
    b, c = table.only_first, table.only_second
    tail = (1 - confidence) / 2
    low = 0.0 if b == 0 else _odds(float(betaincinv(b, c + 1, tail)))
    high = _odds(float(betaincinv(b + 1, c, 1 - tail))) if c else None
    return Estimate(
        value=b / c if c else None,
        low=low if b + c else None,
        high=high,
        n=b + c,
        method="clopper-pearson",
        confidence=confidence,
    )


def _odds(share: float) -> float:
    return share / (1 - share)


def cohens_dz(first: ArrayLike, second: ArrayLike, confidence: float = 0.95) -> Estimate:
    """Cohen's d_z: mean of the differences over their standard deviation (n - 1), pairs independent.

    The interval inverts the noncentral t, exact for normal differences (Steiger & Fouladi 1997). Fewer than two pairs,
    or differences without spread, are undefined.
    """
    from scipy.stats import nct

    normal_quantile(confidence)
    a, b = finite(first), finite(second)
    if len(a) != len(b):
        raise ValueError(f"{len(a)} values cannot be paired with {len(b)}")
    error = clustered_error(a - b, None)
    n = len(a)
    if error is None:
        return undefined(None, n, "noncentral-t", confidence)
    t, tail = error.value / error.error, (1 - confidence) / 2
    reach = 10 + 2 * abs(t) * normal_quantile(confidence) / math.sqrt(2 * (n - 1))

    def end(share: float) -> float:
        return crossing(lambda shift: float(nct.cdf(t, n - 1, shift)) - share, t - reach, t + reach)

    root = math.sqrt(n)
    return estimated(t / root, end(1 - tail) / root, end(tail) / root, n, "noncentral-t", confidence)
