"""The report's figures for programs: verdicts and tables as JSON, with numbers where the page has texts."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from stepwell.report.cells import DASH, MINUS, Cell, Section, Table
from stepwell.report.verdicts import VerdictRow
from stepwell.report.view import Report

DIGITS = 12
"""Of a number: more would be the rounding of a processor, and differ between machines."""


def summary(report: Report, verdicts: Sequence[VerdictRow]) -> str:
    """What the report says, as JSON. The same report gives the same text; what is undefined or not finite is null."""
    about = {
        "study": report.study,
        "rung": report.rung,
        "title": report.title,
        "question": report.question,
        "answer": report.headline.answer,
        "may_be_concluded": report.headline.may,
        "may_not_be_concluded": report.headline.may_not,
        "verdicts": [asdict(verdict) for verdict in verdicts],
        # The table of the verdicts holds nothing that they do not.
        "sections": [_section(section) for section in report.sections if section.key != "verdicts"],
    }
    return json.dumps(_finite(about), allow_nan=False) + "\n"


def _section(section: Section) -> dict[str, Any]:
    drawn = [chart.table for chart in section.charts if chart.table is not None]
    tables = [_table(table) for table in (*section.tables, *drawn)]
    return {"key": section.key, "title": section.title, "missing": section.missing, "tables": tables}


def _table(table: Table) -> dict[str, Any]:
    numeric = [column.numeric for column in table.columns]
    return {
        "title": table.title,
        "columns": [{"name": column.name, "note": column.note} for column in table.columns],
        "rows": [
            [None if cell is None else _cell(cell, is_number) for cell, is_number in zip(line, numeric, strict=True)]
            for line in _lines(table)
        ],
    }


def _lines(table: Table) -> Iterator[list[Cell | None]]:
    """Every line with a cell for each column: one that spans lines stands in all of them, of columns in its first."""
    above: dict[int, tuple[Cell, int]] = {}
    width = len(table.columns)
    for row in table.rows:
        line: list[Cell | None] = [None] * width
        own, place = iter(row.cells), 0
        while place < width:
            spanning, left = above.pop(place, (None, 0))
            cell = spanning or next(own, None)
            if cell is None:
                break
            line[place] = cell
            if (left or cell.rows) > 1:
                above[place] = (cell, (left or cell.rows) - 1)
            place += cell.columns
        yield line


def _cell(cell: Cell, numeric: bool) -> dict[str, Any]:
    """`value`, `low` and `high`, or `text`; what the page says beside it, under it or in a hint only where it does."""
    if cell.text == DASH:
        shown: dict[str, Any] = {"value": None}
    elif cell.value is not None and math.isfinite(cell.value):
        shown = {"value": cell.value}
    else:
        number = _read(cell.text) if numeric else None
        shown = {"text": cell.text} if number is None else {"value": number}
    if cell.low is not None or cell.high is not None:
        shown |= {"low": cell.low, "high": cell.high}
    elif cell.interval:
        shown["beside"] = cell.interval
    if cell.count:
        shown["count"] = cell.count
    if cell.why:
        shown["why"] = cell.why
    return shown


def _read(text: str) -> float | None:
    """A number as `digits_of` prints it: some cells, such as counts, are made of their text alone."""
    plain = text.replace(",", "").replace(MINUS, "-")
    try:
        value = float(plain)
    except ValueError:
        return None
    return int(plain) if plain.lstrip("-").isdecimal() else value


def _finite(value: Any) -> Any:
    """JSON has no infinity, and a record of another version may hold anything."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(each) for key, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list | tuple) else value
