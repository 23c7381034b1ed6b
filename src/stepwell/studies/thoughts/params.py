"""Parameters of the study's stages, and their kinds. Nothing here needs torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from stepwell import kinds
from stepwell.latents.conditions import FAMILIES, Family
from stepwell.plan.problems import Problem
from stepwell.recipe import Curriculum, Monitors, Recipe
from stepwell.spec import DataFile, ModelName, Spec

Count = Annotated[int, Field(ge=0)]
Arm = Literal["cot", "direct", "continuous", "frozen", "shared", "removal"]


Format = Literal["prosqa", "steps"]
NO_OPTIONS = "items of format `steps` have no two options"
NO_GRAPH = "items of format `steps` have no graph"


class DataParams(Spec):
    """The sets of a study, disjoint up to the names of their nodes.

    Attributes:
        format: `prosqa`, or `steps`: any questions with written steps and an answer (GSM8K-Aug, ProntoQA), which are
            all given as files. Then the steering split is taken out of the training file, by question.
        family: of the generated training, steering and test sets.
        train, valid, test: official-format files; what is not given is generated (`valid` only if `n_valid` > 0).
            A `valid` file becomes the set `official`.
        n_train, n_steer, n_valid, n_test: sizes of the generated sets. The steering split moves the curriculum and
            chooses weights; it is never reported as a result.
        families: further test sets, family -> size.
        swapped: sets to be asked again about the other person, whose right answer is the other option.
        audited: how many items of a generated training set are written as text and audited; 0 = all.
    """

    format: Format = "prosqa"
    family: str = "id"
    train: DataFile | None = None
    valid: DataFile | None = None
    test: DataFile | None = None
    n_train: int = Field(default=17886, ge=1)
    n_steer: int = Field(default=300, ge=1)
    n_valid: Count = 0
    n_test: Count = 500
    families: dict[str, Count] = Field(default_factory=dict)
    swapped: tuple[str, ...] = ()
    audited: Count = 0

    @model_validator(mode="after")
    def _given(self) -> Self:
        if self.format == "prosqa":
            return self
        if self.train is None or not (self.valid or self.test):
            raise ValueError("format `steps` generates nothing: give the files `train`, and `valid` or `test`")
        if self.families or self.swapped:
            raise ValueError(f"`families` and `swapped` are made of graphs, and {NO_GRAPH}: set them to {{}} and []")
        return self


def is_written(needed: Mapping[str, Spec]) -> bool:
    """Whether the data stage that a stage needs takes questions with written steps instead of graphs."""
    return any(isinstance(spec, DataParams) and spec.format == "steps" for spec in needed.values())


class AuditParams(Spec):
    """The audit of every set. It has nothing to set."""


class SymbolModel(Spec):
    """A small model from scratch that reads symbols (`stepwell.small`).

    Attributes:
        prompt: `pairs` of tokens, or `facts`, one column each.
        persons, concepts: names to draw from.
        markers: whether latents stand between markers.
    """

    kind: Literal["symbols"] = "symbols"
    prompt: Literal["pairs", "facts"] = "pairs"
    persons: int = Field(default=2, ge=2)
    concepts: int = Field(default=8, ge=2)
    markers: bool = False
    width: int = Field(default=64, ge=1)
    layers: int = Field(default=2, ge=1)
    heads: int = Field(default=4, ge=1)
    mlp_ratio: int = Field(default=4, ge=1)
    max_positions: Count = 64
    head_bias: tuple[Literal["none", "previous", "alibi"], ...] = ()
    activation: Literal["relu", "gelu"] = "relu"
    embedding_std: float = Field(default=0.2, gt=0)


class TextModel(Spec):
    """A causal LM that reads the question as text.

    Attributes:
        name: hub id, folder or pulled name; None = from scratch with the shape below and a word-level tokenizer.
        checkpoint: weights in Meta's COCONUT layout to load on top.
        gradient_checkpointing: recompute activations in backward.
    """

    kind: Literal["text"] = "text"
    name: ModelName | None = None
    architecture: Literal["gpt2", "llama", "qwen2", "gpt_neox"] = "gpt2"
    width: int = Field(default=768, ge=1)
    layers: int = Field(default=2, ge=1)
    heads: int = Field(default=8, ge=1)
    max_positions: int = Field(default=1024, ge=1)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    checkpoint: DataFile | None = None
    gradient_checkpointing: bool = False


class ModelParams(Spec):
    """What every arm is built from: model and layout, the same for all arms.

    Attributes:
        model: small and symbolic, or a causal LM on text.
        curriculum: see `stepwell.recipe.Curriculum`; arms without stages (`cot`, `direct`) ignore it.
        selftest_steps: optimizer steps that the label self-test may take to overfit its toy batch.
        selftest_lr: learning rate of the self-test.
    """

    model: SymbolModel | TextModel = Field(discriminator="kind")
    curriculum: Curriculum = Curriculum()
    selftest_steps: int = Field(default=300, ge=1)
    selftest_lr: float = Field(default=3e-3, gt=0)


class Restart(Spec):
    """A training whose first stage (written steps) does not come off the ground begins again with other weights.

    The rule looks at the steering split in curriculum stage 0 only, the same for every arm that writes steps there, so
    it cannot favour an arm by its result. Each restart is a record.

    Attributes:
        bar: accuracy to be reached within `after_steps`.
        most: restarts at most.
    """

    bar: float = Field(gt=0, le=1)
    after_steps: int = Field(ge=1)
    most: int = Field(default=2, ge=1)


class TrainParams(Recipe):
    """The recipe of `stepwell.recipe.Recipe`, and what is watched.

    Attributes:
        monitors: what stops or alerts.
        restart: when a training begins again; None = never.
        trackers: where curves are also sent; each needs its package.
        given: None = train. Else nothing is trained: the model's checkpoint is taken as it is, as somebody's training
            that ended in this curriculum stage, and what the rest of the recipe says is not read.
    """

    monitors: Monitors = Monitors()
    restart: Restart | None = None
    trackers: tuple[Literal["tensorboard", "trackio", "wandb"], ...] = ()
    given: Count | None = None

    def problems(self, needed: Mapping[str, Spec]) -> list[Problem]:
        """Whether the model can read the items."""
        models = [spec.model for spec in needed.values() if isinstance(spec, ModelParams)]
        if not is_written(needed) or all(isinstance(model, TextModel) and model.name for model in models):
            return []
        cause = "a model of symbols reads graphs, one from scratch knows the words of ProsQA"
        return [Problem((), f"{cause}, and {NO_GRAPH}: name a model with a tokenizer (model.model.name)")]


class AskParams(Spec):
    """What every stage that asks a trained arm about sets of items lets its plan choose.

    Attributes:
        sets: which sets; empty = all but training and steering.
        items: of each set, the first so many; 0 = all.
        weights: the last, or the best by the steering split.
    """

    sets: tuple[str, ...] = ()
    items: Count = 0
    batch_size: int = Field(default=64, ge=1)
    weights: Literal["last", "best"] = "last"


class EvaluateParams(AskParams):
    """One record an item, with the thoughts that the arm was trained with."""

    def withheld(self, needed: Mapping[str, Spec]) -> dict[str, str]:
        """Fields that no record will have, and why."""
        if not is_written(needed):
            return {}
        return {"forced_correct": NO_OPTIONS, "margin": NO_OPTIONS, "chain_valid": NO_GRAPH}


class InterveneParams(AskParams):
    """One record an item and intervention (`stepwell.latents.interventions`), the clean one among them.

    Attributes:
        families: what is done to the thoughts.
        scales: of noise, in units of the standard deviation of the thoughts at its position.
        propagates: noise while the chain is computed, so that later thoughts hear of it (true), afterwards, so that
            they do not (false), or both.
        thoughts: how many thoughts the family `thoughts` allows in place of the trained number; 0 = depth 0.
        decode: also let the model write its answer; without, only the two options are compared, right after the
            thoughts, which is much cheaper for a model that writes long ones.
        browse: for how many items of each set the tokens nearest to each thought are recorded.
    """

    families: tuple[Family, ...] = FAMILIES
    scales: tuple[Annotated[float, Field(gt=0)], ...] = (1.0,)
    propagates: tuple[bool, ...] = (True, False)
    thoughts: tuple[Count, ...] = (0, 2, 3, 4, 5, 6, 7, 8)
    decode: bool = True
    browse: Count = 100

    def problems(self, needed: Mapping[str, Spec]) -> list[Problem]:
        """Whether anything is left to be compared."""
        if self.decode or not is_written(needed):
            return []
        return [Problem(("decode",), f"{NO_OPTIONS}: without a written answer nothing is asked; set it to true")]

    def withheld(self, needed: Mapping[str, Spec]) -> dict[str, str]:
        """Fields that no record will have, and why."""
        return dict.fromkeys(("forced_correct", "margin", "flipped"), NO_OPTIONS) if is_written(needed) else {}


_HERE = "stepwell.studies.thoughts"

KINDS = (
    kinds.register(
        kinds.Kind(
            name="prosqa.data",
            params=DataParams,
            run=f"{_HERE}.data:make",
            yields={"dataset": frozenset({"set", "n", "sha256", "source", "family", "format"})},
        )
    ),
    kinds.register(
        kinds.Kind(
            name="prosqa.audit",
            params=AuditParams,
            run=f"{_HERE}.data:audit",
            yields={
                "audit": frozenset({"set", "n", "code", "count", "of", "example"}),
                "shortcut": frozenset({"set", "rule", "correct", "n", "by_hops"}),
                "check": frozenset({"name", "passed", "detail"}),
            },
        )
    ),
    kinds.register(
        kinds.Kind(
            name="thoughts.model",
            params=ModelParams,
            run=f"{_HERE}.check:check",
            yields={
                "parameters": frozenset({"trainable", "total", "frozen_buffers"}),
                "check": frozenset({"name", "passed", "detail"}),
            },
        )
    ),
    kinds.register(
        kinds.Kind(
            name="thoughts.train",
            params=TrainParams,
            run=f"{_HERE}.training:train",
            parallel="ranks",
            yields={
                "step": frozenset({"step", "epoch", "curriculum_stage", "loss", "lr", "grad_norm"}),
                "validation": frozenset({"step", "epoch", "curriculum_stage", "accuracy", "n"}),
                "advance": frozenset({"step", "curriculum_stage", "reason"}),
                "restart": frozenset({"attempt", "step", "reason"}),
                "alert": frozenset({"monitor", "step", "message", "stopped"}),
                "trained": frozenset({"curriculum_stage"}),
                "check": frozenset({"name", "passed", "detail"}),
            },
            estimate=f"{_HERE}.cost:of_training",
        )
    ),
    kinds.register(
        kinds.Kind(
            name="thoughts.evaluate",
            params=EvaluateParams,
            run=f"{_HERE}.evaluation:evaluate",
            yields={
                "item": frozenset(
                    {"set", "id", "condition", "hops", "correct", "forced_correct", "margin", "chain_valid"}
                    | {"prediction", "answer", "latents"}
                )
            },
            estimate=f"{_HERE}.cost:of_evaluation",
        )
    ),
    kinds.register(
        kinds.Kind(
            name="thoughts.intervene",
            params=InterveneParams,
            run=f"{_HERE}.interventions:intervene",
            yields={
                "intervention": frozenset({"set", "id", "hops", "latents", "family", "condition", "k", "position"})
                | {"scale", "propagates", "donor", "correct", "forced_correct", "margin", "flipped"}
                | {"answer_changed", "vacuous"},
                "thought": frozenset({"set", "id", "position", "nearest"}),
            },
            estimate=f"{_HERE}.cost:of_interventions",
        )
    ),
)
