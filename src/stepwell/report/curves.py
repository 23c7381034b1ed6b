"""Training as lines over optimizer steps: loss, and validation accuracy with the curriculum's stages marked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from stepwell.report.cells import Cell, Chart, Column, Row, Section, Series, Table, number, percent, plural
from stepwell.report.folder import Record, RunData
from stepwell.report.measures import counted, grouped, share_cell

Means = list[tuple[float, float | None]]
Span = tuple[float | None, float | None]
POINTS = 240
"""Most points of a line that a reader can tell apart on a page; longer runs are averaged in bins."""


def curves_section(folder: RunData) -> Section:
    """One small chart an arm, one line a seed; each with the table of its numbers."""
    lasting = [record for records in folder.records.values() for record in last_attempt(records)]
    steps, validations, advances = (
        grouped((record for record in lasting if record.get("kind") == kind), job_of)
        for kind in ("step", "validation", "advance")
    )
    if not steps and not validations:
        return Section(key="curves", title="Training", missing="No training step was recorded.")
    everything = [record for group in (*steps.values(), *validations.values()) for record in group]
    right = max((float(r["step"]) for r in everything if r.get("step") is not None), default=None)
    charts = [_accuracy_chart(arm, validations, advances, right) for arm in folder.arms() if _has(validations, arm)]
    span = _span(steps)
    charts += [_loss_chart(arm, steps, advances, right, span) for arm in folder.arms() if _has(steps, arm)]
    seeds = sorted({seed for _, seed in [*steps, *validations]})
    strokes = ("solid", "dashed", "dotted", "dash-dotted")
    named = [f"seed {seed} {strokes[place % 4]}" for place, seed in enumerate(seeds)]
    told = ", ".join(named) if len(seeds) > 1 else ""
    return Section(
        key="curves",
        title="Training",
        lines=(
            "Accuracy on the split that steers the curriculum, which is not the split reported above, and training "
            f"loss in nats. A tick on a line marks a new stage of the curriculum{f'. Lines: {told}' if told else ''}. "
            "All charts of a kind share their axes. After a restart only the last attempt is drawn.",
        ),
        charts=tuple(charts),
    )


def last_attempt(records: Sequence[Record]) -> Sequence[Record]:
    """A job's records after its last restart: earlier attempts count steps of their own."""
    restarts = [index for index, record in enumerate(records) if record.get("kind") == "restart"]
    return records[restarts[-1] + 1 :] if restarts else records


def job_of(record: Record) -> tuple[str, str]:
    """Arm and seed of a record."""
    return str(record.get("arm", "")), str(record.get("seed", ""))


def _has(groups: dict[tuple[str, str], list[Record]], arm: str) -> bool:
    return any(of == arm for of, _ in groups)


