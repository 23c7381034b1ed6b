"""Controls: does this c, and no other, hold this pair; and does c leave the model its other abilities?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from stepwell.report.cells import MINUS, Cell, Column, Section, Table, joined, number
from stepwell.report.folder import Record, RunData
from stepwell.report.imprint.numbers import (
    GROUP,
    POSSIBLE,
    average_cell,
    difference,
    estimate_cell,
    items,
    lines,
    portion_cell,
    within,
)
from stepwell.report.imprint.reading import group_name, grouped_by, modes_of, records_of
from stepwell.report.measures import CONFIDENCE, counted, grouped, mean, share, share_cell

if TYPE_CHECKING:
    from stepwell.stats import Estimate

OWN, OTHERS = "own", ("random", "shuffled")
CONDITIONS = ("without", "own", "random")
DIFFERENCES = (("own", "without"), ("random", "without"), ("own", "random"))
TOLD = (
    "Own: the pair's c; random: vectors of the same kind that were never fitted; shuffled: the c of another pair. What "
    "another c gives as well is not held by this one. Differences are of the same pairs.",
    "Capability: held-out questions, answered without any c, with a fitted c before them, and with random vectors. "
    "What own loses and random does not, the fit has done. Differences are of the same questions; where each was asked "
    "after several c, the interval is for new questions and new c.",
)


def controls_section(data: RunData) -> Section:
    """Loss and exactness under each control with paired differences; then the capability check likewise."""
    tables = [*_controls(data), *_capability(data)]
    untold = _unasked(data)
    return Section(
        key="controls",
        title="Controls",
        lines=(*TOLD, *untold) if tables else (),
        tables=tuple(tables),
        missing="" if tables else "No control was run.",
    )


def _unasked(data: RunData) -> tuple[str, ...]:
    """Where no question was asked, such as beside plain texts: a table that is not there would say nothing."""
    asked = {record["group"] for record in records_of(data, "capability")}
    groups = [group for group in grouped_by(data, records_of(data, "control")) if group not in asked]
    if not groups:
        return ()
    return (
        f"Of {joined(map(group_name, groups))} no question was asked: no other item has a question with an answer that "
        "fits behind a c. What such a c does to the model's other abilities is not known.",
    )


def _controls(data: RunData) -> list[Table]:
    groups = grouped_by(data, records_of(data, "control"))
    heads = [GROUP, Column(name="mode"), Column(name="n", note="pairs", numeric=True)]
    found = []
    for field, title, unit in (("nats", "Loss", "nats a token"), ("exact", "Exact", "%")):
        rows = {
            group: [_control(mine, mode, field) for mode in modes_of(mine)] for group, mine in groups.items() if mine
        }
        columns = [Column(name=name, note=unit, numeric=True) for name in (OWN, *OTHERS)]
        points = "points" if unit == "%" else unit
        columns += [Column(name=f"{OWN} {MINUS} {name}", note=points, numeric=True) for name in OTHERS]
        table = Table(title=f"{title} after another c", columns=(*heads, *columns), rows=lines(rows))
        found += [table] if rows else []
    return found


def _control(records: Sequence[Record], mode: str, field: str) -> tuple[Cell, ...]:
    by = grouped((r for r in records if r["mode"] == mode), lambda r: str(r.get("control")))
    n = items(by.get(OWN, ()) or [r for rows in by.values() for r in rows])
    cell = portion_cell if field == "exact" else average_cell
    levels = [cell(by.get(name, ()), field, f"no {name} c was tried", n) for name in (OWN, *OTHERS)]
    values = {name: {r["id"]: r.get(field) for r in rows} for name, rows in by.items()}
    pairs = [difference(values.get(OWN, {}), values.get(name, {})) for name in OTHERS]
    scale = 100.0 if field == "exact" else 1.0
    told = [estimate_cell(one, "no pair has both", count=_less(one, n), scale=scale) for one in pairs]
    return Cell(text=mode), number(n), *levels, *told


def _less(estimate: Estimate | None, n: int) -> str:
    return "" if estimate is None or estimate.n == n else f"n {estimate.n:,}"


def _capability(data: RunData) -> list[Table]:
    groups = grouped_by(data, records_of(data, "capability"))
    found = []
    for field, title, unit in (("correct", "accuracy", "%"), ("nats", "loss", "nats a token")):
        rows = {group: [_capable(mine, field)] for group, mine in groups.items()}
        columns = [GROUP, Column(name="n", note="questions", numeric=True)]
        columns += [Column(name=f"{name} c", note=unit, numeric=True) for name in CONDITIONS]
        points = "points" if unit == "%" else unit
        columns += [Column(name=f"{one} {MINUS} {other}", note=points, numeric=True) for one, other in DIFFERENCES]
        found.append(
            Table(title=f"Capability: {title} on held-out questions", columns=tuple(columns), rows=lines(rows))
        )
    return found if groups else []


def _capable(records: Sequence[Record], field: str) -> tuple[Cell, ...]:
    by = grouped(records, lambda r: str(r.get("condition")))
    n = items(records)
    cells = [_condition(by.get(name, ()), field, f"nothing was answered {name} c") for name in CONDITIONS]
    told = [_paired(by.get(one, ()), by.get(other, ()), field) for one, other in DIFFERENCES]
    scale = 100.0 if field == "correct" else 1.0
    return number(n), *cells, *(estimate_cell(e, "no question has both", count=_less(e, n), scale=scale) for e in told)


def _condition(records: Sequence[Record], field: str, why: str) -> Cell:
    known = [record for record in records if record.get(field) is not None]
    estimate = _over_both([float(r[field]) for r in known], known, field)
    count = f"{len(known):,} of {len(records):,} answers" if len(known) < len(records) else ""
    if field == "correct":
        return share_cell(within(estimate, (0.0, 1.0)), why if not records else "not recorded", count=count)
    return estimate_cell(within(estimate, POSSIBLE[field]), why if not records else "not recorded", count=count)


def _paired(first: Sequence[Record], second: Sequence[Record], field: str) -> Estimate | None:
    """First - second over the same question and, where both had one before it, the same pair's c."""
    exact = {(r["id"], r.get("pair")): r.get(field) for r in second}
    alone = {r["id"]: r.get(field) for r in second if items(second) == len(second)}
    joined = []
    for record in first:
        other = exact.get((record["id"], record.get("pair")), alone.get(record["id"]))
        if record.get(field) is not None and other is not None:
            joined.append((record, float(record[field]), float(other)))
    if len({record["id"] for record, _, _ in joined}) == len(joined):
        sides = ({record["id"]: value[place] for record, *value in joined} for place in (0, 1))
        return difference(*sides)
    return _over_both([one - other for _, one, other in joined], [record for record, _, _ in joined], "")


