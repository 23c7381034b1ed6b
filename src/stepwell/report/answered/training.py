"""Training as lines over optimizer steps: each term of the loss by itself, before it is weighed."""

from __future__ import annotations

from collections.abc import Sequence

from stepwell.report.answered.reading import records_of
from stepwell.report.cells import Cell, Chart, Column, Row, Section, Series, Table, number, plural
from stepwell.report.curves import binned_means
from stepwell.report.folder import Record, RunData
from stepwell.report.measures import grouped

PREFIX = "loss_"
UNITS = {
    "mse": "mean square error, in units of the corpus's mean square",
    "cosine": "1 - cosine + .1 MSE in units of the token's own",
    "next_token": "next-token loss over the prompt, nats",
    "f1": "F1 of answers to held-out items",
}
TOLD = "Terms before they are weighed, on what the step was made of: they say how training went, not how well it reads."
MOST = 12


def training_section(data: RunData) -> Section:
    """One small chart for each stage, arm and term; one line for each job."""
    steps = [record for record in records_of(data, "step") if record.get("step") is not None]
    key, title = "training", "Training"
    if not steps:
        return Section(key=key, title=title, missing="No training step was recorded.")
    charts = []
    for stage, records in grouped(steps, lambda record: record["stage"]).items():
        by_arm = grouped(records, lambda record: record["arm"])
        for term in terms_of(records):
            charts += [
                _chart(stage, arm, PREFIX + term, mine) for arm, mine in by_arm.items() if term in terms_of(mine)
            ]
    for stage, records in grouped(records_of(data, "look"), lambda record: record["stage"]).items():
        charts += [_chart(stage, arm, "f1", mine) for arm, mine in grouped(records, lambda one: one["arm"]).items()]
    skipped = sum(record.get("skipped") is True for record in steps)
    lost = f"{plural(skipped, 'step was', 'steps were')} skipped: a loss or the gradient was not finite."
    return Section(key=key, title=title, lines=(TOLD, *((lost,) if skipped else ())), charts=tuple(charts))


def terms_of(records: Sequence[Record]) -> list[str]:
    """The terms that these steps have, in the order of the records' fields."""
    names = dict.fromkeys(name for record in records for name in record if name.startswith(PREFIX))
    return [name[len(PREFIX) :] for name in names if any(record.get(name) is not None for record in records)]


def _chart(stage: str, arm: str, field: str, records: Sequence[Record]) -> Chart:
    term = field.removeprefix(PREFIX)
    series, rows, widest = [], [], 1
    jobs = grouped(records, lambda record: (record["detail"], record["seed"]))
    details = {detail for detail, _ in jobs}
    for (detail, seed), mine in jobs.items():
        binned, width = binned_means(mine, field)
        widest = max(widest, width)
        label = ", ".join(part for part in (detail, f"seed {seed}" if seed else "") if part) or arm
        series.append(
            Series(
                label=label, arm=arm, seed=detail if len(details) > 1 else seed, x=tuple(step for step, _ in binned),
                y=tuple(value for _, value in binned),
                hover=tuple(f"{label}, step {step:,.0f}: {number(value).text}" for step, value in binned),
            )
        )  # fmt: skip
        for step, value in _spread(binned):
            cells = (Cell(text=label), number(step), number(value, why="not finite in this bin"))
            rows.append(Row(cells=cells))
    columns = (Column(name="run"), Column(name="step", numeric=True), Column(name=term, numeric=True))
    values = [value for one in series for value in one.y if value is not None]
    return Chart(
        key=f"{stage}-{arm}-{term}", title=f"`{arm}`" if arm else stage, form="lines", x_title="step",
        series=tuple(series), table=Table(title=f"At most {MOST} points a run", columns=columns, rows=tuple(rows)),
        group=f"{stage}: {UNITS.get(term, term)}", log=field != "f1" and bool(values) and min(values) > 0,
        note=f"Means over bins of {plural(widest, 'recorded step')}." if widest > 1 else "",
    )  # fmt: skip


def _spread(points: Sequence[tuple[float, float | None]]) -> list[tuple[float, float | None]]:
    """At most so many of the points, evenly spaced, first and last among them."""
    if len(points) <= MOST:
        return list(points)
    return [points[round(place * (len(points) - 1) / (MOST - 1))] for place in range(MOST)]
