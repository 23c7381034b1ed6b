"""Convergence and exactness side by side: a loss may be low and yet nothing be held, so neither stands alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from stepwell.report.cells import Cell, Chart, Column, Row, Section, Series, Table, joined, number
from stepwell.report.folder import Record, RunData
from stepwell.report.imprint.levels import (
    CONVERGED,
    NAMES,
    TO_CONTEXT,
    TO_RANDOM,
    Level,
    level,
    level_cell,
    lowest,
)
from stepwell.report.imprint.models import model_tables
from stepwell.report.imprint.numbers import GROUP, average, average_cell, items, lines, portion, portion_cell
from stepwell.report.imprint.reading import (
    Group,
    checked_stage,
    fitted_apart,
    group_name,
    grouped_by,
    modes_of,
    ordered_stages,
    pairs_planned,
    records_of,
)
from stepwell.report.measures import grouped, point

KEY, TITLE = "convergence", "Convergence and exactness"
TOLD = (
    "Exact: greedy decoding writes the whole target, the end token included. Converged: the final loss is below the "
    "bar of its baselines, or the target is exact. They are counted apart, for a loss can converge while nothing is "
    "held. Passed: the spot "
    "check, a greedy decoding that was judged. Loss is in nats a token, the end token counted; beside it its ratio to "
    "that of random vectors, and to its baseline: the full context (the question's tokens before an answer) or, where "
    "a mode has none, the text prompt. Of a fit over other wordings the loss is their mean with the pair's own text, "
    "exact is any of them; ratios and bars are of the own text, as the baselines are. Small print: 95% intervals over "
    "pairs.",
    "Levels: converged above 40, 70 and 90% of the pairs; loss below .4, .25 and .15 of that of random vectors; loss "
    "below 2, 1.5 and 1.2 of its baseline in every mode. A level counts as reached only when the whole interval lies "
    "on its right side. A ratio is the mean of the pairs' ratios.",
)


@dataclass(frozen=True, kw_only=True)
class Part:
    """One line: a stage in one mode (`mode` set) or of whole pairs (`mode` empty).

    Args:
        stage, mode: which.
        outcomes: one record a pair, with `converged` and `exact`.
        losses: one record a pair and mode, with `nats` and the ratios.
        spots: one record a pair that was decoded, with `passed` and `converged`.
        checked: the fits whose vectors were decoded.
    """

    stage: str
    mode: str
    outcomes: Sequence[Record]
    losses: Sequence[Record]
    spots: Sequence[Record]
    checked: Sequence[str]

    @property
    def name(self) -> str:
        """`joint`, or `joint, question`."""
        return f"{self.stage}, {self.mode}" if self.mode else self.stage


def convergence_section(data: RunData) -> Section:
    """Every part of every stage: converged, exact, spot check, loss and ratios; then the levels reached."""
    parts = parts_of(data)
    if not parts:
        return Section(key=KEY, title=TITLE, missing="No pair was fitted.")
    planned = pairs_planned(data)
    outcome = Table(
        title="Converged, exact, passed",
        columns=(
            GROUP,
            Column(name="part"),
            Column(name="n", note="pairs", numeric=True),
            Column(name="converged", note="%", numeric=True),
            Column(name="exact", note="%", numeric=True),
            Column(name="passed", note="% of converged", numeric=True),
            Column(name="passed", note="% of all", numeric=True),
        ),
        rows=lines({group: [_outcome(part, planned.get(group[0])) for part in some] for group, some in parts.items()}),
    )
    loss = Table(
        title="Loss",
        columns=(
            GROUP,
            Column(name="part"),
            Column(name="n", note="pairs", numeric=True),
            Column(name="loss", note="nats a token", numeric=True),
            Column(name="to random", note="ratio", numeric=True),
            Column(name="to baseline", note="ratio", numeric=True),
        ),
        rows=lines({group: [_loss(part) for part in some] for group, some in parts.items()}),
        note="Means are over what has the number; where something has none, the cell says of how many.",
    )
    return Section(
        key=KEY,
        title=TITLE,
        lines=TOLD,
        charts=tuple(_chart(group, some) for group, some in parts.items()),
        tables=(outcome, loss, *model_tables(data, parts), _levels(parts)),
    )


def parts_of(data: RunData) -> dict[Group, list[Part]]:
    """The parts of each group; the sweep over K has a section of its own."""
    targets, pairs = ([r for r in records_of(data, kind) if r.get("slots") is None] for kind in ("target", "pair"))
    stages = ordered_stages(data, [*targets, *pairs])
    spots: dict[str, list[Record]] = {}
    for record in records_of(data, "spot"):
        spots.setdefault(checked_stage(data, record["stage"], stages), []).append(record)
    found: dict[Group, list[Part]] = {}
    for group in grouped_by(data, [*targets, *pairs]):
        for stage in stages:
            fitted, whole = ([r for r in of if (r["group"], r["stage"]) == (group, stage)] for of in (targets, pairs))
            decoded = [record for record in spots.get(stage, ()) if record["group"] == group]
            found.setdefault(group, []).extend(_parts(data, stage, fitted, whole, decoded, tuple(spots)))
    return {group: parts for group, parts in found.items() if parts}


def _parts(
    data: RunData,
    stage: str,
    targets: Sequence[Record],
    pairs: Sequence[Record],
    spots: Sequence[Record],
    checked: Sequence[str],
) -> list[Part]:
    """Whole pairs first where their modes share one c, then each mode where there are several."""
    modes, apart = modes_of(targets), fitted_apart(data, stage)
    found = []
    if pairs and not apart:
        whole = [_whole(id, rows) for id, rows in grouped(spots, lambda record: record["id"]).items()]
        found.append(Part(stage=stage, mode="", outcomes=pairs, losses=targets, spots=whole, checked=checked))
    if apart or len(modes) > 1 or not pairs:
        for mode in modes:
            mine, decoded = ([r for r in some if r["mode"] == mode] for some in (targets, spots))
            found.append(Part(stage=stage, mode=mode, outcomes=mine, losses=mine, spots=decoded, checked=checked))
    return found


def _whole(id: str, rows: Sequence[Record]) -> Record:
    """A pair passes when it does in every mode; likewise converges."""
    return {"id": id, **{name: _every([row.get(name) for row in rows]) for name in ("passed", "converged")}}


def _every(flags: Sequence[bool | None]) -> bool | None:
    return False if False in flags else None if None in flags else True


def _outcome(part: Part, planned: int | None) -> tuple[Cell, ...]:
    n = items(part.outcomes)
    of = f"of {planned:,}" if planned is not None and planned != n else ""
    converged = [record for record in part.spots if record.get("converged") is True]
    elsewhere = bool(part.checked) and part.stage not in part.checked
    unchecked = f"the spot check is of stage {joined(part.checked)}" if elsewhere else "no spot check was made"
    none = "nothing that converged was decoded" if part.spots else unchecked
    return (
        Cell(text=part.name),
        Cell(text=number(n).text, count=of),
        portion_cell(part.outcomes, "converged", "no bar was given", n),
        portion_cell(part.outcomes, "exact", "not recorded", n),
        portion_cell(converged, "passed", none, len(converged)) if not converged else _of(converged),
        portion_cell(part.spots, "passed", unchecked, n),
    )


def _loss(part: Part) -> tuple[Cell, ...]:
    n = items(part.outcomes)
    return (
        Cell(text=part.name),
        number(n),
        average_cell(part.losses, "nats", "no pair has a loss", n),
        average_cell(part.losses, "ratio_to_random", "no baseline of random vectors", n),
        average_cell(part.losses, "ratio_to_baseline", "no baseline in this mode", n),
    )


def _of(converged: Sequence[Record]) -> Cell:
    """The share that passed among the converged, which are fewer than the row's n: their number is said."""
    cell = portion_cell(converged, "passed", "not recorded")
    return replace(cell, count=f"n {len(converged):,}")


