"""Two models on the same pairs: what one holds and the other does not, paired item by item."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

from stepwell.report.cells import Cell, Column, Row, Table, dash, number
from stepwell.report.folder import Record, RunData
from stepwell.report.imprint.held import whole_gain
from stepwell.report.imprint.numbers import difference, estimate_cell
from stepwell.report.imprint.reading import Group, checked_stage, ordered_stages, records_of
from stepwell.report.measures import grouped

if TYPE_CHECKING:
    from stepwell.report.imprint.convergence import Part

ALONE = "the two have no pair in common that was fitted"
NOTE = (
    "First minus second, over the pairs that both were fitted to: small print, 95% intervals of the paired "
    "differences. Bits are those of whole pairs."
)


def model_tables(data: RunData, parts: Mapping[Group, Sequence[Part]]) -> list[Table]:
    """One table for all tiers with several models; none where every tier has one."""
    bits = _bits(data)
    rows: list[Row] = []
    for tier in dict.fromkeys(tier for tier, _ in parts):
        models = [model for other, model in parts if other == tier]
        for first, second in combinations(models, 2):
            theirs = {part.name: part for part in parts[tier, second]}
            for part in parts[tier, first]:
                if part.name in theirs:
                    gains = bits.get(part.name, {})
                    cells = _line(part, theirs[part.name], gains.get((tier, first)), gains.get((tier, second)))
                    rows.append(Row(cells=(Cell(text=tier), Cell(text=f"{first} - {second}"), *cells), group=tier))
    if not rows:
        return []
    columns = (
        Column(name="tier"),
        Column(name="models"),
        Column(name="part"),
        Column(name="n", note="pairs of both", numeric=True),
        Column(name="exact", note="points", numeric=True),
        Column(name="only the first", note="exact pairs", numeric=True),
        Column(name="only the second", note="exact pairs", numeric=True),
        Column(name="bits held", note="a pair", numeric=True),
    )
    return [Table(title="Models on the same pairs", columns=columns, rows=tuple(rows), note=NOTE)]


def _line(
    mine: Part, theirs: Part, my_bits: Mapping[str, Any] | None, their_bits: Mapping[str, Any] | None
) -> tuple[Cell, ...]:
    one, other = _exact(mine.outcomes), _exact(theirs.outcomes)
    common = [name for name in one if name in other]
    only = [sum(a[name] > b[name] for name in common) for a, b in ((one, other), (other, one))]
    bits = difference(my_bits or {}, their_bits or {})
    return (
        Cell(text=mine.name),
        number(len(common)),
        estimate_cell(difference(one, other), ALONE, scale=100.0),
        *(number(count) if common else dash(ALONE) for count in only),
        estimate_cell(bits, "not measured in both, or not of whole pairs"),
    )


def _exact(outcomes: Sequence[Record]) -> dict[str, float]:
    return {record["id"]: float(record["exact"]) for record in outcomes if record.get("exact") is not None}


def _bits(data: RunData) -> dict[str, dict[Group, dict[str, float | None]]]:
    """Bits of each pair, of all its modes together, by the fit that was measured; None where one mode has none."""
    found: dict[str, dict[Group, dict[str, float | None]]] = {}
    gains, fits = records_of(data, "gain"), ordered_stages(data, records_of(data, "pair"))
    for (stage, group, id), rows in grouped(gains, lambda r: (r["stage"], r["group"], r["id"])).items():
        mine = found.setdefault(checked_stage(data, stage, fits), {})
        mine.setdefault(group, {})[id] = whole_gain(id, rows)["bits"]
    return found
