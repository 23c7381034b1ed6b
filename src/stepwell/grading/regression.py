"""The gate of phase B: did training on failures break what was right before? McNemar's test decides, or more items.

Only what is shown not to be worse passes. Anything else is rolled back, and an inconclusive gate says how many items
it needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from stepwell.errors import StepwellError
from stepwell.grading.protocol import comparable
from stepwell.grading.records import Result, marks, paired
from stepwell.stats import Estimate, PValue, mcnemar_exact, n_to_decide, p_text, paired_difference, wilson

Verdict = Literal["pass", "roll back", "inconclusive"]


@dataclass(frozen=True, kw_only=True)
class Regression:
    """What became of items that were right before.

    Attributes:
        right_before: items that were.
        lost: those of them that are no longer.
        gained: items that are right now, and were not.
        left_out: items that could not be marked on one of the two sides.
        loss: share of the items right before that were lost, with Wilson's interval.
        difference: accuracy after less before, paired, with Newcombe's interval.
        p_value: McNemar's exact test of lost against gained, two-sided.
        margin: a loss of accuracy that is not worth a roll-back.
        verdict: `pass` = shown to have lost no more than the margin; `roll back` = shown to be worse; else
            `inconclusive`.
        needed: items that would decide, were the difference to stay; None where it is decided, or no number would do.
    """

    right_before: int
    lost: tuple[str, ...]
    gained: tuple[str, ...]
    left_out: tuple[str, ...]
    loss: Estimate
    difference: Estimate
    p_value: PValue
    margin: float
    verdict: Verdict
    needed: int | None

    @property
    def keep(self) -> bool:
        """Whether the new model is kept: only where the gate passes."""
        return self.verdict == "pass"

    @property
    def reason(self) -> str:
        """The verdict in one sentence."""
        seen = (
            f"{len(self.lost)} of {self.right_before} items that were right are no longer, {len(self.gained)} are "
            f"newly right (McNemar p = {p_text(self.p_value)})"
        )
        if self.verdict == "inconclusive":
            more = (
                f"about {self.needed} items would tell" if self.needed else "no number of items like these would tell"
            )
            return f"inconclusive, so rolled back: {seen}; {more}"
        ends = f"the loss is shown to be below {self.margin:.0%}" if self.keep else "the new model is worse"
        return f"{self.verdict}: {seen}; {ends}"


def regression(
    after: Result, before: Result, *, margin: float = 0.05, alpha: float = 0.05, confidence: float = 0.95
) -> Regression:
    """Judge a new model by items on which the old one was graded under the same protocol.

    An answer that a time, memory or output limit ended is no wrong answer, but it is not right any longer either: after
    a right one, it is lost. What the sandbox could not execute is left out.

    Args:
        after, before: the two graded results.
        margin: see `Regression`.
        alpha: level of McNemar's test.
        confidence: of the intervals.

    Raises:
        StepwellError: another protocol, other items, or no item was right before.
    """
    comparable(after.protocol, before.protocol)
    names = paired(marks(after), marks(before))
    new, old = after.first_answers, before.first_answers
    left_out = [n for n in names if "sandbox-error" in (new[n].status, old[n].status)]
    kept = [name for name in names if name not in set(left_out)]
    is_right = [new[name].right is True for name in kept]
    was_right = [old[name].right is True for name in kept]
    if not any(was_right):
        raise StepwellError(
            f"none of {len(kept)} items was right before, so nothing could be lost",
            "take items on which the old model is right at times",
        )
    lost = [name for name, now, then in zip(kept, is_right, was_right, strict=True) if then and not now]
    gained = [name for name, now, then in zip(kept, is_right, was_right, strict=True) if now and not then]
    difference = paired_difference([float(x) for x in is_right], [float(x) for x in was_right], confidence)
    p_value = mcnemar_exact(len(lost), len(gained))
    verdict = _verdict(difference, p_value <= alpha and len(lost) > len(gained), margin)
    return Regression(
        right_before=sum(was_right), lost=tuple(lost), gained=tuple(gained), left_out=tuple(left_out),
        loss=wilson(len(lost), sum(was_right), confidence), difference=difference, p_value=p_value, margin=margin,
        verdict=verdict, needed=n_to_decide(difference, -margin) if verdict == "inconclusive" else None,
    )  # fmt: skip


def _verdict(difference: Estimate, worse: bool, margin: float) -> Verdict:
    if worse:
        return "roll back"
    return "pass" if difference.low is not None and difference.low > -margin else "inconclusive"


def overall(verdicts: Sequence[Verdict]) -> Verdict:
    """Of several benchmarks: one that is worse is enough to roll back, one in doubt not to pass."""
    order: tuple[Verdict, ...] = ("roll back", "inconclusive", "pass")
    return next(verdict for verdict in order if verdict in verdicts)