def _levels(parts: dict[Group, list[Part]]) -> Table:
    columns = (
        GROUP,
        Column(name="part"),
        Column(name="converged"),
        Column(name="loss to random"),
        Column(name="loss to baseline"),
        Column(name="level", note="the lowest of these"),
    )
    rows: tuple[Row, ...] = lines({group: [_level_cells(part) for part in some] for group, some in parts.items()})
    note = "`open`: the interval holds the minimum, so neither reached nor missed."
    return Table(title="Levels reached", columns=columns, rows=rows, note=note)


def _level_cells(part: Part) -> tuple[Cell, ...]:
    found = levels_of(part)
    known = sum(one.reached is not None for one in found)
    detail = f"on {known} of {len(found)} criteria" if known < len(found) else ""
    all_of_them = level_cell(lowest(found), detail=detail)
    return (Cell(text=part.name), *map(level_cell, found), all_of_them)


def levels_of(part: Part) -> tuple[Level, Level, Level]:
    """Convergence, loss to random, loss to baseline. A pair without a loss leaves no mean to judge."""
    converged = level(portion(part.outcomes, "converged"), CONVERGED, above=True, why="no bar was given")
    random = _ratio_level(part.losses, "ratio_to_random", TO_RANDOM, "no baseline of random vectors")
    by_mode = [[r for r in part.losses if r["mode"] == mode] for mode in modes_of(part.losses)]
    found = [_ratio_level(rows, "ratio_to_baseline", TO_CONTEXT, "no baseline in one of the modes") for rows in by_mode]
    undefined = [one for one in found if one.reached is None]
    return converged, random, undefined[0] if undefined else lowest(found)


def _ratio_level(records: Sequence[Record], field: str, bars: tuple[float, ...], why: str) -> Level:
    missing = sum(record.get(field) is None for record in records)
    if missing and missing < len(records):
        why = f"{missing} of {len(records)} have none, and a mean over the rest would flatter"
    return level(average(records, field), bars, above=False, why=why)


def _chart(group: Group, parts: Sequence[Part]) -> Chart:
    name = group_name(group)
    series: list[Series] = []
    for part in parts:
        for field in ("exact", "converged"):
            estimate = portion(part.outcomes, field)
            if estimate is not None and estimate.value is not None:
                drawn = point(part.name, name, estimate, filled=field == "exact")
                series.append(drawn)
    return Chart(
        key=f"convergence-{name}",
        title=name,
        form="intervals",
        x_title="pairs, %",
        series=tuple(series),
        rules=tuple(
            (100 * bar, text) for bar, text in zip(CONVERGED, NAMES, strict=True)
        ),
        note="Filled: exact. Open: converged. Dotted: levels of convergence. Bars: 95% intervals.",
    )  # fmt: skip
