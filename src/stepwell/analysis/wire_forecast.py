"""What a long training would come to, foretold from shorter ones, with its uncertainty, or `cannot be forecast`.

Shares (F1, first-token accuracy) are put on the scale arcsin sqrt(y), on which their sampling variance is at most
1 / (4 n) everywhere (Anscombe 1948), and fitted by least squares to the number of examples s that a training saw. The
end of such a curve depends on what is assumed about it, so there are two fits: in ln s, which goes on as before, and in
1 / sqrt(s), which levels off. Each has its 95% prediction interval by Student's t, whose residual variance is no
smaller than the sampling variance; the forecast is the hull of both. It is refused where it would say nothing, or where
the same method fails to foretell the longest of the trainings from the others.

It is a forecast of one training of the same model, contract, data and stage A, and of no other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from stepwell.stats import Floats

CONFIDENCE = 0.95
FEWEST_SIZES, FEWEST_POINTS = 3, 4
FARTHEST = 16.0
"""So many times the examples of the longest training is as far as anything is said."""
WIDEST = 0.5
"""An interval that covers half of what is possible, or more, says nothing."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """What one training came to.

    Attributes:
        examples: seen in stage B, in all stages that it went on from.
        value: a share.
        n: items behind it.
        setting: contract, model and items; only points of one setting are comparable.
        job: whose it is.
    """

    examples: int
    value: float
    n: int
    setting: str = ""
    job: str = ""


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """A forecast, or why there is none.

    Attributes:
        examples: of the long training; None where it is not known.
        value, low, high: the mean of both fits and the hull of their intervals; None where refused.
        refused: why it cannot be forecast; "" where it can.
        points: how many trainings it is made from.
        sizes: their numbers of examples.
        checked: whether the longest of them was foretold from the others, to see that the method holds here.
    """

    examples: int | None
    value: float | None
    low: float | None
    high: float | None
    refused: str
    points: int
    sizes: tuple[int, ...]
    checked: bool


def forecast(points: Sequence[Point], examples: int | None) -> Forecast:
    """Foretell the share after so many examples from shorter trainings.

    Args:
        points: of one arm, seeds apart; those with as many examples or more are left out.
        examples: of the long training; None = it is not known.
    """
    used = [point for point in points if examples is None or point.examples < examples]
    sizes = tuple(sorted({point.examples for point in used}))
    low = high = value = None
    refused, checked = _reason(used, sizes, examples), False
    if not refused:
        assert examples is not None
        value, low, high = _predicted(used, examples)
        checked, wrong = _checked(used, sizes)
        if wrong:
            refused = wrong
        elif high - low > WIDEST:
            refused = f"the interval, {low:.2f} to {high:.2f}, covers more than half of what is possible"
    if refused:
        value = low = high = None
    return Forecast(
        examples=examples, value=value, low=low, high=high, refused=refused, points=len(used), sizes=sizes,
        checked=checked,
    )  # fmt: skip


def _reason(used: Sequence[Point], sizes: Sequence[int], examples: int | None) -> str:
    """Why nothing can be said, before anything is computed."""
    if not used:
        return "no shorter training has been answered"
    if examples is None:
        return "the plan does not say how long the long training is"
    if len({point.setting for point in used}) > 1:
        return "the shorter trainings differ in contract, model or items"
    if len(sizes) < FEWEST_SIZES:
        return f"{FEWEST_SIZES} lengths of training are needed, and there are {len(sizes)}"
    if len(used) < FEWEST_POINTS:
        return f"{FEWEST_POINTS} trainings are needed, and there are {len(used)}"
    if not any(point.value > 0 for point in used):
        return "no shorter training came to more than 0, and nothing says when one will"
    if examples > FARTHEST * sizes[-1]:
        return f"it is {examples / sizes[-1]:.0f} times as long as the longest; {FARTHEST:g} times is the most"
    return ""


def _checked(used: Sequence[Point], sizes: Sequence[int]) -> tuple[bool, str]:
    """Whether the longest trainings could be foretold from the others, and how that failed where it did."""
    others = [point for point in used if point.examples < sizes[-1]]
    if len(others) < FEWEST_POINTS:
        return False, ""
    longest = [point for point in used if point.examples == sizes[-1]]
    _, low, high = _predicted(others, sizes[-1])
    # The mean of several trainings varies less than one of them, which the interval is for.
    mean = float(np.mean([point.value for point in longest]))
    if low <= mean <= high:
        return True, ""
    told = f"from the others, the longest would have come to {low:.2f} to {high:.2f}, and came to {mean:.2f}"
    return True, f"the trend does not hold: {told}"


def _predicted(points: Sequence[Point], examples: int) -> tuple[float, float, float]:
    """Value and ends: of two fits the mean, the lowest and the highest."""
    sizes = np.array([point.examples for point in points], dtype=np.float64)
    y = np.arcsin(np.sqrt([point.value for point in points]))
    least = 1 / (4 * min(point.n for point in points))
    fits = [
        _line(np.log(sizes), y, math.log(examples), least),
        _line(1 / np.sqrt(sizes), y, 1 / math.sqrt(examples), least),
    ]
    back = [[math.sin(min(max(end, 0.0), math.pi / 2)) ** 2 for end in fit] for fit in fits]
    return sum(fit[0] for fit in back) / len(back), min(fit[1] for fit in back), max(fit[2] for fit in back)


def _line(x: Floats, y: Floats, at: float, least: float) -> tuple[float, float, float]:
    """The line at a place with the ends of its prediction interval; the residual variance is `least` at least."""
    k, spread = len(x), float(((x - x.mean()) ** 2).sum())
    slope = float(((x - x.mean()) * (y - y.mean())).sum()) / spread
    value = float(y.mean()) + slope * (at - float(x.mean()))
    residuals = y - y.mean() - slope * (x - x.mean())
    variance = max(float((residuals**2).sum()) / (k - 2), least)
    error = math.sqrt(variance * (1 + 1 / k + (at - float(x.mean())) ** 2 / spread))
    reach = float(stdtrit(k - 2, (1 + CONFIDENCE) / 2)) * error
    return value, value - reach, value + reach
