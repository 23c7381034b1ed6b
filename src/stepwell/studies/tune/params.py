"""Parameters of the study's stages. Nothing here needs torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from stepwell.adapt.params import LoraParams
from stepwell.endpoint import Endpoint
from stepwell.grading.protocol import Decoding
from stepwell.localchat import LocalModel
from stepwell.plan.check import Needed
from stepwell.plan.problems import Problem
from stepwell.recipe import Monitors
from stepwell.sft.recipe import LORA, Meta, SftRecipe
from stepwell.spec import DataFile, ModelName, Spec

Count = Annotated[int, Field(ge=0)]
Some = Annotated[int, Field(ge=1)]


class WordProblems(Spec):
    """Generated problems in the form of GSM8K (`stepwell.tasks.word_problems`).

    Attributes:
        categories: of the problems, in turn.
        largest: of the numbers in the text.
    """

    kind: Literal["word-problems"] = "word-problems"
    categories: tuple[str, ...] = ("add", "subtract", "add-subtract")
    largest: int = Field(default=20, ge=10, le=99)


class Gsm8k(Spec):
    """GSM8K; from the hub where no file is named.

    Attributes:
        file: in the official format.
        hub: of the hub set.
    """

    kind: Literal["gsm8k"] = "gsm8k"
    file: DataFile | None = None
    hub: str = "openai/gsm8k:main"


class Conversations(Spec):
    """Conversations to train on: JSONL of chat messages, or of instruction and response.

    Without ground truth nothing can be mined from them.
    """

    kind: Literal["conversations"] = "conversations"
    file: DataFile


class Code(Spec):
    """HumanEval or MBPP; from the hub where no file is named. Answers are executed in the sandbox.

    Attributes:
        file: in the official format.
        hub: of the hub set.
    """

    kind: Literal["humaneval", "mbpp"]
    file: DataFile | None = None
    hub: str | None = None


class Squad(Spec):
    """SQuAD, v1 or v2; from the hub where no file is named."""

    kind: Literal["squad"] = "squad"
    file: DataFile | None = None
    hub: str = "rajpurkar/squad"


class Mbpp(Spec):
    """The training split of MBPP, task_ids 601 to 974; from the hub where no file is named.

    Attributes:
        file: in the official format; what it holds of other splits is not read.
        hub: of the hub set.
    """

    kind: Literal["mbpp"] = "mbpp"
    file: DataFile | None = None
    hub: str = "google-research-datasets/mbpp"


class Mixed(Spec):
    """Several sources, shuffled into one training set.

    Attributes:
        of: the sources; all of each.
    """

    kind: Literal["mixed"] = "mixed"
    of: tuple[Annotated[Gsm8k | Mbpp | Conversations, Field(discriminator="kind")], ...] = Field(min_length=2)


TrainSource = Annotated[WordProblems | Gsm8k | Mbpp | Conversations | Mixed, Field(discriminator="kind")]


class OpenEnded(Spec):
    """Prompts that no ground truth decides about: only a judge can, of answers of two models.

    Attributes:
        file: conversations; the last answer of each is not shown to anybody.
    """

    kind: Literal["open"] = "open"
    file: DataFile


TestSource = Annotated[WordProblems | Gsm8k | Code | Squad | OpenEnded, Field(discriminator="kind")]


class TuneDataParams(Spec):
    """What is trained on, and what is graded. No item of a benchmark is in the training set, nor a part of one.

    Attributes:
        source: of the training set; of GSM8K and MBPP their split `train`.
        benchmarks: name -> what is graded; of published sets their split `test` (SQuAD: `validation`). Word problems
            are drawn together with those of the training set, and split.
        n_train: conversations; 0 = all.
        n_held: conversations that only the loss is measured on.
        n_test: items of each benchmark; 0 = all.
        ask: what follows each problem of mathematics, in training as in grading; None = that of `stepwell.grading`.
        draw: seed of what is drawn.
    """

    source: TrainSource = WordProblems()
    benchmarks: Annotated[dict[str, TestSource], Field(min_length=1)]
    n_train: Count = 0
    n_held: Count = 32
    n_test: Count = 0
    ask: str | None = None
    draw: Count = 0

    @model_validator(mode="after")
    def _numbers(self) -> Self:
        generated = [self.source, *self.benchmarks.values()]
        if any(isinstance(one, WordProblems) for one in generated) and not (self.n_train and self.n_test):
            raise ValueError("generated problems have no end: say how many in `n_train` and `n_test`")
        return self

    @property
    def sources(self) -> tuple[WordProblems | Gsm8k | Mbpp | Conversations, ...]:
        """What the training set is made of."""
        return self.source.of if isinstance(self.source, Mixed) else (self.source,)

    def items_of(self, name: str) -> dict[str, Any]:
        """What decides which items a benchmark has, and in which words they are asked; {} where there is none."""
        source = self.benchmarks.get(name)
        if source is None:
            return {}
        maths, drawn = isinstance(source, WordProblems | Gsm8k), self.draw if self.n_test else None
        return {"source": source, "n": self.n_test, "draw": drawn, "ask": self.ask if maths else None}


class TuneModelParams(Spec):
    """The base.

    Attributes:
        name: hub id, pulled name or folder.
        revision: of a hub id, such as a commit; None = the newest. A folder has none.
        precision: of weights and computation while it is trained.
        allow_quantised: train on a quantised base, which a merge will refuse; it is recorded.
        gradient_checkpointing: layers are computed again in the backward pass.
    """

    name: ModelName
    revision: str | None = None
    precision: Literal["fp32", "bf16"] = "fp32"
    allow_quantised: bool = False
    gradient_checkpointing: bool = False


class LintParams(Spec):
    """The linter of the data (`stepwell.sft.linter`).

    Attributes:
        max_tokens: of an example, as in the training that needs this stage: what is cut off there is looked for here.
        allow: codes of findings that the plan puts up with.
        replay: before a training on failures: look at those that the stage needs, with this share of the first training
            set beside them, as that training; None = look at the first training set.
    """

    max_tokens: Some = 2048
    allow: tuple[str, ...] = ()
    replay: float | None = Field(default=None, ge=0, lt=1)

    def problems(self, needed: Needed) -> list[Problem]:
        """What is wrong beside the stages that this one needs: failures that nobody mined."""
        mined = self.replay is None or needed.directly(MineParams) or needed.directly(CorrectParams)
        text = "there are no failures to look at: name a stage of the kind `tune.mine` or `tune.correct` in `needs`"
        return [] if mined else [Problem(("replay",), text)]


class TuneTrainParams(SftRecipe):
    """The recipe, the adapter and what is watched.

    Attributes:
        lora: the adapter.
        monitors: what stops or alerts.
        replay: where failures are trained on, this share of the rows is of the first training set.
        meta: learn where adapting begins, by first-order MAML or ANIL; a micro-batch is then rows of one category. What
            is saved, merged and graded is the beginning itself. None = plain training.
    """

    lora: LoraParams = LORA
    # What is validated are single tokens of held-out answers: no chance level, and no accuracy that could collapse.
    monitors: Monitors = Monitors(breakthrough="off", collapse="off")
    replay: float = Field(default=0.5, ge=0, lt=1)
    meta: Meta | None = None

    @model_validator(mode="after")
    def _tasks(self) -> Self:
        if self.meta is not None and self.batch_size < 2:
            raise ValueError("with `meta`, `batch_size` is 2 at least: one row to adapt to, and one to learn from")
        return self

    def problems(self, needed: Needed) -> list[Problem]:
        """What is wrong beside the stages that this one needs: a linter that looks at something else."""
        again = needed.directly(MineParams) or needed.directly(CorrectParams)
        found = []
        for name, linter in needed.directly(LintParams).items():
            if linter.max_tokens != self.max_tokens:
                text = (
                    f"{name} looks at examples of up to {linter.max_tokens} tokens, and up to {self.max_tokens} would "
                    f"be trained on: what is cut off is not looked for; set `{name}.max_tokens` to the same number"
                )
                found.append(Problem(("max_tokens",), text))
            if again and linter.replay != self.replay:
                looks = "the first training set" if linter.replay is None else f"a share of {linter.replay:g} of it"
                text = (
                    f"{name} looks at {looks}, and failures with a share of {self.replay:g} of the first training set "
                    f"would be trained on; set `{name}.replay` to the same number"
                )
                found.append(Problem(("replay",), text))
        return found


class MergeParams(Spec):
    """How an adapter is merged.

    Attributes:
        precision: what the merged weights are stored in; None = as the base is.
        least_survived: share of the adapter's change that has to survive the cast.
    """

    precision: Literal["fp32", "bf16"] | None = None
    least_survived: float = Field(default=0.9, ge=0, le=1)


class AnsweringParams(Spec):
    """How the model that a stage stands on is let answer.

    Attributes:
        decoding: how answers are written.
        batch_size: items at a time.
        vllm: let vLLM write where it is to be had, else our own decoding; the records say which of them wrote.
    """

    decoding: Decoding = Decoding(max_tokens=256)
    batch_size: Some = 16
    vllm: bool = False


class GradeParams(AnsweringParams):
    """How a model is graded.

    Attributes:
        benchmarks: which of the data stage's; empty = all.
    """

    benchmarks: tuple[str, ...] = ()


class Recorded(Spec):
    """Answers that were recorded before.

    Attributes:
        file: JSON lines, {id, answer}.
        model: what wrote them, for the records.
    """

    kind: Literal["file"] = "file"
    file: DataFile
    model: str


class FromEndpoint(Endpoint):
    """A model behind an OpenAI-compatible address."""

    kind: Literal["endpoint"] = "endpoint"


class FromModel(LocalModel):
    """A model on this machine."""

    kind: Literal["model"] = "model"


Reference = Annotated[Recorded | FromEndpoint | FromModel, Field(discriminator="kind")]
Asked = Annotated[FromEndpoint | FromModel, Field(discriminator="kind")]


class ReferenceParams(Spec):
    """A reference model, whose answers are marked as ours are.

    Attributes:
        source: where its answers come from.
        benchmarks: which of the data stage's; empty = all.
    """

    source: Reference
    benchmarks: tuple[str, ...] = ()


class VersusParams(Spec):
    """Win, tie or loss against a reference model, item by item.

    Attributes:
        ours, theirs: the two stages, of the kinds `tune.grade` and `tune.reference`, that are compared.
        judge: decides where there is no ground truth; None = such items are undecided.
        bands: compare with the success bands of the original (an 8B model against GPT-4), by category.
    """

    ours: str = "after"
    theirs: str = "before"
    judge: Asked | None = None
    bands: bool = False

    def problems(self, needed: Needed) -> list[Problem]:
        """What is wrong beside the stages that this one needs: sides that could never be compared."""
        return _incomparable({"ours": self.ours, "theirs": self.theirs}, needed)


class MineParams(AnsweringParams):
    """Failures of the model on its own training problems: what it loses against the written solutions.

    Attributes:
        items: of the training set's problems that are asked, of maths and of code each; 0 = all.
    """

    items: Count = 0


class CorrectParams(AnsweringParams):
    """Failures answered anew; only what is right by ground truth is trained on.

    Attributes:
        by: `self` = the model that the stage stands on; else a teacher, or a file of recorded answers.
        critique: show the wrong answer, and ask what is wrong with it; otherwise the problem is asked anew.
    """

    by: Literal["self"] | Reference = "self"
    critique: bool = True


class RegressParams(Spec):
    """Whether what was right before still is (McNemar's test), or phase B is rolled back.

    Attributes:
        before, after: the stages that graded, of the kind `tune.grade`.
        margin: a loss of accuracy that is not worth a roll-back.
        alpha: level of the test.
    """

    before: str = "after"
    after: str = "after-b"
    margin: float = Field(default=0.05, ge=0, lt=1)
    alpha: float = Field(default=0.05, gt=0, lt=0.5)

    def problems(self, needed: Needed) -> list[Problem]:
        """What is wrong beside the stages that this one needs: checkpoints that could never be compared."""
        return _incomparable({"before": self.before, "after": self.after}, needed)


def _incomparable(sides: Mapping[str, str], needed: Needed) -> list[Problem]:
    """What the plan tells of two protocols, so that nothing is graded that `grading.protocol.comparable` would refuse.

    Scorer and items are known by the benchmark's source, as far as two sources never hold the same items. The template
    is that of one stage `model`, whose weights every checkpoint of a plan has: only its tokenizer's files could change.
    """
    stages = {**needed.directly(GradeParams), **needed.directly(ReferenceParams)}
    if unknown := {key: stage for key, stage in sides.items() if stage not in stages}:
        text = f"is to be compared, and is no stage of `needs` that grades; such stages: {', '.join(stages) or 'none'}"
        return [Problem((key,), f"`{stage}` {text}") for key, stage in unknown.items()]
    (_, one), (key, other) = sides.items()
    told = [*_decodings(stages[one], stages[other]), *_items(one, other, needed)]
    text = "; grade both under one protocol: the same template, decoding, scorer and items"
    return [Problem((key,), f"`{one}` and `{other}` cannot be compared: {why}{text}") for why in told]


def _decodings(one: Spec, other: Spec) -> list[str]:
    """Where two checkpoints of ours would answer differently; a reference has its own decoding."""
    if not isinstance(one, GradeParams) or not isinstance(other, GradeParams):
        return []
    first, second = one.decoding.model_dump(), other.decoding.model_dump()
    different = [f"{key} {first[key]!r} and {second[key]!r}" for key in first if first[key] != second[key]]
    return [f"decoding: {', '.join(different)}"] if different else []


def _items(one: str, other: str, needed: Needed) -> list[str]:
    """Where one side's benchmarks are not graded by the other, or are other items there."""
    sources = [needed.direct[side].directly(TuneDataParams) for side in (one, other)]
    if any(len(found) != 1 for found in sources):
        return []  # the stages themselves say which data they lack
    (here,), (there,) = (found.values() for found in sources)
    graded = [_names(needed[side], data) for side, data in ((one, here), (other, there))]
    shared = [name for name in graded[0] if name in graded[1]]
    told = [f"{other} does not grade {name}" for name in graded[0] if name not in shared]
    different = [name for name in shared if here.items_of(name) != there.items_of(name)]
    return told + [f"items of {name}: the stages' data are of different sources" for name in different]


def _names(graded: Spec, data: TuneDataParams) -> Sequence[str]:
    assert isinstance(graded, GradeParams | ReferenceParams)
    return graded.benchmarks or tuple(data.benchmarks)
