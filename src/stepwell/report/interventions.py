"""What is left of the accuracy when the latents are tampered with, computed from `item` records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from stepwell.report.cells import Cell, Chart, Column, Row, Section, Series, Table
from stepwell.report.folder import Record, RunData
from stepwell.report.measures import common_count, grouped, headed, own_count, point, share, share_cell

TOLD = {
    "zeroed": "every latent replaced by zeros",
    "averaged": "every latent replaced by the mean latent",
    "shuffled": "latents taken from another item",
    "last-zeroed": "the last latent alone replaced by zeros",
}
CHANCE = 50.0
COLUMNS = 5
"""Most changed conditions in one table: wider ones do not fit the page. Each table begins with the clean condition."""
ByArm = Mapping[tuple[str, str], Sequence[Record]]


def interventions_section(folder: RunData) -> Section:
    """Accuracy per arm, set and condition; a dash with its reason for arms that have no latents."""
    items = list(folder.of_kind("item"))
    conditions = tuple(dict.fromkeys(["clean", *(_condition(record) for record in items)]))
    touched = tuple(dict.fromkeys(str(record.get("set")) for record in items if _condition(record) != "clean"))
    if not touched:
        return Section(key="interventions", title="Interventions", missing="No intervention was evaluated in this run.")
    told = "; ".join(f"{name}: {TOLD[name]}" for name in conditions if name in TOLD)
    charts, tables = [], []
    for name in touched:
        here = [record for record in items if str(record.get("set")) == name]
        by = grouped(here, lambda record: (str(record.get("arm")), _condition(record)))
        charts.append(_chart(folder, name, conditions, by))
        changed = [condition for condition in conditions if condition != "clean"]
        for start in range(0, len(changed), COLUMNS):
            tables.append(_table(folder, name, ("clean", *changed[start : start + COLUMNS]), by))
    return Section(
        key="interventions",
        title="Interventions",
        lines=(
            f"The latents are changed while the model answers{f' ({told})' if told else ''}. Accuracy that survives a "
            "change was not carried by what the latents hold.",
        ),
        charts=tuple(charts),
        tables=tuple(tables),
    )


def _condition(record: Record) -> str:
    return str(record.get("condition") or "clean")


def _table(folder: RunData, name: str, conditions: Sequence[str], by: ByArm) -> Table:
    count = common_count(list(by.values()))
    rows = []
    for arm in folder.arms():
        cells = [Cell(text=arm, code=True)]
        for condition in conditions:
            records = by.get((arm, condition), ())
            why = "no free decoding recorded" if records else _why_absent(arm, by)
            cells.append(share_cell(share(records, "correct"), why, count=own_count(records, count)))
        rows.append(Row(cells=tuple(cells)))
    columns = (Column(name="arm"), *(Column(name=c, note=headed(count), numeric=True) for c in conditions))
    return Table(title=f"Set {name}: free decoding, accuracy in %", columns=columns, rows=tuple(rows))


def _why_absent(arm: str, by: ByArm) -> str:
    clean = by.get((arm, "clean"), ())
    if not clean:
        return "not evaluated on this set"
    latents = any(record.get("latents") for record in clean)
    return "not evaluated under this condition" if latents else "this arm has no latents"


def _chart(folder: RunData, name: str, conditions: Sequence[str], by: ByArm) -> Chart:
    changed = [arm for arm in folder.arms() if any((arm, c) in by for c in conditions if c != "clean")]
    series: list[Series] = []
    for arm in changed:
        for condition in conditions:
            estimate = share(by.get((arm, condition), ()), "correct")
            if estimate is not None and estimate.value is not None:
                series.append(point(f"{arm}, {condition}", arm, estimate, filled=condition == "clean"))
    return Chart(
        key=f"interventions-{name}",
        title=f"Set {name}",
        form="intervals",
        x_title="accuracy, %",
        series=tuple(series),
        rules=((CHANCE, "chance between two options"),),
        note="Filled: as trained. Open: latents changed. Bars: 95% intervals.",
    )
