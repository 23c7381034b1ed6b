"""Parameters of the stage `qa.data`, and its kind. Nothing here needs torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from stepwell import kinds
from stepwell.latents.contract_specs import ContractParams
from stepwell.spec import DataFile, ModelName, Spec

Some = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]


class Generated(Spec):
    """Paragraphs of plain facts that Stepwell makes, each with questions whose answers are words of it.

    Attributes:
        sentences: of a paragraph.
    """

    kind: Literal["generated"] = "generated"
    sentences: Some = 6


class Squad(Spec):
    """SQuAD, v1 or v2.

    Attributes:
        file: in the official format or JSON lines; None = the hub set.
        hub, split: of the hub set.
    """

    kind: Literal["squad"] = "squad"
    file: DataFile | None = None
    hub: str = "rajpurkar/squad"
    split: str = "train"


class QADataParams(Spec):
    """Three splits that share no context.

    Attributes:
        source: where items come from.
        n_train: of training.
        n_held: held out for diagnostics while training; they steer nothing that is reported.
        n_test: reported.
        unanswerable: whether questions without an answer are kept, as in SQuAD 2.0.
        draw: seed of what is drawn and generated.
    """

    source: Annotated[Generated | Squad, Field(discriminator="kind")] = Generated()
    n_train: Some = 1000
    n_held: Some = 64
    n_test: Some = 200
    unanswerable: bool = False
    draw: Count = 0


class QAModelParams(Spec):
    """The language model that answers, and how it is asked.

    Attributes:
        name: hub id, folder or pulled name.
        precision: of weights and computation.
        contract: the prompt contract, the same for training, evaluation, baselines and controls.
    """

    name: ModelName
    precision: Literal["fp32", "bf16"] = "fp32"
    contract: ContractParams = ContractParams()


class TextParams(Spec):
    """What the model answers when it reads the text, whole and cut.

    Attributes:
        cut_tokens: token budgets M: context and question cut to so many tokens, the question kept.
        cut_bytes: byte budgets: cut to so many bytes of UTF-8, the question kept.
        items: the first so many of the test set; 0 = all.
        batch_size: items at a time.
        vllm: let vLLM write the answers where it is to be had and fit, else our own decoding; an event says why.
    """

    cut_tokens: tuple[Some, ...] = ()
    cut_bytes: tuple[Some, ...] = ()
    items: Count = 0
    batch_size: Some = 16
    vllm: bool = False


ITEM = frozenset({"set", "id", "condition", "question", "answers", "prediction", "em", "f1", "first_token", "bytes"})
ITEM |= {"first_top1", "first_top5", "nll_per_token", "nll_tokens", "tokens", "distinct", "stopped", "error_mode"}
ITEM |= {"columns"}

KINDS = (
    kinds.register(
        kinds.Kind(
            name="qa.data",
            params=QADataParams,
            run="stepwell.studies.qa.data:make",
            yields={
                "dataset": frozenset({"set", "n", "sha256", "source", "family", "contexts", "unanswerable"}),
                "check": frozenset({"name", "passed", "detail"}),
            },
        )
    ),
    kinds.register(
        kinds.Kind(
            name="qa.text",
            params=TextParams,
            run="stepwell.studies.qa.text:answer_text",
            yields={
                "item": ITEM,
                "check": frozenset({"name", "passed", "detail"}),
            },
            estimate="stepwell.studies.qa.cost:of_text",
        )
    ),
    kinds.register(
        kinds.Kind(
            name="qa.model",
            params=QAModelParams,
            run="stepwell.studies.qa.models:check",
            yields={
                "contract": frozenset({"fingerprint", "shown", "model", "precision", "parameters"}),
                "coverage": frozenset({"set", "n", "contexts_cut", "answers_lost", "answers_cut"}),
                "check": frozenset({"name", "passed", "detail"}),
            },
        )
    ),
)
