"""The stage `thoughts.evaluate`: one record an item and set."""

from __future__ import annotations

import math
from typing import Any

from stepwell.evaluate import score
from stepwell.latents.thoughts import WITH_LATENTS, Thoughts
from stepwell.stage import StageContext
from stepwell.studies.thoughts.params import EvaluateParams
from stepwell.studies.thoughts.sets import trained_arm
from stepwell.tasks.prosqa.reading import Reader


def evaluate(params: EvaluateParams, ctx: StageContext) -> None:
    """Ask the trained arm every set, with the thoughts that it was trained with."""
    arm = trained_arm(params, ctx)
    for done, (name, reader) in enumerate(arm.readers()):
        _ask(params, ctx, arm.built.thoughts, reader, name, arm.stage)
        ctx.progress(done + 1, len(arm.names), set=name)
        ctx.stop_if_asked()


def _ask(params: EvaluateParams, ctx: StageContext, model: Thoughts, reader: Reader, name: str, stage: int) -> None:
    found = score(model, reader, stage=stage, seed=ctx.seed, batch_size=params.batch_size, items=params.items)
    for scored in found:
        identity, hops, answer = reader.identity(scored.row)
        ctx.write(
            "item", set=name, id=identity, condition="clean", hops=hops, latents=_latents(model, reader, stage),
            correct=scored.answer.correct, forced_correct=scored.forced_correct, margin=rounded(scored.margin),
            chain_valid=bool(scored.answer.chain_valid) if model.arm == "cot" and reader.choice else None,
            prediction=scored.answer.text, answer=answer,
        )  # fmt: skip


def rounded(nats: float | None) -> float | None:
    """A margin as it is recorded; None where there is none or it is not finite, for JSON has no such numbers."""
    return round(nats, 6) if nats is not None and math.isfinite(nats) else None


def _latents(model: Thoughts, reader: Any, stage: int) -> int:
    if model.arm not in WITH_LATENTS:
        return 0
    holder = reader.layout if hasattr(reader, "layout") else reader
    return stage * holder.thoughts_per_step
