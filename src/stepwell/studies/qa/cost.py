"""What questions about a text will cost: FLOP and memory traffic by arithmetic, before anything runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stepwell.devices import Precision, Work
from stepwell.studies.imprint.cost import KNOWN as OTHERS
from stepwell.studies.qa.params import Generated, QADataParams, QAModelParams, TextParams

AROUND = 61
"""Tokens of template, instruction and question, as SmolLM2 cuts them."""
A_SENTENCE = 12
"""Tokens of a generated sentence."""
SQUAD = 185
"""Tokens of a paragraph of SQuAD."""
KNOWN = OTHERS | {"meta-llama/Llama-3.1-8B-Instruct": (6_979_588_096, 4_096, 128_256)}
"""Parameters of the layers, width and vocabulary of models that need not be at hand to be planned with."""
BYTES = {"fp32": 4, "bf16": 2}


@dataclass(frozen=True, kw_only=True)
class Reader:
    """A model that answers.

    Attributes:
        layers: parameters of its layers.
        width, vocabulary: D and V.
        prompt: tokens of a prompt, about.
        anchor, answer: tokens of the anchor, about, and the most that are written.
        precision: of weights and computation.
    """

    layers: int
    width: int
    vocabulary: int
    prompt: int
    anchor: int = 8
    answer: int
    precision: Precision

    @property
    def head(self) -> int:
        """Parameters of the output layer."""
        return self.width * self.vocabulary

    def answering(self, items: int, batch_size: int) -> Work:
        """Reading prompts once and writing answers, as if each took as many tokens as it may.

        Every token that a batch writes takes all weights through memory once; that, not arithmetic, is what decoding
        costs. The first gold answer, whose nats are measured, is a few tokens more and not counted.
        """
        columns = self.prompt + self.anchor + self.answer
        flop = 2.0 * items * (columns * self.layers + self.answer * self.head)
        moved = math.ceil(items / batch_size) * (1 + self.answer) * (self.layers + self.head)
        return Work(
            flop=flop, bytes=float(moved * BYTES[self.precision]), tokens=items * columns, precision=self.precision
        )


def reader(inputs: Mapping[str, Any]) -> Reader | None:
    """The model of the stages `data` and `model`; None where its size is not known."""
    model: QAModelParams = inputs["model"]
    found = KNOWN.get(model.name)
    if found is None:
        return None
    layers, width, vocabulary = found
    contract = model.contract
    return Reader(
        layers=layers, width=width, vocabulary=vocabulary, answer=contract.max_answer_tokens,
        prompt=min(contract.max_prompt_tokens, prompt_tokens(inputs["data"])), precision=model.precision,
    )  # fmt: skip


def prompt_tokens(data: QADataParams) -> int:
    """Tokens of a prompt, about, where no limit cuts it."""
    source = data.source
    return AROUND + (A_SENTENCE * source.sentences if isinstance(source, Generated) else SQUAD)


def tested(data: QADataParams, items: int) -> int:
    """Items of the test set that are asked; `items` as of the stages: 0 = all."""
    return min(items, data.n_test) if items else data.n_test


def times(work: Work, n: int) -> Work:
    """The same work, n times."""
    return Work(flop=n * work.flop, bytes=n * work.bytes, tokens=n * work.tokens, precision=work.precision)


def of_text(params: TextParams, axes: Mapping[str, Any], inputs: Mapping[str, Any]) -> Work | None:
    """The text, the ceiling, and each budget, as if a cut text were as long as a whole one."""
    known = reader(inputs)
    if known is None:
        return None
    once = known.answering(tested(inputs["data"], params.items), params.batch_size)
    return times(once, 2 + len(params.cut_tokens) + len(params.cut_bytes))
