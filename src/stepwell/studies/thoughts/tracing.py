"""The stage `thoughts.trace`: patch every (layer, position) of the question's run into one about the other person."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stepwell.analysis.tracing import Place, Tracer, effect
from stepwell.stage import StageContext
from stepwell.studies.thoughts.analysis_params import TraceParams
from stepwell.studies.thoughts.build import Built
from stepwell.studies.thoughts.data import load_graphs
from stepwell.studies.thoughts.others import asked_about, others, others_of
from stepwell.studies.thoughts.params import SymbolModel
from stepwell.studies.thoughts.sets import TrainedArm, chosen_layers, trained_arm
from stepwell.tasks.prosqa import load_items
from stepwell.tasks.prosqa.reading import Reader


def both_readers(built: Built, data: Path, name: str) -> tuple[Reader, Reader, list[int]]:
    """A set's reader, one that asks about the other person, and the rows whose prompts then keep every column."""
    if isinstance(built.params.model, SymbolModel):
        clean = built.reader(data, name)
        graphs = load_graphs(data, name)
        roots = [
            others(
                [(a, b) for a, b in graphs.edges[row].tolist() if a >= 0], np.flatnonzero(graphs.persons[row]).tolist(),
                int(graphs.root[row]), int(graphs.target[row]), int(graphs.neg_target[row]),
            )
            for row in range(len(graphs))
        ]  # fmt: skip
        swapped = np.array([new[0] if new else old for old, new in zip(graphs.root, roots, strict=True)], np.int16)
        corrupt = built.symbols(replace(graphs, root=swapped))
        return clean, corrupt, [row for row, new in enumerate(roots) if new]
    items = load_items(data / f"{name}.json")
    clean, changed, rows = built.text(items), [], []
    for row, item in enumerate(items):
        if fit := others_of(item):
            item = replace(item, question=asked_about(item, fit[0]), root=fit[0])
            rows.append(row)
        changed.append(item)
    corrupt = built.text(changed)
    # Names of unequal numbers of tokens would move every column after them.
    return clean, corrupt, [row for row in rows if len(clean.questions[row]) == len(corrupt.questions[row])]


def trace(params: TraceParams, ctx: StageContext) -> None:
    """Trace one trained arm: one record an item, layer and position, and one an item."""
    arm = trained_arm(params, ctx)
    layers = chosen_layers(params.layers, arm.built.thoughts.backbone)
    for name in arm.names:
        clean, corrupt, usable = both_readers(arm.built, arm.data, name)
        rows = usable[: params.items] if params.items else usable
        ctx.write("trace-set", set=name, n=len(rows), of=len(clean), left_out=len(clean) - len(usable))
        steps = max((clean.identity(row)[1] for row in rows), default=0)
        for start in range(0, len(rows), params.batch_size):
            some = torch.tensor(rows[start : start + params.batch_size])
            _batch(params, ctx, arm, (clean, corrupt), some, name, steps, layers)
            ctx.progress(start + len(some), len(rows), set=name)
            ctx.stop_if_asked()


def _batch(
    params: TraceParams, ctx: StageContext, arm: TrainedArm, readers: tuple[Reader, Reader], rows: Tensor, name: str,
    steps: int, layers: Sequence[int],
) -> None:  # fmt: skip
    model, seed = arm.built.thoughts, ctx.seed + int(rows[0])
    clean, corrupt = (
        reader.ask(rows, model.arm, arm.stage, torch.Generator().manual_seed(seed)).to(ctx.device) for reader in readers
    )
    tracer = Tracer(model, readers, clean, corrupt, steps=steps, decode=params.decode)
    ids = [readers[0].identity(row)[0] for row in rows.tolist()]
    before, after = tracer.clean.tolist(), tracer.corrupt.tolist()
    for item, a, b in zip(ids, before, after, strict=True):
        ctx.write("trace-item", set=name, id=item, clean=round(a, 6), corrupt=round(b, 6), clean_above=a > b)
    for place in tracer.places:
        for layer in layers:
            _records(params, ctx, name, ids, (before, after), place, layer, tracer)


def _records(
    params: TraceParams, ctx: StageContext, name: str, ids: Sequence[str], ends: tuple[list[float], list[float]],
    place: Place, layer: int, tracer: Tracer,
) -> None:  # fmt: skip
    found = tracer.patch(layer, place).probability.tolist()
    for item, clean, corrupt, value in zip(ids, *ends, found, strict=True):
        if math.isnan(value):
            continue
        undone = effect(clean, corrupt, value, params.smallest_gap)
        ctx.write(
            "trace", set=name, id=item, layer=layer, position=place.number, position_name=place.name, role=place.role,
            clean=round(clean, 6), corrupt=round(corrupt, 6), patched=round(value, 6),
            effect=None if undone is None else round(undone, 6),
        )  # fmt: skip
