"""A small benchmark, answers to it, and a tiny chat model, for the tests of grading."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fit_models import tiny
from stepwell.backbone import HFBackbone
from stepwell.grading.benchmarks import Benchmark, grade, gsm8k
from stepwell.grading.protocol import Decoding
from stepwell.grading.records import Result
from stepwell.tasks.gsm8k import MathItem

TEMPLATE = "template-1"
STOPS = frozenset({1, 9, 17})


def items(n: int) -> list[MathItem]:
    """Problems whose answer is their place."""
    return [
        MathItem(
            id=f"p{i:03d}",
            question=f"Anna has {i} of the {words(i)}. How many?",
            answers=(str(i),),
            solution=f"#### {i}",
        )
        for i in range(n)
    ]


def words(i: int) -> str:
    """Words that no other problem has."""
    return " ".join(f"thing{i}x{j}" for j in range(14))


def benchmark(n: int, *, split: str = "train") -> Benchmark:
    """A benchmark of them."""
    return gsm8k(items(n), split=split)


def result(right: Sequence[bool], *, model: str = "m", split: str = "train", **decoding: Any) -> Result:
    """A result with these marks, under one template."""
    asked = benchmark(len(right), split=split)
    answers = {f"p{i:03d}": f"It is {i if ok else i + 1}." for i, ok in enumerate(right)}
    return grade(asked, answers, model=model, protocol=asked.protocol(TEMPLATE, Decoding(**decoding)))


class Letters:
    """A tokenizer of one letter an id."""

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        return "".join(chr(60 + number) for number in ids)


@dataclass(frozen=True)
class Form:
    """What decoding asks of a chat format."""

    stops: frozenset[int] = STOPS
    tokenizer: Letters = field(default_factory=Letters)

    def prompt(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        return [ord(sign) % 50 + 2 for sign in messages[-1]["content"][:12]]


def model() -> HFBackbone:
    """40 positions, 61 tokens."""
    return tiny("llama")
