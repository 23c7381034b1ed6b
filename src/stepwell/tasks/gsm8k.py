"""GSM8K: school problems in words, with written solutions that end in `#### number`.

Cobbe et al. 2021 (arXiv 2110.14168). Read from the official files or from the hub, as `openai/gsm8k:main`. Only the
final number decides (`stepwell.tasks.final_number`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from stepwell.errors import StepwellError
from stepwell.tasks.base import QA, check_ids
from stepwell.tasks.final_number import final_number, score
from stepwell.tasks.sources import Entry, Source, entries, hub_id, items_of

__all__ = ["FORMAT", "MathItem", "load_gsm8k", "score"]

FORMAT = 'one object a line, {"question", "answer"}, whose answer is a solution that ends in "#### " and a number'
CALCULATOR = re.compile(r"<<[^<>\n]*>>")


@dataclass(frozen=True, slots=True, kw_only=True)
class MathItem(QA):
    """A problem whose answer is one number.

    Attributes:
        solution: the written solution as it is published, with `<<48/2=24>>` and `#### 24`.
    """

    solution: str

    @property
    def plain_solution(self) -> str:
        """The solution without the calculator's annotations, for models that have no calculator."""
        return CALCULATOR.sub("", self.solution)


def load_gsm8k(source: Source, *, split: str = "test") -> list[MathItem]:
    """The problems of a file or a hub set, in its order; the one answer is the final number, without commas.

    Args:
        source: a path, or `owner/name:configuration` on the hub.
        split: of a hub set. It is part of the ids, or training and test would share them.

    Raises:
        StepwellError: the file is missing, empty, not JSON or in another format, the set cannot be had, a solution
            has no `#### number`, or two problems have one id.
    """
    prefix = f"{split}-" if hub_id(source) else ""
    found = entries(source, split, FORMAT)
    items = [
        item
        for item in items_of(found, source, FORMAT, lambda entry, name: _item(entry, prefix + name))
        if isinstance(item, MathItem)
    ]
    check_ids(items, str(source))
    if without := [item.id for item in items if not item.answers]:
        raise StepwellError(
            f"{len(without)} of {len(items)} solutions do not end in #### and a number, {without[0]!r} for one",
            f"expected {FORMAT}",
            path=source,
        )
    return items


def _item(entry: Entry, name: str) -> MathItem | None:
    question, solution = entry.get("question"), entry.get("answer")
    if not isinstance(question, str) or not isinstance(solution, str) or not question.strip():
        return None
    number = final_number(solution)
    answers = (number.text.replace(",", ""),) if number is not None and number.form == "hashes" else ()
    return MathItem(id=str(entry.get("id", name)), question=question.strip(), answers=answers, solution=solution)
