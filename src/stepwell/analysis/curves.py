"""Curve health: what the shape of a fit's loss curve says, rule by rule.

A curve holds losses in nats a token, one a step or every so many steps. Every rule but `is_zero` looks at the curve
smoothed by a running median (`smooth`), so that a single spike changes nothing, and measures everything against the
`descent`: the first smoothed loss minus the lowest. A curve that does not end at zero and has no descent is diverging
or flat; one with a descent gets the first that fits of oscillation, diverging, plateau then drop, monotone. Only the
last two are healthy.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from stepwell.stats import Estimate, Floats, bootstrap_mean, wilson

Shape = Literal["monotone", "plateau then drop", "oscillation", "flat", "diverging", "zero"]
HEALTHY: frozenset[Shape] = frozenset({"monotone", "plateau then drop"})


@dataclass(frozen=True, kw_only=True)
class CurveRules:
    """The bounds of the rules; shares are of the descent unless said otherwise.

    Attributes:
        fewest: points below which a curve has no shape.
        flat: a descent below this share of the first loss is none.
        zero_nats: a loss (nats a token) up to which it is zero. Softmax in single precision gives less only where the
            right token leads by 14 nats or more, which a fit that stops when it is exact does not reach.
        rise: how far the end may lie above the lowest loss.
        rise_nats: the same in nats a token, for curves that hardly fell.
        swing: from which height a rise counts as a swing.
        swings: so many make an oscillation.
        plateau: the share of the STEPS that a plateau lasts at least.
        level: how much a plateau may fall.
        drop: how much must be left to fall after it.
    """

    fewest: int = 8
    flat: float = 0.1
    zero_nats: float = 1e-6
    rise: float = 0.25
    rise_nats: float = 0.1
    swing: float = 0.2
    swings: int = 3
    plateau: float = 0.25
    level: float = 0.05
    drop: float = 0.2


RULES = CurveRules()


@dataclass(frozen=True, kw_only=True)
class Health:
    """What a curve looks like.

    Attributes:
        shape: None where it is undefined.
        why: what was seen, with its numbers; where the shape is undefined, why.
    """

    shape: Shape | None
    why: str

    @property
    def healthy(self) -> bool | None:
        """Whether the shape is one of a fit that works; None where there is no shape."""
        return None if self.shape is None else self.shape in HEALTHY


def smooth(curve: ArrayLike) -> Floats:
    """The running median over a twentieth of the points, at least 3 and an odd number; ends repeat the outer points."""
    values = np.asarray(curve, dtype=np.float64)
    half = max(1, len(values) // 40)
    padded = np.pad(values, half, mode="edge")
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, 2 * half + 1), axis=1)


def descent(smoothed: Floats) -> float:
    """How far a smoothed curve falls from its start to its lowest point, in nats a token; never negative."""
    return float(smoothed[0] - smoothed.min())


def is_zero(curve: ArrayLike, rules: CurveRules = RULES) -> bool:
    """Whether the last loss is zero: on many examples a sign of leakage (the target can be seen) or degeneracy."""
    return float(np.asarray(curve, dtype=np.float64)[-1]) <= rules.zero_nats


def is_diverging(smoothed: Floats, rules: CurveRules = RULES) -> bool:
    """Whether the whole last tenth lies above the lowest loss by more than a share of the descent.

    For curves that hardly fell, by more than a tenth of the first loss (`flat`) and `rise_nats`.
    """
    low, end = float(smoothed.min()), float(smoothed[-max(1, len(smoothed) // 10) :].min())
    bound = max(rules.rise * descent(smoothed), rules.flat * float(smoothed[0]), rules.rise_nats)
    return end - low > bound


def is_flat(smoothed: Floats, rules: CurveRules = RULES) -> bool:
    """Whether the loss never falls by a tenth of what it was at first."""
    return descent(smoothed) < rules.flat * float(smoothed[0])


def count_swings(smoothed: Floats, rules: CurveRules = RULES) -> int:
    """How often the loss climbs by a fifth of the descent or more, each time after having fallen as much.

    Turning points with that much play: what moves less than the bound, such as noise, does not count however long the
    curve is.
    """
    bound = rules.swing * descent(smoothed)
    swings, falling, turn = 0, True, float(smoothed[0])
    for value in map(float, smoothed):
        turn = min(turn, value) if falling else max(turn, value)
        if abs(value - turn) >= bound > 0:
            swings += falling
            falling, turn = not falling, value
    return swings


def has_plateau(smoothed: Floats, rules: CurveRules = RULES) -> bool:
    """Whether the loss stays on a level for a quarter of the steps, and falls by a fifth of the descent after that."""
    fall, steps = descent(smoothed), math.ceil(rules.plateau * len(smoothed))
    start, end = smoothed[:-steps], smoothed[steps:]
    # The lowest loss of what is still to come.
    later = np.minimum.accumulate(smoothed[::-1])[::-1][steps:]
    level = np.abs(start - end) <= rules.level * fall
    return bool((level & (end - later >= rules.drop * fall)).any())


def curve_health(curve: Sequence[float] | Floats, rules: CurveRules = RULES) -> Health:
    """The shape of a curve, by the rules in the order given above.

    A curve with a loss that is not finite is diverging, however short. One of fewer than `fewest` points has no shape,
    unless it ends at zero.
    """
    values = np.asarray(curve, dtype=np.float64)
    if values.size == 0:
        return Health(shape=None, why="no losses")
    if not np.isfinite(values).all():
        return Health(shape="diverging", why=f"{int((~np.isfinite(values)).sum())} losses are not finite")
    if is_zero(values, rules):
        return Health(shape="zero", why=f"ends at {values[-1]:.1e} nats a token")
    if len(values) < rules.fewest:
        return Health(shape=None, why=f"{len(values)} losses; a shape needs {rules.fewest}")
    smoothed = smooth(values)
    story = f"{smoothed[0]:.3g} nats a token at first, {smoothed.min():.3g} at best, {smoothed[-1]:.3g} in the end"
    return Health(shape=_shape(smoothed, rules), why=story)


def _shape(smoothed: Floats, rules: CurveRules) -> Shape:
    if is_flat(smoothed, rules):
        return "diverging" if is_diverging(smoothed, rules) else "flat"
    # Before diverging: what swings may well end on a crest.
    if count_swings(smoothed, rules) >= rules.swings:
        return "oscillation"
    if is_diverging(smoothed, rules):
        return "diverging"
    return "plateau then drop" if has_plateau(smoothed, rules) else "monotone"


@dataclass(frozen=True, kw_only=True)
class ZeroCheck:
    """How many curves end at zero.

    Attributes:
        share: with Wilson's interval.
        alarm: whether the share is above the limit for sure, at the confidence of the interval.
    """

    share: Estimate
    alarm: bool


def leak_check(zero: Iterable[bool], *, limit: float = 0.05, confidence: float = 0.95) -> ZeroCheck:
    """Whether more than a few fits end at a loss of zero; `zero` holds `is_zero` of each, one a problem."""
    found = list(zero)
    share = wilson(sum(found), len(found), confidence)
    return ZeroCheck(share=share, alarm=share.low is not None and share.low > limit)


def conflict(first: Sequence[float] | Floats, second: Sequence[float] | Floats, *, fewest: int = 8) -> float | None:
    """Correlation (Pearson) of the changes of two loss curves of one problem, question and answer, in [-1, 1].

    The levels would not tell: both fall. The changes are those of the smoothed curves over blocks of as many points as
    the smoothing takes together, so that neighbours share little. Negative: what helps one harms the other.

    None where there are fewer than `fewest` changes, a loss is not finite, or one of the curves does not move.

    Raises:
        ValueError: the curves have different lengths.
    """
    a, b = (np.asarray(curve, dtype=np.float64) for curve in (first, second))
    if a.shape != b.shape:
        raise ValueError(f"curves of {a.size} and {b.size} losses")
    if a.size <= fewest or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return None
    block = 2 * max(1, a.size // 40) + 1
    a, b = (np.diff(smooth(curve)[::block]) for curve in (a, b))
    if a.size < fewest or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(np.corrcoef(a, b)[0, 1])


@dataclass(frozen=True, kw_only=True)
class Conflict:
    """Whether question and answer pull the vectors apart.

    Attributes:
        correlation: mean over the problems that have one, with its interval.
        undefined: problems that have none.
        alarm: whether the whole interval is below 0.
    """

    correlation: Estimate
    undefined: int
    alarm: bool


def conflicts(correlations: Iterable[float | None], confidence: float = 0.95) -> Conflict:
    """The mean of what `conflict` found, one a problem."""
    found = list(correlations)
    known = [value for value in found if value is not None]
    mean = bootstrap_mean(known, confidence)
    if mean.low is not None and mean.high is not None:  # of few, the interval may pass what a correlation can be
        mean = replace(mean, low=max(-1.0, mean.low), high=min(1.0, mean.high))
    return Conflict(correlation=mean, undefined=len(found) - len(known), alarm=mean.high is not None and mean.high < 0)
