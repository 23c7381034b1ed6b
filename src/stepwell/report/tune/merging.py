"""The merge's proof: how much of each layer's change survived the cast, and whether both compute the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stepwell.report.cells import (
    Cell,
    Chart,
    Column,
    Heat,
    Row,
    Section,
    Table,
    Tone,
    dash,
    digits_of,
    number,
)
from stepwell.report.folder import Record, RunData
from stepwell.report.measures import grouped
from stepwell.report.tune.figures import hash_cell, plain_share, spread_cell
from stepwell.report.tune.reading import Job, records_of, text_of

TOLD = (
    "The merged model against base and adapter apart, both computed in fp32 on fixed prompts and on what base and "
    "adapter write after them: what differs comes from the merge and its cast. KL of the adapter: base and adapter "
    "against the base alone, which is what a merge can lose."
)
SURVIVED = (
    "Survived: 1 minus the norm of what the cast took away over the norm of the change, not below 0. Change: its norm "
    "over that of the base's weights. Median, and smallest to largest."
)
DEPENDENT = "Predictions of one text are not independent, so shares of them have no interval."
TONES: dict[str, Tone] = {"good": "go", "write fp32": "no-go", "do not merge": "no-go"}
MOST_COLUMNS = 40
"""Layers whose fields still have room for a number."""
WHOLE = 0.995
"""From here on a share is 100 when it is rounded, which no field has room for."""
UNCHANGED = "the adapter changes nothing here"
REST = "no layer"


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a tensor is: its layer, None outside of all layers, and its kind of matrix."""

    layer: int | None
    matrix: str


def place_of(name: str) -> Place:
    """`model.layers.3.self_attn.q_proj.weight` is layer 3, `self_attn.q_proj`. Further numbers (experts) are a `*`."""
    parts = [part for part in name.split(".") if part]
    if parts and parts[-1] == "weight" and len(parts) > 1:
        parts.pop()
    numbers = [at for at, part in enumerate(parts) if part.isascii() and part.isdigit() and len(part) < 9]
    if not numbers or numbers[0] + 1 == len(parts):
        return Place(layer=None, matrix=".".join(parts) or "unnamed")
    rest = parts[numbers[0] + 1 :]
    return Place(layer=int(parts[numbers[0]]), matrix=".".join("*" if part.isdigit() else part for part in rest))


def merging_section(data: RunData) -> Section:
    """For each merge its proof, its layers and the texts that were compared."""
    key, title = "merge", "Merge"
    proofs = records_of(data, "merged")
    layers = grouped(records_of(data, "layer"), lambda one: one["job"].name)
    if not proofs and not layers:
        return Section(key=key, title=title, missing="Nothing was merged.")
    jobs = {one["job"].name: one["job"] for one in (*proofs, *(one for some in layers.values() for one in some))}
    texts = records_of(data, "continuation")
    return Section(
        key=key, title=title, lines=(TOLD,),
        charts=tuple(chart for name, job in jobs.items() if (chart := _chart(job, layers.get(name, ()))) is not None),
        tables=(
            *((_proofs(proofs, layers), _computed(proofs, texts)) if proofs else ()),
            *((_matrices(jobs, layers),) if layers else ()), *_texts(texts),
        ),
    )  # fmt: skip


def _proofs(proofs: Sequence[Record], layers: Mapping[str, Sequence[Record]]) -> Table:
    rows = []
    for one in proofs:
        advice, verified = text_of(one, "advice"), one.get("verified")
        cells = (
            Cell(text=one["job"].label, interval=f"into {text_of(one, 'base') or 'an unknown base'}"),
            dash("not recorded") if verified is None else
            Cell(text="the adapter's own" if verified else "not proved", tone="go" if verified else "no-go"),
            Cell(text=text_of(one, "dtype")) if one.get("dtype") else dash("not recorded"),
            number(len(layers[one["job"].name]) if one["job"].name in layers else None, why="no layer was recorded"),
            plain_share(one.get("survived"), UNCHANGED), hash_cell(one.get("merged_sha256")),
            Cell(text=advice, tone=TONES.get(advice, "inconclusive"), why=text_of(one, "reason"))
            if advice else dash("not recorded"),
        )  # fmt: skip
        rows.append(Row(cells=cells))
    columns = (
        Column(name="merge", note="base"),
        Column(name="base, by its hash"),
        Column(name="stored in"),
        Column(name="changed", note="tensors", numeric=True),
        Column(name="survived", note="% of the change", numeric=True),
        Column(name="merged weights", note="sha256"),
        Column(name="advice"),
    )
    return Table(title="What was written", columns=columns, rows=tuple(rows))


def _computed(proofs: Sequence[Record], texts: Sequence[Record]) -> Table:
    tokens = grouped(texts, lambda one: one["job"].name)
    rows = []
    for one in proofs:
        n, largest, kl, effect = (one.get(name) for name in ("columns", "largest_logit", "kl_nats", "effect_kl_nats"))
        written = [each.get("tokens") for each in tokens.get(one["job"].name, ())]
        count = f"n {sum(filter(None, written)):,}" if written and None not in written else ""
        of = "" if largest is None else f"largest logit {digits_of(largest)}"
        difference = number(one.get("max_logit_difference"))
        cells = (
            Cell(text=one["job"].label), Cell(text=difference.text, interval=of, why=difference.why),
            number(kl), number(effect),
            dash("the adapter has no effect" if effect == 0 else "not recorded") if kl is None or not effect
            else plain_share(kl / effect),
            plain_share(one.get("top1_agreement"), count="" if n is None else f"n {n:,}", digits=4),
            plain_share(one.get("greedy_agreement"), count=count),
        )  # fmt: skip
        rows.append(Row(cells=cells))
    columns = (
        Column(name="merge"),
        Column(name="logit difference", note="largest", numeric=True),
        Column(name="KL of the merge", note="nats", numeric=True),
        Column(name="KL of the adapter", note="nats", numeric=True),
        Column(name="ratio", note="%", numeric=True),
        Column(name="same first choice", note="%, n predictions", numeric=True),
        Column(name="same greedy text", note="%, n tokens", numeric=True),
    )
    return Table(title="Whether it computes the same", columns=columns, rows=tuple(rows), note=DEPENDENT)


