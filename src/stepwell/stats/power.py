"""Before the run: how many items and seeds show a given paired difference.

Each answer is the smallest number that reaches the power asked for; None = not within a million items or 1,000 seeds.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import gammaln, nctdtr, ndtri, stdtrit, xlog1py, xlogy

from stepwell.stats.crossed import Spread
from stepwell.stats.deciding import MOST_ITEMS, smallest

MOST_SEEDS = 1_000
STEADY = 50


def mcnemar_power(items: int, only_first: float, only_second: float, alpha: float = 0.05) -> float:
    """Exact power of the exact McNemar test over n independent pairs.

    Args:
        items: n.
        only_first, only_second: probabilities that just the one, or just the other, is right.
        alpha: two-sided level.
    """
    from scipy.stats import binom

    _check(only_first, only_second, alpha)
    discordant = only_first + only_second
    if discordant == 0 or items == 0:
        return 0.0
    # Only counts that occur: within 10 standard deviations.
    middle, width = items * discordant, 10 * math.sqrt(items * discordant * (1 - discordant)) + 10
    m = np.arange(max(1, math.floor(middle - width)), min(items, math.ceil(middle + width)) + 1)
    log_weight = gammaln(items + 1) - gammaln(m + 1) - gammaln(items - m + 1)
    log_weight += xlogy(m, discordant) + xlog1py(items - m, -discordant)
    k = binom.ppf(alpha / 2, m, 0.5)
    k -= binom.cdf(k, m, 0.5) > alpha / 2  # now the largest k with P(X <= k) <= alpha / 2; -1 where there is none
    share = only_first / discordant
    rejects = binom.cdf(k, m, share) + binom.sf(m - k - 1, m, share)
    return float(np.exp(log_weight) @ rejects)


def items_for_mcnemar(only_first: float, only_second: float, *, power: float = 0.8, alpha: float = 0.05) -> int | None:
    """Pairs from which on the exact McNemar test has the power, by exact power.

    Power rises by fits and starts, for counts are whole: the answer is the first n whose next 50 hold the power too.
    """
    _check(only_first, only_second, alpha, power)
    if only_first == only_second:
        return None
    first = smallest(lambda n: mcnemar_power(n, only_first, only_second, alpha) >= power)
    n, held = max(1, (first or 0) - 2 * STEADY), 0
    while first is not None and held <= STEADY and n <= MOST_ITEMS:
        held = held + 1 if mcnemar_power(n, only_first, only_second, alpha) >= power else 0
        n += 1
    return n - held if held > STEADY else None


def items_for_mcnemar_about(
    only_first: float, only_second: float, *, power: float = 0.8, alpha: float = 0.05
) -> int | None:
    """The closed form for the test without continuity correction (Connor 1987, Biometrics 43:207, eq. 3)."""
    _check(only_first, only_second, alpha, power)
    difference, discordant = abs(only_first - only_second), only_first + only_second
    if difference == 0:
        return None
    a, b = -float(ndtri(alpha / 2)), float(ndtri(power))
    root = a * math.sqrt(discordant) + b * math.sqrt(discordant - difference**2)
    needed = math.ceil((root / difference) ** 2)
    return needed if needed <= MOST_ITEMS else None


def t_power(effect: float, freedom: float, alpha: float = 0.05) -> float:
    """Power of a two-sided t-test whose t is centred on `effect` (difference over standard error)."""
    bound = -float(stdtrit(freedom, alpha / 2))
    return float(1 - nctdtr(freedom, abs(effect), bound) + nctdtr(freedom, abs(effect), -bound))


def paired_power(d_z: float, pairs: int, alpha: float = 0.05) -> float:
    """Power of the paired t-test for a standardised difference d_z (see `effects.cohens_dz`)."""
    return t_power(d_z * math.sqrt(pairs), pairs - 1, alpha) if pairs >= 2 else 0.0


def pairs_for(d_z: float, *, power: float = 0.8, alpha: float = 0.05) -> int | None:
    """Pairs that the paired t-test needs for a standardised difference."""
    return smallest(lambda n: paired_power(d_z, n, alpha) >= power) if d_z else None


def crossed_power(difference: float, spread: Spread, *, items: int, seeds: int, alpha: float = 0.05) -> float:
    """Power to show a difference for new items and new seeds; see `crossed.crossed_error`.

    Args:
        difference: the true mean difference.
        spread: variance components of the differences, e.g. `crossed.spread` of a pilot.
        items, seeds: at least two of each, or the power is 0.
        alpha: two-sided level.
    """
    if min(items, seeds) < 2:
        return 0.0
    of_items, of_seeds = seeds * spread.item + spread.rest, items * spread.seed + spread.rest
    total = of_items + of_seeds - spread.rest
    if total <= 0:
        return float(difference != 0)
    parts = of_items**2 / (items - 1) + of_seeds**2 / (seeds - 1) + spread.rest**2 / ((items - 1) * (seeds - 1))
    freedom = max(total**2 / parts, min(items, seeds) - 1)
    return t_power(difference / math.sqrt(total / (items * seeds)), freedom, alpha)


def seeds_for(difference: float, spread: Spread, *, items: int, power: float = 0.8, alpha: float = 0.05) -> int | None:
    """Seeds that show the difference with so many items; None where even 1,000 do not: the items are too few."""
    return smallest(
        lambda n: crossed_power(difference, spread, items=items, seeds=n, alpha=alpha) >= power, most=MOST_SEEDS
    )


def items_for(difference: float, spread: Spread, *, seeds: int, power: float = 0.8, alpha: float = 0.05) -> int | None:
    """Items that show the difference with so many seeds; None where even a million do not: the seeds are too few."""
    return smallest(lambda n: crossed_power(difference, spread, items=n, seeds=seeds, alpha=alpha) >= power)


def _check(only_first: float, only_second: float, alpha: float, power: float = 0.5) -> None:
    if min(only_first, only_second) < 0 or only_first + only_second > 1:
        raise ValueError(f"{only_first} and {only_second} are no probabilities of two cells of one table")
    if not (0 < alpha < 1 and 0 < power < 1):
        raise ValueError(f"alpha and power must lie in (0, 1), found {alpha} and {power}")
