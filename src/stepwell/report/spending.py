"""What was estimated before a run against what it held, stage by stage, in hours of one device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stepwell.report.cells import Cell, Column, Row, Table, dash, digits_of
from stepwell.report.folder import RunData


def spent_hours(data: RunData) -> float | None:
    """Device hours that a run held over all its sessions, as its log last said; None where it never did."""
    return _hours(_last(data, "spent").get("device_seconds"), 3600)


def spending_table(data: RunData) -> Table | None:
    """Estimate, actual hours, their ratio and the price of each stage, and of the whole run; None before any of it."""
    estimate, spent = _last(data, "estimate"), _last(data, "spent")
    if not estimate and not spent:
        return None
    price = data.plan.get("hourly_price")
    rows = tuple(_row(data, stage, estimate, spent, price) for stage in _stages(data))
    total = _total_row(_hours(estimate.get("hours")), spent_hours(data), price, complete=not _undone(data))
    columns = (
        Column(name="stage"),
        Column(name="estimated", note="h", numeric=True),
        Column(name="actual", note="h", numeric=True),
        Column(name="ratio", note="actual / estimated", numeric=True),
        Column(name="price", note=str(data.plan.get("currency") or ""), numeric=True),
    )
    note = (
        "Hours of one device held, over all sessions, work that was thrown away included. On one machine jobs at the "
        "same time share it in equal parts, and the run also holds it between jobs. Stages that only a gate leads to "
        "are not in the estimate of the run."
    )
    return Table(title="Estimated and actual", columns=columns, rows=(*rows, total), note=note)


def _row(data: RunData, stage: str, estimate: Mapping[str, Any], spent: Mapping[str, Any], price: float | None) -> Row:
    estimated = _hours((estimate.get("stages") or {}).get(stage))
    actual = _hours((spent.get("stages") or {}).get(stage), 3600)
    undone = stage in _undone(data)
    no_estimate = "its kind gives no estimate" if "stages" in estimate else "no estimate of stages was logged"
    not_held = "it has not run" if spent else "the log does not say what was held"
    return _cells(
        Cell(text=stage, code=True),
        (estimated, no_estimate),
        (actual, not_held),
        "" if not undone else "not all of its jobs are done",
        price,
    )


def _total_row(estimated: float | None, actual: float | None, price: float | None, *, complete: bool) -> Row:
    return _cells(
        Cell(text="the run"),
        (estimated, "no stage has an estimate"),
        (actual, "the log does not say what was held"),
        "" if complete else "not all of its jobs are done",
        price,
    )


def _cells(
    name: Cell,
    estimated: tuple[float | None, str],
    actual: tuple[float | None, str],
    incomplete: str,
    price: float | None,
) -> Row:
    before, after = estimated[0], actual[0]
    if before is None or after is None:
        ratio = dash(estimated[1] if before is None else actual[1])
    elif incomplete or not before:
        ratio = dash(incomplete or "nothing was estimated")
    else:
        ratio = Cell(text=digits_of(after / before))
    if price is None or after is None:
        paid = dash("no hourly price was given" if price is None else actual[1])
    else:
        paid = Cell(text=f"{after * price:.2f}" if after * price >= 0.01 or not price else "less than 0.01")
    shown = (dash(why) if hours is None else Cell(text=digits_of(hours)) for hours, why in (estimated, actual))
    return Row(cells=(name, *shown, ratio, paid))


def _stages(data: RunData) -> tuple[str, ...]:
    """In the plan's order, then those that the log alone knows."""
    held = _last(data, "spent").get("stages") or {}
    return tuple(dict.fromkeys([*(stage for stage, _, _ in data.planned()), *held]))


def _undone(data: RunData) -> set[str]:
    """Stages with a job that has no done marker, unless a gate led elsewhere."""
    skipped = {event.get("job") for event in data.events if event.get("event") == "job-skipped"}
    return {stage for stage, job, _ in data.planned() if job not in data.jobs and job not in skipped}


def _last(data: RunData, event: str) -> Mapping[str, Any]:
    found = [each for each in data.events if each.get("event") == event]
    return found[-1] if found else {}


def _hours(value: Any, per_hour: float = 1.0) -> float | None:
    return value / per_hour if isinstance(value, int | float) else None
