"""How losses are weighed and what a model is fed over a training, as data and pure functions; torch is not needed."""

from __future__ import annotations

import random
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from stepwell.spec import Spec

Weight = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class Ramp(Spec):
    """A weight that goes linearly from `start` to `end` over a stretch of the training, and is constant around it.

    Attributes:
        start, end: weights.
        begin, until: the stretch, as shares of the training's optimizer steps.
    """

    start: Weight = 0.2
    end: Weight = 1.0
    begin: Share = 0.0
    until: Share = 1.0

    @model_validator(mode="after")
    def _forward(self) -> Self:
        if self.begin > self.until:
            raise ValueError(f"the ramp begins at {self.begin:g} and ends at {self.until:g}: give begin <= until")
        return self

    def at(self, share: float) -> float:
        """The weight when `share` (0 to 1) of the training is done."""
        if share >= self.until:
            return self.end
        if share <= self.begin:
            return self.start
        return self.start + (self.end - self.start) * (share - self.begin) / (self.until - self.begin)


class LossWeights(Spec):
    """Which losses are switched on, and what each counts.

    Attributes:
        terms: name -> weight, a number or a ramp. What is not named is not computed.
        balance: `fixed`: the weights as they stand; `running mean`: each divided by the running mean of its term, so
            that terms of any scale count alike.
        memory: of that mean: each optimizer step keeps this share of what was (an exponential mean, bias-corrected).
    """

    terms: dict[str, Weight | Ramp] = Field(min_length=1)
    balance: Literal["fixed", "running mean"] = "fixed"
    memory: float = Field(default=0.98, ge=0, lt=1)

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not any(
            weight.start or weight.end if isinstance(weight, Ramp) else weight for weight in self.terms.values()
        ):
            raise ValueError("all weights are 0: nothing would be trained")
        return self

    def at(self, share: float) -> dict[str, float]:
        """Name -> weight, when `share` (0 to 1) of the training is done."""
        return {name: w.at(share) if isinstance(w, Ramp) else w for name, w in self.terms.items()}


class TextToLatent(Spec):
    """From reading text to reading latents: first text only, then latents with a probability that grows linearly.

    Attributes:
        warmup_epochs: of text only.
        start, end: the keep probability after the warm-up and at the end of the training: with it an example keeps its
            latents as input, otherwise it reads the text.
    """

    warmup_epochs: float = Field(default=0.5, ge=0)
    start: Share = 0.5
    end: Share = 0.85

    def keep(self, epoch: float, epochs: float) -> float:
        """The keep probability when `epoch` of `epochs` are done (both may be broken numbers); 0 in the warm-up."""
        if epoch < self.warmup_epochs:
            return 0.0
        left = epochs - self.warmup_epochs
        done = 1.0 if left <= 0 else min(1.0, (epoch - self.warmup_epochs) / left)
        return self.start + (self.end - self.start) * done


def gold_share(epoch: float, epochs: float, *, floor: float = 0.5) -> float:
    """p_gold of scheduled sampling: the share of the inputs that are gold tokens, max(floor, 1 - epoch / epochs).

    Bengio et al. 2015, arXiv 1506.03099 (linear decay). `epoch` is counted from 0.
    """
    return max(floor, 1.0 - epoch / epochs)


def coins(probability: float, count: int, *, seed: int, step: int, use: str) -> tuple[bool, ...]:
    """`count` draws that are true with a probability: the same for the same seed, step and use, on every machine.

    A training that is killed and resumed draws the same, whatever was drawn in between.
    """
    drawn = random.Random(f"{seed}/{step}/{use}")
    return tuple(drawn.random() < probability for _ in range(count))
