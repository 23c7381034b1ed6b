"""How answers ended: the diagnosis without which a teacher's outputs may be cut off, four of five, and nobody knows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stepwell.grading.decoding import Written
from stepwell.stats import Estimate, wilson

MOST_CUT = 0.05
"""A larger share of answers that were cut off is a red flag."""


@dataclass(frozen=True, kw_only=True)
class Stops:
    """How a set of answers ended.

    Attributes:
        counts: by way of ending; the sum is the number of answers.
        cut: share that a limit cut off, with Wilson's interval.
        looping: answers that were cut off while they repeated themselves.
        empty: answers without any text.
        longest: new tokens of the longest.
    """

    counts: Mapping[str, int]
    cut: Estimate
    looping: int
    empty: int
    longest: int

    @classmethod
    def of(cls, written: Sequence[Written]) -> Stops:
        """Of answers, as they were written."""
        counts = Counter(one.stop for one in written)
        cut = counts["length"] + counts["positions"] + counts["no room"]
        return cls(
            counts=dict(sorted(counts.items())),
            cut=wilson(cut, len(written)),
            looping=sum(one.looping for one in written),
            empty=sum(not one.text.strip() for one in written),
            longest=max((one.tokens for one in written), default=0),
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
