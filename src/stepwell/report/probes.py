"""What a probe reads from the states: a heat map over layers and positions for each arm and step."""

from __future__ import annotations

from collections.abc import Sequence

from stepwell.report.accuracy import shown_set
from stepwell.report.cells import TO, Cell, Chart, Column, Heat, Row, Section, Table, dash, percent, plural
from stepwell.report.folder import Record, RunData
from stepwell.report.measures import grouped, has_graphs

ALPHA = 0.05
FAINT = "·"


def probes_section(data: RunData) -> Section:
    """Accuracy of probes for the entity of each step; cells that no test supports carry a dot and no number."""
    records = list(data.of_kind("probe"))
    key, title = "probes", "Probes"
    if not records:
        why = "" if has_graphs(data) else " These items have no graph, so there are no entities to probe for."
        return Section(key=key, title=title, missing=f"No probe was fitted in this run.{why}")
    shown, said = shown_set(data, records)
    here = [record for record in records if str(record.get("set")) == shown]
    groups = grouped(here, lambda r: (str(r.get("arm")), str(r.get("probe")), r.get("step")))
    charts = tuple(_chart(*which, rows) for which, rows in groups.items())
    lines = (
        "A probe is trained to tell the entity of a step from the state of one layer at one position. A number stands "
        f"where the permutation test, corrected for all cells of that kind of probe (Bonferroni), gives p < {ALPHA:g} "
        f"under every seed; a dot ({FAINT}) where it does not. An entity that can be read out need not be used: for "
        "that see the interventions.",
        *_reach(here),
        *_beside_in_words(here),
        *said,
    )
    return Section(key=key, title=title, lines=lines, charts=charts, tables=_undefined(here))


def _reach(records: Sequence[Record]) -> tuple[str, ...]:
    """Said where too few permutations were drawn for any cell of a kind of probe to pass."""
    least = grouped(
        [record for record in records if isinstance(record.get("p_adjusted_least"), int | float)],
        lambda r: str(r.get("probe")),
    )
    several = len({str(record.get("probe")) for record in records}) > 1
    lines: list[str] = []
    for probe, rows in least.items():
        p = min(float(row["p_adjusted_least"]) for row in rows)
        of = f" of the {probe}" if several else ""
        if p >= ALPHA:
            lines.append(f"With so few permutations no cell{of} can get below p = {p:.2g}: a dot says nothing.")
    return tuple(lines)


def _beside_in_words(records: Sequence[Record]) -> tuple[str, ...]:
    """Whether thoughts hold more than their neighbours and the question do: else a probe found nothing of theirs."""
    both = ("accuracy_elsewhere", "accuracy_question")
    if not any(record.get(field) is not None for record in records for field in both):
        return ()
    told = (
        "Beside each accuracy stand two more of the same layer and step: “elsewhere”, the mean over the other "
        "thoughts, and “question”, that of the question's end, before any thought. What can be read there as well is "
        "nothing that this thought holds by itself."
    )
    cells = grouped(
        [record for record in records if record.get("role") == "reasoning"],
        lambda r: tuple(r.get(field) for field in ("arm", "probe", "step", "layer", "position")),
    )
    known = [
        rows for rows in cells.values()
        if _supported(rows) and all(_mean(rows, field) is not None for field in both)
    ]  # fmt: skip
    if not known:
        return (told,)
    above = sum(all((_mean(rows) or 0) > (_mean(rows, field) or 0) for field in both) for rows in known)
    return (f"{told} Of {plural(len(known), 'cell')} at thoughts with a number, {above:,} lie above both (no test).",)


