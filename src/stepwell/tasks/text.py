"""Plain texts to be held whole: one mode, no question. Scored character by character."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import takewhile
from pathlib import Path

from stepwell.errors import StepwellError
from stepwell.tasks.base import QA, Score
from stepwell.tasks.sources import Entry, Source, entries, hub_id, items_of, read_text

FORMAT = "a plain text with empty lines between its parts, or objects with a field text"
PLAIN = frozenset({".txt", ".md"})
EMPTY_LINES = re.compile(r"\n[ \t]*(?:\n[ \t]*)+")


def load_text(source: Source, *, split: str = "train") -> list[QA]:
    """The texts of a file or a hub set: the parts between empty lines of a `.txt` or `.md`, else the fields `text`.

    Raises:
        StepwellError: the file is missing, empty, not JSON or in another format, or the set cannot be had.
    """
    path = Path(source)
    if hub_id(source) or path.suffix not in PLAIN:
        return items_of(entries(source, split, FORMAT), source, FORMAT, _item)
    parts = [part.strip() for part in EMPTY_LINES.split(read_text(path, FORMAT).replace("\r\n", "\n"))]
    return as_texts([part for part in parts if part], path.stem)


def as_texts(given: Iterable[str], name: str) -> list[QA]:
    """Texts as items, doubles left out; ids are `<name>-<place>`.

    Raises:
        StepwellError: a text is blank: there would be nothing to hold.
    """
    found = list(dict.fromkeys(given))
    if blank := sum(not text.strip() for text in found):
        raise StepwellError(f"{blank} of {len(found)} texts are blank", "leave them out", path=name)
    return [QA(id=f"{name}-{place:05d}", question="", answers=(text,)) for place, text in enumerate(found)]


def contexts(items: Iterable[QA]) -> list[str]:
    """The contexts of items, each once: real paragraphs to be held, where a set of questions brings them."""
    return list(dict.fromkeys(item.context for item in items if item.context))


def score(item: QA, text: str) -> Score:
    """Whether a text is the item's, character by character; `partial` is the share of it before the first fault."""
    gold = item.answers[0]
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(gold, text, strict=False)))
    return Score(exact=gold == text, partial=same / len(gold))


def _item(entry: Entry, name: str) -> QA | None:
    text = entry.get("text")
    if not isinstance(text, str) or not text.strip():
        return None
    return QA(id=str(entry.get("id", name)), question="", answers=(text,))