def _matrices(jobs: Mapping[str, Job], layers: Mapping[str, Sequence[Record]]) -> Table:
    """One line for each merge and kind of matrix, with the tensor that lost the most."""
    rows = []
    for name, some in layers.items():
        for matrix, same in grouped(some, lambda one: place_of(text_of(one, "name")).matrix).items():
            cells = (
                Cell(text=jobs[name].label), Cell(text=matrix, code=True), number(len(same)),
                spread_cell([one.get("delta_share") for one in same], "the base's weights are all zero"),
                spread_cell([one.get("survived") for one in same], UNCHANGED),
                _least_in(same),
            )  # fmt: skip
            rows.append(Row(cells=cells, group=name))
    columns = (
        Column(name="merge"),
        Column(name="matrix"),
        Column(name="tensors", numeric=True),
        Column(name="change", note="% of the weights' norm", numeric=True),
        Column(name="survived", note="% of the change", numeric=True),
        Column(name="least in"),
    )
    return Table(title="What survived, by kind of matrix", columns=columns, rows=tuple(rows), note=SURVIVED)


def _least_in(records: Sequence[Record]) -> Cell:
    """The layer, or the tensor outside of all layers, that lost the most."""
    known = [one for one in records if one.get("survived") is not None]
    if not known:
        return dash(UNCHANGED)
    worst = min(known, key=lambda one: one["survived"])
    name = text_of(worst, "name")
    layer = place_of(name).layer
    if worst["survived"] >= WHOLE:
        return dash("nothing was lost")
    return Cell(text=name if layer is None else f"layer {layer}")


def _chart(job: Job, records: Sequence[Record]) -> Chart | None:
    """Layers from left to right, kinds of matrix from the top; several tensors in one field give their least."""
    found: dict[tuple[str, str], list[float | None]] = {}
    for one in records:
        at = place_of(text_of(one, "name"))
        found.setdefault((at.matrix, REST if at.layer is None else str(at.layer)), []).append(one.get("survived"))
    if not found:
        return None
    numbers = sorted({int(layer) for _, layer in found if layer != REST})
    x = (*map(str, numbers), *((REST,) if any(layer == REST for _, layer in found) else ()))
    y = tuple(reversed(dict.fromkeys(matrix for matrix, _ in found)))
    values = tuple(tuple(_least(found.get((matrix, layer), ())) for layer in x) for matrix in y)
    room = len(x) <= MOST_COLUMNS
    whole = room and any(v is not None and v >= WHOLE for row in values for v in row)
    rows = tuple(
        Row(cells=(Cell(text=layer), *(plain_share(_least(found.get((m, layer), ())), _why(found, m, layer))
                                       for m in reversed(y))))
        for layer in x
    )  # fmt: skip
    columns = (Column(name="layer"), *(Column(name=matrix, note="%", numeric=True) for matrix in reversed(y)))
    return Chart(
        key=f"survived-{job.name}", title=f"`{job.label}`", form="heat", x_title="layer",
        group="Share of the change that survived the cast, %",
        heat=Heat(
            x=x, y=y, values=values, low=0, high=1,
            text=tuple(tuple("" if v is None or v >= WHOLE or not room else f"{100 * v:.0f}" for v in row)
                       for row in values),
            hover=tuple(
                tuple(f"{matrix}, layer {layer}: {'none' if v is None else f'{100 * v:.2f} %'}"
                      for layer, v in zip(x, row, strict=True))
                for matrix, row in zip(y, values, strict=True)
            ),
        ),
        table=Table(title="Survived, % of the change", columns=columns, rows=rows),
        note="A dark field without a number: 99.5 or more." if whole else "",
    )  # fmt: skip


def _least(values: Sequence[float | None]) -> float | None:
    return min((value for value in values if value is not None), default=None)


def _why(found: Mapping[tuple[str, str], object], matrix: str, layer: str) -> str:
    return UNCHANGED if (matrix, layer) in found else "there is no such tensor"


def _texts(texts: Sequence[Record]) -> tuple[Table, ...]:
    """Greedy text of base and adapter, and for how long the merged model writes the same."""
    rows = []
    for one in texts:
        agreed, tokens = one.get("agreed"), one.get("tokens")
        known = agreed is not None and tokens is not None
        tone: Tone = "" if not known or agreed == tokens else "no-go"
        cells = (
            Cell(text=one["job"].label), Cell(text=text_of(one, "prompt")), Cell(text=text_of(one, "text")),
            Cell(text=f"{agreed:,} of {tokens:,}", tone=tone) if known else dash("not recorded"),
        )  # fmt: skip
        rows.append(Row(cells=cells, group=one["job"].name))
    columns = (
        Column(name="merge"),
        Column(name="prompt"),
        Column(name="base and adapter write"),
        Column(name="merged too", note="tokens", numeric=True),
    )
    table = Table(title="The texts that were compared", columns=columns, rows=tuple(rows), folded=True)
    return (table,) if rows else ()
