"""LoRA as data; constructing it loads nothing."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from stepwell.spec import Spec


class LoraParams(Spec):
    """Low-rank adaptation of a model's linear maps (Hu et al. 2021, arXiv 2106.09685): W x + alpha / rank B A x.

    Attributes:
        rank: of B A.
        alpha: see the formula.
        dropout: on x, before A, in training.
        layers: which of the model's layers, counted from 0; half of an odd number is rounded up.
        targets: which linear maps of a layer: `all`; `attention`: those of its attention; or names, such as `q_proj`
            or `mlp.c_proj` where one name alone is in several places. Embedding and head are never among them.
    """

    rank: int = Field(default=16, ge=1)
    alpha: float = Field(default=16.0, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    layers: Literal["all", "first half"] | Annotated[tuple[int, ...], Field(min_length=1)] = "all"
    targets: Literal["all", "attention"] | Annotated[tuple[str, ...], Field(min_length=1)] = "all"