def _over_both(values: Sequence[float], records: Sequence[Record], field: str) -> Estimate | None:
    """The mean with an interval for new questions and new pairs, where each question met several c.

    Crossed where every question met every c; else the wider of the intervals over questions and over pairs. `field`
    names a share or number of records that are one a question; those have the usual interval.
    """
    from stepwell.stats import bootstrap_mean, crossed_mean

    if not values:
        return None
    ids, pairs = [record["id"] for record in records], [str(record.get("pair")) for record in records]
    if len(set(ids)) == len(ids):
        return share(records, field) if field == "correct" and set(values) <= {0.0, 1.0} else mean(records, field)
    if field == "correct" and len(set(values)) == 1 and values[0] in (0.0, 1.0):
        # Without any spread there is nothing to resample: then as many answers as the rarer of the two.
        units = min(len(set(ids)), len(set(pairs)))
        return counted(values[0] * units, units)
    places = len(set(zip(ids, pairs, strict=True)))
    if places == len(ids) == len(set(ids)) * len(set(pairs)):
        return crossed_mean(values, CONFIDENCE, items=ids, seeds=pairs)
    both = [bootstrap_mean(values, CONFIDENCE, clusters=labels) for labels in (ids, pairs)]
    return max(both, key=lambda one: math.inf if one.low is None or one.high is None else one.high - one.low)
