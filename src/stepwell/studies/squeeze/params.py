"""Parameters of the study's stages, and their kinds. Nothing here needs torch."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from stepwell import kinds
from stepwell.latents.restorer_specs import RestorerParams, RestoringRecipe, Subspace
from stepwell.spec import Spec
from stepwell.studies.qa.params import ITEM

Count = Annotated[int, Field(ge=0)]
Some = Annotated[int, Field(ge=1)]


class Bottleneck(Spec):
    """One arm: a compressor, and what restores.

    Attributes:
        subspace: `pca`; or `random`, `truncation`, which are controls.
        restorer: see `stepwell.latents.restorer_specs`.
        recipe: how it is trained; None where there is nothing to train.
    """

    subspace: Subspace = "pca"
    restorer: RestorerParams = RestorerParams()
    recipe: RestoringRecipe | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if (self.recipe is None) != (self.restorer.adapter == "pca"):
            raise ValueError("every adapter but `pca` is trained by a `recipe`, and `pca` by none")
        return self


class RestoreParams(Spec):
    """Fit the compressor on the training set's tokens, and train what restores.

    Attributes:
        arms: name -> bottleneck; the axis `arm` says which of them are run.
        dims: c, numbers a token; the job's axis `dims`, where there is one.
        whiten: scale every coordinate to unit variance.
        checkpoint_every: optimizer steps between checkpoints.
        log_every: optimizer steps between records.
        answered: held-out items that are answered at each checkpoint; 0 = none.
    """

    arms: dict[str, Bottleneck] = Field(min_length=1)
    dims: Some = 128
    whiten: bool = False
    checkpoint_every: Some = 200
    log_every: Some = 20
    answered: Count = 8


class RefineParams(Spec):
    """Phase 2: go on with the trained arm, reading the prompt through the restored embeddings.

    Attributes:
        recipe: with the objective `reading`.
        checkpoint_every, log_every, answered: as of `RestoreParams`.
    """

    recipe: RestoringRecipe = RestoringRecipe(objective="reading", steps=200, batch_size=4)
    checkpoint_every: Some = 50
    log_every: Some = 5
    answered: Count = 8


class AnswerParams(Spec):
    """What the model answers when it reads prompts through the bottleneck.

    Attributes:
        items: the first so many of the test set; 0 = all.
        batch_size: items at a time.
        bits: of the numbers on the wire; 32 = as they are. The accuracy is measured after each.
        share, floor: of the ceiling's F1: what is asked of a result, and below what it is given up.
        vllm: let vLLM write the answers where it is to be had and fit, else our own decoding; an event says why.
    """

    items: Count = 0
    batch_size: Some = 16
    bits: tuple[Literal[32, 16, 8, 4], ...] = (32,)
    share: float = Field(default=0.7, gt=0, le=1)
    floor: float = Field(default=0.5, gt=0, le=1)
    vllm: bool = False


OBJECTIVES = ("mse", "cosine", "next_token")
"""The terms that a loss can have."""

_HERE = "stepwell.studies.squeeze"
_RECONSTRUCTION = frozenset({"set", "tokens", "mse", "cosine", "relative_error", "norm_ratio"})
TERMS = frozenset(f"{part}_{term}" for part in ("loss", "weighted", "weight") for term in OBJECTIVES)
"""What a step says of each term of a loss: null where the recipe does not have it."""
LOOK = frozenset({"step", "n", "f1", "em"})
"""What a look at held-out items says while a restorer is trained: mean F1 and exact matches, by the final scorer."""
_STEP = TERMS | {"step", "lr", "grad_norm", "tokens", "skipped", "loss"}

KINDS = (
    kinds.register(
        kinds.Kind(
            name="squeeze.restore",
            params=RestoreParams,
            run=f"{_HERE}.restore:restore",
            yields={
                "compressor": frozenset({"subspace", "dims", "width", "explained", "corpus_tokens", "distinct"}),
                "step": _STEP,
                "look": LOOK,
                "reconstruction": _RECONSTRUCTION,
            },
            estimate=f"{_HERE}.cost:of_restore",
        )
    ),
    kinds.register(
        kinds.Kind(
            name="squeeze.refine",
            params=RefineParams,
            run=f"{_HERE}.restore:refine",
            yields={"step": _STEP, "look": LOOK, "reconstruction": _RECONSTRUCTION},
            estimate=f"{_HERE}.cost:of_refine",
        )
    ),
    kinds.register(
        kinds.Kind(
            name="squeeze.answer",
            params=AnswerParams,
            run=f"{_HERE}.answer:answer",
            yields={"item": ITEM | {"ceiling_f1", "above_share", "above_floor", "bits", "text_bytes"}},
            estimate=f"{_HERE}.cost:of_answer",
        )
    ),
)
"""Stages of the study that are its own."""
