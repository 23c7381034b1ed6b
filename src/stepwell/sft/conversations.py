"""Conversations to train on, from JSONL in any of the three usual forms."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepwell.chat import Message
from stepwell.errors import StepwellError
from stepwell.tasks.sources import read_text

__all__ = ["FORMAT", "ROLES", "Conversation", "read_conversations"]

FORMAT = (
    "one JSON object a line: `messages` (a list of {role, content}), or `instruction` (with `input` or without) and "
    "`response` or `output`, or `prompt` and `completion`"
)
ROLES = ("system", "user", "assistant")
PAIRS = (("instruction", ("response", "output")), ("prompt", ("completion",)))
"""The key of what is asked, and the keys under which its answer may be."""


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """One example to train on.

    Attributes:
        id: unique in its set.
        messages: `role` (system, user or assistant) and `content`; the last is an assistant's.
        category: of the task, such as `maths`; None where nothing says it.
    """

    id: str
    messages: tuple[Message, ...]
    category: str | None = None

    @property
    def asked(self) -> str:
        """What the user says, all turns together."""
        return "\n".join(message["content"] for message in self.messages if message["role"] == "user")

    @property
    def answers(self) -> tuple[str, ...]:
        """What the assistant says, turn by turn."""
        return tuple(message["content"] for message in self.messages if message["role"] == "assistant")


def read_conversations(file: Path | str) -> list[Conversation]:
    """The conversations of a JSONL file. The forms may be mixed; an `id` that is missing is `<file stem>-<line>`.

    Raises:
        StepwellError: the file is missing, empty or not JSON; a line is in no known form, lacks a key, or holds another
            type under it (the error names line and key); an id is given twice.
    """
    path = Path(file)
    found: dict[str, Conversation] = {}
    # Cut at line feeds alone: JSON may hold the other line ends of Unicode inside a text.
    for number, line in enumerate(read_text(path, FORMAT).split("\n"), start=1):
        if not line.strip():
            continue
        conversation = _Line(path, number).read(line)
        if conversation.id in found:
            raise StepwellError(
                f"line {number}: the id {conversation.id!r} is given twice", "give each line its own id", path=path
            )
        found[conversation.id] = conversation
    return list(found.values())


@dataclass(frozen=True)
class _Line:
    """One line of a file, for errors that name it."""

    path: Path
    number: int

    def read(self, line: str) -> Conversation:
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise self.refusal(f"not JSON: column {error.colno}: {error.msg}") from None
        if not isinstance(entry, dict):
            raise self.refusal(f"a {type(entry).__name__}, not an object")
        category = entry.get("category")
        if category is not None and not isinstance(category, str):
            raise self.refusal(f"`category` is a {type(category).__name__}, not a text")
        name = str(entry.get("id", f"{self.path.stem}-{self.number:06d}"))
        return Conversation(id=name, messages=tuple(self.messages(entry)), category=category)

    def messages(self, entry: Mapping[str, Any]) -> Sequence[Message]:
        if "messages" in entry:
            return self.chat(entry["messages"])
        for asked, answers in PAIRS:
            if asked in entry:
                return self.pair(entry, asked, answers)
        keys = ", ".join(f"`{key}`" for key in entry) or "no key"
        raise self.refusal(f"in no known form: it has {keys}")

    def pair(self, entry: Mapping[str, Any], asked: str, answers: Sequence[str]) -> list[Message]:
        given = [key for key in answers if key in entry]
        if len(given) != 1:
            named = " or ".join(f"`{key}`" for key in answers)
            raise self.refusal(f"{named} is missing" if not given else f"{named}: both are given")
        question = self.text(entry, asked)
        if asked == "instruction" and entry.get("input"):
            question = f"{question}\n\n{self.text(entry, 'input')}"
        system = [{"role": "system", "content": self.text(entry, "system")}] if entry.get("system") else []
        user, answer = {"role": "user", "content": question}, self.text(entry, given[0])
        return [*system, user, {"role": "assistant", "content": answer}]

    def chat(self, given: Any) -> list[Message]:
        if not isinstance(given, list) or not given:
            raise self.refusal("`messages` is no list with something in it")
        made: list[Message] = []
        for place, message in enumerate(given):
            if not isinstance(message, dict):
                raise self.refusal(f"`messages[{place}]` is a {type(message).__name__}, not an object")
            role = message.get("role")
            if role not in ROLES:
                raise self.refusal(f"`messages[{place}].role` is {role!r}, not one of {', '.join(ROLES)}")
            made.append({"role": role, "content": self.text(message, "content", f"messages[{place}].")})
        if made[-1]["role"] != "assistant":
            raise self.refusal(f"`messages` ends with the {made[-1]['role']}: there is no answer to learn")
        return made

    def text(self, entry: Mapping[str, Any], key: str, place: str = "") -> str:
        value = entry.get(key)
        if not isinstance(value, str):
            cause = "missing" if key not in entry else f"a {type(value).__name__}, not a text"
            raise self.refusal(f"`{place}{key}` is {cause}")
        if not value.strip():
            raise self.refusal(f"`{place}{key}` is empty")
        return value

    def refusal(self, cause: str) -> StepwellError:
        return StepwellError(f"line {self.number}: {cause}", f"expected {FORMAT}", path=self.path)
