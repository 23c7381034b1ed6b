"""The levels that a data set can reach: minimum, good, excellent. Thresholds: spec of study `imprint`.

A level counts as reached only when the whole interval lies on its right side; a point estimate reaches nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stepwell.report.cells import Cell, Tone, dash

if TYPE_CHECKING:
    from stepwell.stats import Estimate

NAMES = ("minimum", "good", "excellent")
CONVERGED = (0.40, 0.70, 0.90)
"""Share of pairs that converged: above."""
TO_RANDOM = (0.40, 0.25, 0.15)
"""Loss over that of random vectors: below."""
TO_CONTEXT = (2.0, 1.5, 1.2)
"""Loss over that of the baseline (full context, or else text prompt): below, in question and answer mode both."""


@dataclass(frozen=True, kw_only=True)
class Level:
    """What an interval shows.

    Args:
        reached: how many levels it lies wholly on the right side of, 0 to 3; None where there is no interval.
        possible: how many it does not lie wholly on the wrong side of.
        why: why there is none.
    """

    reached: int | None
    possible: int = 0
    why: str = ""


def level(estimate: Estimate | None, thresholds: tuple[float, ...], *, above: bool, why: str = "undefined") -> Level:
    """The level that an estimate's interval shows, against thresholds from the lowest level to the highest."""
    if estimate is None or estimate.value is None:
        return Level(reached=None, why=why)
    low, high = estimate.low, estimate.high
    if low is None or high is None:
        return Level(reached=None, why="no interval: too few values, or all the same")
    reached = sum(low > bar if above else high < bar for bar in thresholds)
    possible = sum(high > bar if above else low < bar for bar in thresholds)
    return Level(reached=reached, possible=possible)


def lowest(levels: Iterable[Level]) -> Level:
    """The level reached on all criteria that are defined."""
    levels = list(levels)
    known = [one for one in levels if one.reached is not None]
    if not known:
        return Level(reached=None, why="; ".join(dict.fromkeys(one.why for one in levels)) or "no criterion")
    return Level(reached=min(one.reached or 0 for one in known), possible=min(one.possible for one in known))


def level_cell(found: Level, *, detail: str = "") -> Cell:
    """The level in a word; below it what the interval leaves open, and `detail`."""
    if found.reached is None:
        return dash(found.why)
    tone: Tone = "go" if found.reached else "inconclusive" if found.possible else "no-go"
    text = NAMES[found.reached - 1] if found.reached else "open" if found.possible else "below minimum"
    rest = f"{NAMES[found.possible - 1]} not excluded" if found.possible > found.reached else ""
    return Cell(text=text, interval=rest, count=detail, tone=tone)
