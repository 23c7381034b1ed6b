"""What is left of the accuracy when the thoughts are tampered with, computed from `intervention` records.

Whoever reads a curve must be able to trust its denominators: the n of a condition is the number of its records, and an
item that has fewer than k thoughts has none for that k.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from stepwell.report.cells import TIMES, Cell, Chart, Column, Row, Section, Series, Table, dash, digits_of, percent
from stepwell.report.folder import Record, RunData
from stepwell.report.measures import common_count, grouped, has_graphs, headed, own_count, point, share, share_cell

TOLD = {
    "zeroed": "every thought replaced by zeros",
    "averaged": "every thought replaced by the mean thought of its position",
    "last-zeroed": "the last thought alone replaced by zeros",
    "order": "the thoughts of an item in another order",
    "swap": "two neighbouring thoughts exchanged",
    "between": "the thoughts of another item",
    "transplant-matched": "those of an item with as many hops",
    "transplant-unmatched": "those of an item with another number of hops",
}
CURVES = {
    "noise-first": ("Noise on the first k thoughts", "k"),
    "noise-last": ("Noise on the last k thoughts", "k"),
    "noise-single": ("Noise on one thought", "which thought"),
    "thoughts": ("Another number of thoughts", "thoughts"),
}
WRITTEN = (
    "These items have no graph and no two options: there is no forced choice, and no transplant between items matched "
    "by their hops."
)
VACUOUS = "vacuous"
CHANCE = 50.0
COLUMNS = 5
"""Most changed conditions in one table: wider ones do not fit the page. Each table begins with the clean condition."""
ByArm = Mapping[tuple[str, str], Sequence[Record]]
Share = Callable[[Sequence[Record]], Cell]


def interventions_section(folder: RunData) -> Section:
    """Accuracy per arm, set and condition; curves over k; flips; a dash with its reason for arms without latents."""
    records = list(folder.of_kind("intervention"))
    if not records:
        return Section(key="interventions", title="Interventions", missing="No intervention was evaluated in this run.")
    charts, tables = [], []
    for name in dict.fromkeys(str(record.get("set")) for record in records):
        here = [record for record in records if str(record.get("set")) == name]
        by = grouped(here, lambda record: (str(record.get("arm")), str(record.get("condition"))))
        plain = _conditions(here, lambda family: family not in CURVES)
        charts += [_chart(folder, name, plain, by), *_curves(folder, name, here)]
        tables += _tables(folder, name, plain, by)
    lines = _told(records) if has_graphs(folder) else (*_told(records), WRITTEN)
    return Section(
        key="interventions", title="Interventions", lines=lines, charts=tuple(charts), tables=tuple(tables)
    )  # fmt: skip


def _told(records: Sequence[Record]) -> tuple[str, ...]:
    """What was done, what it means, and what cannot mean anything."""
    families = dict.fromkeys(_family(record) for record in records)
    done = "; ".join(f"{family}: {TOLD[family]}" for family in families if family in TOLD)
    lines = [
        f"The thoughts are changed while the model answers{f' ({done})' if done else ''}. Accuracy that survives a "
        "change was not carried by what the thoughts hold.",
    ]
    if any(family.startswith("noise") for family in families):
        lines.append(
            "Noise is Gaussian, in units of the standard deviation of the thoughts at its position. Propagating: put "
            "in while the chain is computed, so that later thoughts hear of it. Afterwards: all other thoughts stand "
            "as they were computed. Each n counts the items that have that many thoughts."
        )
    if any(record.get("vacuous") for record in records):
        lines.append(
            "Vacuous: all vectors of an item, or of all items, are equal, so this change leaves them as they were. The "
            "figures show that, and say nothing about what the vectors hold."
        )
    return tuple(lines)


def _family(record: Record) -> str:
    return str(record.get("family"))


def _conditions(records: Sequence[Record], wanted: Callable[[str], bool]) -> tuple[str, ...]:
    """Condition labels in the order of the records, the clean one first."""
    found = dict.fromkeys(str(record.get("condition")) for record in records if wanted(_family(record)))
    return ("clean", *(condition for condition in found if condition != "clean"))


def _way(records: Sequence[Record]) -> tuple[str, str]:
    """The field that is shown and its name: free decoding where it was asked for."""
    decoded = any(record.get("correct") is not None for record in records)
    return ("correct", "free decoding") if decoded else ("forced_correct", "forced choice")


def _tables(folder: RunData, name: str, conditions: Sequence[str], by: ByArm) -> list[Table]:
    """Accuracy, then how often the choice changed, a few conditions a table."""
    field, way = _way([record for group in by.values() for record in group])
    changed = [condition for condition in conditions if condition != "clean"]
    found = []
    for start in range(0, len(changed), COLUMNS):
        some = ("clean", *changed[start : start + COLUMNS])
        found.append(_table(folder, f"Set {name}: {way}, accuracy in %", field, some, by))
    for start in range(0, len(changed), COLUMNS + 1):
        some = changed[start : start + COLUMNS + 1]
        what, flips = ("forced choice", "flipped") if has_graphs(folder) else ("written answer", "answer_changed")
        title = f"Set {name}: {what} that differs from the same item's clean one, % of items"
        found.append(_table(folder, title, flips, some, by))
    return found


def _table(folder: RunData, title: str, field: str, conditions: Sequence[str], by: ByArm) -> Table:
    count = common_count([group for (_, condition), group in by.items() if condition in conditions])
    rows = []
    for arm in folder.arms():
        cells = [Cell(text=arm, code=True)]
        cells += [_cell(by.get((arm, condition), ()), field, arm, by, count) for condition in conditions]
        rows.append(Row(cells=tuple(cells)))
    columns = (Column(name="arm"), *(Column(name=c, note=headed(count), numeric=True) for c in conditions))
    return Table(title=title, columns=columns, rows=tuple(rows))


def _cell(records: Sequence[Record], field: str, arm: str, by: ByArm, count: str) -> Cell:
    if not records:
        known = any(of == arm for of, _ in by)
        return dash("no item for this condition" if known else "this arm has no thoughts")
    cell = share_cell(share(records, field), "not recorded", count=own_count(records, count))
    vacuous = sum(bool(record.get("vacuous")) for record in records)
    if vacuous == len(records):
        return replace(cell, tone="muted", why=VACUOUS)
    return replace(cell, why=f"{VACUOUS} for {vacuous} of {len(records)}") if vacuous else cell


def _chart(folder: RunData, name: str, conditions: Sequence[str], by: ByArm) -> Chart:
    """A point a condition, with its interval."""
    field, way = _way([record for group in by.values() for record in group])
    series: list[Series] = []
    for arm in folder.arms():
        for condition in conditions:
            records = by.get((arm, condition), ())
            estimate = share(records, field)
            if estimate is not None and estimate.value is not None:
                empty = condition != "clean" and all(record.get("vacuous") for record in records)
                label = f"{arm}, {condition}{f' ({VACUOUS})' if empty else ''}"
                series.append(point(label, arm, estimate, filled=condition == "clean"))
    return Chart(
        key=f"interventions-{name}",
        title=f"Set {name}",
        form="intervals",
        x_title="accuracy, %",
        series=tuple(series),
        rules=((CHANCE, "chance between two options"),) if has_graphs(folder) else (),
        note=f"Filled: as trained. Open: thoughts changed. {way.capitalize()}; bars: 95% intervals.",
    )


def _curves(folder: RunData, name: str, records: Sequence[Record]) -> list[Chart]:
    """Accuracy against k, position or number: a chart a family, way of putting in and scale; a line an arm."""
    curved = [record for record in records if _family(record) in CURVES]
    by = grouped(curved, lambda record: (_family(record), record.get("propagates"), record.get("scale")))
    clean = grouped([record for record in records if _family(record) == "clean"], lambda record: str(record.get("arm")))
    order = sorted(by, key=lambda key: (key[2] or 0.0, list(CURVES).index(key[0]), not key[1]))
    return [_curve(folder, name, family, put_in, scale, by[family, put_in, scale], clean)
            for family, put_in, scale in order]  # fmt: skip


def _curve(
    folder: RunData, name: str, family: str, put_in: bool | None, scale: float | None, records: Sequence[Record],
    clean: Mapping[str, Sequence[Record]],
) -> Chart:  # fmt: skip
    title, x_title = CURVES[family]
    field, way = _way(records)
    by: dict[str, dict[float, Sequence[Record]]] = {}
    for arm, group in grouped(records, lambda record: str(record.get("arm"))).items():
        own = clean.get(arm, ())
        start = grouped(own, _place) if family == "thoughts" else {0.0: own} if family != "noise-single" else {}
        points = {**start, **grouped(group, _place)}
        by[arm] = {x: points[x] for x in sorted(points)}
    arms = [arm for arm in folder.arms() if arm in by]
    how = "" if put_in is None else ", propagating" if put_in else ", afterwards"
    noise = "" if scale is None else f", noise of {digits_of(scale)} {TIMES} the thoughts' own standard deviation"
    return Chart(
        key=f"interventions-{name}-{family}{'' if scale is None else f'-x{scale:g}'}{how.replace(', ', '-')}",
        title=f"{title}{how}",
        form="lines",
        x_title=x_title,
        series=tuple(_line(arm, by[arm], field) for arm in arms),
        table=_numbers(arms, by, field, x_title),
        group=f"Set {name}{noise}: {way}, accuracy in %",
        low=-4,
        high=104,
    )


def _place(record: Record) -> float:
    """Where a record stands on its curve's axis."""
    if _family(record) == "noise-single":
        return float(record["position"])
    return float(record["k"] if record.get("k") is not None else record["latents"])


