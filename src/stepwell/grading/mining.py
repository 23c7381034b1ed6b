"""Failures to train on: items that we lost by ground truth, from training splits, that are in no evaluation set."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from stepwell.errors import StepwellError
from stepwell.grading.benchmarks import Benchmark
from stepwell.grading.records import Result
from stepwell.grading.versus import Versus
from stepwell.sft.conversations import Conversation
from stepwell.sft.overlap import Overlap
from stepwell.spec import Scalar
from stepwell.store.files import write_atomically


@dataclass(frozen=True, kw_only=True)
class Failure:
    """One lost item.

    Attributes:
        id: of the item.
        category: of the benchmark.
        prompt: what was asked.
        wrong: what our model answered.
        reference: a right answer.
        why: what makes the answer wrong.
    """

    id: str
    category: str
    prompt: str
    wrong: str
    reference: str
    why: str

    def conversation(self) -> Conversation:
        """The prompt with its reference, to be trained on."""
        messages = ({"role": "user", "content": self.prompt}, {"role": "assistant", "content": self.reference})
        return Conversation(id=self.id, messages=messages, category=self.category)


@dataclass(frozen=True, kw_only=True)
class Mined:
    """The failures of one comparison.

    Attributes:
        failures: to train on.
        contaminated: (id, evaluation item) of failures that are in an evaluation set, which were left out.
        without: ids of failures without a written reference, which were left out.
        ties: items that both got wrong: never trained on, but worth knowing.
    """

    failures: tuple[Failure, ...]
    contaminated: tuple[tuple[str, str], ...]
    without: tuple[str, ...]
    ties: int


def mine(found: Versus, ours: Result, benchmark: Benchmark, evaluation: Overlap) -> Mined:
    """The failures of a comparison: losses by ground truth only, never ties, never what a judge said.

    Args:
        found: the comparison with the reference model.
        ours: our answers in it.
        benchmark: what was asked.
        evaluation: the bare questions of all evaluation sets, none of which may be trained on.

    Raises:
        StepwellError: the benchmark is not of a training split, or the result is of another benchmark.
    """
    if benchmark.split != "train":
        raise StepwellError(
            f"failures on the split {benchmark.split!r} of {benchmark.name} would be trained on",
            "mine a training split: items of a test or validation split are for evaluation only",
        )
    own = benchmark.protocol(ours.protocol.template, ours.protocol.decoding)
    if ours.benchmark != benchmark.name or own != ours.protocol:
        raise StepwellError(
            f"the result of {ours.benchmark} is not one of the items of {benchmark.name}",
            "mine the result together with the benchmark that was graded",
        )
    answers, asked = ours.first_answers, {question.id: question for question in benchmark.questions}
    failures, contaminated, without = [], [], []
    for name in found.ids("loss", by="truth"):
        question, answer = asked[name], answers[name]
        seen = evaluation.find(question.bare)
        if seen is not None:
            contaminated.append((name, seen))
        elif not question.reference.strip():
            without.append(name)
        else:
            failures.append(
                Failure(
                    id=name, category=benchmark.category, prompt=question.prompt, wrong=answer.text,
                    reference=question.reference, why=answer.why,
                )
            )  # fmt: skip
    ties = sum(match.why == "both wrong" for match in found.matches)
    return Mined(failures=tuple(failures), contaminated=tuple(contaminated), without=tuple(without), ties=ties)


def write_failures(path: Path, failures: Iterable[Failure]) -> None:
    """One JSON object a failure, in order; whole or not at all."""
    write_atomically(path, "".join(json.dumps(asdict(one), ensure_ascii=False) + "\n" for one in failures))


def read_failures(path: Path) -> list[Failure]:
    """What `write_failures` wrote. Raises StepwellError, with the line, for anything else."""
    found: list[Failure] = []
    try:
        for line in path.read_text(encoding="utf-8").split("\n"):
            if line:
                found.append(Failure(**json.loads(line)))
    except (OSError, ValueError, TypeError) as error:
        raise StepwellError(
            f"line {len(found) + 1} is no failure: {error}", "mine the failures again", path=path
        ) from None
    return found


def with_replay(
    failures: Sequence[Failure], first: Sequence[Conversation], *, share: float, seed: Scalar = 0
) -> list[Conversation]:
    """The data of phase B: failures, and so many of the first data set that they are the share asked for.

    Which ones are drawn depends on their ids and the seed alone; failures that are in the first data set are not drawn
    again.

    Raises:
        StepwellError: the share is not in [0, 1), or the first data set is too small for it.
    """
    if not 0 <= share < 1:
        raise StepwellError(f"a replay share of {share:g}", "give a share from 0 up to, and without, 1")
    known = {failure.id for failure in failures}
    old = sorted(
        (one for one in first if one.id not in known),
        key=lambda one: hashlib.sha256(f"{seed}\0{one.id}".encode()).digest(),
    )
    # A hair less, or the rounding of .9 / .1 would ask for one more.
    wanted = math.ceil(len(failures) * share / (1 - share) - 1e-9)
    if wanted > len(old):
        raise StepwellError(
            f"a replay share of {share:g} beside {len(failures)} failures takes {wanted} examples, of {len(old)}",
            "lower the share, or name the whole first data set",
        )
    return [*(failure.conversation() for failure in failures), *old[:wanted]]
