"""An estimate with its interval, and the few steps that every way of finding one shares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri

Floats = NDArray[np.float64]


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


def estimated(value: float, low: float, high: float, n: float, method: str, confidence: float) -> Estimate:
    """An estimate of plain numbers; `n` is rounded down."""
    return Estimate(
        value=float(value), low=float(low), high=float(high), n=int(n), method=method, confidence=confidence
    )


def undefined(value: float | None, n: int, method: str, confidence: float) -> Estimate:
    """An estimate without an interval, or without any value."""
    return Estimate(value=value, low=None, high=None, n=n, method=method, confidence=confidence)


def normal_quantile(confidence: float) -> float:
    """How many standard deviations a two-sided normal interval reaches. ValueError unless 0 < confidence < 1."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie in (0, 1), found {confidence}")
    # From the small tail: at 1 - 1e-17 the other side would be infinite.
    return -float(ndtri((1 - confidence) / 2))


def finite(values: ArrayLike) -> Floats:
    """The values as a vector of float64; ValueError where one is not finite, or for another shape."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(f"values must be a vector, found shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{int((~np.isfinite(array)).sum())} of {array.size} values are not finite")
    return array


def excludes(estimate: Estimate, threshold: float) -> bool:
    """Whether the interval lies wholly on one side of the threshold."""
    return estimate.low is not None and estimate.high is not None and not estimate.low <= threshold <= estimate.high


def is_binary(values: ArrayLike) -> bool:
    """Whether every value is 0 or 1."""
    array = np.asarray(values, dtype=np.float64)
    return bool(((array == 0) | (array == 1)).all())


def crossing(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a function that falls from `low` to `high` (which may be the smaller) passes 0, to the last bit."""
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if function(middle) > 0 else (low, middle)
    return (low + high) / 2
