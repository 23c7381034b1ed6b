"""What a target costs without a fit, against which every fit is read; and which model it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from stepwell.report.cells import Cell, Column, Section, Table, dash, number
from stepwell.report.folder import Record, RunData
from stepwell.report.imprint.numbers import GROUP, average_cell, items, lines
from stepwell.report.imprint.reading import Group, grouped_by, modes_of, records_of

MEASURED = {
    "random": "random vectors",
    "full_context": "full context",
    "random_token": "one random token",
    "text_prompt": "text prompt",
    "nothing": "mode vector alone",
    "bar": "bar",
}
NO_MODE = "no pair has this mode"
TOLD = (
    "Loss of each target in nats a token, end token counted, before any fit: after random vectors in place of c (mean "
    "of several draws), after the question's own tokens (full context), after one random token, after a text prompt, "
    "and after the mode vector alone. A fit has converged when it gets below the bar, or is exact."
)


def baselines_section(data: RunData) -> Section:
    """The models; the mean of each baseline with its interval; what was undefined, and why."""
    records = records_of(data, "baseline")
    tables = [*_models(data), *_means(data, records), *_undefined(data, records)]
    return Section(
        key="baselines",
        title="Model and baselines",
        lines=(TOLD, *_fallback(data)) if records else _fallback(data),
        tables=tuple(tables),
        missing="" if records else "No baseline was measured.",
    )


def _fallback(data: RunData) -> tuple[str, ...]:
    """Said first and loudly: what was fitted to random weights says nothing about language models."""
    found = [r for r in records_of(data, "model") if r.get("fallback") is True]
    names = ", ".join(dict.fromkeys(f"`{r.get('name') or r['group'][1]}`" for r in found))
    if not found:
        return ()
    return (
        f"{names} could not be had: a model of random weights stood in for it, which knows no language. Its figures "
        "say that the machinery works, and nothing about language models.",
    )


def _models(data: RunData) -> list[Table]:
    rows = {}
    for group, found in grouped_by(data, records_of(data, "model")).items():
        rows[group] = [_model(record) for record in found]
    columns = (
        GROUP,
        Column(name="loaded"),
        Column(name="parameters", numeric=True),
        Column(name="width", numeric=True),
        Column(name="vocabulary", numeric=True),
        Column(name="positions", numeric=True),
        Column(name="precision"),
    )
    return [Table(title="Models", columns=columns, rows=lines(rows))] if rows else []


def _model(record: Record) -> tuple[Cell, ...]:
    stood_in = record.get("fallback") is True
    name = str(record.get("name") or "not said")
    loaded = (
        Cell(text="random weights", why=str(record.get("why") or ""), tone="alert") if stood_in else Cell(text=name)
    )
    return (
        loaded,
        *(number(record.get(field)) for field in ("parameters", "width", "vocabulary")),
        number(record.get("max_positions"), why="no limit recorded"),
        Cell(text=str(record.get("precision") or "")),
    )


def _means(data: RunData, records: Sequence[Record]) -> list[Table]:
    """A line for each baseline, a column for each mode: side by side they would be too wide for a page."""
    modes = modes_of(records)
    rows: dict[Group, list[tuple[Cell, ...]]] = {}
    for group, mine in grouped_by(data, records).items():
        by_mode = [[record for record in mine if record["mode"] == mode] for mode in modes]
        counts = [number(items(some)) if some else dash(NO_MODE) for some in by_mode]
        rows[group] = [(Cell(text="n", interval="pairs"), *counts)]
        for field, name in {"tokens": "target", **MEASURED}.items():
            unit = "tokens" if field == "tokens" else "nats a token"
            rows[group].append((Cell(text=name, interval=unit), *(_mean(some, field) for some in by_mode)))
    columns = (GROUP, Column(name="baseline"), *(Column(name=mode, numeric=True) for mode in modes))
    title = "Mean loss before any fit, with 95% intervals over pairs"
    return [Table(title=title, columns=columns, rows=lines(rows))] if rows else []


def _mean(records: Sequence[Record], field: str) -> Cell:
    if not records:
        return dash(NO_MODE)
    missing = [record for record in records if record.get(field) is None]
    if len(missing) == len(records):
        return dash("; ".join(dict.fromkeys(map(_why, missing))))
    return average_cell(records, field, "", items(records))


def _why(record: Record) -> str:
    return str(record.get("why") or "") or "no reason recorded"


def _undefined(data: RunData, records: Sequence[Record]) -> list[Table]:
    """Each baseline that some pair lacks: how many, and the reason in the record."""
    rows: dict[Group, list[tuple[Cell, ...]]] = {}
    for group, mine in grouped_by(data, records).items():
        lacking = Counter((r["mode"], field, _why(r)) for field in MEASURED for r in mine if r.get(field) is None)
        for (mode, field, why), count in lacking.items():
            cells = (Cell(text=mode), Cell(text=MEASURED[field]), number(count), Cell(text=why))
            rows.setdefault(group, []).append(cells)
    columns = (
        GROUP,
        Column(name="mode"),
        Column(name="baseline"),
        Column(name="pairs", numeric=True),
        Column(name="why it is undefined"),
    )
    return [Table(title="Undefined baselines", columns=columns, rows=lines(rows))] if rows else []
