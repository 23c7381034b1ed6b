"""Items as they are put to a model, and the mark that ground truth gives an answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stepwell.chat import Message
from stepwell.errors import StepwellError
from stepwell.grading.protocol import Decoding, Protocol, items_fingerprint
from stepwell.grading.records import Category, Record, Result, Status
from stepwell.tasks import final_number
from stepwell.tasks.base import QA, Scorer
from stepwell.tasks.gsm8k import MathItem
from stepwell.tasks.squad import score as score_squad

if TYPE_CHECKING:
    from stepwell.sandbox import Outcome, Program

Execute = Callable[[Sequence["Program"]], Sequence["Outcome"]]
Numbered = tuple[str, int]
"""An item's id and the number of the answer."""

MATHS = "\n\nThink step by step. End with #### and the final number."
READING = "\n\nAnswer in as few words as possible, taken from the text."


@dataclass(frozen=True, kw_only=True)
class Question:
    """One item as it is asked.

    Attributes:
        id: unique within its benchmark.
        bare: the question without what stands around it in every prompt; overlaps are looked for in it.
        messages: the conversation, the last message the user's.
        reference: a right answer, written out; "" where there is none.
    """

    id: str
    bare: str
    messages: tuple[Message, ...]
    reference: str

    @property
    def prompt(self) -> str:
        """What the user asks last."""
        return self.messages[-1]["content"]


@dataclass(frozen=True, kw_only=True)
class Mark:
    """What ground truth says of one answer; see `Record`."""

    status: Status
    partial: float | None = None
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Questions and how answers to them are marked.

    Attributes:
        name: what results call it.
        category: of all its items.
        split: of the published set that the items are from; failures are mined from `train` only.
        scorer: name and version.
        questions: with ids of their own.
        mark: (id, number) -> text to (id, number) -> mark.
    """

    name: str
    category: Category
    split: str
    scorer: str
    questions: tuple[Question, ...]
    mark: Callable[[Mapping[Numbered, str]], Mapping[Numbered, Mark]]

    @property
    def bare(self) -> dict[str, str]:
        """The bare questions by id, for `Overlap.of`."""
        return {question.id: question.bare for question in self.questions}

    def protocol(self, template: str, decoding: Decoding) -> Protocol:
        """The protocol of answers to it, written through a chat format with this fingerprint."""
        asked = [(question.id, question.messages, question.reference) for question in self.questions]
        return Protocol(template=template, decoding=decoding, scorer=self.scorer, items=items_fingerprint(asked))


def gsm8k(items: Sequence[MathItem], *, split: str, ask: str = MATHS, name: str = "gsm8k") -> Benchmark:
    """Problems with one number as the answer; `ask` follows each question. The reference is the written solution."""
    questions = tuple(_question(item.id, item.question, item.question + ask, item.plain_solution) for item in items)
    return _of_texts(name, "maths", split, "final-number/1", questions, items, final_number.score)


def squad(items: Sequence[QA], *, split: str, ask: str = READING, name: str = "squad") -> Benchmark:
    """Questions about a paragraph; the whole answer is scored, exact match after SQuAD's normal form."""
    questions = tuple(
        _question(item.id, item.question, f"{item.context}\n\n{item.question}{ask}", item.answer or "")
        for item in items
    )
    return _of_texts(name, "reading", split, "squad-exact/1", questions, items, score_squad)


def code(
    name: str,
    prompts: Mapping[str, str],
    references: Mapping[str, str],
    *,
    split: str,
    program: Callable[[str, str], Program],
    execute: Execute,
) -> Benchmark:
    """Problems whose answers are executed against hidden tests.

    Args:
        name: of the benchmark.
        prompts: by id.
        references: right programs, by id.
        split: see `Benchmark`.
        program: (id, answer) -> what is executed.
        execute: runs programs in a sandbox; one outcome a program, in order.
    """
    questions = tuple(_question(one, prompt, prompt, references[one]) for one, prompt in prompts.items())

    def mark(answers: Mapping[Numbered, str]) -> dict[Numbered, Mark]:
        outcomes = execute([program(one, text) for (one, _), text in answers.items()])
        told: dict[str, Status] = {"passed": "right", "failed": "wrong"}
        return {
            number: Mark(status=told.get(outcome.status) or _status(outcome), why=outcome.detail)
            for number, outcome in zip(answers, outcomes, strict=True)
        }

    return Benchmark(name=name, category="code", split=split, scorer=f"{name}-tests/1", questions=questions, mark=mark)


