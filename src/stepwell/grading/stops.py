"""How answers ended: the diagnosis without which a teacher's outputs may be cut off, four of five, and nobody knows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from stepwell.grading.decoding import Stop, Written
from stepwell.stats import Estimate, wilson

MOST_CUT = 0.05
"""A larger share of answers that were cut off is a red flag."""


@dataclass(frozen=True, kw_only=True)
class Stops:
    """How a set of answers ended.

    Attributes:
        counts: by way of ending; the sum is the number of answers.
        cut: share that a limit cut off, with Wilson's interval.
        looping: answers that were cut off while they repeated themselves; None where their tokens are not known.
        empty: answers without any text.
        longest: new tokens of the longest; None where they are not known.
    """

    counts: Mapping[str, int]
    cut: Estimate
    looping: int | None
    empty: int
    longest: int | None

    @classmethod
    def of(cls, written: Sequence[Written]) -> Stops:
        """Of answers, as they were written."""
        told = cls.told([(one.text, one.stop) for one in written])
        looping = sum(one.looping for one in written)
        return replace(told, looping=looping, longest=max((one.tokens for one in written), default=0))

    @classmethod
    def told(cls, answers: Sequence[tuple[str, Stop]]) -> Stops:
        """Of texts from elsewhere, each with its way of ending."""
        counts = Counter(stop for _, stop in answers)
        cut = counts["length"] + counts["positions"] + counts["no room"]
        empty = sum(not text.strip() for text, _ in answers)
        return cls(
            counts=dict(sorted(counts.items())), cut=wilson(cut, len(answers)), looping=None, empty=empty, longest=None
        )

    @property
    def red_flag(self) -> str:
        """A warning where too many answers were cut off; "" otherwise."""
        if self.cut.value is None or self.cut.value <= MOST_CUT:
            return ""
        total = sum(self.counts.values())
        cut = round(self.cut.value * total)
        says = f"{cut} of {total} answers ({self.cut.value:.0%}) were cut off by a limit"
        if self.looping:
            return f"{says}, {self.looping} of them while they repeated themselves: see that the end of turn is learnt"
        return f"{says}: raise max_tokens, or see that the end of turn is learnt"
