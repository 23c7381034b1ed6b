"""Win, tie and loss against a reference model: by ground truth wherever there is one, by a judge only where not.

Both right is a tie, both wrong is a tie, else who is right wins. What could not be decided is a fourth outcome, counted
and never dropped: shares are of all items.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from stepwell.grading.protocol import Part, comparable
from stepwell.grading.records import Result, marks, paired
from stepwell.stats import Compared, Estimate, compare_pairs, excludes, n_to_decide, wilson

Outcome = Literal["win", "tie", "loss", "undecided"]
OUTCOMES: tuple[Outcome, ...] = ("win", "tie", "loss", "undecided")
Decider = Literal["truth", "judge", "none"]
OF_A_REFERENCE: tuple[Part, ...] = ("scorer", "items")
"""What has to be the same for another model: it has its own template and its own decoding."""


@dataclass(frozen=True, kw_only=True)
class Match:
    """One item.

    Attributes:
        id: of the item.
        outcome: for us.
        by: what decided.
        why: in a few words; for what is undecided, the cause.
    """

    id: str
    outcome: Outcome
    by: Decider
    why: str


@dataclass(frozen=True, kw_only=True)
class Versus:
    """A comparison with a reference model.

    Attributes:
        ours, theirs: the models.
        matches: one an item, by id.
    """

    ours: str
    theirs: str
    matches: tuple[Match, ...]

    @property
    def counts(self) -> dict[Outcome, int]:
        """Items by outcome, none left out."""
        found = Counter(match.outcome for match in self.matches)
        return {outcome: found[outcome] for outcome in OUTCOMES}

    def share(self, outcome: Outcome, confidence: float = 0.95) -> Estimate:
        """Share of an outcome among ALL items, with Wilson's interval."""
        return wilson(self.counts[outcome], len(self.matches), confidence)

    def ids(self, outcome: Outcome, by: Decider | None = None) -> list[str]:
        """The items with an outcome; with `by`, those that it decided."""
        return [match.id for match in self.matches if match.outcome == outcome and by in (None, match.by)]


def versus(
    ours: Result,
    theirs: Result,
    judged: Mapping[str, Match] | None = None,
    *,
    parts: Sequence[Part] = OF_A_REFERENCE,
) -> Versus:
    """Compare first answers with those of a reference model, or of an earlier checkpoint.

    Args:
        ours, theirs: graded under the same scorer on the same items.
        judged: what a judge says of items, see `stepwell.grading.judge`; looked at only where there is no ground
            truth: an answer that could not be executed is undecided, whatever a judge would say.
        parts: of the protocols that have to be the same: all of them between two checkpoints of ours.

    Raises:
        StepwellError: one of these parts differs.
    """
    comparable(ours.protocol, theirs.protocol, parts=parts)
    mine, other = ours.first_answers, theirs.first_answers
    found = []
    for name in paired(marks(ours), marks(theirs)):
        one, two = mine[name], other[name]
        if one.right is not None and two.right is not None:
            found.append(_by_truth(name, one.right, two.right))
        elif judged is not None and name in judged and one.status == two.status == "silent":
            found.append(judged[name])
        else:
            why = f"ours: {one.status}, theirs: {two.status}"
            found.append(Match(id=name, outcome="undecided", by="none", why=why))
    return Versus(ours=ours.model, theirs=theirs.model, matches=tuple(found))


def _by_truth(name: str, ours: bool, theirs: bool) -> Match:
    if ours == theirs:
        return Match(id=name, outcome="tie", by="truth", why="both right" if ours else "both wrong")
    return Match(
        id=name, outcome="win" if ours else "loss", by="truth", why=f"only {'we are' if ours else 'they are'} right"
    )


@dataclass(frozen=True, kw_only=True)
class Band:
    """A share of an outcome that a good model is expected to have.

    Attributes:
        outcome: which share.
        low, high: the band, in [0, 1].
        ruined: the share that was seen where a merge had ruined the model; None where none was.
        red: a share beyond which something is wrong; None where nothing is known.
    """

    outcome: Outcome
    low: float
    high: float
    ruined: float | None = None
    red: float | None = None


