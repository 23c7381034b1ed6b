"""The stage `thoughts.evaluate`: one record an item, set and condition."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from stepwell.errors import StepwellError
from stepwell.evaluate import collect, score
from stepwell.latents.thoughts import WITH_CURRICULUM, WITH_LATENTS, Arm, Thoughts
from stepwell.stage import StageContext
from stepwell.studies.thoughts.params import EvaluateParams
from stepwell.studies.thoughts.training import final_stage, model_params, reloaded
from stepwell.tasks.prosqa.reading import Reader


def evaluate(params: EvaluateParams, ctx: StageContext) -> None:
    """Ask the trained arm every set, clean and under each condition that means something for the arm."""
    arm: Arm = ctx.job.axes["arm"]
    model, (trained,), (data,) = model_params(ctx), ctx.inputs["train"], ctx.inputs["data"]
    built = reloaded(model, arm, trained.folder / f"{params.weights}.safetensors", ctx)
    stage = final_stage(trained.records("trained")) if arm in WITH_CURRICULUM else 0
    made = [record["set"] for record in data.records("dataset")]
    names = params.sets or [name for name in made if name not in ("train", "steer")]
    if unknown := [name for name in names if name not in made]:
        raise StepwellError(
            f"there is no set `{unknown[0]}`; sets: {', '.join(made)}",
            "name some of them in `sets`, or leave it empty for all but training and steering",
        )
    for done, name in enumerate(names):
        reader = built.reader(data.folder, name)
        intervened = not params.intervene or name in params.intervene
        conditions = params.conditions if intervened else ("clean",)
        _conditions(params, ctx, built.thoughts, reader, name, stage, conditions)
        if arm in WITH_LATENTS and intervened:
            for allowed in params.thoughts_allowed:
                if allowed != stage:
                    _ask(params, ctx, built.thoughts, reader, name, allowed, f"thoughts-{allowed}", {})
        ctx.progress(done + 1, len(names), set=name)


def _conditions(
    params: EvaluateParams,
    ctx: StageContext,
    model: Thoughts,
    reader: Reader,
    name: str,
    stage: int,
    conditions: tuple[str, ...],
) -> None:
    edited = [condition for condition in conditions if condition != "clean"]
    thoughts = None
    if edited and model.arm in WITH_LATENTS and stage:
        thoughts = collect(model, reader, stage=stage, seed=ctx.seed, batch_size=params.batch_size, items=params.items)
    for condition in conditions:
        if condition == "clean":
            _ask(params, ctx, model, reader, name, stage, condition, {})
        elif thoughts is not None:
            edit = EDITS[condition](thoughts)
            _ask(params, ctx, model, reader, name, stage, condition, {"edit": edit, "thoughts": thoughts})


def _ask(
    params: EvaluateParams, ctx: StageContext, model: Thoughts, reader: Reader, name: str, stage: int, condition: str,
    changed: dict[str, Any],
) -> None:  # fmt: skip
    found = score(
        model, reader, stage=stage, seed=ctx.seed, batch_size=params.batch_size, items=params.items,
        **changed,
    )  # fmt: skip
    for scored in found:
        identity, hops, answer = reader.identity(scored.row)
        ctx.write(
            "item", set=name, id=identity, condition=condition, hops=hops, latents=_latents(model, reader, stage),
            correct=scored.answer.correct, forced_correct=scored.forced_correct,
            margin=round(scored.margin, 6) if math.isfinite(scored.margin) else None,
            chain_valid=bool(scored.answer.chain_valid) if model.arm == "cot" else None,
            prediction=scored.answer.text, answer=answer,
        )  # fmt: skip
    ctx.stop_if_asked()


def _latents(model: Thoughts, reader: Any, stage: int) -> int:
    if model.arm not in WITH_LATENTS:
        return 0
    holder = reader.layout if hasattr(reader, "layout") else reader
    return stage * holder.thoughts_per_step


def _zeroed(thoughts: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda mine, rows: torch.zeros_like(mine)


def _averaged(thoughts: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    mean = thoughts.mean(0)
    return lambda mine, rows: mean.to(mine).expand_as(mine)


def _shuffled(thoughts: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """Every item gets another's chain whole: a cyclic shift of a random order, in which no item keeps its own."""
    order = torch.randperm(len(thoughts), generator=torch.Generator().manual_seed(0))
    giver = torch.empty_like(order)
    giver[order] = order.roll(1)
    return lambda mine, rows: thoughts[giver[rows]].to(mine)


def _last_zeroed(thoughts: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    last = torch.arange(thoughts.shape[1]) == thoughts.shape[1] - 1
    return lambda mine, rows: mine.masked_fill(last[None, :, None].to(mine.device), 0.0)


EDITS: dict[str, Callable[[Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "zeroed": _zeroed,
    "averaged": _averaged,
    "shuffled": _shuffled,
    "last-zeroed": _last_zeroed,
}
"""What may stand in for the thoughts, given those of all items (n, K, D)."""
