"""The vocabulary between view and drawing: cells, tables, series, charts, sections. Text and numbers only, no HTML.

Undefined is never zero: a cell without a value shows a dash and must say why.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

Tone = Literal["", "go", "no-go", "inconclusive", "muted", "alert"]
DASH = "\u2013"
TO = "\u2013"
TIMES = "\u00d7"
MINUS = "\u2212"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One entry of a table.

    Args:
        text: what is shown.
        interval: the interval around it, already formatted.
        count: its n, already formatted, where it is not in the column's head.
        why: the reason for a dash, or a longer explanation.
        tone: a colour that repeats what the words say, and never replaces them.
        code: set in the typewriter face.
        rows: lines of the table that it spans; the lines below then lack a cell for this column.
        columns: columns that it spans.
        value, low, high: the numbers behind text and interval, in the same unit and not rounded, where there are any.
    """

    text: str
    interval: str = ""
    count: str = ""
    why: str = ""
    tone: Tone = ""
    code: bool = False
    rows: int = 1
    columns: int = 1
    # Not compared: what they say is in the texts.
    value: float | None = field(default=None, compare=False)
    low: float | None = field(default=None, compare=False)
    high: float | None = field(default=None, compare=False)


@dataclass(frozen=True, kw_only=True)
class Column:
    """The head of a column: its name, and a note such as unit or n."""

    name: str
    note: str = ""
    numeric: bool = False


@dataclass(frozen=True, kw_only=True)
class Row:
    """Cells of one line; a rule is drawn between lines of different groups."""

    cells: tuple[Cell, ...]
    group: str = ""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table with its caption. A folded one opens when asked, and is not printed."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    note: str = ""
    folded: bool = False


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line, or one point with its interval.

    Args:
        label: what the axis or the hover says.
        arm: decides the colour; "" for what is no arm (rules).
        seed: decides the stroke of a line.
        x: positions: steps of a line, or the value of a point in percent.
        y: values of a line; None where undefined, which breaks it. Unused by intervals.
        low, high: interval ends of points; of a line's values where it has them.
        filled: whether a point is solid or hollow.
        marks: (x, text): where something began on this line, such as a curriculum stage.
        hover: one text a point.
    """

    label: str
    arm: str
    x: tuple[float, ...]
    y: tuple[float | None, ...] = ()
    seed: str = ""
    low: tuple[float | None, ...] = ()
    high: tuple[float | None, ...] = ()
    filled: bool = True
    marks: tuple[tuple[float, str], ...] = ()
    hover: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Heat:
    """A field of values: one for each column (x) and row (y).

    Args:
        x, y: what columns and rows are called; rows from the bottom up.
        values: a row for each y; None where undefined, which leaves the field empty.
        text: what stands in each field, and what the hover says.
        low, high: ends of the colour scale.
    """

    x: tuple[str, ...]
    y: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    text: tuple[tuple[str, ...], ...]
    hover: tuple[tuple[str, ...], ...]
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A figure.

    Args:
        form: "lines" over steps, "intervals" (points with intervals, one line a label), "points" (two numbers each), or
            "heat" (a field of values).
        rules: (value, text): fixed reference values, such as chance; of lines, steps at which something began.
        table: the same numbers, for readers without a chart; None where the tables of its section hold them.
        group: charts of one group stand side by side under this heading.
        low, high: ends of the y axis of lines, so that small charts side by side share it; of the x axis of intervals
            where that is not 0 to 100.
        right: last step shown, for the same reason.
        log: whether that axis is logarithmic; of points the x axis, which has a place of its own for 0.
    """

    key: str
    title: str
    form: Literal["lines", "intervals", "points", "heat"]
    x_title: str
    series: tuple[Series, ...] = ()
    heat: Heat | None = None
    y_title: str = ""
    table: Table | None = None
    rules: tuple[tuple[float, str], ...] = ()
    note: str = ""
    group: str = ""
    low: float | None = None
    high: float | None = None
    right: float | None = None
    log: bool = False


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node of a drawn graph. `role`: root, target, wrong, path (on the way from root to target) or ""."""

    name: str
    x: int
    y: int
    role: str = ""


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A directed graph laid out on width x height units; edges, and those of the path, are pairs of places in nodes."""

    nodes: tuple[Node, ...]
    edges: tuple[tuple[int, int], ...]
    path: tuple[tuple[int, int], ...]
    width: int
    height: int


@dataclass(frozen=True, kw_only=True)
class Browsed:
    """One item to look at.

    Args:
        id, about: the line that opens it.
        question, answer: as text.
        graph: None where it cannot be drawn.
        answers: (arm, what it wrote under each seed, with a tick or cross).
        thoughts: (arm and position, the tokens nearest to the thought with their cosines).
    """

    id: str
    about: str
    question: str
    answer: str
    graph: Graph | None
    answers: tuple[tuple[str, str], ...]
    thoughts: tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class Section:
    """A titled part of the report. `lines` are paragraphs; `missing` says why there is nothing to show."""

    key: str
    title: str
    lines: tuple[str, ...] = ()
    charts: tuple[Chart, ...] = ()
    tables: tuple[Table, ...] = ()
    items: tuple[Browsed, ...] = ()
    missing: str = ""


def dash(why: str) -> Cell:
    """An undefined value, with its reason."""
    return Cell(text=DASH, why=why, tone="muted")


def number(value: Any, *, why: str = "not recorded", digits: int = 3) -> Cell:
    """A plain number: integers with thousands marked, others to `digits` significant digits, undefined as a dash."""
    if value is None:
        return dash(why)
    if isinstance(value, bool):
        return Cell(text="yes" if value else "no")
    # A record that another version wrote may hold anything: it is shown as it is.
    if not isinstance(value, int | float):
        return Cell(text=str(value))
    return Cell(text=digits_of(value, digits), value=value) if abs(value) <= sys.float_info.max else dash("not finite")


def digits_of(value: float, digits: int = 3) -> str:
    """A number as printed: 17,886; 0.954; 2.1e-05. A negative one has a true minus sign."""
    if not math.isfinite(value):
        return "not finite"
    if value < 0:
        return MINUS + digits_of(-value, digits)
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    if abs(value) < 1e-4:
        return f"{value:.{digits}g}"
    return f"{value:.{digits - 1 - math.floor(math.log10(abs(value)))}f}"


def times_100(value: float | None) -> float | None:
    """A share of one in percent."""
    return None if value is None else 100 * value


def percent(value: float) -> str:
    """A share of one as a percentage with one decimal, without the sign."""
    return f"{100 * value:.1f}"


def plural(count: int, one: str, many: str = "") -> str:
    """`1 gate`, `2 gates`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def joined(parts: Iterable[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    *head, last = list(parts) or [""]
    return f"{', '.join(head)} and {last}" if head else last
