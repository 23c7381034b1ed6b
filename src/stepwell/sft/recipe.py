"""How an adapter is trained, as data: the recipe of the study `tune`. Constructing it loads nothing."""

from __future__ import annotations

import math
from typing import Self

from pydantic import Field, model_validator

from stepwell.adapt.params import LoraParams
from stepwell.recipe import Recipe

__all__ = ["LORA", "SftRecipe"]

LORA = LoraParams(rank=64, alpha=16, dropout=0.05, layers="all", targets="all")
"""All seven kinds of linear maps of a Llama."""


class SftRecipe(Recipe):
    """Optimisation of an adapter; give `epochs` or `steps`, as for `Recipe`. The defaults are those of the original.

    Attributes:
        batch_size: rows a micro-batch, of `max_tokens` each where examples are packed.
        cosine: after the warm-up, half a cosine down to 0 (Loshchilov and Hutter 2017, arXiv 1608.03983, eq. 5, one
            cycle), in the place of `schedule`.
        max_tokens: of a row, and so of an example.
        pack: several examples in a row, none of which sees another.
    """

    batch_size: int = Field(default=8, ge=1)
    accumulation: int = Field(default=4, ge=1)
    lr: float = Field(default=2e-4, gt=0)
    warmup_steps: int = Field(default=100, ge=0)
    clip: float | None = Field(default=1.0, gt=0)
    cosine: bool = True
    max_tokens: int = Field(default=2048, ge=2)
    pack: bool = True

    @model_validator(mode="after")
    def _one_schedule(self) -> Self:
        if self.cosine and self.schedule != "constant":
            raise ValueError("`cosine` takes the place of `schedule`: give one of them")
        return self

    def lr_factor(self, step: int, total_steps: int) -> float:
        """Share of `lr` at optimizer step `step` (from 0)."""
        if not self.cosine or step < self.warmup_steps:
            return super().lr_factor(step, total_steps)
        return (1 + math.cos(math.pi * (step - self.warmup_steps) / (total_steps - self.warmup_steps))) / 2