def _line(arm: str, points: Mapping[float, Sequence[Record]], field: str) -> Series:
    found = {x: share(records, field) for x, records in points.items()}
    known = {x: e for x, e in found.items() if e is not None and e.value is not None}
    ends = {x: (e.low, e.high) for x, e in known.items()}
    hover = []
    for x, e in known.items():
        span = "" if e.low is None or e.high is None else f" ({percent(e.low)} to {percent(e.high)})"
        hover.append(f"{arm}, {x:g}: {percent(e.value or 0)} %{span}, n {e.n:,}")
    return Series(
        label=arm,
        arm=arm,
        x=tuple(known),
        y=tuple(100 * e.value for e in known.values() if e.value is not None),
        low=tuple(None if low is None else 100 * low for low, _ in ends.values()),
        high=tuple(None if high is None else 100 * high for _, high in ends.values()),
        hover=tuple(hover),
    )


def _numbers(
    arms: Sequence[str], by: Mapping[str, Mapping[float, Sequence[Record]]], field: str, x_title: str
) -> Table:
    """The same numbers, each with its own n where these differ."""
    places = sorted({x for points in by.values() for x in points})
    count = common_count([records for points in by.values() for records in points.values()])
    rows = []
    for arm in arms:
        cells = [Cell(text=arm, code=True)]
        for x in places:
            records = by[arm].get(x, ())
            estimate = share(records, field)
            cells.append(share_cell(estimate, "no item has so many thoughts", count=own_count(records, count)))
        rows.append(Row(cells=tuple(cells)))
    heads = [Column(name=f"{x:g}", note=headed(count), numeric=True) for x in places]
    return Table(title=f"Columns: {x_title}", columns=(Column(name="arm"), *heads), rows=tuple(rows))
