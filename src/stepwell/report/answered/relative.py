"""How large one mean is beside another over the same items: the interval of their ratio, paired."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from stepwell.report.measures import CONFIDENCE

if TYPE_CHECKING:
    from stepwell.stats import Estimate

FEWEST = 3


def relative(first: Mapping[Any, float], second: Mapping[Any, float]) -> Estimate | None:
    """The mean of `first` over the mean of `second`, over the items that both have.

    The interval is Fieller's (1954): all ratios r for which Student's test does not refute that the mean of
    first - r second is zero. Items are independent, their two values are not.

    Args:
        first, second: one number an item, such as its mean over seeds; neither below zero.

    Returns:
        None without a common item, or where the second mean is zero. No ends (None) where the items are fewer than 3,
        or where the second mean may be zero: the ratio is then unbounded.
    """
    import numpy as np
    from scipy.special import stdtrit

    from stepwell.stats import Estimate

    common = [item for item in first if item in second]
    x, y = (np.array([side[item] for item in common], dtype=np.float64) for side in (first, second))
    n = len(common)
    if not n or not y.mean() > 0:
        return None
    value, low, high = float(x.mean() / y.mean()), None, None
    if n >= FEWEST:
        spread = np.cov(x, y) / n * float(stdtrit(n - 1, (1 + CONFIDENCE) / 2)) ** 2
        a = y.mean() ** 2 - spread[1, 1]
        b = x.mean() * y.mean() - spread[0, 1]
        c = x.mean() ** 2 - spread[0, 0]
        if a > 0:
            # The roots of a r^2 - 2 b r + c are real wherever a > 0; rounding may say otherwise.
            half = math.sqrt(max(0.0, float(b * b - a * c)))
            low, high = max(0.0, float((b - half) / a)), float((b + half) / a)
    return Estimate(value=value, low=low, high=high, n=n, method="fieller", confidence=CONFIDENCE)
