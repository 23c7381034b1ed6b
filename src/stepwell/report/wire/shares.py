"""Which terms a training minimises: the share of each in the weighed loss, over the training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import fmean

from stepwell.report.answered.reading import records_of
from stepwell.report.cells import Cell, Chart, Column, Heat, Row, Section, Table, dash, number, percent, plural
from stepwell.report.folder import Record, RunData
from stepwell.report.measures import grouped

PREFIX = "weighted_"
PARTS = 10
"""Of a training, each a column."""
NAMES = {
    "first_token": "first token", "teacher_forced": "whole answer", "k_token": "first K tokens",
    "kd": "teacher's words", "hidden_kd": "teacher's states", "alignment": "alignment", "manifold": "manifold",
    "reconstruction": "reconstruction", "text": "answer from text",
}  # fmt: skip
TOLD = (
    "The share in % of each weighed term in their sum, by tenths of a training, seeds together. Terms are means over "
    "what a step was made of; a step that reads text alone has no term of latents. Weighed sizes say what the "
    "optimizer sees, and not what is learnt."
)


def shares_section(data: RunData) -> Section:
    """One field for each stage and arm: terms against parts of the training."""
    steps = [record for record in records_of(data, "step") if record.get("step") is not None]
    charts = []
    for stage, records in grouped(steps, lambda record: record["stage"]).items():
        for (arm, detail), mine in grouped(records, lambda record: (record["arm"], record["detail"])).items():
            if parts := parts_of(mine):
                charts.append(_chart(stage, ", ".join(filter(None, (arm, detail))), parts, mine))
    return Section(
        key="losses",
        title="Loss shares",
        lines=(TOLD,) if charts else (),
        charts=tuple(charts),
        missing="" if charts else "No weighed loss was recorded.",
    )


def parts_of(steps: Sequence[Record]) -> list[tuple[str, Mapping[str, float]]]:
    """(steps, share by term) of each part of a training; a part whose terms are all zero or unknown has no share."""
    last = int(max(record["step"] for record in steps))
    names = [name for name in dict.fromkeys(name for record in steps for name in record) if name.startswith(PREFIX)]
    edges = sorted({round(last * place / PARTS) for place in range(PARTS + 1)})
    found = []
    for low, high in pairwise(edges):
        inside = [record for record in steps if low < record["step"] <= high]
        if inside:
            found.append((f"{low + 1:,}\u2013{high:,}" if high > low + 1 else f"{high:,}", _shares(inside, names)))
    return found if any(shares for _, shares in found) else []


def _shares(steps: Sequence[Record], names: Sequence[str]) -> dict[str, float]:
    sizes = {name: fmean(abs(record.get(name) or 0.0) for record in steps) for name in names}
    total = sum(sizes.values())
    return {name.removeprefix(PREFIX): size / total for name, size in sizes.items() if size > 0} if total else {}


def _chart(stage: str, name: str, parts: Sequence[tuple[str, Mapping[str, float]]], steps: Sequence[Record]) -> Chart:
    known = {term for _, shares in parts for term in shares}
    terms = [term for term in NAMES if term in known] + sorted(known - NAMES.keys())
    titles = [NAMES.get(term, term) for term in terms]
    values = tuple(tuple(shares.get(term, 0.0) if shares else None for _, shares in parts) for term in reversed(terms))
    seeds = len({record["seed"] for record in steps})
    return Chart(
        key=f"shares-{stage}-{name}", title=f"`{name}`" if name else stage, form="heat", x_title="optimizer steps",
        heat=Heat(
            x=tuple(text for text, _ in parts), y=tuple(reversed(titles)), values=values, low=0, high=1,
            text=tuple(tuple("" if v is None else f"{100 * v:.0f}" for v in row) for row in values),
            hover=tuple(
                tuple(_hover(title, text, v) for (text, _), v in zip(parts, row, strict=True))
                for title, row in zip(reversed(titles), values, strict=True)
            ),
        ),
        table=_table(parts, terms), group=f"{stage}: share of the weighed loss, %",
        note=f"Means over {plural(seeds, 'seed')}." if seeds > 1 else "",
    )  # fmt: skip


def _hover(title: str, steps: str, share: float | None) -> str:
    return f"{title}, steps {steps}: {'no term' if share is None else f'{percent(share)} %'}"


def _table(parts: Sequence[tuple[str, Mapping[str, float]]], terms: Sequence[str]) -> Table:
    rows = tuple(
        Row(cells=(Cell(text=text), *(_cell(shares, term) for term in terms))) for text, shares in parts
    )  # fmt: skip
    columns = (Column(name="steps"), *(Column(name=NAMES.get(t, t), note="%", numeric=True) for t in terms))
    return Table(title="Shares", columns=columns, rows=rows)


def _cell(shares: Mapping[str, float], term: str) -> Cell:
    return number(round(100 * shares.get(term, 0.0), 1)) if shares else dash("no term is above zero in these steps")
