"""The stage `imprint.measure`: bits and bytes, noise and quantisation, where the vectors lie; and the fewest slots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from stepwell.analysis import imprint as analysis
from stepwell.errors import StepwellError
from stepwell.fitting.loop import fit
from stepwell.fitting.measuring import measure
from stepwell.fitting.result import FINAL, Fitted
from stepwell.latents.prompt import Problem, fault_of, problem_of
from stepwell.shapes import embedding_table
from stepwell.stage import StageContext
from stepwell.studies.imprint.fits import best_vectors, fit_input, fitted
from stepwell.studies.imprint.models import loaded
from stepwell.studies.imprint.pairs import context_of, examples
from stepwell.studies.imprint.params import MeasureParams, SmallestParams
from stepwell.tasks.base import QA


class Reading:
    """A problem's mean nats a token from given c, which also notes whether each c held it exactly."""

    def __init__(self, backbone: Any, problem: Problem, modes: Mapping[str, Tensor]) -> None:
        self.backbone, self.problem, self.modes = backbone, problem, dict(modes)
        self.exact: list[bool] = []
        self.tokens = {target.mode: len(target.ids) for target in problem.targets}

    def __call__(self, sets: Tensor) -> Tensor:
        """(N, K, D) -> (N,)."""
        found = measure(self.backbone, [self.problem] * len(sets), list(sets), modes=self.modes)
        self.exact += [all(one.exact.values()) for one in found]
        total = sum(self.tokens.values())
        nats = [sum(one.nats[mode] * n for mode, n in self.tokens.items()) / total for one in found]
        return torch.tensor(nats, dtype=torch.float64)

    def taken(self) -> list[bool]:
        """The notes since the last call of this."""
        found, self.exact = self.exact, []
        return found


def measures(params: MeasureParams, ctx: StageContext) -> None:
    """Write what the best c of each pair holds, and how robust it is."""
    backbone, modes = loaded(ctx)
    found, every = fitted(ctx, backbone), examples(ctx)
    known = {record.id for record in found.records}
    items = [item for item in every if item.id in known]
    vectors = best_vectors(found, items)
    _gains(ctx, backbone, items, found, vectors)
    some = [item for item in items if item.id in vectors][: params.items or None]
    table, shown = embedding_table(backbone).float().cpu(), context_of(ctx)
    for done, item in enumerate(some, 1):
        problem = problem_of(backbone, item.id, item.targets(), context=shown(item))
        reading = Reading(backbone, problem, modes)
        _robust(params, ctx, item.id, reading, vectors[item.id])
        _place(ctx, backbone, item.id, vectors[item.id], table)
        _line(params, ctx, item.id, reading, found)
        ctx.progress(done, len(some))
        ctx.stop_if_asked()
    _similarity(ctx, {item.id: vectors[item.id] for item in some})


def _gains(ctx: StageContext, backbone: Any, items: Sequence[QA], found: Fitted, vectors: Mapping[str, Tensor]) -> None:
    """Bits and bytes of all pairs, from records and texts alone; both sides of each are about the pair's own texts."""
    (measured,) = ctx.inputs["baselines"]
    base = {(row["id"], row["mode"]): row for row in measured.records("baseline")}
    targets = {(row["id"], row["mode"]): row for row in fit_input(ctx).records("target")}
    for item in items:
        for mode in item.targets():
            nats = targets[item.id, mode]["own_nats"]
            nothing, tokens = (base[item.id, mode][name] for name in ("nothing", "tokens"))
            if nothing is None or nats is None or tokens is None:
                why = "the pair has no fitted vectors" if nats is None else "what it costs without vectors is not known"
                ctx.write("gain", id=item.id, mode=mode, bits=None, bits_per_slot=None, bits_per_token=None,
                          tokens=tokens, why=why)  # fmt: skip
                continue
            gain = analysis.information_gain(nothing * tokens, nats * tokens, slots=found.slots, tokens=tokens)
            ctx.write("gain", id=item.id, mode=mode, bits=gain.bits, bits_per_slot=gain.bits_per_slot,
                      bits_per_token=gain.bits_per_token, tokens=tokens, why=gain.why)  # fmt: skip
        if item.id in vectors:
            texts = list(item.targets().values())
            count = sum(len(backbone.tokenizer.encode(text, add_special_tokens=False)) for text in texts)
            held = analysis.storage("".join(texts), tokens=count, vocabulary=backbone.vocabulary, slots=found.slots,
                                    width=backbone.width)  # fmt: skip
            ctx.write("storage", id=item.id, text_bytes=held.text, ids_bytes=held.ids, packed_bytes=held.packed_ids,
                      **{f"{kind}_bytes": size for kind, size in held.vectors.items()})  # fmt: skip