def open_ended(name: str, prompts: Mapping[str, str], *, split: str) -> Benchmark:
    """Prompts, by id, that no ground truth decides about; only a judge can."""
    questions = tuple(_question(one, prompt, prompt, "") for one, prompt in prompts.items())
    return Benchmark(
        name=name, category="open", split=split, scorer="none", questions=questions,
        mark=lambda answers: {key: Mark(status="silent", why="no ground truth") for key in answers},
    )  # fmt: skip


def grade(
    benchmark: Benchmark,
    answers: Mapping[str, str | Sequence[str]],
    *,
    model: str,
    protocol: Protocol,
    stops: Mapping[Numbered, str] | None = None,
    unanswered: Mapping[str, str] | None = None,
) -> Result:
    """Mark one answer, or several, for each item.

    Args:
        benchmark: what was asked.
        answers: by item.
        model: what wrote them.
        protocol: how they came about; of this benchmark, see `Benchmark.protocol`.
        stops: how each answer ended, where that is known.
        unanswered: items to which no answer could be had, and why: they are not marked.

    Raises:
        StepwellError: items without an answer, answers to other items, or a protocol of other items or another scorer.
    """
    own = benchmark.protocol(protocol.template, protocol.decoding)
    if own != protocol:
        raise StepwellError(
            f"the protocol is not of the items and the scorer of {benchmark.name}",
            "take it from the benchmark that is graded",
        )
    known = {question.id for question in benchmark.questions}
    if different := sorted(known ^ answers.keys()):
        lacking = [one for one in different if one in known]
        cause = (
            f"{len(lacking)} of {len(known)} items of {benchmark.name} have no answer, {lacking[0]!r} for one"
            if lacking
            else f"{len(different)} answers are to no item of {benchmark.name}, {different[0]!r} for one"
        )
        raise StepwellError(cause, 'give one answer for each item, "" where a model wrote nothing')
    numbered = {
        (one, number): text
        for one, given in sorted(answers.items())
        for number, text in enumerate([given] if isinstance(given, str) else given)
    }
    without = unanswered or {}
    marked = dict(benchmark.mark({key: text for key, text in numbered.items() if key[0] not in without}))
    marked |= {key: Mark(status="unanswered", why=without[key[0]]) for key in numbered if key[0] in without}
    records = tuple(
        Record(
            id=key[0], sample=key[1], text=text, status=marked[key].status, partial=marked[key].partial,
            why=marked[key].why, stop=(stops or {}).get(key, ""),
        )
        for key, text in numbered.items()
    )  # fmt: skip
    return Result(
        model=model, benchmark=benchmark.name, category=benchmark.category, protocol=protocol, records=records
    )


def _question(name: str, bare: str, prompt: str, reference: str) -> Question:
    return Question(id=name, bare=bare, messages=({"role": "user", "content": prompt},), reference=reference)


def _status(outcome: Outcome) -> Status:
    assert outcome.status not in ("passed", "failed")
    return outcome.status


def _of_texts(
    name: str,
    category: Category,
    split: str,
    scorer: str,
    questions: tuple[Question, ...],
    items: Sequence[QA],
    score: Scorer,
) -> Benchmark:
    by_id = {item.id: item for item in items}

    def mark(answers: Mapping[Numbered, str]) -> dict[Numbered, Mark]:
        scores = {key: score(by_id[key[0]], text) for key, text in answers.items()}
        return {
            key: Mark(status="right" if found.exact else "wrong", partial=found.partial, why=found.why)
            for key, found in scores.items()
        }

    return Benchmark(name=name, category=category, split=split, scorer=scorer, questions=questions, mark=mark)
