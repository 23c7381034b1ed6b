"""Where each model comes from, by hashes: base, adapter, merged, second adapter, and what each was graded at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from stepwell.report.cells import Cell, Column, Row, Section, Table, dash
from stepwell.report.folder import Record, RunData
from stepwell.report.tune.figures import HASH, hash_cell
from stepwell.report.tune.graded import Graded, models_of
from stepwell.report.tune.reading import jobs_of, records_of, text_of

TOLD = (
    "Every line is made from one above it. Trainings and merges hash the weights that they read: where that is not the "
    "hash of the model they should be made from, the chain is broken."
)


@dataclass(frozen=True, kw_only=True)
class Link:
    """One model or adapter.

    Attributes:
        name: its name in the records: the plan's model, or the job that made it.
        what: base, adapter or merged.
        base: the name of what it is made from; "" for the base.
        source: what says which weights it was made from.
        weights: its own hash.
        about: dtype or number of weights.
        group: lines of one group follow each other.
    """

    name: str
    what: str
    base: str
    source: Cell
    weights: Cell
    about: str
    group: str = ""


def lineage_section(data: RunData) -> Section:
    """One line for each link and result."""
    key, title = "lineage", "Lineage"
    links = links_of(data)
    if not links:
        return Section(key=key, title=title, missing="No base, adapter or merged model was recorded.")
    graded: dict[str, list[Graded]] = {}
    for one in models_of(data):
        if not one.is_reference:
            graded.setdefault(text_of(one.result, "model"), []).append(one)
    rows = tuple(row for link in links for row in _rows(link, graded.get(link.name, ())))
    columns = (
        Column(name="model"),
        Column(name="made from"),
        Column(name="its hash", note="sha256"),
        Column(name="own weights", note="sha256"),
        Column(name="graded"),
        Column(name="right", note="%", numeric=True),
        Column(name="protocol"),
    )
    broken = [link.name for link in links if link.source.tone == "no-go"]
    told = [f"The chain is broken at {', '.join(f'`{name}`' for name in broken)}."] if broken else []
    table = Table(title="From the base to the results", columns=columns, rows=rows)
    return Section(key=key, title=title, lines=(TOLD, *told), tables=(table,))


def links_of(data: RunData) -> list[Link]:
    """Base, then adapters and merged models in the plan's order, point by point of its axes."""
    bases, sets, merged = (records_of(data, kind) for kind in ("base", "training-set", "merged"))
    known: dict[str, str] = {text_of(one, "model"): text_of(one, "sha256") for one in bases}
    known |= {one["job"].name: text_of(one, "merged_sha256") for one in merged}
    order = {name: place for place, name in enumerate(jobs_of(data))}
    made = sorted([*sets, *merged], key=lambda one: (one["job"].detail, order[one["job"].name]))
    return [*(_base(one) for one in bases), *(_made(one, known) for one in made)]


def _base(one: Record) -> Link:
    quantised = one.get("quantised")
    about = [text_of(one, "dtype"), "quantised" if quantised else "", f"template {text_of(one, 'template')[:HASH]}"]
    return Link(
        name=text_of(one, "model"), what="base", base="", source=Cell(text=""), weights=hash_cell(one.get("sha256")),
        about=", ".join(part for part in about if part),
    )  # fmt: skip


def _made(one: Record, known: Mapping[str, str]) -> Link:
    base, trainable = text_of(one, "base"), one.get("trainable")
    adapter = one.get("kind") == "training-set"
    return Link(
        name=one["job"].name, what="adapter" if adapter else "merged", base=base,
        source=_checked(text_of(one, "base_sha256"), known.get(base, "")),
        weights=dash("the records have no hash of an adapter") if adapter else hash_cell(one.get("merged_sha256")),
        about="" if adapter and trainable is None else f"{trainable:,} weights" if adapter else text_of(one, "dtype"),
        group=one["job"].detail,
    )  # fmt: skip


def _checked(found: str, wanted: str) -> Cell:
    """Whether the weights that were read are those of the model named."""
    if not found:
        return dash("not recorded")
    if not wanted:
        return Cell(text=found[:HASH], code=True, interval="nothing to compare it with")
    same = found == wanted
    return Cell(text=found[:HASH], code=True, interval="the same" if same else f"not {wanted[:HASH]}",
                tone="go" if same else "no-go")  # fmt: skip


def _rows(link: Link, graded: Sequence[Graded]) -> list[Row]:
    span = max(1, len(graded))
    head = (
        Cell(text=link.name or "unnamed", interval=f"{link.what}{', ' if link.about else ''}{link.about}", rows=span),
        Cell(text=link.base, rows=span) if link.base else dash("it is the first"),
        _spanning(link.source if link.base else dash("it is the first"), span), _spanning(link.weights, span),
    )  # fmt: skip
    head = tuple(_spanning(cell, span) for cell in head)
    why = "an adapter is graded once it is merged" if link.what == "adapter" else "not graded"
    if not graded:
        return [Row(cells=(*head, dash(why), dash(why), dash(why)), group=link.group)]
    return [
        Row(
            cells=(
                *(head if place == 0 else ()), Cell(text=one.job.label, interval=one.benchmark), one.cell(),
                hash_cell(one.result.get("protocol")),
            ), group=link.group,
        )
        for place, one in enumerate(graded)
    ]  # fmt: skip


def _spanning(cell: Cell, rows: int) -> Cell:
    return replace(cell, rows=rows)
