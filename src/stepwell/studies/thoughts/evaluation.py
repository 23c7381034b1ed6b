"""The stage `thoughts.evaluate`: one record an item and set."""

from __future__ import annotations

import math
from typing import Any

from stepwell.evaluate import score
from stepwell.latents.thoughts import WITH_CURRICULUM, WITH_LATENTS, Arm, Thoughts
from stepwell.stage import StageContext
from stepwell.studies.thoughts.params import EvaluateParams
from stepwell.studies.thoughts.sets import chosen_sets
from stepwell.studies.thoughts.training import final_stage, model_params, reloaded
from stepwell.tasks.prosqa.reading import Reader


def evaluate(params: EvaluateParams, ctx: StageContext) -> None:
    """Ask the trained arm every set, with the thoughts that it was trained with."""
    arm: Arm = ctx.job.axes["arm"]
    model, (trained,), (data,) = model_params(ctx), ctx.inputs["train"], ctx.inputs["data"]
    built = reloaded(model, arm, trained.folder / f"{params.weights}.safetensors", ctx)
    stage = final_stage(trained.records("trained")) if arm in WITH_CURRICULUM else 0
    names = chosen_sets(params.sets, data)
    for done, name in enumerate(names):
        _ask(params, ctx, built.thoughts, built.reader(data.folder, name), name, stage)
        ctx.progress(done + 1, len(names), set=name)
        ctx.stop_if_asked()


def _ask(params: EvaluateParams, ctx: StageContext, model: Thoughts, reader: Reader, name: str, stage: int) -> None:
    found = score(model, reader, stage=stage, seed=ctx.seed, batch_size=params.batch_size, items=params.items)
    for scored in found:
        identity, hops, answer = reader.identity(scored.row)
        ctx.write(
            "item", set=name, id=identity, condition="clean", hops=hops, latents=_latents(model, reader, stage),
            correct=scored.answer.correct, forced_correct=scored.forced_correct, margin=rounded(scored.margin),
            chain_valid=bool(scored.answer.chain_valid) if model.arm == "cot" else None,
            prediction=scored.answer.text, answer=answer,
        )  # fmt: skip


def rounded(nats: float) -> float | None:
    """A margin as it is recorded; None where it is not finite, for JSON has no such numbers."""
    return round(nats, 6) if math.isfinite(nats) else None


def _latents(model: Thoughts, reader: Any, stage: int) -> int:
    if model.arm not in WITH_LATENTS:
        return 0
    holder = reader.layout if hasattr(reader, "layout") else reader
    return stage * holder.thoughts_per_step