def _robust(params: MeasureParams, ctx: StageContext, id: str, reading: Reading, c: Tensor) -> None:
    noisy = analysis.noise_robustness(reading, c, scales=params.scales, draws=params.draws, seed=ctx.seed)
    exact = reading.taken()[1:]  # the first is without noise
    for place, one in enumerate(noisy):
        drawn = exact[place * params.draws : (place + 1) * params.draws]
        ctx.write("noise", id=id, scale=one.scale, nats=one.value.value, change=one.change, exact=mean(drawn))
    coarse = analysis.quantisation(reading, c, params.bits)
    for one, held in zip(coarse, reading.taken()[1:], strict=True):
        ctx.write("quantised", id=id, bits=one.bits, nats=one.value, change=one.change, exact=held, bytes=one.bytes)


def _place(ctx: StageContext, backbone: Any, id: str, c: Tensor, table: Tensor) -> None:
    found = analysis.token_distance(c.cpu(), table)
    for slot, token in enumerate(found.nearest):
        ctx.write(
            "geometry", id=id, slot=slot, nearest=backbone.tokenizer.decode([token]), distance=found.distance[slot],
            cosine=found.cosine[slot], norm=found.norm[slot],
        )  # fmt: skip


def _line(params: MeasureParams, ctx: StageContext, id: str, reading: Reading, found: Fitted) -> None:
    """From the best restart to the best of the others, where there is one."""
    best = found.best(id)
    others = [r for r in found.of(id) if r.end in FINAL and r.nats is not None and r.restart != best.restart]
    if not others:
        # With `until_exact` the first restart that is exact is the last.
        ctx.write(
            "line", id=id, first=best.restart, second=None, fractions=None, nats=None, barrier=None,
            why="no other restart came to an end",
        )  # fmt: skip
        return
    other = min(others, key=lambda record: sum((record.nats or {}).values()))
    ends = (found.vectors[id][best.restart], found.vectors[id][other.restart])
    line = analysis.interpolation(reading, *ends, points=params.points)
    reading.taken()
    ctx.write(
        "line", id=id, first=best.restart, second=other.restart, fractions=list(line.fractions),
        nats=list(line.values), barrier=line.barrier, why="",
    )  # fmt: skip


def _similarity(ctx: StageContext, vectors: Mapping[str, Tensor]) -> None:
    if len(vectors) < 2:
        return
    found = analysis.similarity(vectors)
    for i, first in enumerate(found.ids):
        for j, second in enumerate(found.ids[i + 1 :], i + 1):
            ctx.write("similarity", id=first, other=second, cosine=float(found.cosines[i, j]))


def smallest(params: SmallestParams, ctx: StageContext) -> None:
    """Search the fewest slots for each of the first pairs; a kill costs the search of one pair."""
    before = (ctx.restored() or {"done": 0})["done"]
    backbone, modes = loaded(ctx)
    items, shown = examples(ctx, params.items), context_of(ctx)
    for done, item in enumerate(items[before:], before + 1):
        problem, fault = _possible(backbone, item, modes, shown(item))
        if problem is None:
            ctx.write("smallest", id=item.id, slots=None, tried=[], why=fault)
            continue

        def holds(slots: int, problem: Problem = problem) -> bool:
            found = fit(
                backbone, [problem], slots=slots, recipe=params.recipe, modes=modes, seed=ctx.seed, impossible="record",
                check=False, stop=ctx.stop_asked,
            )  # fmt: skip
            ctx.stop_if_asked()
            return any(record.all_exact for record in found.records)

        found = analysis.smallest_slots(holds, highest=params.highest)
        ctx.write("smallest", id=item.id, slots=found.slots, tried=[[k, v] for k, v in found.tried.items()],
                  why=found.why)  # fmt: skip
        ctx.save({"done": done})
        ctx.progress(done, len(items))


def _possible(
    backbone: Any, item: QA, modes: Mapping[str, Tensor], context: str
) -> tuple[Problem, None] | tuple[None, str]:
    """A pair as a problem, or what makes it impossible even with one slot."""
    try:
        problem = problem_of(backbone, item.id, item.targets(), context=context)
    except StepwellError as error:
        return None, error.cause
    fault = fault_of(backbone, problem, modes, slots=1)
    return (problem, None) if fault is None else (None, fault)
