"""Causal tracing: shown only where a sanity gate on its records said go; otherwise withheld, with the reason."""

from __future__ import annotations

from collections.abc import Sequence

from stepwell.report.accuracy import shown_set
from stepwell.report.cells import DASH, MINUS, Cell, Chart, Column, Heat, Row, Section, Table, dash, joined
from stepwell.report.folder import Record, RunData
from stepwell.report.measures import grouped, has_graphs
from stepwell.report.verdicts import VerdictRow, verdict_rows

KIND = "thoughts.trace"
Field = Sequence[Record]


def tracing_section(data: RunData) -> Section:
    """Maps of the mean effect for each arm, or why there are none."""
    key, title = "tracing", "Causal tracing"
    records = list(data.of_kind("trace"))
    if not records:
        why = "" if has_graphs(data) else " These items have no graph to corrupt, and no two options to compare."
        return Section(key=key, title=title, missing=f"Nothing was traced in this run.{why}")
    if why := withheld(data):
        return Section(key=key, title=title, missing=f"Withheld: {why} Its records are kept, and prove nothing.")
    shown, said = shown_set(data, records)
    here = [record for record in records if str(record.get("set")) == shown]
    arms = grouped(here, lambda record: str(record.get("arm")))
    lines = (
        "The question is corrupted, and the state of one layer at one position is put back as it was for the clean "
        "question. An effect of 1 restores the probability of the right option wholly, 0 not at all. The map is shown "
        f"because the sanity gate {joined(f'`{row.gate}`' for row in _gates(data))} said go.",
        *said,
    )
    told = {arm: rows for arm, rows in arms.items() if any(row.get("effect") is not None for row in rows)}
    if silent := [f"`{arm}`" for arm in arms if arm not in told]:
        lines += (f"No map for {joined(silent)}: corruption did no harm to any item, so there is nothing to restore.",)
    return Section(key=key, title=title, lines=lines, charts=tuple(_chart(arm, rows) for arm, rows in told.items()))


def _gates(data: RunData) -> list[VerdictRow]:
    """Gates that judge the records of a tracing stage."""
    stages = {stage.get("name") for stage in data.plan.get("stages") or () if stage.get("kind") == KIND}
    names = {
        str(gate.get("name"))
        for gate in data.plan.get("gates") or ()
        if any(criterion.get("stage") in stages for criterion in gate.get("criteria") or ())
    }
    return [row for row in verdict_rows(data) if row.gate in names]


def withheld(data: RunData) -> str:
    """Why tracing is not shown, as a sentence; "" where it may be. A gate changed after the start is no gate."""
    gates = _gates(data)
    if not gates:
        return "this plan has no gate that asks whether tracing works at all."
    for row in gates:
        if row.changes:
            return f"the sanity gate `{row.gate}` was changed after the run began ({row.override})."
        if row.decision != "go" or not row.sure:
            reason = f": {row.reason.rstrip('.')}" if row.reason else ""
            return f"the sanity gate `{row.gate}` is {row.decision}{reason}."
    return ""


def _chart(arm: str, rows: Sequence[Record]) -> Chart:
    layers = sorted({int(row["layer"]) for row in rows})
    # Items of other lengths have a position of one name at other columns: the name is what they share.
    first: dict[str, float] = {}
    for row in rows:
        name = str(row.get("position_name"))
        first[name] = min(first.get(name, float("inf")), float(row["position"]))
    places = sorted(first, key=lambda name: first[name])
    cells = grouped(rows, lambda r: (int(r["layer"]), str(r.get("position_name"))))
    found = {(layer, place): _effect(cells.get((layer, place), ())) for layer in layers for place in places}
    heat = Heat(
        x=tuple(places),
        y=tuple(map(str, layers)),
        values=tuple(tuple(found[layer, place][0] for place in places) for layer in layers),
        text=tuple(tuple(found[layer, place][1] for place in places) for layer in layers),
        hover=tuple(tuple(f"layer {y}, {x}: {found[y, x][2]}" for x in places) for y in layers),
        low=0.0,
        high=1.0,
    )
    columns = (Column(name="position"), *(Column(name=f"layer {layer}", numeric=True) for layer in layers))
    body = tuple(Row(cells=(Cell(text=place), *(_cell(found[layer, place]) for layer in layers))) for place in places)
    return Chart(
        key=f"tracing-{arm}",
        title=arm,
        form="heat",
        x_title="position",
        y_title="layer",
        heat=heat,
        table=Table(title="", columns=columns, rows=body),
        note="Mean effect over items; where corruption did no harm an item has no effect and does not count.",
    )


def _effect(rows: Sequence[Record]) -> tuple[float | None, str, str]:
    """Mean effect, its text, and the same with interval and n. Items under several seeds are one unit each."""
    known = [(float(row["effect"]), row.get("id")) for row in rows if row.get("effect") is not None]
    # Under several seeds an item has several records: n counts items.
    asked = len({row.get("id") for row in rows})
    if not known:
        return None, "", f"undefined: corruption did no harm in any of {asked:,}" if rows else "not traced"
    from stepwell.stats import clustered_error

    values, ids = [value for value, _ in known], [name for _, name in known]
    mean = sum(values) / len(values)
    error = clustered_error(values, ids)
    low, high = (None, None) if error is None else error.interval(0.95)
    span = "no interval" if low is None or high is None else f"{_signed(low)} to {_signed(high)}"
    return mean, f"{mean:.1f}".replace("-", MINUS), f"{_signed(mean)} ({span}), n {len(set(ids)):,} of {asked:,}"


def _signed(value: float) -> str:
    return f"{value:.2f}".replace("-", MINUS)


def _cell(found: tuple[float | None, str, str]) -> Cell:
    value, _, told = found
    if value is None:
        return dash(told)
    text, _, rest = told.partition(" (")
    span, _, n = rest.partition("), ")
    return Cell(text=text or DASH, interval=span, count=n)
