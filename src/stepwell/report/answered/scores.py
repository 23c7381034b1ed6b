"""What was answered under each condition: F1 and exact match, first tokens, nats, ways to be wrong, and bytes."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from stepwell.report.answered.reading import CEILING, TEXT, Line, ceiling_of, lines_of, of_condition
from stepwell.report.answered.relative import relative
from stepwell.report.cells import Cell, Chart, Column, Row, Section, Table, number, percent
from stepwell.report.folder import Record, RunData
from stepwell.report.imprint.numbers import difference, estimate_cell, within
from stepwell.report.measures import common_count, grouped, headed, mean, own_count, point, share, share_cell

if TYPE_CHECKING:
    from stepwell.stats import Estimate

MODES = {"": "exact", "empty": "empty", "repetition": "repetition", "too long": "too long", "wrong": "wrong"}
TOLD = (
    "SQuAD's F1 and exact match of the decoded answer, the best over all gold answers. `text` reads the prompt's "
    "tokens, `ceiling` the same prompt as uncompressed embeddings in the same template: it is the scale of every arm. "
    "Relative to it, and paired with it, means over the same items."
)
LOSS = (
    "First token: whether the likeliest, or one of the five likeliest, begins a gold answer. Loss: nats a token of the "
    "first gold answer, its end token counted."
)
BYTES = (
    "Sent: the numbers of all tokens that go through the bottleneck, scales included; the text: UTF-8 bytes of context "
    "and question. Seconds: on the wall, with whatever makes the prompts."
)
UNBOUNDED = "F1 to ceiling has no interval where the ceiling's F1 may be zero: such a ratio has no bound."
NO_CEILING = "no ceiling was measured"


def scores_section(data: RunData) -> Section:
    """Every condition in one table, with the ceiling to measure it by."""
    lines = lines_of(data)
    if not lines:
        return Section(key="answers", title="Answers", missing="Nothing was answered.")
    return Section(
        key="answers",
        title="Answers",
        lines=(TOLD,),
        charts=_charts(lines),
        tables=(_scores(lines), _first_tokens(lines), _modes(lines), _bytes(data, lines)),
    )


def _scores(lines: Sequence[Line]) -> Table:
    ceiling, common = ceiling_of(lines), common_count([line.records for line in lines])

    def cells(line: Line) -> tuple[Cell, ...]:
        f1, scale = by_item(line.records, "f1"), ceiling | by_item(line.records, "ceiling_f1")
        apart = difference(f1, scale) if scale else None
        own = [Cell(text="the scale"), Cell(text="0")] if line.condition == CEILING else [
            estimate_cell(relative(f1, scale), NO_CEILING if not scale else "the ceiling's F1 is 0", scale=100),
            estimate_cell(apart, NO_CEILING, scale=100),
        ]  # fmt: skip
        return (
            share_cell(f1_of(line.records), "no F1 recorded", count=own_count(line.records, common)),
            share_cell(share(line.records, "em"), "no exact match recorded"),
            *own,
        )

    head = (
        Column(name="F1", note=" ".join(part for part in ("%", headed(common)) if part), numeric=True),
        Column(name="exact match", note="%", numeric=True),
        Column(name="F1 to ceiling", note="%", numeric=True),
        Column(name="F1 minus ceiling", note="points", numeric=True),
    )
    return _table("Answers, with 95% intervals over items", lines, head, cells, note=UNBOUNDED)


def f1_of(records: Sequence[Record]) -> Estimate | None:
    """Mean F1, its interval cut to what is possible."""
    return within(mean(records, "f1"), (0.0, 1.0))


def by_item(records: Sequence[Record], field: str) -> dict[Hashable, float]:
    """The mean over seeds of each item that has the number."""
    known = [record for record in records if record.get(field) is not None]
    return {id: fmean(record[field] for record in same) for id, same in grouped(known, lambda r: r["id"]).items()}


def _first_tokens(lines: Sequence[Line]) -> Table:
    def cells(line: Line) -> tuple[Cell, ...]:
        return (
            share_cell(share(line.records, "first_top1"), "not recorded"),
            share_cell(share(line.records, "first_top5"), "not recorded"),
            estimate_cell(within(mean(line.records, "nll_per_token"), (0.0, math.inf)), "not recorded"),
        )

    head = (
        Column(name="first token", note="%", numeric=True),
        Column(name="among five", note="%", numeric=True),
        Column(name="loss", note="nats a token", numeric=True),
    )
    return _table("First token and loss of the gold answer", lines, head, cells, note=LOSS)


def _modes(lines: Sequence[Line]) -> Table:
    def cells(line: Line) -> tuple[Cell, ...]:
        known = [record for record in line.records if record.get("error_mode") in MODES]
        flags = {mode: [{**record, "is": record["error_mode"] == mode} for record in known] for mode in MODES}
        return tuple(share_cell(share(flags[mode], "is"), "no error mode recorded") for mode in MODES)

    head = tuple(Column(name=name, note="%", numeric=True) for name in MODES.values())
    return _table("Ways to be wrong", lines, head, cells)


def _bytes(data: RunData, lines: Sequence[Line]) -> Table:
    texts, seconds = of_condition(lines, TEXT, "bytes"), _seconds(data, lines)

    def cells(line: Line) -> tuple[Cell, ...]:
        sent, text = by_item(line.records, "bytes"), texts | by_item(line.records, "text_bytes")
        both = [text[id] for id in sent if id in text]
        time = seconds.get((line.stage, line.condition, line.arm, line.detail))
        return (
            number(round(fmean(sent.values())) if sent else None),
            number(round(fmean(both)) if both else None, why="the text's bytes are not recorded"),
            estimate_cell(relative(sent, text), "bytes not recorded"),
            number(time, why="no time was recorded"),
        )

    head = (
        Column(name="sent", note="bytes an item", numeric=True),
        Column(name="the text", note="bytes an item", numeric=True),
        Column(name="sent to text", note="times", numeric=True),
        Column(name="seconds", note="an item", numeric=True),
    )
    return _table("Bytes on the wire, and time", lines, head, cells, note=BYTES)


def _seconds(data: RunData, lines: Sequence[Line]) -> dict[tuple[str, str, str, str], float]:
    """Seconds an item by stage, condition, arm and detail; of the last time that a job answered."""
    details = {record["job"]: (line.arm, line.detail) for line in lines for record in line.records}
    last: dict[tuple[str, str], tuple[float, float]] = {}
    for event in data.events:
        n, seconds = event.get("n"), event.get("seconds")
        sound = isinstance(n, int) and n > 0 and isinstance(seconds, int | float) and math.isfinite(seconds)
        if event.get("event") == "answered" and sound:
            last[str(event.get("job")), str(event.get("condition"))] = (float(seconds or 0), float(n or 1))
    found: dict[tuple[str, str, str, str], list[tuple[float, float]]] = {}
    for (job, condition), pair in last.items():
        found.setdefault((job.partition(".")[0], condition, *details.get(job, ("", ""))), []).append(pair)
    return {key: sum(s for s, _ in pairs) / sum(n for _, n in pairs) for key, pairs in found.items()}


def _table(
    title: str,
    lines: Sequence[Line],
    head: tuple[Column, ...],
    cells: Callable[[Line], tuple[Cell, ...]],
    note: str = "",
) -> Table:
    rows = tuple(
        Row(cells=(Cell(text=line.name, interval=line.detail), *cells(line)), group=line.stage) for line in lines
    )
    return Table(title=title, columns=(Column(name="condition"), *head), rows=rows, note=note)


def _charts(lines: Sequence[Line]) -> tuple[Chart, ...]:
    """F1 of texts and arms; quantised numbers are in the tables only."""
    ceiling = next((f1_of(line.records) for line in lines if line.condition == CEILING), None)
    series = []
    for line in lines:
        estimate = f1_of(line.records)
        if line.main and estimate is not None and estimate.value is not None:
            series.append(point(line.label, line.arm, estimate))
    rules: Mapping[str, float] = {}
    if ceiling is not None and ceiling.value is not None:
        rules = {f"ceiling {percent(ceiling.value)}": 100 * ceiling.value}
    if not series:
        return ()
    return (
        Chart(
            key="f1", title="F1", form="intervals", x_title="F1, %, with 95% intervals over items",
            series=tuple(series), rules=tuple((value, text) for text, value in rules.items()), low=0, high=100,
        ),
    )  # fmt: skip