BANDS: Mapping[str, tuple[Band, ...]] = {
    "maths": (
        Band(outcome="tie", low=0.60, high=0.80, ruined=0.28, red=0.50),
        Band(outcome="win", low=0.04, high=0.08),
    ),
    "code": (
        Band(outcome="win", low=0.40, high=0.56, ruined=0.12, red=0.30),
        Band(outcome="tie", low=0.16, high=0.28),
    ),
}
"""Of the original: an 8B model against GPT-4."""


@dataclass(frozen=True, kw_only=True)
class Banded:
    """A share against its band.

    Attributes:
        band: which.
        share: with its interval.
        verdict: `inside`, `below` or `above` where the whole interval is; else `inconclusive`.
        needed: items that would decide, were the share to stay; None where it is decided, or no number would do.
        red_flag: a warning where the share is below the red line; "" otherwise.
    """

    band: Band
    share: Estimate
    verdict: Literal["inside", "below", "above", "inconclusive"]
    needed: int | None
    red_flag: str


def banded(found: Versus, band: Band, confidence: float = 0.95) -> Banded:
    """Where a share lies with its whole interval, or how many items would tell."""
    share = found.share(band.outcome, confidence)
    assert share.n == len(found.matches)
    verdict, needed = "inconclusive", None
    if share.low is not None and share.high is not None and share.value is not None:
        if share.high < band.low:
            verdict = "below"
        elif share.low > band.high:
            verdict = "above"
        elif band.low <= share.low and share.high <= band.high:
            verdict = "inside"
        else:
            needed = _needed(share, band)
    return Banded(band=band, share=share, verdict=verdict, needed=needed, red_flag=_red_flag(share, band))


def _needed(share: Estimate, band: Band) -> int | None:
    """Items that put the interval on one side of the nearest end, or inside of both."""
    assert share.value is not None
    if band.low <= share.value <= band.high:
        both = [n_to_decide(share, end) for end in (band.low, band.high)]
        return None if None in both else max(n for n in both if n is not None)
    return n_to_decide(share, band.low if share.value < band.low else band.high)


def _red_flag(share: Estimate, band: Band) -> str:
    if band.red is None or share.value is None or share.value >= band.red:
        return ""
    sure = "the whole interval lies below it" if excludes(share, band.red) else "the interval does not exclude it"
    near = f"; a ruined merge had {band.ruined:.0%}" if band.ruined is not None else ""
    return f"{band.outcome} {share.value:.0%} of {share.n}, below {band.red:.0%} ({sure}){near}"


def against_before(after: Result, before: Result, confidence: float = 0.95) -> Compared | None:
    """The paired comparison with an earlier checkpoint, on items that both could be marked on; None where none is.

    Raises:
        StepwellError: another protocol, template and decoding included.
    """
    comparable(after.protocol, before.protocol)
    new, old = marks(after), marks(before)
    pairs = [(name, new[name], old[name]) for name in paired(new, old)]
    known = [(name, float(one), float(two)) for name, one, two in pairs if one is not None and two is not None]
    if not known:
        return None
    return compare_pairs(
        [one for _, one, _ in known], [two for *_, two in known], items=[name for name, *_ in known],
        seeds=[0] * len(known), confidence=confidence,
    )  # fmt: skip


def same_as_before(after: Result, before: Result) -> str:
    """A warning where every answer is, word for word, that of an earlier checkpoint; "" otherwise."""
    new = {(record.id, record.sample): record.text for record in after.records}
    old = {(record.id, record.sample): record.text for record in before.records}
    if not new or new != old:
        return ""
    return (
        f"all {len(new)} answers are word for word those of {before.model}: the adapter changes nothing, "
        "or the old checkpoint was graded again"
    )