def finite(value: Any) -> float | None:
    """A finite number, or None."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _accuracy_chart(arm: str, validations: Any, advances: Any, right: float | None) -> Chart:
    series, rows = [], []
    for (of, seed), records in validations.items():
        if of != arm:
            continue
        seen = [record for record in records if record.get("step") is not None]
        values = [finite(record.get("accuracy")) for record in seen]
        line = Series(
            label=f"seed {seed}",
            arm=arm,
            seed=seed,
            x=tuple(float(record["step"]) for record in seen),
            y=tuple(None if value is None else 100 * value for value in values),
            marks=_marks(advances.get((of, seed), ())),
            hover=tuple(_hover(seed, record, value) for record, value in zip(seen, values, strict=True)),
        )
        series.append(line)
        rows += [_validation_row(seed, record) for record in _spread(seen, 12)]
    columns = (
        Column(name="seed"),
        Column(name="step", numeric=True),
        Column(name="stage", numeric=True),
        Column(name="accuracy", note="%", numeric=True),
    )
    return Chart(
        key=f"validation-{arm}",
        title=f"`{arm}`",
        form="lines",
        x_title="step",
        series=tuple(series),
        table=Table(title="At most twelve points a seed, evenly spaced", columns=columns, rows=tuple(rows)),
        group="Validation accuracy, %",
        low=-4,
        high=104,
        right=right,
    )


def _validation_row(seed: str, record: Record) -> Row:
    accuracy, n = finite(record.get("accuracy")), record.get("n")
    measured = accuracy is not None and n
    cell = share_cell(counted(round(accuracy * n), int(n)) if measured else None, "accuracy or n not recorded")  # type: ignore[operator]
    return Row(cells=(Cell(text=seed), number(record["step"]), number(record.get("curriculum_stage")), cell))


def _loss_chart(arm: str, steps: Any, advances: Any, right: float | None, span: Span) -> Chart:
    series, rows, widest, lost = [], [], 1, 0
    for (of, seed), records in steps.items():
        if of != arm:
            continue
        lost += sum(finite(record.get("loss")) is None for record in records)
        binned, width = binned_means(records, "loss")
        widest = max(widest, width)
        series.append(
            Series(
                label=f"seed {seed}",
                arm=arm,
                seed=seed,
                x=tuple(step for step, _ in binned),
                y=tuple(value for _, value in binned),
                marks=_marks(advances.get((of, seed), ())),
                hover=tuple(f"seed {seed}, step {step:,.0f}: {_short(value)}" for step, value in binned),
            )
        )
        for step, value in _spread(binned, 12):
            rows.append(Row(cells=(Cell(text=seed), number(step), number(value, why="not finite in this bin"))))
    columns = (Column(name="seed"), Column(name="step", numeric=True), Column(name="loss", note="nats", numeric=True))
    title = "At most twelve points a seed, evenly spaced"
    return Chart(
        key=f"loss-{arm}",
        title=f"`{arm}`",
        form="lines",
        x_title="step",
        series=tuple(series),
        table=Table(title=title, columns=columns, rows=tuple(rows)),
        right=right,
        low=span[0],
        high=span[1],
        log=True,
        group="Training loss, nats",
        note=" ".join(
            text
            for text, wanted in (
                (f"Means over bins of {plural(widest, 'recorded step')}.", widest > 1),
                (f"{plural(lost, 'loss is', 'losses are')} not finite, and not drawn.", lost > 0),
            )
            if wanted
        ),
    )


def binned_means(records: Sequence[Record], field: str, points: int = POINTS) -> tuple[Means, int]:
    """(step, mean of `field`) over bins of equally many records, and the size of a bin.

    A bin in which any value is not finite has no mean: a NaN in a run must not vanish by averaging.
    """
    records = [record for record in records if record.get("step") is not None]
    width = max(1, math.ceil(len(records) / points))
    bins = [records[start : start + width] for start in range(0, len(records), width)]
    means: Means = []
    for group in bins:
        values = [value for record in group if (value := finite(record.get(field))) is not None]
        whole = len(values) == len(group)
        means.append((float(group[-1]["step"]), sum(values) / len(values) if whole else None))
    return means, width


def _span(steps: Mapping[Any, Sequence[Record]]) -> Span:
    """Smallest and largest loss that a logarithmic axis can show, over all arms; (None, None) where there is none."""
    means = [value for records in steps.values() for _, value in binned_means(records, "loss")[0]]
    shown = [value for value in means if value is not None and value > 0]
    return (min(shown), max(shown)) if shown else (None, None)


def _marks(advances: Sequence[Record]) -> tuple[tuple[float, str], ...]:
    found = [record for record in advances if record.get("step") is not None]
    return tuple((float(r["step"]), f"stage {r.get('curriculum_stage', '?')}") for r in found)


def _hover(seed: str, record: Record, value: float | None) -> str:
    stage = record.get("curriculum_stage")
    told = "undefined" if value is None else f"{percent(value)} %"
    return f"seed {seed}, step {record['step']:,}{'' if stage is None else f', stage {stage}'}: {told}"


def _short(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}"


def _spread(items: Sequence[Any], most: int) -> list[Any]:
    """At most so many of the items, evenly spaced, first and last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]
