"""How a model is trained, as data: optimizer, schedule, curriculum, monitors. Constructing one loads nothing."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from stepwell.spec import Spec

Action = Literal["stop", "alert", "off"]
FEWEST_SKIPPED = 3
"""A training is not given up for fewer steps that were skipped, whatever their share."""


class Recipe(Spec):
    """Optimisation. The defaults are those of COCONUT's original run (arXiv 2412.06769) where it has them.

    Attributes:
        steps: optimizer steps; give either these or `epochs`.
        epochs: passes over the training set.
        batch_size: items a micro-batch; the effective batch is `batch_size x accumulation`.
        optimizer: `adamw`, or `muon` (Jordan et al. 2024; torch.optim.Muon, Nesterov momentum .95, updates scaled to
            AdamW's size as in arXiv 2502.16982) for the matrices of the layers, with AdamW for embeddings and vectors.
        muon_lr: learning rate of those matrices; it follows the same schedule as `lr`.
        schedule: after `warmup_steps` of linear warm-up, `constant`, or `decay`: constant, then linearly to 0 over the
            last `decay_share` of the steps.
        clip: largest gradient norm; None = not clipped.
        reset_optimizer: when AdamW's moments are forgotten (the original rebuilds it every epoch).
        precision: of the forward pass; weights and moments stay fp32.
        log_every, validate_every, checkpoint_every: in optimizer steps; 0 for `validate_every` = at each epoch's end.
    """

    steps: int | None = Field(default=None, ge=1)
    epochs: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=32, ge=1)
    accumulation: int = Field(default=1, ge=1)
    optimizer: Literal["adamw", "muon"] = "adamw"
    lr: float = Field(default=1e-4, gt=0)
    muon_lr: float | None = Field(default=None, gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(default=0.01, ge=0)
    warmup_steps: int = Field(default=0, ge=0)
    schedule: Literal["constant", "decay"] = "constant"
    decay_share: float = Field(default=0.3, gt=0, le=1)
    clip: float | None = Field(default=None, gt=0)
    reset_optimizer: Literal["epoch", "stage", "never"] = "never"
    precision: Literal["fp32", "bf16"] = "fp32"
    log_every: int = Field(default=10, ge=1)
    validate_every: int = Field(default=0, ge=0)
    checkpoint_every: int = Field(default=200, ge=1)

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either `steps` or `epochs`, not both and not neither")
        if (self.optimizer == "muon") == (self.muon_lr is None):
            raise ValueError("`muon_lr` goes with `optimizer: muon`, and is needed there")
        return self

    def total_steps(self, steps_per_epoch: int) -> int:
        """Optimizer steps of the whole training."""
        return self.steps if self.steps is not None else (self.epochs or 0) * steps_per_epoch

    def lr_factor(self, step: int, total_steps: int) -> float:
        """Share of `lr` at optimizer step `step` (from 0)."""
        warm = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        if self.schedule == "constant":
            return warm
        return warm * min(1.0, (total_steps - step) / (self.decay_share * total_steps))


class StageMix(Spec):
    """Batches of other curriculum stages mixed in (`uniform_prob` in the original, where it is over all stages).

    Attributes:
        share: of the draws that are made from the mixture; 0 = none.
        over: `earlier` stages only, or `all`, the present one among them, as in the original.
        weights: `uniform`, or `linear`: in proportion to i + 1 for stage i.
    """

    share: float = Field(default=0.0, ge=0, le=1)
    over: Literal["earlier", "all"] = "earlier"
    weights: Literal["uniform", "linear"] = "uniform"


class Curriculum(Spec):
    """Stage k removes the first k steps and puts k x thoughts_per_step latents in.

    Attributes:
        stages: the last stage (max_latent_stage).
        thoughts_per_step: latents for a removed step (c_thought).
        pad_to_max: give every item the stage's number of latents, also where it has fewer steps.
        advance: by `epochs` (stage = epoch // epochs_per_stage, at most `stages`), or by `accuracy`: when the steering
            split reaches `bar`, not before `min_steps` and at the latest after `max_steps` in the stage.
        max_steps: a number for all stages.
    """

    stages: int = Field(default=6, ge=0)
    thoughts_per_step: int = Field(default=1, ge=1)
    pad_to_max: bool = True
    advance: Literal["epochs", "accuracy"] = "epochs"
    epochs_per_stage: int = Field(default=5, ge=1)
    bar: float = Field(default=0.85, gt=0, le=1)
    min_steps: int = Field(default=100, ge=1)
    max_steps: int | None = Field(default=None, ge=1)
    mix: StageMix = StageMix()


class Monitors(Spec):
    """What is watched while a model trains, and what happens then.

    Attributes:
        nan: the loss or the gradient is not finite.
        flat: the loss has not fallen by `flat_share` of itself over `flat_steps` steps at the start.
        divergence: the smoothed loss is `divergence_factor` times its best.
        breakthrough: accuracy on the steering split is first above `chance`, by the interval's lower bound.
        collapse: accuracy is below its best in the stage by more than both intervals.
    """

    nan: Action = "stop"
    flat: Action = "alert"
    flat_steps: int = Field(default=500, ge=2)
    flat_share: float = Field(default=0.02, gt=0, lt=1)
    divergence: Action = "stop"
    divergence_factor: float = Field(default=3.0, gt=1)
    breakthrough: Action = "alert"
    chance: float = Field(default=0.5, ge=0, lt=1)
    collapse: Action = "alert"


def too_many_skipped(skipped: int, steps: int, most: float) -> bool:
    """Whether a training is to be given up: of its `steps`, `skipped` were not finite, and a share `most` may be."""
    return skipped >= FEWEST_SKIPPED and skipped > most * steps
