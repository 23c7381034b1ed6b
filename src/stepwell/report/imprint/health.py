"""Curves by health class: how many of each, and a few of each to look at."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from stepwell.report.cells import Cell, Chart, Column, Row, Section, Series, Table, number, plural
from stepwell.report.folder import Record, RunData
from stepwell.report.imprint.numbers import GROUP, lines, portion
from stepwell.report.imprint.reading import group_name, grouped_by, modes_of, ordered_stages, records_of
from stepwell.report.measures import grouped, share_cell

CLASSES = ("monotone", "plateau then drop", "oscillation", "flat", "diverging", "zero")
NONE = "no class"
EXAMPLES, POINTS = 4, 240
LEAST = 1e-6
"""Nats below which a logarithmic axis shows nothing more."""
TOLD = (
    "Each curve is that of a pair's best restart in one mode. Monotone, and plateau then drop, are healthy; zero is a "
    "loss of exactly zero, which points to a leak where it is frequent. A cell has the share of the row's curves in %, "
    "its 95% interval, and the number."
)


def health_section(data: RunData) -> Section:
    """Counts of each class by stage and mode; for each class a small chart of a few examples, on a log scale."""
    targets = records_of(data, "target")
    key, title = "curves", "Curves by health"
    if not targets:
        return Section(key=key, title=title, missing="No pair was fitted.")
    examples = _examples(data, targets)
    drawn = [y for some in examples.values() for one, _ in some for y in one.y if y is not None]
    span = (min(drawn), max(drawn)) if drawn else (None, None)
    charts = tuple(_chart(name, some, span) for name, some in examples.items())
    lines_ = (TOLD,) if charts else (TOLD, "No curve was recorded, so none is drawn.")
    return Section(key=key, title=title, lines=lines_, charts=charts, tables=(_counts(data, targets),))


def class_of(record: Record) -> str:
    """The health class of a target's curve; `no class` where it has none."""
    return str(record.get("health") or NONE)


def _classes(records: Sequence[Record]) -> list[str]:
    found = dict.fromkeys(map(class_of, records))
    return [*CLASSES, *(name for name in found if name not in CLASSES)]


def _counts(data: RunData, targets: Sequence[Record]) -> Table:
    names = _classes(targets)
    rows = {}
    for group, mine in grouped_by(data, targets).items():
        for stage in ordered_stages(data, mine):
            for mode in modes_of(r for r in mine if r["stage"] == stage):
                some = [r for r in mine if (r["stage"], r["mode"]) == (stage, mode)]
                cells = [_share(some, name) for name in names]
                head = (Cell(text=f"{stage}, {mode}"), number(len(some)))
                rows.setdefault(group, []).append((*head, *cells))
    columns = (
        GROUP,
        Column(name="part"),
        Column(name="n", note="curves", numeric=True),
        *(Column(name=name, note="%", numeric=True) for name in names),
    )
    return Table(title="Curves of each class", columns=columns, rows=lines(rows))


def _share(records: Sequence[Record], name: str) -> Cell:
    """The share of curves of a class. A sweep has several of one pair, which are not independent."""
    of_class = [{"id": record["id"], "of_class": class_of(record) == name} for record in records]
    return share_cell(portion(of_class, "of_class"), "", count=f"{sum(r['of_class'] for r in of_class):,}")


def _examples(data: RunData, targets: Sequence[Record]) -> dict[str, list[tuple[Series, Row]]]:
    """A few curves of each class, one of each group and stage in turn."""
    curves = {_key(record): record for record in records_of(data, "curve")}
    reasons = {_key(record): record.get("health_why") for record in records_of(data, "restart")}
    found: dict[str, list[tuple[Series, Row]]] = {}
    by_class = grouped((r for r in targets if _key(r) in curves), class_of)
    for name in _classes(targets):
        for record in _in_turn(data, by_class.get(name, [])):
            line = _line(record, curves[_key(record)], str(reasons.get(_key(record)) or ""))
            if line is not None and len(found.get(name, ())) < EXAMPLES:
                found.setdefault(name, []).append(line)
    return found


def _key(record: Record) -> tuple[str, str, str, float | None]:
    return record["job"], record["id"], record["mode"], record.get("restart")


def _in_turn(data: RunData, records: Sequence[Record]) -> Iterator[Record]:
    queues = [
        [record for record in mine if record["stage"] == stage]
        for mine in grouped_by(data, records).values()
        for stage in ordered_stages(data, mine)
    ]
    for turn in range(max(map(len, queues), default=0)):
        yield from (queue[turn] for queue in queues if turn < len(queue))


def _line(target: Record, curve: Record, why: str) -> tuple[Series, Row] | None:
    """The curve, thinned to what a chart can show, and its line in the table; None where it has no point."""
    steps, nats = curve.get("steps"), curve.get("nats")
    if not isinstance(steps, tuple) or not isinstance(nats, tuple):
        return None
    points = [(x, y) for x, y in zip(steps, nats, strict=False) if isinstance(x, float)]
    known = [y for _, y in points if isinstance(y, float)]
    if not known:
        return None
    every = max(1, math.ceil(len(points) / POINTS))
    thin = [*points[: len(points) - 1 : every], points[-1]]
    name = group_name(target["group"])
    label = f"{target['id']}, {target['stage']}, {target['mode']}"
    series = Series(
        label=label,
        arm=name,
        x=tuple(x for x, _ in thin),
        y=tuple(_shown(y) for _, y in thin),
        hover=tuple(f"{label}, step {x:,.0f}: {'undefined' if y is None else f'{y:.4g}'} nats" for x, y in thin),
    )
    cells = (
        Cell(text=target["id"], code=True),
        Cell(text=f"{target['stage']}, {target['mode']}", interval=name),
        number(points[-1][0]),
        number(known[0]),
        number(known[-1]),
        Cell(text=why),
    )
    return series, Row(cells=cells)


def _shown(value: float | None) -> float | None:
    """As drawn: four digits, and nothing below what the axis shows."""
    return None if value is None else max(LEAST, float(f"{value:.4g}"))


def _chart(name: str, examples: Sequence[tuple[Series, Row]], span: tuple[float | None, float | None]) -> Chart:
    columns = (
        Column(name="pair"),
        Column(name="part"),
        Column(name="steps", numeric=True),
        Column(name="first", note="nats", numeric=True),
        Column(name="last", note="nats", numeric=True),
        Column(name="why this class"),
    )
    low = any(y == LEAST for one, _ in examples for y in one.y)
    return Chart(
        key=f"health-{name}",
        title=name,
        form="lines",
        x_title="step",
        series=tuple(one for one, _ in examples),
        table=Table(title="", columns=columns, rows=tuple(row for _, row in examples)),
        low=span[0],
        high=span[1],
        log=True,
        group="Examples of each class: loss, nats a token",
        note=f"{plural(len(examples), 'curve')}."
        + (f" Below {LEAST:g}, zero among them, drawn there." if low else ""),
    )  # fmt: skip
