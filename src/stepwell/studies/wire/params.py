"""Parameters of the study's stages. Nothing here needs torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from stepwell.adapt.params import LoraParams
from stepwell.latents.encoder_specs import AdapterSpec, AnyEncoder, DeepPrefixSpec
from stepwell.losses.specs import LossWeights, Ramp, TextToLatent
from stepwell.plan.problems import Problem
from stepwell.spec import Spec
from stepwell.studies.qa.params import QADataParams

Count = Annotated[int, Field(ge=0)]
Some = Annotated[int, Field(ge=1)]

OF_PREFIX = ("alignment", "manifold")
OF_LATENTS = (
    "first_token", "teacher_forced", "k_token", "kd", "hidden_kd", *OF_PREFIX, "reconstruction",
)  # fmt: skip
"""Losses of examples that are read as latents."""
OF_TEXT = "text"
"""Cross-entropy of the answer where an example is read as text; stage B only."""
REPEATED = "repeat"
"""Cross-entropy of a prompt's own words after its latents; auto-encoding only."""
TAUGHT = frozenset({"kd", "hidden_kd"})
"""Losses that ask the teacher."""
PARTS = ("encoder", "adapter", "deep", "reader", "speaker", "restorer")
"""What may be trained: see `stepwell.studies.wire.model.Wire`."""


