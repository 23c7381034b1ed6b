"""What a task is to the rest of Stepwell: items with a question, written steps and an answer, and a file format."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar


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

    def options(self) -> tuple[str, str]:
        """The right answer's sentence and the wrong one's, for the forced choice."""
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
