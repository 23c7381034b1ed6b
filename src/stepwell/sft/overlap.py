"""Whether a text is among others, whole or in part: the check for evaluation items in a training set."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Self

from stepwell.errors import StepwellError

__all__ = ["Overlap", "words"]

COMMON = 10
"""An n-gram that more of the texts share is the set's own wording, and says nothing (as in GPT-3, arXiv 2005.14165)."""
WORD = re.compile(r"\w+")


def words(text: str) -> list[str]:
    """The words of a text in lower case; punctuation and white space do not count."""
    return WORD.findall(text.lower())


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """Texts, known by their words and by each run of `n` words (Brown et al. 2020, arXiv 2005.14165, appendix C).

    Attributes:
        n: words of a run.
        whole: the words of a text -> its id.
        runs: n words -> the id of the first text that has them.
    """

    n: int
    whole: Mapping[str, str]
    runs: Mapping[str, str]

    @classmethod
    def of(cls, texts: Mapping[str, str], n: int = 13) -> Self:
        """Index texts by id. One of fewer than `n` words is found as a whole only, one without words never.

        Raises:
            StepwellError: n below 1.
        """
        if n < 1:
            raise StepwellError(f"runs of {n} words are asked for", "give n of at least 1")
        whole: dict[str, str] = {}
        runs: dict[str, str] = {}
        count: dict[str, int] = {}
        for name, text in texts.items():
            found = words(text)
            if found:
                whole.setdefault(" ".join(found), name)
            for run in dict.fromkeys(_runs(found, n)):
                runs.setdefault(run, name)
                count[run] = count.get(run, 0) + 1
        return cls(n=n, whole=whole, runs={run: name for run, name in runs.items() if count[run] <= COMMON})

    def find(self, text: str) -> str | None:
        """The id of a text that is this one, or else of one that shares `n` words in a row with it; None = neither."""
        found = words(text)
        if (same := self.whole.get(" ".join(found))) is not None:
            return same
        return next((name for run in _runs(found, self.n) if (name := self.runs.get(run)) is not None), None)


def _runs(found: list[str], n: int) -> Iterator[str]:
    return (" ".join(found[start : start + n]) for start in range(len(found) - n + 1))
