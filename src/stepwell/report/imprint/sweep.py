"""The sweep over K: how many vectors hold how much, and the fewest that do."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from stepwell.report.cells import Cell, Chart, Column, Section, Series, Table, number
from stepwell.report.folder import Record, RunData
from stepwell.report.imprint.numbers import (
    GROUP,
    average_cell,
    axis_of,
    estimate_cell,
    items,
    lines,
    mean_of,
    median,
    portion,
    portion_cell,
    value_point,
)
from stepwell.report.imprint.reading import Group, group_name, grouped_by, records_of
from stepwell.report.measures import counted, grouped, point, share_cell

if TYPE_CHECKING:
    from stepwell.stats import Estimate

KEY, TITLE = "sweep", "How many vectors"
TOLD = (
    "K is the number of vectors that a pair is given. Exact: every mode is. Bits a vector: (loss after the mode vector "
    "alone - loss with c) / ln 2, summed over the tokens of the pair's modes, over K. Steps: by that step half of all "
    "pairs were exact; a pair that never was counts as never, so the easy ones do not stand for all."
)
Nothing = Mapping[tuple[str, str], tuple[float, float]]
"""(pair, mode) -> nats a token after the mode vector alone, and tokens of the pair's own text."""
Draw = Callable[[str, str, "Swept"], Series | None]


class Swept:
    """The records of one group at one K."""

    def __init__(self, pairs: Sequence[Record], targets: Sequence[Record], nothing: Nothing):
        """Pairs and targets of the group at this K."""
        self.pairs, self.targets = pairs, targets
        self.bits = [_bits(id, rows, nothing) for id, rows in grouped(targets, lambda r: r["id"]).items()]

    def steps(self) -> Estimate | None:
        """The step by which half of the pairs were exact."""
        return median([_step(record) for record in self.pairs])


def sweep_section(data: RunData) -> Section:
    """K against exact rate, bits a vector and steps; then the smallest K of each pair."""
    found = swept(data)
    charts = [chart for tier in _tiers(found) for chart in _charts(tier, found)]
    tables = [*_table(found), *_smallest(data)]
    return Section(
        key=KEY,
        title=TITLE,
        lines=(TOLD,) if found else (),
        charts=tuple(charts),
        tables=tuple(tables),
        missing="" if tables else "K was not varied in this run.",
    )


def swept(data: RunData) -> dict[Group, dict[int, Swept]]:
    """By group, then by K from the smallest."""
    pairs, targets = ([r for r in records_of(data, kind) if r.get("slots") is not None] for kind in ("pair", "target"))
    baselines = records_of(data, "baseline")
    found: dict[Group, dict[int, Swept]] = {}
    for group in grouped_by(data, [*pairs, *targets]):
        mine, texts = ([r for r in some if r["group"] == group] for some in (pairs, targets))
        known = [r for r in baselines if r["group"] == group and None not in (r.get("nothing"), r.get("tokens"))]
        nothing = {(r["id"], r["mode"]): (r["nothing"], r["tokens"]) for r in known}
        for slots in sorted({int(r["slots"]) for r in [*mine, *texts] if r["slots"] >= 1}):
            whole, parts = ([r for r in some if r["slots"] == slots] for some in (mine, texts))
            found.setdefault(group, {})[slots] = Swept(whole, parts, nothing)
    return found


def _bits(id: str, rows: Sequence[Record], nothing: Nothing) -> Record:
    """What a pair's vectors hold of its own texts over all its modes; None where any mode cannot be reckoned."""
    parts = []
    for row in rows:
        known, nats = nothing.get((id, row["mode"])), row.get("own_nats")
        if known is None or nats is None:
            return {"id": id, "bits_per_slot": None}
        without, tokens = known
        parts.append((without - nats) * tokens / math.log(2))
    return {"id": id, "bits_per_slot": sum(parts) / rows[0]["slots"]}


def _step(record: Record) -> float:
    return record["steps"] if record.get("exact") is True and record.get("steps") is not None else math.inf


def _tiers(found: Mapping[Group, object]) -> list[str]:
    return list(dict.fromkeys(tier for tier, _ in found))


def _table(found: Mapping[Group, Mapping[int, Swept]]) -> list[Table]:
    rows = {group: [_cells(slots, at) for slots, at in by.items()] for group, by in found.items()}
    columns = (
        GROUP,
        Column(name="K", numeric=True),
        Column(name="n", note="pairs", numeric=True),
        Column(name="converged", note="%", numeric=True),
        Column(name="exact", note="%", numeric=True),
        Column(name="loss", note="nats a token", numeric=True),
        Column(name="bits", note="a vector", numeric=True),
        Column(name="steps", note="half of the pairs exact", numeric=True),
    )
    return [Table(title="Each K", columns=columns, rows=lines(rows))] if rows else []


