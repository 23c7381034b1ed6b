"""What a training gained, item by item, and over several seeds what such a training gains."""

from __future__ import annotations

from collections.abc import Sequence

from stepwell.report.cells import MINUS, TIMES, Cell, Column, Row, Table, dash, number, plural
from stepwell.report.folder import Record, RunData
from stepwell.report.measures import grouped
from stepwell.report.tune.figures import p_cell, points_cell
from stepwell.report.tune.graded import Graded, models_of
from stepwell.report.tune.reading import records_of, sides_of, text_of

NOTE = (
    "Of the same items under the same protocol, in points of accuracy; Newcombe's interval and McNemar's exact test. "
    "A line is about these trained models; one over all seeds, with Student's test over items and seeds, is about such "
    "a training."
)
Names = tuple[str, str]
"""The stages of the two sides, the new one first."""


def gains_tables(data: RunData) -> tuple[Table, ...]:
    """After minus before, and phase B minus what came before it; no table where nothing was compared."""
    found: list[tuple[Names, Record]] = []
    for one in records_of(data, "gain"):
        found.append((sides_of(data, one["job"], ("ours", "theirs"), ("after", "before")), one))
    for one in records_of(data, "regression"):
        found.append((sides_of(data, one["job"], ("after", "before"), ("after-b", "after")), one))
    models, rows = models_of(data), []
    for (names, benchmark), same in _alike(found).items():
        rows += [_row(names, one) for one in same]
        if len(same) > 1 and (pooled := _pooled(names, benchmark, models)) is not None:
            rows.append(pooled)
    columns = (
        Column(name="gain"),
        Column(name="benchmark"),
        Column(name="difference", note="points", numeric=True),
        Column(name="n", note="items", numeric=True),
        Column(name="p", numeric=True),
        Column(name="says"),
    )
    return (Table(title="Paired gains", columns=columns, rows=tuple(rows), note=NOTE),) if rows else ()


def _alike(found: Sequence[tuple[Names, Record]]) -> dict[tuple[Names, str], list[Record]]:
    groups: dict[tuple[Names, str], list[Record]] = {}
    for names, one in found:
        groups.setdefault((names, text_of(one, "benchmark")), []).append(one)
    return groups


def _row(names: Names, one: Record) -> Row:
    ends = ("low", "high") if one.get("kind") == "gain" else ("difference_low", "difference_high")
    low, high = (one.get(end) for end in ends)
    verdict = text_of(one, "verdict")
    says = text_of(one, "conclusion") or (f"regression gate: {verdict}" if verdict else "")
    cells = (
        Cell(text=f"{names[0]} {MINUS} {names[1]}", interval=one["job"].detail),
        Cell(text=text_of(one, "benchmark")),
        points_cell(one.get("difference"), low, high),
        number(one.get("n")),
        p_cell(one.get("p_value")),
        Cell(text=says) if says else dash("not recorded"),
    )
    return Row(cells=cells, group=str(names))


def _pooled(names: Names, benchmark: str, models: Sequence[Graded]) -> Row | None:
    """All seeds together, items and seeds both random. None where protocols differ or nothing can be paired."""
    from stepwell.stats import compare_pairs

    sides = [{one.job.detail: one for one in models if (one.job.stage, one.benchmark) == (name, benchmark)}
             for name in names]  # fmt: skip
    new, old = sides
    # A model that was graded before any training has no seed: it is the other side of each.
    pairs = {seed: (one, old.get(seed) or old.get("")) for seed, one in new.items()}
    known = {seed: (one, other) for seed, (one, other) in pairs.items() if other is not None}
    protocols = {text_of(side.result, "protocol") for pair in known.values() for side in pair}
    if len(known) < 2 or len(protocols) != 1 or "" in protocols:
        return None
    marks = {seed: _marks(one, other) for seed, (one, other) in known.items()}
    items = [item for item in next(iter(marks.values())) if all(item in each for each in marks.values())]
    if not items:
        return None
    rows = [(item, seed, *marks[seed][item]) for seed in marks for item in items]
    found = compare_pairs([row[2] for row in rows], [row[3] for row in rows], items=[row[0] for row in rows],
                          seeds=[row[1] for row in rows])  # fmt: skip
    cells = (
        Cell(text=f"{names[0]} {MINUS} {names[1]}", interval=f"all {plural(len(known), 'seed')}"),
        Cell(text=benchmark),
        points_cell(found.difference.value, found.difference.low, found.difference.high),
        Cell(text=f"{len(items):,}", interval=f"{TIMES} {plural(len(known), 'seed')}"),
        p_cell(found.p_value),
        Cell(text=found.conclusion),
    )
    return Row(cells=cells, group=str(names))


def _marks(one: Graded, other: Graded) -> dict[str, tuple[float, float]]:
    """Items that were marked on both sides: id -> the two marks."""
    both = grouped([*one.first.values(), *other.first.values()], lambda item: text_of(item, "id"))
    return {
        name: (float(pair[0]["correct"]), float(pair[1]["correct"]))
        for name, pair in both.items()
        if len(pair) == 2 and all(item.get("correct") is not None for item in pair)
    }