class WireRecipe(Spec):
    """How a stage is optimised, by AdamW.

    Attributes:
        steps: optimizer steps, however many micro-batches each has; give either these or `epochs`.
        epochs: passes over the stage's items.
        batch_size: items a micro-batch.
        accumulation: micro-batches a step; every loss is a mean over all elements of the step.
        lr, betas, weight_decay: of AdamW.
        warmup_steps, schedule, last_lr: linear warm-up, then `constant`, or `cosine` down to `last_lr`.
        clip: largest norm of the gradients of all parts together; None = not clipped.
        most_skipped: share of the steps so far that may be skipped since a loss or the gradient was not finite; more of
            them, and at least 3, end the training.
        log_every, checkpoint_every: in optimizer steps.
    """

    steps: Some | None = None
    epochs: Some | None = None
    batch_size: Some = 16
    accumulation: Some = 1
    lr: float = Field(default=5e-5, gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(default=0.01, ge=0)
    warmup_steps: Count = 0
    schedule: Literal["constant", "cosine"] = "constant"
    last_lr: float = Field(default=1e-6, ge=0)
    clip: float | None = Field(default=1.0, gt=0)
    most_skipped: float = Field(default=0.05, ge=0, le=1)
    log_every: Some = 1
    checkpoint_every: Some = 50

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either `steps` or `epochs`, not both and not neither")
        if self.schedule == "cosine" and self.last_lr > self.lr:
            raise ValueError(f"`last_lr` {self.last_lr:g} is above `lr` {self.lr:g}")
        return self

    def total_steps(self, steps_per_epoch: int) -> int:
        """Optimizer steps of the whole stage."""
        return self.steps if self.steps is not None else (self.epochs or 0) * steps_per_epoch

    def lr_at(self, step: int, total_steps: int) -> float:
        """The learning rate of optimizer step `step` (from 0)."""
        warm = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        if self.schedule == "constant":
            return warm * self.lr
        done = 0.5 * (1 + math.cos(math.pi * step / total_steps))
        return warm * (self.last_lr + (self.lr - self.last_lr) * done)


class AutoEncoding(Spec):
    """Pre-training of an arm: after its latents, the frozen model writes the prompt's own words.

    In-context autoencoder, Ge et al. 2023, arXiv 2307.06945, without its second task of going on with the text.

    Attributes:
        items: the first so many of the training split; 0 = all.
        tokens: the first so many of what the encoder reads, context and question; a shorter text ends with EOS.
        anchor: text right before the words, in place of the contract's.
        recipe: how it is optimised.
        held: the first so many of the held split are repeated at every look; 0 = all.
        every: optimizer steps between looks; the last step always has one.
    """

    items: Count = 0
    tokens: int = Field(default=128, ge=2)
    anchor: str = Field(default="Repeat: ", min_length=1)
    recipe: WireRecipe
    held: Count = 64
    every: Some = 50


class Arm(Spec):
    """What turns a prompt into what stands in its place.

    Attributes:
        encoder: its `vectors` are replaced by the job's axis `vectors`, where there is one.
        smaller: further M that the encoder serves beside that of the axis: each step draws one of them all. Those that
            are not below the axis's are left out, so that an axis of several M can share one arm.
        adapter: from latents to a prefix of vectors; None where a deep prefix takes its place.
        deep: from latents to keys and values of every layer.
        reader: LoRA through which an `lm` encoder reads; None = the frozen model reads.
        auto_encoding: pre-training; None = stage A begins with random weights.
    """

    encoder: AnyEncoder
    smaller: tuple[Some, ...] = ()
    adapter: AdapterSpec | None = AdapterSpec()
    deep: DeepPrefixSpec | None = None
    reader: LoraParams | None = None
    auto_encoding: AutoEncoding | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if (self.adapter is None) == (self.deep is None):
            raise ValueError("give either `adapter` or `deep`: a prefix of vectors, or of keys and values")
        if self.reader is not None and self.encoder.kind != "lm":
            raise ValueError(f"`reader` is LoRA of an encoder `lm`, and this one is `{self.encoder.kind}`")
        return self

    def served(self, vectors: int | None) -> tuple[int, ...]:
        """The M that the encoder serves, ascending, where the axis `vectors` says one; None = there is no such axis."""
        if vectors is None:
            return self.encoder.vectors
        return (*sorted({m for m in self.smaller if m < vectors}), vectors)


class Sampling(Spec):
    """Scheduled sampling: some of the answer's tokens that are read are the model's own argmax.

    Attributes:
        floor: p_gold = max(floor, 1 - epoch / epochs).
    """

    floor: float = Field(default=0.5, ge=0, le=1)


class HeldParams(Spec):
    """What is measured on held-out items while a stage trains; nothing of it steers the training.

    Attributes:
        items: the first so many of the held split, the same at every look; 0 = all. `first_acc` is over them.
        every: optimizer steps between looks at the first token.
        answered: the first so many of these items are answered in full; 0 = none.
        answer_every: optimizer steps between such answers; the last step always has them.
        shown: how many of the answers are kept as samples.
        batch_size: items at a time.
        webhook: URL that an alert is posted to as JSON; one that does not answer never stops a training.
    """

    items: Count = 0
    every: Some = 1
    answered: Count = 16
    answer_every: Some = 20
    shown: Count = 4
    batch_size: Some = 32
    webhook: str | None = Field(default=None, pattern="^https?://")


class EncoderParams(Spec):
    """The arms, and so their encoders and adapters, before the language model is asked for any answer.

    Attributes:
        arms: name -> arm; the axis `arm` says which of them are run.
    """

    arms: dict[str, Arm] = Field(min_length=1)


class TrainingParams(Spec):
    """What stages A and B have.

    Attributes:
        items: the first so many of the training split; 0 = all.
        losses: weights of the terms; what is not named is not computed.
        k: of `k_token`.
        temperature: of `kd`.
        recipe: how it is optimised.
        sampling: scheduled sampling; None = the answer's own tokens are read.
        held: diagnostics.
    """

    items: Count = 0
    losses: LossWeights
    k: Some = 8
    temperature: float = Field(default=2.0, gt=0)
    recipe: WireRecipe
    sampling: Sampling | None = None
    held: HeldParams = HeldParams()


def _known(losses: LossWeights, known: tuple[str, ...]) -> None:
    if spare := sorted(losses.terms.keys() - set(known)):
        raise ValueError(f"there is no loss {', '.join(spare)} here; losses: {', '.join(known)}")


class StageAParams(TrainingParams):
    """Stage A: goes on from an encoder's stage; encoder and adapter are trained, the language model is frozen."""

    losses: LossWeights = LossWeights(terms={"first_token": 3.0, "teacher_forced": 1.0, "k_token": 0.5, "kd": 1.0})

    @model_validator(mode="after")
    def _known_losses(self) -> Self:
        _known(self.losses, OF_LATENTS)
        return self


class StageBParams(TrainingParams):
    """Stage B: goes on from the stage it needs, with LoRA on the language model.

    Attributes:
        lora: of the language model when it answers; where the stage before has it already, that one goes on, and this
            has to say the same.
        mixing: which share of the examples is read as latents.
        latent: a factor on every loss of latents over the stage.
    """

    losses: LossWeights = LossWeights(
        terms={"first_token": 9.0, "teacher_forced": 1.0, "k_token": 0.5, "kd": 1.0, "hidden_kd": 0.1, OF_TEXT: 1.0}
    )
    lora: LoraParams = LoraParams(rank=16, alpha=16.0, layers="first half")
    mixing: TextToLatent = TextToLatent()
    latent: Ramp = Ramp(start=0.2, end=1.0)

    @model_validator(mode="after")
    def _known_losses(self) -> Self:
        _known(self.losses, (*OF_LATENTS, OF_TEXT))
        if OF_TEXT not in self.losses.terms and (self.mixing.warmup_epochs or min(self._keeps()) < 1):
            raise ValueError(f"some examples are read as text, and no loss is theirs: name `{OF_TEXT}` in the losses")
        if ramped := [name for name, weight in self.losses.terms.items() if isinstance(weight, Ramp)]:
            raise ValueError(f"`latent` is the ramp of this stage; give {ramped[0]} a number")
        if not max(self._keeps()):
            raise ValueError("no example would be read as latents: give `mixing` a `start` or an `end` above 0")
        return self

    def problems(self, needed: Mapping[str, Spec]) -> list[Problem]:
        """What is wrong with the stage, given the parameters of those that it needs: a warm-up that never ends."""
        data = needed.get("data")
        if not isinstance(data, QADataParams):
            return []
        text = self.warmup_problem(min(self.items or data.n_train, data.n_train))
        return [] if text is None else [Problem(("mixing", "warmup_epochs"), text)]

    def warmup_problem(self, items: int) -> str | None:
        """Why a training on so many items never reads latents, so that no gate may judge what comes of it; or None."""
        steps_per_epoch = items // (self.recipe.batch_size * self.recipe.accumulation)
        if not steps_per_epoch:
            return None  # Fewer items than a step takes: the loop says so.
        steps, warmup = self.recipe.total_steps(steps_per_epoch), self.mixing.warmup_epochs
        # The last step begins where so much is done, as `TextToLatent.keep` counts it.
        if (steps - 1) / steps_per_epoch >= warmup:
            return None
        return (
            f"no step would read latents: the warm-up by text takes {warmup:g} epochs, and {steps} steps are "
            f"{steps / steps_per_epoch:g} epochs of {items} items; shorten it, take more steps, or fewer `items`"
        )

    def _keeps(self) -> tuple[float, float]:
        return self.mixing.start, self.mixing.end

    def weights(self) -> LossWeights:
        """The losses with the factor on those of latents."""
        ramp, terms = self.latent, {}
        for name, weight in self.losses.terms.items():
            assert not isinstance(weight, Ramp)
            scaled = {"start": weight * ramp.start, "end": weight * ramp.end}
            terms[name] = weight if name == OF_TEXT else ramp.model_copy(update=scaled)
        return self.losses.model_copy(update={"terms": terms})


class AnswerParams(Spec):
    """What the model answers from latents, and from what is put in their place.

    Attributes:
        items: the first so many of the test set; 0 = all.
        batch_size: items at a time.
        bits: of the numbers on the wire; 32 = as they are. The accuracy is measured after each.
        mean_of: prefixes of so many training items make the mean prefix; 0 = all.
        vllm: let vLLM write the answers where it is to be had and fit, else our own decoding; an event says why.
    """

    items: Count = 0
    batch_size: Some = 16
    bits: Annotated[tuple[Literal[32, 16, 8, 4], ...], Field(min_length=1)] = (32, 16, 8, 4)
    mean_of: Count = 256
    vllm: bool = False
