"""The stage `thoughts.train`: one arm, one seed, from fresh weights to a checkpoint that was read back and rescored."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stepwell.errors import StageFailed, StepwellError
from stepwell.evaluate import accuracy, score
from stepwell.latents.thoughts import IGNORE, WITH_CURRICULUM, Arm, Batch, Thoughts
from stepwell.objectives import cross_entropy, supervised
from stepwell.recipe import Curriculum
from stepwell.sharding import shard, whole
from stepwell.stage import StageContext
from stepwell.studies.thoughts.build import Built, build
from stepwell.studies.thoughts.params import ModelParams, TextModel, TrainParams
from stepwell.studies.thoughts.streams import ThoughtStream
from stepwell.tasks.prosqa.reading import Reader, TextReader
from stepwell.track import tracked
from stepwell.train import Progress, Stuck, Training, load_weights, save_weights

STEER_BATCH = 512


@dataclass(kw_only=True)
class ThoughtModel:
    """Thoughts as the training loop sees them.

    Args:
        built: the model.
        steer: the split that moves the curriculum.
        seed: of the names in the steering split, the same at every look.
    """

    built: Built
    steer: Reader
    seed: int

    @property
    def module(self) -> Thoughts:
        """What is trained."""
        return self.built.thoughts

    @property
    def alike(self) -> bool:
        """Whether all micro-batches take equally many passes: stages are drawn, and a thought may be a pass."""
        return self.module.arm != "continuous"

    def objective(self, batch: Batch) -> tuple[Tensor, int]:
        """Sum of the nats of the supervised tokens, and their number; logits nowhere else."""
        batch = batch.to(next(self.module.parameters()).device)
        hidden = self.module(batch.inputs())
        mask, targets = supervised(batch.labels, batch.first)
        return cross_entropy(self.module.backbone.logits(hidden[mask[:, :-1]]), targets)

    def supervised(self, batch: Batch) -> int:
        """Number of supervised tokens."""
        return int((batch.labels != IGNORE).sum())

    def validate(self, stage: int) -> tuple[int, int]:
        """Right answers by free decoding on the steering split, and its size."""
        found = score(self.module, self.steer, stage=stage, seed=self.seed, batch_size=STEER_BATCH, forced=False)
        return accuracy(list(found))

    def parts(self, batch: Batch, count: int) -> list[Batch]:
        """The batch by its rows."""
        return batch.parts(count)

    def stepped(self, loss: float) -> None:
        """Nothing is kept of a step."""


def model_params(ctx: StageContext) -> ModelParams:
    """The parameters of the model stage that this job stands on."""
    return ModelParams.model_validate(ctx.inputs["model"][0].job.params)


def curriculum_of(params: ModelParams, arm: Arm) -> Curriculum | None:
    """The curriculum, for arms that have one."""
    return params.curriculum if arm in WITH_CURRICULUM else None


def train(params: TrainParams, ctx: StageContext) -> None:
    """Train one arm with one seed; again with other weights where `restart` says so."""
    arm: Arm = ctx.job.axes["arm"]
    model, data = model_params(ctx), ctx.inputs["data"][0].folder
    if params.given is not None:
        _take(params.given, model, arm, data, ctx)
        return
    state = ctx.restored()
    attempt = state["attempt"] if state else 0
    while True:
        seed = ctx.seed + 7_777_777 * attempt
        built = _placed(_loaded(model, arm, seed, ctx), ctx)
        readers = {name: built.reader(data, name) for name in ("train", "steer")}
        if not attempt and state is None:
            _fits(model, built, readers["train"], ctx)
        stream = ThoughtStream(
            readers["train"], arm, batch_size=params.batch_size, accumulation=params.accumulation, seed=seed
        )
        thoughts = ThoughtModel(built=built, steer=readers["steer"], seed=ctx.seed)
        watched = params.restart is not None and arm != "direct" and attempt < params.restart.most
        training = Training(
            model=thoughts, stream=stream, recipe=params, curriculum=curriculum_of(model, arm),
            monitors=params.monitors, ctx=tracked(ctx, params.trackers), seed=seed, attempt=attempt,
            restart=(params.restart.bar, params.restart.after_steps) if watched and params.restart else None,
            on_best=lambda module=built.thoughts: save_weights(module, ctx.folder / "best.safetensors"),
        )  # fmt: skip
        try:
            progress = training.run(state)
        except Stuck as stuck:
            attempt, state = attempt + 1, None
            ctx.write("restart", attempt=attempt, step=stuck.step, reason=stuck.reason)
            continue
        break
    _finish(model, arm, thoughts, progress, ctx)
    # Of this process: a training that was resumed has its earlier part in the events before.
    ctx.event("cost", cpu_seconds=round(time.process_time(), 2), steps=progress.step)


def _fits(model: ModelParams, built: Built, reader: Reader, ctx: StageContext) -> None:
    """Whether the model has positions for every training item, and the curriculum a stage for every step."""
    if not isinstance(reader, TextReader):
        return
    arm, known = built.thoughts.arm, built.thoughts.backbone.max_positions
    curriculum = curriculum_of(model, arm)
    stages = curriculum.stages if curriculum else 0
    row, tokens = reader.longest_row(arm, stages)
    if known is not None and tokens > known:
        raise StepwellError(
            f"training item {reader.identity(row)[0]} takes {tokens} tokens, and the model knows {known} positions",
            "Take longer items out of the file, or name a model with more positions.",
            stage=ctx.job.id,
        )
    if curriculum is not None:
        more = sum(len(steps) > stages for steps in reader.steps)
        detail = f"{more} of {len(reader)} training items have more than the {stages} steps that the stages remove"
        ctx.write("check", name="steps-removed", passed=not more, detail=f"{detail}; the rest stays written")


def _take(stage: int, model: ModelParams, arm: Arm, data: Path, ctx: StageContext) -> None:
    """Take a checkpoint as a training that is over."""
    if not isinstance(model.model, TextModel) or model.model.checkpoint is None:
        raise StepwellError(
            "`given` takes a checkpoint as it is, and the model has none",
            "Name it in model.model.checkpoint, or leave `given` out to train.",
            stage=ctx.job.id,
        )
    if stage > model.curriculum.stages:
        raise StepwellError(
            f"`given` is curriculum stage {stage}, and the curriculum has {model.curriculum.stages}",
            "Give the stage that the checkpoint was trained to, or the curriculum that it was trained with.",
            stage=ctx.job.id,
        )
    built = _placed(_loaded(model, arm, ctx.seed, ctx), ctx)
    taken = ThoughtModel(built=built, steer=built.reader(data, "steer"), seed=ctx.seed)
    _finish(model, arm, taken, Progress(stage=stage), ctx)


def _finish(model: ModelParams, arm: Arm, trained: ThoughtModel, progress: Progress, ctx: StageContext) -> None:
    """Save the last weights, read last and best back into fresh models, rescore both."""
    module = trained.module
    module.eval()
    right, n = trained.validate(progress.stage)
    save_weights(module, ctx.folder / "last.safetensors")
    _rescore(model, arm, trained, progress.stage, ctx, "last", right)
    if progress.best is None:  # the last stage was never reached
        save_weights(module, ctx.folder / "best.safetensors")
    _rescore(model, arm, trained, progress.stage, ctx, "best", right if progress.best is None else progress.best * n)
    ctx.write("trained", curriculum_stage=progress.stage)
    finite = all(bool(torch.isfinite(whole(p)).all()) for p in module.parameters())
    ctx.write(
        "check", name="weights-finite", passed=finite, detail="all weights are finite" if finite else "NaN or inf"
    )
    if arm == "shared" and progress.step:
        moved = float((module.vector.detach() - trained.built.start).norm())
        ctx.write("check", name="vector-moved", passed=moved > 0.01, detail=f"L2 {moved:.4f}, at least .01 expected")


def _rescore(
    model: ModelParams, arm: Arm, trained: ThoughtModel, stage: int, ctx: StageContext, name: str, before: float
) -> None:
    """A checkpoint that does not score as the model did is an error; `before` is the number right then."""
    fresh = reloaded(model, arm, ctx.folder / f"{name}.safetensors", ctx)
    after, n = ThoughtModel(built=fresh, steer=trained.steer, seed=trained.seed).validate(stage)
    same = after == round(before)
    detail = f"{name}: {before:.0f} of {n} right before saving, {after} after reading back"
    ctx.write("check", name="reloaded-rescored", passed=same, detail=detail)
    if not same:
        raise StageFailed(
            f"the saved weights do not score as the model did: {detail}",
            "Report this: a checkpoint must be what was trained.",
            stage=ctx.job.id,
        )


def reloaded(model: ModelParams, arm: Arm, path: Path, ctx: StageContext) -> Built:
    """The model of a weights file, in evaluation mode; in parts where the processes of the job hold it so."""
    built = _loaded(model, arm, 0, ctx)
    load_weights(built.thoughts, path)
    built.thoughts.eval()
    return _placed(built, ctx)


def _loaded(model: ModelParams, arm: Arm, seed: int, ctx: StageContext) -> Built:
    """A model on its device; on the CPU, where no device holds it whole."""
    return build(model, arm, seed=seed, device="cpu" if ctx.shard else ctx.device)


def _placed(built: Built, ctx: StageContext) -> Built:
    """A model that was built on the CPU, in parts on the devices of the job's processes; another one as it is."""
    if ctx.shard:
        ctx.event("sharded", **shard(built.thoughts.backbone, ctx.ranks, ctx.device))
        built.thoughts.to(ctx.device).in_parts = True
        return replace(built, start=built.start.to(ctx.device))
    return built


def final_stage(records: Iterable[Mapping[str, Any]]) -> int:
    """The curriculum stage a training ended in, from its records."""
    return next(record["curriculum_stage"] for record in records if record["kind"] == "trained")
