"""What questions about a text will cost: FLOP and memory traffic by arithmetic, before anything runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from stepwell.adapt.params import LoraParams
from stepwell.devices import Memory, Precision, Work
from stepwell.studies.qa.params import Generated, QADataParams, QAModelParams, TextParams

AROUND = 61
"""Tokens of template, instruction and question, as SmolLM2 cuts them."""
A_SENTENCE = 12
"""Tokens of a generated sentence."""
SQUAD = 185
"""Tokens of a paragraph of SQuAD."""
KNOWN = {
    "smollm2-135m": (106_203_456, 576, 49_152),
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": (1_610_711_040, 2_048, 49_152),
    "gpt2": (85_056_000, 768, 50_257),
    "meta-llama/Llama-3.1-8B-Instruct": (6_979_588_096, 4_096, 128_256),
}
"""Parameters of the layers, width and vocabulary of models that need not be at hand to be planned with."""
BYTES = {"fp32": 4, "bf16": 2}
LAYOUTS = {
    "smollm2-135m": (30, 1_536, 192, True),
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": (24, 8_192, 2_048, True),
    "gpt2": (12, 3_072, 768, True),
    "meta-llama/Llama-3.1-8B-Instruct": (32, 14_336, 1_024, False),
}
"""Layers, inner width, width of keys, and whether the head is the embedding, of the same models."""
FLOAT = 4
"""Bytes of a number in fp32, in which norms, losses and everything trained are."""
TRAINED = 16
"""Bytes of a trained parameter: itself, its gradient and two moments of AdamW, in fp32."""
OF_LOGITS, OF_TAUGHT = 3, 6
"""Arrays of the size of the logits that a step holds: losses and gradient; with a teacher's to be compared."""


@dataclass(frozen=True, kw_only=True)
class Reader:
    """A model that answers.

    Attributes:
        layers: parameters of its layers.
        width, vocabulary: D and V.
        prompt: tokens of a prompt, about.
        anchor, answer: tokens of the anchor, about, and the most that are written.
        precision: of weights and computation.
        longest: tokens of a prompt at most.
        blocks, inner, keys: layers, width of their MLPs, and of their keys.
        tied: whether the head is the embedding transposed.
    """

    layers: int
    width: int
    vocabulary: int
    prompt: int
    anchor: int = 8
    answer: int
    precision: Precision
    longest: int
    blocks: int
    inner: int
    keys: int
    tied: bool

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
            flop=flop, bytes=float(moved * BYTES[self.precision]), tokens=items * columns, precision=self.precision,
            memory=self.asked(batch_size),
        )  # fmt: skip

    # Bytes.

    @property
    def weights(self) -> float:
        """Bytes of the frozen model."""
        return float(self.layers + self.head * (1 if self.tied else 2)) * BYTES[self.precision]

    def asked(self, batch_size: int) -> Memory:
        """A batch that is read and answered: its cache, and the widest moment of one layer."""
        columns, number = batch_size * (self.longest + self.anchor + self.answer), BYTES[self.precision]
        cache = 2.0 * columns * self.blocks * self.keys * number
        # Decoding appends by copying a layer's keys and values.
        at_work = columns * (6 * self.width + 3 * self.inner) * number
        logits = 3.0 * batch_size * (1 + self.answer) * self.vocabulary * FLOAT
        return Memory(weights=self.weights, activations=cache + at_work, logits=logits)

    def kept(self, adapted: float = 0.0) -> float:
        """Bytes that one column leaves for the backward pass through frozen layers.

        A frozen linear map needs its weight only, not what went in. What stays: what each norm read, in fp32; queries,
        keys and values (as wide as queries once repeated) and what attention gave; of the MLP three arrays of its
        inner width.

        Args:
            adapted: share of the layers that have LoRA on all linear maps, whose inputs stay too.
        """
        number = BYTES[self.precision]
        plain = 2 * FLOAT * self.width + number * (4 * self.width + 3 * self.inner)
        # Each LoRA reads its input in fp32: its own copy where the model is not.
        copies = 3 * self.width + self.inner if number == FLOAT else 6 * self.width + self.inner
        return self.blocks * (plain + adapted * FLOAT * copies)

    def adapters(self, lora: LoraParams) -> float:
        """Parameters of LoRA on the seven linear maps of its layers."""
        each = 2 * (self.width + self.width) + 2 * (self.width + self.keys) + 3 * (self.width + self.inner)
        return share_of(lora) * self.blocks * lora.rank * float(each)

    def judged(self, positions: float, *, taught: bool) -> float:
        """Bytes of the logits at supervised positions, with everything of their size."""
        return positions * self.vocabulary * FLOAT * (OF_TAUGHT if taught else OF_LOGITS)


def share_of(lora: LoraParams) -> float:
    """Of a model's layers, the share that has the adapter."""
    return 0.5 if lora.layers == "first half" else 1.0


def reader(inputs: Mapping[str, Any]) -> Reader | None:
    """The model of the stages `data` and `model`; None where its size is not known."""
    model: QAModelParams = inputs["model"]
    contract = model.contract
    return sized(
        model.name, prompt=min(contract.max_prompt_tokens, prompt_tokens(inputs["data"])),
        longest=contract.max_prompt_tokens, answer=contract.max_answer_tokens, precision=model.precision,
    )  # fmt: skip


def sized(name: str, **asked: Any) -> Reader | None:
    """A model of known size, asked as the other fields of `Reader` say; None where its size is not known."""
    if name not in KNOWN:
        return None
    layers, width, vocabulary = KNOWN[name]
    blocks, inner, keys, tied = LAYOUTS[name]
    return Reader(
        layers=layers, width=width, vocabulary=vocabulary, blocks=blocks, inner=inner, keys=keys, tied=tied, **asked
    )


def prompt_tokens(data: QADataParams) -> int:
    """Tokens of a prompt, about, where no limit cuts it."""
    source = data.source
    return AROUND + (A_SENTENCE * source.sentences if isinstance(source, Generated) else SQUAD)


def tested(data: QADataParams, items: int) -> int:
    """Items of the test set that are asked; `items` as of the stages: 0 = all."""
    return min(items, data.n_test) if items else data.n_test


def times(work: Work, n: int) -> Work:
    """The same work, n times, one after the other."""
    return replace(work, flop=n * work.flop, bytes=n * work.bytes, tokens=n * work.tokens)


def of_text(params: TextParams, axes: Mapping[str, Any], inputs: Mapping[str, Any]) -> Work | None:
    """The text, the ceiling, and each budget, as if a cut text were as long as a whole one."""
    known = reader(inputs)
    if known is None:
        return None
    once = known.answering(tested(inputs["data"], params.items), params.batch_size)
    return times(once, 2 + len(params.cut_tokens) + len(params.cut_bytes))
