"""Cells that several sections of this study share."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median

from stepwell.report.cells import MINUS, TO, Cell, dash, digits_of, percent
from stepwell.report.measures import counted, share_cell

HASH = 12
"""Characters of a hash that are shown."""


def hash_cell(value: object, why: str = "not recorded") -> Cell:
    """The beginning of a hash."""
    return Cell(text=str(value)[:HASH], code=True) if value else dash(why)


def points_cell(value: float | None, low: float | None, high: float | None, why: str = "undefined") -> Cell:
    """A difference of shares in points with its sign, coloured where its whole interval is on one side of 0."""
    if value is None:
        return dash(why)
    if low is None or high is None:
        return Cell(text=signed(value), interval="no interval", value=100 * value)
    tone = "go" if low > 0 else "no-go" if high < 0 else ""
    interval = f"{signed(low)} {TO} {signed(high)}"
    return Cell(text=signed(value), interval=interval, tone=tone, value=100 * value, low=100 * low, high=100 * high)


def signed(share: float) -> str:
    """A difference of shares in points: +12.5, −3.1, 0.0."""
    text = percent(abs(share))
    return text if text == "0.0" else f"{'+' if share > 0 else MINUS}{text}"


def p_cell(value: float | None) -> Cell:
    """A p-value."""
    if value is None:
        return dash("no test was made")
    from stepwell.stats import p_text

    return Cell(text=p_text(value))


def part_cell(part: int | None, whole: int | None, why: str = "not counted", count: str = "") -> Cell:
    """A recorded number of items as a share of all, in percent with Wilson's interval."""
    if not whole or part is None or part > whole:
        return dash(why)
    return share_cell(counted(part, whole), why, count=count)


def plain_share(value: float | None, why: str = "not recorded", count: str = "", digits: int = 3) -> Cell:
    """A share as a percentage without an interval, for what is no sample of independent units."""
    return (
        dash(why)
        if value is None
        else Cell(text=digits_of(round(100 * value, 4), digits), count=count, value=100 * value)
    )


def spread_cell(values: Iterable[float | None], why: str) -> Cell:
    """The median of shares in percent, with the smallest and the largest below it."""
    known = sorted(value for value in values if value is not None)
    if not known:
        return dash(why)
    low, high = (digits_of(round(100 * end, 4)) for end in (known[0], known[-1]))
    return Cell(text=digits_of(round(100 * median(known), 4)), interval=f"{low} {TO} {high}")
