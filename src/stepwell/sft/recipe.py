"""How an adapter is trained, as data: the recipe of the study `tune`. Constructing it loads nothing."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from stepwell.adapt.params import LoraParams
from stepwell.recipe import Recipe
from stepwell.spec import Spec

__all__ = ["LORA", "Anil", "Maml", "Meta", "SftRecipe"]

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


class Maml(Spec):
    """Meta-learning by first-order MAML (Finn et al. 2017, arXiv 1703.03400, section 5.2): learn where to begin.

    A micro-batch is a task: rows of one category. The adapter takes a few plain gradient steps on the task's support
    rows, and what is learnt is the gradient of its query rows at the weights so found. The terms that go through the
    inner steps (second derivatives) are left out. The defaults of the inner loop are those of mini-ImageNet there.

    Attributes:
        inner_steps: on the support rows, of the mean nats a supervised token, without momentum or clipping.
        inner_lr: of these steps; 0 = the plain gradient over the query rows.
        support: share of a task's rows that it adapts to; the others are the query. One row of each at least.
    """

    kind: Literal["maml"] = "maml"
    inner_steps: int = Field(default=5, ge=1)
    inner_lr: float = Field(default=1e-2, ge=0)
    support: float = Field(default=0.5, gt=0, lt=1)

    def support_rows(self, rows: int) -> int:
        """How many of a task's rows are the support."""
        return min(max(1, round(self.support * rows)), rows - 1)


class Anil(Maml):
    """Almost no inner loop (Raghu et al. 2020, arXiv 1909.09157): only the head adapts, all of the adapter learns.

    Attributes:
        head_layers: the head is the adapter's weights in so many of the last layers that it is on.
    """

    kind: Literal["anil"] = "anil"  # pyright: ignore[reportIncompatibleVariableOverride]
    head_layers: int = Field(default=1, ge=1)


Meta = Annotated[Maml | Anil, Field(discriminator="kind")]
