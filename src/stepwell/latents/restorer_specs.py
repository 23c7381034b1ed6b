"""Which compressor and restorer a token's embedding goes through, and how the restorer is trained, as data."""

from __future__ import annotations

import math
from typing import Literal, Self

from pydantic import Field, model_validator

from stepwell.losses.specs import LossWeights
from stepwell.spec import Spec

Subspace = Literal["pca", "random", "truncation"]
"""How a compressor's directions are chosen; the last two are controls."""


class RestorerParams(Spec):
    """Which adapter stands behind the compressor.

    Attributes:
        adapter: `pca`: the compressor's own inverse, nothing to train; `linear`: one matrix and a bias; `mlp`: two
            hidden layers with GELU; `residual`: the compressor's inverse plus an MLP whose last layer starts at zero,
            so that training starts exactly at the inverse (for `pca`, the best that is linear).
        hidden: width of the hidden layers; None = D. Only `mlp` and `residual` have them.
        rms: what each restored vector is scaled to: `free`: nothing; `corpus`: the RMS of the corpus, a constant;
            `token`: the RMS that the token's own embedding had, which then travels with z as one number more.
        seed: of the initial weights.
    """

    adapter: Literal["pca", "linear", "mlp", "residual"] = "residual"
    hidden: int | None = Field(default=None, ge=1)
    rms: Literal["free", "corpus", "token"] = "free"
    seed: int = 0


class RestoringRecipe(Spec):
    """One phase of training a restorer.

    Attributes:
        objective: of phase 1 `mse`, in units of the corpus's mean square, or `cosine`: `losses.cosine_rms`, 1 - cosine
            + .1 x the MSE in units of the token's own; of phase 2 `reading`: alpha x `mse` + beta x next-token loss
            (nats a token), alpha and beta = 1 / running mean of each term (`losses.Weighing`).
        steps: optimizer steps.
        batch_size: a micro-batch: token vectors in phase 1, prompts in phase 2.
        accumulation: micro-batches a step; their mean is over all tokens of the step.
        lr, weight_decay: of AdamW.
        warmup_steps, schedule, floor: linear warm-up, then `constant`, or `cosine` down to `floor` of `lr`.
        clip: largest gradient norm; None = not clipped.
        memory: of the running means: the share of the old mean that a step keeps.
        most_skipped: share of the steps so far that may be skipped since their loss or gradient was not finite; more
            of them, and at least 3, end the training.
    """

    objective: Literal["mse", "cosine", "reading"] = "mse"
    steps: int = Field(ge=1)
    batch_size: int = Field(default=32, ge=1)
    accumulation: int = Field(default=1, ge=1)
    lr: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    warmup_steps: int = Field(default=0, ge=0)
    schedule: Literal["constant", "cosine"] = "constant"
    floor: float = Field(default=0.0, ge=0, le=1)
    clip: float | None = Field(default=1.0, gt=0)
    memory: float = Field(default=0.98, ge=0, lt=1)
    most_skipped: float = Field(default=0.05, ge=0, le=1)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.floor and self.schedule != "cosine":
            raise ValueError("`floor` goes with `schedule: cosine`")
        return self

    @property
    def weights(self) -> LossWeights:
        """The objective's terms."""
        if self.objective == "reading":
            return LossWeights(terms={"mse": 1.0, "next_token": 1.0}, balance="running mean", memory=self.memory)
        return LossWeights(terms={self.objective: 1.0})

    def lr_factor(self, step: int) -> float:
        """Share of `lr` at optimizer step `step` (from 0)."""
        warm = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        if self.schedule == "constant":
            return warm
        return warm * (self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * step / self.steps)))
