"""Trainings on tasks (first-order MAML, ANIL): what an inner step gains, and which tasks there were."""

from __future__ import annotations

from collections.abc import Sequence

from stepwell.report.cells import Cell, Chart, Column, Row, Series, Table, number
from stepwell.report.curves import binned_means
from stepwell.report.folder import Record, RunData
from stepwell.report.measures import grouped
from stepwell.report.tune.reading import Job, records_of, text_of

LINES = {"support_before": "support, first weights", "support_after": "support, adapted", "query": "query, adapted"}
NOTE = (
    "Solid: a task's support at the first weights; dashed: at the adapted ones; dotted: its query at the adapted ones."
)
MOST = 12


def meta_charts(data: RunData) -> tuple[Chart, ...]:
    """One for each training on tasks; none where there is no such training."""
    known = [one for one in records_of(data, "meta") if one.get("step") is not None]
    by_job = grouped(known, lambda one: one["job"].name)
    return tuple(_chart(some[0]["job"], some) for some in by_job.values())


def _chart(job: Job, records: Sequence[Record]) -> Chart:
    series, points = [], {}
    for field, label in LINES.items():
        points[field], _ = binned_means(records, field)
        series.append(
            Series(
                label=label, arm=job.stage, x=tuple(step for step, _ in points[field]),
                y=tuple(value for _, value in points[field]),
                hover=tuple(f"{label}, step {step:,.0f}: {number(y, why='').text}" for step, y in points[field]),
            )
        )  # fmt: skip
    rows = [
        Row(cells=(number(step), *(number(points[field][at][1], why="not finite") for field in LINES)))
        for at, (step, _) in enumerate(points["query"])
    ]
    every = max(1, -(-len(rows) // MOST))
    columns = (Column(name="step", numeric=True), *(Column(name=label, numeric=True) for label in LINES.values()))
    return Chart(
        key=f"meta-{job.name}", title=f"`{job.label}`", form="lines", x_title="optimizer step", series=tuple(series),
        group="Loss of tasks, nats a learnt token", right=max(one["step"] for one in records), note=NOTE,
        table=Table(title=f"At most {MOST} points", columns=columns, rows=tuple(rows[::every])),
    )  # fmt: skip


def task_tables(data: RunData) -> tuple[Table, ...]:
    """The categories that tasks were drawn from."""
    rows = [
        Row(
            cells=(Cell(text=one["job"].label), Cell(text=text_of(one, "category")),
                   *(number(one.get(name)) for name in ("n", "rows", "tasks"))), group=one["job"].name,
        )
        for one in records_of(data, "category")
    ]  # fmt: skip
    columns = (
        Column(name="training"),
        Column(name="category"),
        Column(name="conversations", numeric=True),
        Column(name="rows", numeric=True),
        Column(name="tasks", numeric=True),
    )
    return (Table(title="Tasks, by category", columns=columns, rows=tuple(rows)),) if rows else ()
