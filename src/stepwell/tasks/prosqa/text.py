"""The sentences of ProsQA: writing them, and reading a graph back from them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from stepwell.tasks.prosqa.words import is_person

Fact = tuple[str, str]
"""Subject and concept: ("Tom", "terpus") is "Tom is a terpus.", ("terpus", "gerpus") "Every terpus is a gerpus."."""

_QUERY = re.compile(r"^(?:(.*) )?Is (\w+) a (\w+) or (a )?(\w+)\?$", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a question says.

    Attributes:
        facts: in the order of the text.
        root: the person asked about.
        options: the two concepts, in the order of the text.
        strays: sentences that state no fact in the template's words.
        second_article: the question says "or a X"; the template says "or X".
    """

    facts: tuple[Fact, ...]
    root: str
    options: tuple[str, str]
    strays: tuple[str, ...]
    second_article: bool


def fact_sentence(subject: str, concept: str) -> str:
    """A fact as the data words it."""
    return f"{subject} is a {concept}." if is_person(subject) else f"Every {subject} is a {concept}."


@lru_cache(maxsize=8192)  # the official vocabulary makes 2,052 sentences, and every file repeats them
def read_fact(sentence: str) -> Fact | None:
    """The fact that a sentence states, or None if it states none in the template's words."""
    words = sentence.strip().removesuffix(".").split(" ")
    if not sentence.rstrip().endswith("."):
        return None
    if len(words) == 5 and words[0] == "Every" and words[2] == "is" and words[3] == "a" and not is_person(words[1]):
        return words[1], words[4]
    if len(words) == 4 and words[1] == "is" and words[2] == "a" and is_person(words[0]) and words[0] != "Every":
        return words[0], words[3]
    return None


def sentences(text: str) -> list[str]:
    """The sentences of a text, each with its full stop where it has one."""
    return [part + "." if stop else part for part, stop in _split(text)]


def _split(text: str) -> Iterable[tuple[str, bool]]:
    for line in text.splitlines():
        parts = line.split(".")
        for place, part in enumerate(parts):
            if part.strip():
                yield part.strip(), place < len(parts) - 1


def read_question(question: str) -> Reading | None:
    """What a question says, or None where it does not end in "Is <person> a <concept> or <concept>?"."""
    match = _QUERY.match(question.strip())
    if match is None:
        return None
    body, root, first, article, second = match.groups()
    facts, strays = [], []
    for sentence in sentences(body or ""):
        fact = read_fact(sentence)
        if fact is None:
            strays.append(sentence)
        else:
            facts.append(fact)
    return Reading(
        facts=tuple(facts), root=root, options=(first, second), strays=tuple(strays), second_article=article is not None
    )


def steps_lead(facts: Iterable[Fact] | None, root: str, target: str, steps: Sequence[str]) -> bool:
    """Whether sentences form a path from root to target; each must be one of `facts` where these are given."""
    known = None if facts is None else frozenset(facts)
    at = root
    for step in steps:
        fact = read_fact(step)
        if fact is None or fact[0] != at or (known is not None and fact not in known):
            return False
        at = fact[1]
    return bool(steps) and at == target
