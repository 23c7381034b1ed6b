"""Tests of one hypothesis and of many, and p-values that never read 0."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Self

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import bdtr, gammaln, logsumexp

from stepwell.stats.estimate import Floats, finite

SMALLEST = 1e-300
"""What a p-value below it is as a number. Its logarithm is kept where it is known."""


class PValue(float):
    """A p-value as a number in [1e-300, 1], with its logarithm and a text: neither is ever that of 0.

    Attributes:
        log10: log10 of p, also where p is too small for a float; -300 where all that is known is that p is below.
        exact: whether `log10` is that of p; False = p is smaller than that.
    """

    log10: float
    exact: bool

    def __new__(cls, value: float) -> Self:
        """Of a number in [0, 1]; 0 means that it underflowed. ValueError outside."""
        if not 0 <= value <= 1:
            raise ValueError(f"a p-value must lie in [0, 1], found {value}")
        made = super().__new__(cls, max(value, SMALLEST))
        made.log10 = value.log10 if isinstance(value, PValue) else math.log10(max(value, SMALLEST))
        made.exact = value.exact if isinstance(value, PValue) else value >= SMALLEST
        return made

    @classmethod
    def of_log10(cls, log10: float) -> Self:
        """Of log10 p, which may be far below what a float can hold. Rounding above 0 counts as p = 1."""
        log10 = min(log10, 0.0)
        made = cls(max(10.0**log10, SMALLEST))
        made.log10, made.exact = log10, True
        return made

    def __reduce__(self) -> tuple[object, ...]:
        return _restored, (float(self), self.log10, self.exact)

    def __str__(self) -> str:
        return p_text(self)

    __repr__ = __str__


def _restored(value: float, log10: float, exact: bool) -> PValue:
    """What copies are made of."""
    made = PValue(value)
    made.log10, made.exact = log10, exact
    return made


def p_text(p: float | None) -> str:
    """`0.032`, `3.1e-12`, `5.0e-513`, `< 1e-300`; `undefined` for None. Never 0."""
    if p is None:
        return "undefined"
    p = PValue(p)
    if not p.exact:
        return f"< {SMALLEST:.0e}"
    if p >= 1e-4:
        return f"{p:.2g}" if p < 0.995 else "1"
    exponent = math.floor(p.log10)
    mantissa = f"{10 ** (p.log10 - exponent):.1f}"
    if mantissa == "10.0":
        mantissa, exponent = "1.0", exponent + 1
    return f"{mantissa}e{exponent:03d}"


def mcnemar_exact(only_first: int, only_second: int) -> PValue:
    """Two-sided exact p-value that two paired classifiers are right equally often (McNemar 1947, binomial version).

    Args:
        only_first: items that only the first got right.
        only_second: items that only the second got right. With no such item at all p = 1.
    """
    fewer, total = min(only_first, only_second), only_first + only_second
    if fewer < 0:
        raise ValueError(f"counts cannot be negative, found {only_first} and {only_second}")
    if total == 0 or only_first == only_second:
        return PValue(1.0)
    p = 2 * float(bdtr(fewer, total, 0.5))
    if p > SMALLEST:
        return PValue(min(p, 1.0))
    k = np.arange(fewer + 1)
    log_p = logsumexp(gammaln(total + 1) - gammaln(k + 1) - gammaln(total - k + 1)) - (total - 1) * math.log(2)
    return PValue.of_log10(float(log_p) / math.log(10))


def permutation_p(as_extreme: int, permutations: int) -> PValue:
    """(c + 1) / (m + 1): the observed order counts as one of them, so p is never 0 (Phipson & Smyth 2010).

    Args:
        as_extreme: c, permutations whose statistic is at least as extreme as the observed one.
        permutations: m, permutations drawn.
    """
    if not 0 <= as_extreme <= permutations:
        raise ValueError(f"as_extreme must lie in [0, {permutations}], found {as_extreme}")
    return PValue((as_extreme + 1) / (permutations + 1))


def holm(p_values: ArrayLike) -> Floats:
    """p-values adjusted for the family they form (Holm 1979): reject where adjusted <= alpha. Shape as given, (m,)."""
    p = finite(p_values)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def holm_p(p_values: Sequence[float]) -> tuple[PValue, ...]:
    """As `holm`, in logarithms: what underflows stays apart."""
    given = [PValue(p) for p in p_values]
    order = sorted(range(len(given)), key=lambda i: given[i].log10)
    adjusted: dict[int, PValue] = {}
    highest = -math.inf
    for rank, index in enumerate(order):
        highest = max(highest, given[index].log10 + math.log10(len(given) - rank))
        known = given[index].exact or highest > math.log10(SMALLEST) + math.log10(len(given))
        adjusted[index] = PValue.of_log10(highest) if known else PValue(0.0)
    return tuple(adjusted[index] for index in range(len(given)))
