"""Two one-sided tests (Schuirmann 1987): whether a difference is shown to lie within a margin fixed before the run.

A difference that is not significant is no equivalence: only an interval wholly inside the margin is. The margin has no
default on purpose: one chosen after the results are known proves nothing.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from numpy.typing import ArrayLike
from scipy.special import log_ndtr, ndtri, stdtr

from stepwell.stats.crossed import StandardError, crossed_error, grid
from stepwell.stats.estimate import Estimate, crossing, estimated, finite, undefined
from stepwell.stats.intervals import PairTable, clustered_error, pair_table
from stepwell.stats.p_values import PValue


@dataclass(frozen=True, kw_only=True)
class Equivalence:
    """The outcome of two one-sided tests.

    Args:
        equivalent: whether both reject at `alpha`; None where the data cannot say.
        p_value: the larger of the two.
        estimate: the difference with its interval at 1 - 2 alpha, which lies inside the margin just when both reject.
        margin: differences in (-margin, margin) count as none.
        alpha: level of each test.
    """

    equivalent: bool | None
    p_value: PValue | None
    estimate: Estimate
    margin: float
    alpha: float


def _check(margin: float, alpha: float, most: float = math.inf) -> None:
    if not 0 < margin < most:
        raise ValueError(f"the margin must lie in (0, {most:g}), found {margin}")
    if not 0 < alpha < 0.5:
        raise ValueError(f"alpha must lie in (0, 0.5), found {alpha}")


def tost_proportions(first: ArrayLike, second: ArrayLike, *, margin: float, alpha: float = 0.05) -> Equivalence:
    """Equivalence of two paired proportions by Tango's score test (1998, Stat. Med. 17:891), pairs independent."""
    _check(margin, alpha, most=1)
    table = pair_table(first, second)
    if table.n == 0:
        nothing = undefined(None, 0, "tango", 1 - 2 * alpha)
        return Equivalence(equivalent=None, p_value=None, estimate=nothing, margin=margin, alpha=alpha)
    worse, better = tango_score(table, -margin), tango_score(table, margin)
    p = PValue.of_log10(float(max(log_ndtr(-worse), log_ndtr(better))) / math.log(10))
    value = (table.only_first - table.only_second) / table.n
    low, high = tango_interval(table, 1 - 2 * alpha)
    found = estimated(value, low, high, table.n, "tango", 1 - 2 * alpha)
    return Equivalence(equivalent=bool(p <= alpha), p_value=p, estimate=found, margin=margin, alpha=alpha)


def tango_score(table: PairTable, difference: float) -> float:
    """Tango's z for the hypothesis that first - second is `difference`, in (-1, 1); it falls as `difference` rises.

    The variance is that of the likeliest table with this difference, which has `rarer` of the second alone.
    """
    n, b, c = table.n, table.only_first, table.only_second
    linear = (2 * n - b + c) * difference - b - c
    root = math.sqrt(max(0.0, linear**2 + 8 * n * c * difference * (1 - difference)))
    rarer = max(0.0, (root - linear) / (4 * n))
    variance = n * (2 * rarer + difference * (1 - difference))
    away = b - c - n * difference
    return 0.0 if abs(away) <= 1e-12 * n else away / math.sqrt(max(variance, 1e-300))


def tango_interval(table: PairTable, confidence: float) -> tuple[float, float]:
    """The differences that Tango's score does not reject at 1 - confidence."""
    z = -float(ndtri((1 - confidence) / 2))
    value, limit = (table.only_first - table.only_second) / table.n, 1 - 1e-12
    low = value if value <= -limit else crossing(lambda d: tango_score(table, d) - z, -limit, value)
    return low, value if value >= limit else crossing(lambda d: tango_score(table, d) + z, value, limit)


def tost_means(
    first: ArrayLike,
    second: ArrayLike,
    *,
    margin: float,
    alpha: float = 0.05,
    clusters: Sequence[Hashable] | None = None,
) -> Equivalence:
    """Equivalence of two paired means by Student's t; with `clusters` these are the independent units."""
    _check(margin, alpha)
    a, b = finite(first), finite(second)
    if len(a) != len(b):
        raise ValueError(f"{len(a)} values cannot be paired with {len(b)}")
    units = len(a) if clusters is None else len(set(clusters))
    value = float((a - b).mean()) if len(a) else None
    return _from_error(clustered_error(a - b, clusters), value, units, margin, alpha)


def tost_crossed(
    first: ArrayLike,
    second: ArrayLike,
    *,
    items: Sequence[Hashable],
    seeds: Sequence[Hashable],
    margin: float,
    alpha: float = 0.05,
) -> Equivalence:
    """Equivalence of two arms over new items and new seeds, from `crossed_error`. One seed is undefined."""
    _check(margin, alpha)
    a, b = finite(first), finite(second)
    if len(a) != len(b):
        raise ValueError(f"{len(a)} values cannot be paired with {len(b)}")
    matrix = grid(a - b, items, seeds)
    value = float(matrix.mean()) if matrix.size else None
    return _from_error(crossed_error(matrix), value, len(matrix), margin, alpha)


def _from_error(error: StandardError | None, value: float | None, n: int, margin: float, alpha: float) -> Equivalence:
    if error is None:
        nothing = undefined(value, n, "t", 1 - 2 * alpha)
        return Equivalence(equivalent=None, p_value=None, estimate=nothing, margin=margin, alpha=alpha)
    nearest = (margin - abs(error.value)) / error.error
    p = PValue(float(stdtr(error.freedom, -nearest)))
    found = estimated(error.value, *error.interval(1 - 2 * alpha), n, "t", 1 - 2 * alpha)
    return Equivalence(equivalent=bool(p <= alpha), p_value=p, estimate=found, margin=margin, alpha=alpha)
