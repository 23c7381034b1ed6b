"""Questions with written steps and an answer, and nothing else: no graph, and not two options to choose from.

The format of `facebookresearch/coconut` for GSM8K-Aug (`"steps": ["<<600*30/100=180>>"], "answer": "360"`) and ProntoQA
(`"answer": "True"`): a JSON list of {question, steps, answer}. Other fields are not read.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepwell.errors import StepwellError
from stepwell.tasks.final_number import whole_number_of
from stepwell.tasks.prosqa.items import missing_fields, read_json_list

FORMAT = "a JSON list of objects with question, steps (a list of texts) and answer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """One question with its steps and its answer.

    Attributes:
        id: unique within a file: `<file stem>-<place>`.
    """

    id: str
    question: str
    steps: tuple[str, ...]
    answer: str

    @property
    def hops(self) -> int:
        """The number of written steps."""
        return len(self.steps)

    def options(self) -> tuple[str, ...]:
        """The answer alone: there is no wrong one to hold against it."""
        return (self.answer,)

    def is_right(self, said: str) -> bool:
        """Whether a text is the answer: the same text, or the same number (`1,000` and `1000.0`)."""
        if said.strip() == self.answer:
            return True
        number = whole_number_of(self.answer)
        return number is not None and whole_number_of(said) == number

    def chain_is_valid(self, lines: Sequence[str]) -> None:
        """None: without facts nothing says whether steps are valid."""
        return

    def to_json(self) -> dict[str, Any]:
        """The item as a file holds it: without its id."""
        return {"question": self.question, "steps": list(self.steps), "answer": self.answer}


def load_written(path: Path | str) -> list[Written]:
    """Items of a file.

    Raises:
        StepwellError: the file is missing, empty, not JSON, or not a list of objects; or an item lacks a field.
    """
    path = Path(path)
    entries = read_json_list(path, FORMAT)
    for place, entry in enumerate(entries):
        if missing := missing_fields(textual(entry)):
            cause = f"item {place}: {', '.join(missing)} missing or of another type"
            raise StepwellError(cause, f"expected {FORMAT}", path=path)
    return [
        Written(
            id=f"{path.stem}-{place:05d}", question=entry["question"].strip(), answer=entry["answer"].strip(),
            steps=tuple(entry["steps"]),
        )
        for place, entry in enumerate(entries)
    ]  # fmt: skip


def up_to_spaces(question: str) -> str:
    """What questions are compared by."""
    return " ".join(question.split())


def textual(entry: dict[str, Any]) -> dict[str, Any]:
    """The fields of an entry that are read."""
    return {name: entry[name] for name in ("question", "steps", "answer") if name in entry}


def write_written(path: Path, items: Sequence[Written]) -> None:
    """Write items, one a line, in one JSON list."""
    path.write_text(json.dumps([item.to_json() for item in items]) + "\n", encoding="utf-8")
