"""How vectors are fitted, as data. Constructing a recipe loads nothing."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from stepwell.spec import Spec

CPU_COLUMNS, GPU_COLUMNS = 1024, 16_384
"""Columns of one pass that fill the device, where no number is asked for."""
CHUNK_LOGITS = 1 << 24
"""Logits at a time at the targets: 64 MiB in float32."""


class FitRecipe(Spec):
    """Options of `fit`; every one holds for each restart of each problem by itself, whatever else shares its batch.

    Attributes:
        steps: updates at most; with `progressive`, of each stage.
        restarts: beginnings from other random vectors.
        until_exact: begin restart r + 1 of a problem only after restart r ended without being exact.
        stop_when_exact: retire a restart at the first step at which all its modes are held (see `margin`); else it
            takes all its steps.
        optimizer: `adam`, or `adamw` with `weight_decay`.
        lr, betas, weight_decay: of the optimizer (eps 1e-8).
        schedule: after `warmup_steps` of linear warm-up `constant`, or `cosine` over `steps` down to `floor` of it.
        cycles: the cosine begins anew this many times (warm restarts: Loshchilov & Hutter 2017, arXiv 1608.03983).
        clip: largest gradient norm of one c; None = not clipped.
        init: `normal` (zero mean, `init_scale`), or `table`: mean and deviation of the embedding table in each of
            its dimensions.
        temperature: the logits are divided by it in the loss; below 1 the loss asks for less of a lead. What is
            recorded is in nats at temperature 1.
        margin: logits by which a token must lead all others to count as held. Above 0, for decoding over a cache
            rounds otherwise than the pass that is read here.
        margin_weight: of the hinge max(0, margin - lead) of each token in the loss.
        noise: deviation of normal noise on c in the forward pass. Every `noise_rest`-th step of a restart goes without,
            and only such a step can show that it is held.
        pull: weight of the mean squared distance between c's vectors and the nearest token embeddings, in units of the
            table's variance.
        rank: c = mean + z B with z (K, rank), B the leading principal directions of the embedding table, which all
            problems share; None = c itself.
        surgery: where the gradients of two modes point apart, each loses its part along the other (PCGrad: Yu et al.
            2020, arXiv 2001.06782; here in a fixed cyclic order).
        progressive: show so many tokens of each target, and so many more whenever all shown ones are held; None = all
            at once. The schedule begins anew with each stage; the moments go on.
        curve_every: steps between the points of a loss curve.
    """

    steps: int = Field(default=500, ge=1)
    restarts: int = Field(default=5, ge=1)
    until_exact: bool = False
    stop_when_exact: bool = True
    optimizer: Literal["adam", "adamw"] = "adam"
    lr: float = Field(default=1e-3, gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(default=0.0, ge=0)
    schedule: Literal["constant", "cosine"] = "cosine"
    warmup_steps: int = Field(default=0, ge=0)
    cycles: int = Field(default=1, ge=1)
    floor: float = Field(default=0.0, ge=0, le=1)
    clip: float | None = Field(default=1.0, gt=0)
    init: Literal["normal", "table"] = "normal"
    init_scale: float = Field(default=0.02, gt=0)
    temperature: float = Field(default=1.0, gt=0)
    margin: float = Field(default=0.01, ge=0)
    margin_weight: float = Field(default=0.0, ge=0)
    noise: float = Field(default=0.0, ge=0)
    noise_rest: int = Field(default=5, ge=2)
    pull: float = Field(default=0.0, ge=0)
    rank: int | None = Field(default=None, ge=1)
    surgery: bool = False
    progressive: int | None = Field(default=None, ge=1)
    curve_every: int = Field(default=10, ge=1)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError("`betas` lie from 0 to below 1")
        if self.weight_decay and self.optimizer != "adamw":
            raise ValueError("`weight_decay` goes with `optimizer: adamw`")
        if self.cycles > 1 and self.schedule != "cosine":
            raise ValueError("`cycles` goes with `schedule: cosine`")
        if self.progressive is not None and not self.stop_when_exact:
            raise ValueError("`progressive` needs `stop_when_exact`: a stage ends when it is held")
        return self