def _cells(slots: int, at: Swept) -> tuple[Cell, ...]:
    n = items(at.pairs)
    return (
        number(slots),
        number(n),
        portion_cell(at.pairs, "converged", "no bar was given", n),
        portion_cell(at.pairs, "exact", "no pair was recorded at this K", n),
        average_cell(at.targets, "nats", "no pair has a loss", n),
        average_cell(at.bits, "bits_per_slot", "no loss, or none after the mode vector alone", n),
        _steps(at),
    )


def _steps(at: Swept) -> Cell:
    estimate = at.steps()
    reached = estimate is not None and estimate.value is not None and math.isfinite(estimate.value)
    return estimate_cell(estimate if reached else None, "fewer than half of the pairs became exact")


def _charts(tier: str, found: Mapping[Group, Mapping[int, Swept]]) -> list[Chart]:
    """Three charts for a tier, a point for each K and model."""
    drawn: list[tuple[str, str, Draw]] = [
        ("exact", "exact pairs, %", _exact),
        ("bits", "bits a vector", _bits_point),
        ("steps", "steps until half of the pairs are exact", _steps_point),
    ]
    charts = []
    for name, title, draw in drawn:
        points = [
            (slots, one)
            for group, by in found.items()
            if group[0] == tier
            for slots, at in by.items()
            if (one := draw(group_name(group), f"K = {slots}", at)) is not None
        ]
        # Rows of the chart come in the order of the points, and must not follow the model that has the most K.
        series = tuple(one for _, one in sorted(points, key=lambda pair: pair[0]))
        low, high = (0.0, 100.0) if name == "exact" else axis_of(series)
        charts.append(
            Chart(
                key=f"sweep-{name}-{tier}",
                title=f"{title[0].upper()}{title[1:]}",
                form="intervals",
                x_title=title,
                series=series,
                group=tier,
                low=low,
                high=high,
                note=f"{_legend(points)}Bars: 95% intervals." if series else "",
            )
        )
    return charts


def _legend(points: Sequence[tuple[int, Series]]) -> str:
    names = list(dict.fromkeys(one.arm for _, one in points))
    return f"From above within a K: {'; '.join(names)}. " if len(names) > 1 else ""


def _exact(name: str, label: str, at: Swept) -> Series | None:
    estimate = portion(at.pairs, "exact")
    return None if estimate is None or estimate.value is None else point(label, name, estimate)


def _bits_point(name: str, label: str, at: Swept) -> Series | None:
    estimate = mean_of(at.bits, "bits_per_slot")
    return None if estimate is None or estimate.value is None else value_point(label, name, estimate, unit=" bits")


def _steps_point(name: str, label: str, at: Swept) -> Series | None:
    estimate = at.steps()
    known = estimate is not None and estimate.value is not None and math.isfinite(estimate.value)
    return value_point(label, name, estimate, unit=" steps") if estimate is not None and known else None


def _smallest(data: RunData) -> list[Table]:
    """How many pairs need which K, and the share that at most so many hold; what no K holds, with its reason."""
    rows: dict[Group, list[tuple[Cell, ...]]] = {}
    for group, mine in grouped_by(data, records_of(data, "smallest")).items():
        n, up_to = len(mine), 0
        for slots in sorted({r["slots"] for r in mine if r.get("slots") is not None}):
            same = sum(r.get("slots") == slots for r in mine)
            up_to += same
            shares = [share_cell(counted(count, n), "") for count in (same, up_to)]
            rows.setdefault(group, []).append((number(slots), number(same), number(n), *shares))
        none = [r for r in mine if r.get("slots") is None]
        for why, same in grouped(none, lambda r: str(r.get("why") or "no reason recorded")).items():
            cells = (Cell(text="none", why=why), number(len(same)), number(n), share_cell(counted(len(same), n), ""))
            rows.setdefault(group, []).append((*cells, Cell(text="")))
    columns = (
        GROUP,
        Column(name="smallest K", numeric=True),
        Column(name="pairs", numeric=True),
        Column(name="n", numeric=True),
        Column(name="share", note="%", numeric=True),
        Column(name="with at most so many", note="%", numeric=True),
    )
    note = "Searched for each pair by itself. A fit that fails by chance makes its K too large."
    return [Table(title="The smallest K that is exact", columns=columns, rows=lines(rows), note=note)] if rows else []
