"""Whether the modes of a pair pull against each other, whether a leak is likely, and when a fit was given up."""

from __future__ import annotations

from collections.abc import Sequence

from stepwell.report.cells import TO, Cell, Column, Section, Table, dash, joined, number, percent
from stepwell.report.folder import Record, RunData
from stepwell.report.imprint.numbers import GROUP, average_cell, items, lines
from stepwell.report.imprint.reading import Group, group_name, grouped_by, modes_of, ordered_stages, records_of
from stepwell.report.measures import grouped

TOLD = (
    "Gradient cosine: between the gradients of a pair's modes, its mean over the steps; opposed: the share of steps in "
    "which it was negative; loss correlation: of the changes of the modes' losses, negative where what helps the one "
    "harms the other. Many losses of exactly zero point to a leak of the target into what the model reads."
)
FIELDS = ("gradient_cosine", "opposed", "conflict")
UNDEFINED = "no pair has it: one mode alone, vectors apart, or too few points of its curves"


def conflicts_section(data: RunData) -> Section:
    """Conflicts over pairs with intervals; what the stages found of conflicts and leaks; alerts."""
    pairs = [r for r in records_of(data, "pair") if any(r.get(f) is not None for f in FIELDS)]
    tables = [*_conflicts(data, pairs), *_found(data), *_alerts(data)]
    return Section(
        key="conflicts",
        title="Conflicts, leaks and stops",
        lines=(TOLD, *_of_one_mode(data)) if tables else (),
        tables=tuple(tables),
        missing="" if tables else "No pair with several modes was fitted, and no leak check was made.",
    )


def _of_one_mode(data: RunData) -> tuple[str, ...]:
    """Why a gate that asks whether modes get along found nothing to judge."""
    modes = {group: modes_of(mine) for group, mine in grouped_by(data, records_of(data, "target")).items()}
    alone = [group for group, names in modes.items() if len(names) == 1]
    if not alone:
        return ()
    return (
        f"Of {joined(map(group_name, alone))} every item has one mode, which nothing pulls against: no conflict was "
        "looked for, and the gate on it is not asked.",
    )


def _conflicts(data: RunData, pairs: Sequence[Record]) -> list[Table]:
    rows: dict[Group, list[tuple[Cell, ...]]] = {}
    for group, mine in grouped_by(data, pairs).items():
        for place, some in grouped(_ordered(data, mine), _place).items():
            n = items(some)
            cells = [average_cell(some, field, UNDEFINED, n) for field in FIELDS]
            rows.setdefault(group, []).append((Cell(text=place), number(n), *cells))
    columns = (
        GROUP,
        Column(name="stage"),
        Column(name="n", note="pairs", numeric=True),
        Column(name="gradient cosine", note="mean", numeric=True),
        Column(name="opposed", note="share of steps", numeric=True),
        Column(name="loss correlation", note="mean", numeric=True),
    )
    return [Table(title="Between the modes of a pair", columns=columns, rows=lines(rows))] if rows else []


def _found(data: RunData) -> list[Table]:
    """The checks as the stages recorded them."""
    checks = [(record, "leak", "share") for record in records_of(data, "leak")]
    checks += [(record, "conflict", "mean") for record in records_of(data, "conflict")]
    by = {id(record): (name, field) for record, name, field in checks}
    rows: dict[Group, list[tuple[Cell, ...]]] = {}
    for group, mine in grouped_by(data, [record for record, _, _ in checks]).items():
        for record in _ordered(data, mine):
            rows.setdefault(group, []).append((Cell(text=_place(record)), *_check(record, *by[id(record)])))
    columns = (
        GROUP,
        Column(name="stage"),
        Column(name="check"),
        Column(name="n", numeric=True),
        Column(name="found", numeric=True),
        Column(name="alarm"),
    )
    return [Table(title="Checks that each fit made of itself", columns=columns, rows=lines(rows))] if rows else []


def _ordered(data: RunData, records: Sequence[Record]) -> list[Record]:
    """By stage, in the plan's order, and by K."""
    stages = ordered_stages(data, records)
    return sorted(records, key=lambda record: (stages.index(record["stage"]), record.get("slots") or 0.0))


def _place(record: Record) -> str:
    slots = record.get("slots")
    return f"{record['stage']}{'' if slots is None else f', K = {slots:g}'}"


def _check(record: Record, name: str, field: str) -> tuple[Cell, ...]:
    value, low, high, alarm = (record.get(key) for key in (field, "low", "high", "alarm"))
    leak = name == "leak"
    told = "losses of exactly zero, %" if leak else "loss correlation, mean"
    if value is None:
        found = dash("no pair to count" if leak else UNDEFINED)
    else:
        text, span = (percent(value), percent) if leak else (number(value).text, lambda end: number(end).text)
        between = TO if leak else " to "
        interval = "no interval" if low is None or high is None else f"{span(low)}{between}{span(high)}"
        scale = 100 if leak else 1
        value, low, high = (None if end is None else scale * end for end in (value, low, high))
        found = Cell(text=text, interval=interval, value=value, low=low, high=high)
    said = dash("not recorded") if alarm is None else Cell(text="alarm", tone="alert") if alarm else Cell(text="none")
    return Cell(text=name, count=told), number(record.get("n")), found, said


def _alerts(data: RunData) -> list[Table]:
    """What the fits told while they ran, and whether they were given up for it."""
    rows: dict[Group, list[tuple[Cell, ...]]] = {}
    for group, mine in grouped_by(data, records_of(data, "alert")).items():
        for record in mine:
            stopped = {"True": "yes", "False": "no"}.get(str(record.get("stopped")), "")
            rows.setdefault(group, []).append(
                (
                    Cell(text=_place(record)),
                    Cell(text=str(record.get("monitor") or ""), code=True),
                    number(record.get("step")),
                    Cell(text=str(record.get("message") or "")),
                    Cell(text=stopped, tone="alert" if stopped == "yes" else "")
                    if stopped
                    else dash("the monitor does not say"),
                )
            )
    columns = (
        GROUP,
        Column(name="stage"),
        Column(name="monitor"),
        Column(name="at", numeric=True),
        Column(name="message"),
        Column(name="gave up"),
    )
    return [Table(title="Alerts of the fits", columns=columns, rows=lines(rows))] if rows else []
