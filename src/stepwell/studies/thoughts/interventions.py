"""The stage `thoughts.intervene`: what is left of the answers when the thoughts are tampered with.

One record an item and intervention, and for the first items the tokens that each thought is nearest to.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from stepwell.evaluate import Intervened, asked, collect, intervened
from stepwell.latents.conditions import BY_HOPS, interventions
from stepwell.latents.interventions import material
from stepwell.latents.thoughts import WITH_LATENTS, Thoughts
from stepwell.shapes import embedding_table
from stepwell.stage import StageContext
from stepwell.studies.thoughts.evaluation import rounded
from stepwell.studies.thoughts.params import InterveneParams
from stepwell.studies.thoughts.sets import trained_arm
from stepwell.tasks.prosqa.reading import Reader, SymbolReader, TextReader

NEAREST = 5


def intervene(params: InterveneParams, ctx: StageContext) -> None:
    """Ask the trained arm under every intervention. An arm without latents has no thoughts, and writes no record."""
    if ctx.job.axes["arm"] not in WITH_LATENTS:
        return
    arm = trained_arm(params, ctx)
    for done, (name, reader) in enumerate(arm.readers()):
        _set(params, ctx, arm.built.thoughts, reader, name, arm.stage, (done, len(arm.names)))


@torch.no_grad()
def _set(
    params: InterveneParams, ctx: StageContext, model: Thoughts, reader: Reader, name: str, stage: int,
    done: tuple[int, int],
) -> None:  # fmt: skip
    asking = {"stage": stage, "seed": ctx.seed, "batch_size": params.batch_size, "items": params.items}
    thoughts = collect(model, reader, **asking)
    known = [reader.identity(row) for row in range(len(thoughts))]
    given = material(thoughts, [hops for _, hops, _ in known], seed=ctx.seed)
    _browse(params, ctx, model, reader, name, thoughts, asking)
    # Without graphs there are no hops to match, or not to match, the items of a transplant by.
    families = params.families if reader.choice else tuple(f for f in params.families if f not in BY_HOPS)
    what = interventions(
        thoughts.shape[1], families=families, scales=params.scales, propagates=params.propagates,
        counts=params.thoughts,
    )  # fmt: skip
    total = len(what) * -(-len(thoughts) // params.batch_size)
    every = intervened(model, reader, what, given, decode=params.decode, **asking)
    for number, found in enumerate(every):
        for one in found:
            ctx.write("intervention", set=name, **_fields(one, known))
        ctx.progress(done[0] * total + number + 1, done[1] * total, set=name)
        ctx.stop_if_asked()


def _fields(one: Intervened, known: list[tuple[str, int, str]]) -> dict[str, Any]:
    identity, hops, _ = known[one.row]
    return {
        "id": identity, "hops": hops, "latents": one.latents, "family": one.what.family,
        "condition": one.what.condition, "k": one.what.k, "position": one.what.position, "scale": one.what.scale,
        "propagates": one.what.propagates, "donor": None if one.donor is None else known[one.donor][0],
        "correct": None if one.answer is None else one.answer.correct, "forced_correct": one.forced_correct,
        "margin": rounded(one.margin), "flipped": one.flipped, "answer_changed": one.changed, "vacuous": one.vacuous,
    }  # fmt: skip


def _browse(
    params: InterveneParams, ctx: StageContext, model: Thoughts, reader: Reader, name: str, thoughts: Tensor,
    asking: dict[str, Any],
) -> None:  # fmt: skip
    """For the first items, the tokens nearest to each thought by cosine with their embeddings."""
    wanted = min(params.browse, len(thoughts))
    if not wanted or not thoughts.shape[1]:
        return
    table = F.normalize(embedding_table(model.backbone).float(), dim=-1)
    # Whole batches, so that symbols have the names under which the thoughts were computed.
    for rows, batch in asked(model, reader, **asking):
        cosine = F.normalize(thoughts[rows].to(table), dim=-1) @ table.T
        best = cosine.topk(min(NEAREST, cosine.shape[-1]), dim=-1)
        for place, row in enumerate(rows.tolist()):
            if row >= wanted:
                return
            text = _tokens(reader, batch, place)
            for k, (tokens, values) in enumerate(
                zip(best.indices[place].tolist(), best.values[place].tolist(), strict=True)
            ):
                nearest = [[text(token), round(value, 4)] for token, value in zip(tokens, values, strict=True)]
                ctx.write("thought", set=name, id=reader.identity(row)[0], position=k + 1, nearest=nearest)


def _tokens(reader: Reader, batch: Any, place: int) -> Any:
    """A function from a token to its text; a symbol that names a node of this item is called `node` and its index."""
    if isinstance(reader, TextReader):
        return lambda token: reader.tokenizer.decode([token])
    assert isinstance(reader, SymbolReader)
    item = int(batch.items[place])
    # What follows the last node is padding, whose names may be anybody's.
    nodes = 1 + max(int(reader.graphs["edges"][item].max()), int(reader.graphs["root"][item]))
    names = {int(symbol): f"node {node}" for node, symbol in enumerate(batch.names[place, :nodes].tolist())}
    return lambda token: names.get(token, reader.layout.name(token))
