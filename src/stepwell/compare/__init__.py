"""Two runs, or two arms of one, asked the same questions: joined item by item, or refused with the reason.

A comparison of numbers from different questions looks like any other, so whatever makes the questions differ (the data,
the items, the condition, the way of asking, a stage that has not finished) is an error here and never a footnote.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from stepwell.compare.pairs import frozen_margins, joined, refuse_late_margin, refuse_unlike, shared_sets
from stepwell.compare.sides import Side, side_of

if TYPE_CHECKING:
    from stepwell.stats import Compared, PValue


@dataclass(frozen=True, kw_only=True)
class SetComparison:
    """One set: what was found, and its p-value adjusted for the number of sets (Holm)."""

    set: str
    found: Compared
    p_adjusted: PValue | None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two sides over one set or several."""

    first: str
    second: str
    metric: str
    condition: str
    margin: float | None
    sets: tuple[SetComparison, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; a p-value is given as number (never 0), as log10 and as text."""
        return {
            **{name: getattr(self, name) for name in ("first", "second", "metric", "condition", "margin")},
            "sets": [_set_json(each) for each in self.sets],
            "notes": list(self.notes),
        }


def compare(
    first: str,
    second: str,
    *,
    only: str | None = None,
    condition: str = "clean",
    metric: str = "correct",
    margin: float | None = None,
    confidence: float = 0.95,
) -> Comparison:
    """Compare two selections `RUN` or `RUN:arm=cot,seed=0` on every set that both were asked, or on `only`.

    Several seeds a side are compared over items and seeds. A margin asks for equivalence too; it must be one that the
    frozen gates of both runs name, for this metric.

    Raises:
        StepwellError: the two cannot be compared; the cause says why.
    """
    from stepwell.stats import compare_pairs, holm_p

    one, other = side_of(first, condition), side_of(second, condition)
    refuse_unlike(one, other)
    if margin is not None:
        refuse_late_margin((one, other), metric, margin)
    names = shared_sets(one, other, only)
    found = []
    for name in names:
        a, b, items, seeds = joined(one, other, name, metric)
        found.append(compare_pairs(a, b, items=items, seeds=seeds, confidence=confidence, margin=margin))
    known = [each.p_value for each in found if each.p_value is not None]
    adjusted = iter(holm_p(known))
    sets = tuple(
        SetComparison(set=name, found=each, p_adjusted=None if each.p_value is None else next(adjusted))
        for name, each in zip(names, found, strict=True)
    )
    return Comparison(
        first=one.label, second=other.label, metric=metric, condition=condition, margin=margin, sets=sets,
        notes=tuple(_notes(one, other, names)),
    )  # fmt: skip


def _notes(one: Side, other: Side, names: Sequence[str]) -> Iterator[str]:
    for side in (one, other):
        if left := [name for name in side.rows if name not in names]:
            yield f"{side.label}: not compared: {', '.join(left)}"
        vacuous = sum(bool(row.get("vacuous")) for name in names for row in side.rows[name])
        if vacuous:
            yield f"{side.label}: in {vacuous} records the edit changes nothing, for all vectors of the item are equal"


def _set_json(each: SetComparison) -> dict[str, Any]:
    found = asdict(each.found)
    found["equivalence"] = each.found.equivalence and {
        **asdict(each.found.equivalence), **_p_json(each.found.equivalence.p_value)
    }  # fmt: skip
    adjusted = _p_json(each.p_adjusted, "_adjusted")
    return {"set": each.set, **found, **_p_json(each.found.p_value), **adjusted, "conclusion": each.found.conclusion}


def _p_json(p: PValue | None, suffix: str = "") -> dict[str, Any]:
    from stepwell.stats import p_text

    return {
        f"p_value{suffix}": None if p is None else float(p),
        f"log10_p{suffix}": None if p is None else p.log10,
        f"p_text{suffix}": p_text(p),
    }


__all__ = ["Comparison", "SetComparison", "compare", "frozen_margins"]