def _chart(arm: str, probe: str, step: object, rows: Sequence[Record]) -> Chart:
    """Layers from the bottom up over positions in their order; several seeds are averaged, and told one by one."""
    layers = sorted({int(row["layer"]) for row in rows})
    places = dict(
        sorted({int(row["position"]): str(row.get("position_name") or row["position"]) for row in rows}.items())
    )
    cells = grouped(rows, lambda r: (int(r["layer"]), int(r["position"])))
    chances = [float(row["chance"]) for row in rows if row.get("chance") is not None]
    heat = Heat(
        x=tuple(places.values()),
        y=tuple(map(str, layers)),
        values=tuple(tuple(_mean(cells.get((layer, place), ())) for place in places) for layer in layers),
        text=tuple(tuple(_text(cells.get((layer, place), ())) for place in places) for layer in layers),
        hover=tuple(tuple(_hover(cells.get((layer, place), ())) for place in places) for layer in layers),
        low=min(chances, default=0.0),
        high=1.0,
    )
    columns = (Column(name="layer"), *(Column(name=name, note="%", numeric=True) for name in places.values()))
    body = tuple(
        Row(cells=(Cell(text=str(layer)), *(_cell(cells.get((layer, place), ())) for place in places)))
        for layer in reversed(layers)
    )
    counts = sorted({int(row["n"]) for row in rows if row.get("n") is not None})
    n = f"n {counts[0]:,}" if len(counts) == 1 else f"n {counts[0]:,} to {counts[-1]:,}" if counts else "n not recorded"
    chance = f", chance {percent(min(chances))} %" if chances else ""
    return Chart(
        key=f"probes-{arm}-{probe}-{step}",
        title=f"Entity of step {step}, {probe}",
        form="heat",
        x_title="",
        y_title="layer",
        heat=heat,
        table=Table(title="", columns=columns, rows=body),
        note=f"Accuracy in %, {n}{chance}.",
        group=arm,
    )


def _mean(rows: Sequence[Record], field: str = "accuracy") -> float | None:
    known = [float(row[field]) for row in rows if row.get(field) is not None]
    return sum(known) / len(known) if known and len(known) == len(rows) else None


def _supported(rows: Sequence[Record]) -> bool:
    return all(row.get("p_adjusted") is not None and row["p_adjusted"] < ALPHA for row in rows)


def _beside(rows: Sequence[Record], sign: str = "") -> list[str]:
    """What is read at the other thoughts and at the question; the question's end is not compared with itself."""
    asked = [("elsewhere", "accuracy_elsewhere"), ("question", "accuracy_question")]
    if any(row.get("position_name") == "question end" for row in rows):
        asked.pop()
    found = [(name, _mean(rows, field)) for name, field in asked]
    return [f"{name} {percent(value)}{sign}" for name, value in found if value is not None]


def _text(rows: Sequence[Record]) -> str:
    value = _mean(rows)
    if value is None:
        return ""
    return f"{100 * value:.0f}" if _supported(rows) else FAINT


def _hover(rows: Sequence[Record]) -> str:
    return " | ".join(_told(row) for row in rows) or "not probed"


def _told(row: Record) -> str:
    where = f"layer {row.get('layer')}, {row.get('position_name')}, seed {row.get('seed')}"
    if row.get("accuracy") is None:
        return f"{where}: undefined, {row.get('undefined') or 'no reason recorded'}"
    from stepwell.stats import p_text

    low, high = row.get("low"), row.get("high")
    span = "" if low is None or high is None else f" ({percent(low)} to {percent(high)})"
    text = f"{where}: {percent(row['accuracy'])} %{span}, n {row.get('n')}"
    if row.get("control_accuracy") is not None:
        text += f", control {percent(row['control_accuracy'])} %"
    if row.get("selectivity") is not None:
        text += f", selectivity {100 * row['selectivity']:.1f} points"
    text = ", ".join([text, *_beside([row], " %")])
    return text + (f", adjusted p {p_text(row['p_adjusted'])}" if row.get("p_adjusted") is not None else ", not tested")


def _cell(rows: Sequence[Record]) -> Cell:
    value = _mean(rows)
    if value is None:
        why = next(
            (str(row.get("undefined")) for row in rows if row.get("accuracy") is None and row.get("undefined")), ""
        )
        return dash(why or "not probed")
    low, high = rows[0].get("low"), rows[0].get("high")
    alone = len(rows) == 1 and low is not None and high is not None
    interval = f"{percent(float(low or 0))}{TO}{percent(float(high or 0))}" if alone else ""
    seeds = [] if alone else [plural(len(rows), "seed")]
    return Cell(text=percent(value), interval=interval, count=", ".join([*seeds, *_beside(rows)]))


def _undefined(records: Sequence[Record]) -> tuple[Table, ...]:
    """How many cells have no accuracy, and why: an empty field is no zero."""
    missing = grouped(
        [r for r in records if r.get("accuracy") is None], lambda r: str(r.get("undefined") or "not said")
    )
    rows = tuple(Row(cells=(Cell(text=why), Cell(text=f"{len(found):,}"))) for why, found in missing.items())
    columns = (Column(name="why a cell is undefined"), Column(name="cells", numeric=True))
    return (Table(title="", columns=columns, rows=rows),) if rows else ()
