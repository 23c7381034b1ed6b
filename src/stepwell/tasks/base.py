"""What a task is to the rest of Stepwell: items, and when an answer counts.

Items that are reasoned about have a question, written steps and an answer (`TaskItem`, `Task`). Items that are stored
and read back have a question and its answers only (`QA`), and a scorer that knows when a text is one of them.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from stepwell.errors import StepwellError


class TaskItem(Protocol):
    """One question with its written reasoning and its answer."""

    @property
    def id(self) -> str:
        """Unique within a file."""
        ...

    @property
    def question(self) -> str:
        """The whole prompt, without a line break at its end."""
        ...

    @property
    def steps(self) -> tuple[str, ...]:
        """The written reasoning, one sentence a step."""
        ...

    @property
    def answer(self) -> str:
        """The sentence that answers the question."""
        ...

    @property
    def hops(self) -> int:
        """How far the answer is away: the number of steps."""
        ...

    def options(self) -> tuple[str, ...]:
        """The right answer and the wrong one, for the forced choice; the right one alone where there are no two."""
        ...

    def is_right(self, said: str) -> bool:
        """Whether a written answer counts."""
        ...

    def chain_is_valid(self, lines: Sequence[str]) -> bool | None:
        """Whether written steps lead to the answer; None where nothing could say so."""
        ...


ItemType = TypeVar("ItemType", bound=TaskItem)


@dataclass(frozen=True, kw_only=True)
class Task(Generic[ItemType]):
    """A task: where its items come from, and when a written chain counts.

    Attributes:
        name: what plans call it.
        families: the names that `generate` knows.
        generate: (family, n, seed) -> n items, the same every time.
        load, write: the task's file format; StepwellError for what cannot be read or written.
        chain_is_valid: (item, text or sentences) -> whether the steps lead from the question to its answer.
    """

    name: str
    families: tuple[str, ...]
    generate: Callable[[str, int, int], list[ItemType]]
    load: Callable[[Path], list[ItemType]]
    write: Callable[[Path, Sequence[ItemType]], None]
    chain_is_valid: Callable[[ItemType, str | Sequence[str]], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class QA:
    """A question with its answers, as bare texts: no template, no prompt.

    Attributes:
        id: unique within its set.
        question: what is asked; "" where there is only a text to keep.
        answers: all answers that count, the one to be learnt first; empty where the question has none.
        context: what may stand before the question, such as a paragraph or demonstrations; None where nothing does.
    """

    id: str
    question: str
    answers: tuple[str, ...]
    context: str | None = None

    @property
    def answer(self) -> str | None:
        """The answer to be learnt; None where the question has none."""
        return self.answers[0] if self.answers else None

    def targets(self) -> dict[str, str]:
        """What a set of vectors has to hold: mode -> text. A mode without a text is left out."""
        return {mode: text for mode, text in (("question", self.question), ("answer", self.answer)) if text}


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How well a text answers a question.

    Attributes:
        exact: whether it counts as right.
        partial: the share of it that is right, in [0, 1]; what it is a share of, the task's scorer says. None where it
            is undefined.
        why: why `partial` is undefined, or what makes the text wrong; "" where nothing needs saying.
    """

    exact: bool
    partial: float | None
    why: str = ""


class Scorer(Protocol):
    """Whether a text answers a question."""

    def __call__(self, item: QA, text: str) -> Score:
        """The score of a text, whatever it is, even an empty one. ValueError where the item is of another task."""
        ...


def sample(items: Sequence[QA], n: int, seed: int = 0) -> list[QA]:
    """`n` items at random: the first of one order for the seed, so that a larger sample contains a smaller one.

    The order comes from hashes of the ids: it does not depend on the order of the items, nor on which others there
    are, except for those that are drawn instead.

    Raises:
        StepwellError: n is below 1, or there are fewer items.
    """
    if not 1 <= n <= len(items):
        raise StepwellError(f"{n} items asked for, of {len(items)}", f"ask for 1 to {len(items)} items")
    return sorted(items, key=lambda item: hashlib.sha256(f"{seed}\0{item.id}".encode()).digest())[:n]


def check_ids(items: Iterable[QA], source: str) -> None:
    """Refuse a set in which two items have one id: records are joined by it.

    Raises:
        StepwellError: an id is given twice.
    """
    twice = sorted(name for name, count in Counter(item.id for item in items).items() if count > 1)
    if twice:
        raise StepwellError(
            f"{len(twice)} ids are given to several items, {twice[0]!r} for one",
            "give each item its own id",
            path=source,
        )
