"""The factorial reading of the arms: what recycled content, extra positions and the curriculum each add.

The factors are nested, not crossed: content can only be recycled into positions, and positions take the place of the
steps that a curriculum removed. So of eight cells four exist, and each effect is a difference of neighbours, given the
factors below it; no interaction can be told. Effects are differences of the same item under the same seed.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from stepwell.stats import Claim, Estimate, PValue, holm_p, mechanism_claim, paired_difference

Record = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Which factors an arm has."""

    arm: str
    content: bool
    positions: bool
    curriculum: bool


CELLS = (
    Cell(arm="continuous", content=True, positions=True, curriculum=True),
    Cell(arm="shared", content=False, positions=True, curriculum=True),
    Cell(arm="removal", content=False, positions=False, curriculum=True),
    Cell(arm="direct", content=False, positions=False, curriculum=False),
)


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """A factor as the difference of two arms that share the others.

    Args:
        factor: in words.
        arm: that has it.
        without: the arm that lacks it, and nothing else.
        given: what both share, in words.
    """

    factor: str
    arm: str
    without: str
    given: str


CONTRASTS = (
    Contrast(factor="recycled content", arm="continuous", without="shared", given="positions and curriculum"),
    Contrast(factor="extra positions", arm="shared", without="removal", given="the curriculum, and no content"),
    Contrast(factor="the curriculum", arm="removal", without="direct", given="neither positions nor content"),
)


@dataclass(frozen=True, kw_only=True)
class Effect:
    """A main effect.

    Args:
        contrast: of which arms.
        runs: the difference between the trained models at hand, with an interval over items (seeds of one item hang
            together); None where it is undefined.
        claim: what may be said about the mechanism: an interval over items and seeds, and nothing below three seeds.
        adjusted: its p-value, Holm-adjusted over the effects that have one.
        items, seeds: pairs are each item under each seed.
        undefined: why there is no effect; "" where there is one.
    """

    contrast: Contrast
    runs: Estimate | None = None
    claim: Claim | None = None
    adjusted: PValue | None = None
    items: int = 0
    seeds: int = 0
    undefined: str = ""


def main_effects(records: Iterable[Record], metric: str = "correct", confidence: float = 0.95) -> tuple[Effect, ...]:
    """The effects of all three factors on a metric of `item` records of one set under one condition.

    Records hold arm, seed, id and the metric; each arm's are joined with the other's by (id, seed). An effect is
    undefined, with the reason, where an arm is missing or its items or seeds are not the other's.
    """
    by_arm: dict[str, dict[tuple[Hashable, Hashable], float | None]] = {}
    twice: set[str] = set()
    for record in records:
        arm, key = str(record.get("arm")), (record.get("id"), record.get("seed"))
        values = by_arm.setdefault(arm, {})
        twice |= {arm} if key in values else set()
        values[key] = record.get(metric)
    found = [_effect(contrast, by_arm, twice, confidence) for contrast in CONTRASTS]
    tested = [effect for effect in found if effect.claim is not None and effect.claim.p_value is not None]
    adjusted = dict(zip(map(id, tested), _holm(tested), strict=True))
    return tuple(replace(effect, adjusted=adjusted.get(id(effect))) for effect in found)


def _holm(tested: Sequence[Effect]) -> Sequence[PValue]:
    p_values = [
        effect.claim.p_value for effect in tested if effect.claim is not None and effect.claim.p_value is not None
    ]
    return holm_p(p_values) if p_values else ()


def _effect(
    contrast: Contrast,
    by_arm: Mapping[str, Mapping[tuple[Hashable, Hashable], float | None]],
    twice: set[str],
    confidence: float,
) -> Effect:
    for arm in (contrast.arm, contrast.without):
        if arm not in by_arm:
            return Effect(contrast=contrast, undefined=f"arm {arm} was not evaluated")
        if arm in twice:
            return Effect(contrast=contrast, undefined=f"arm {arm} has several records of one item and seed")
    one, other = by_arm[contrast.arm], by_arm[contrast.without]
    if lacking := one.keys() ^ other.keys():
        reason = f"{len(lacking)} of {len(one.keys() | other.keys())} items under their seeds lack a partner"
        return Effect(contrast=contrast, undefined=reason)
    # In an order that does not depend on which job wrote first.
    keys = sorted(one, key=lambda key: (str(key[1]), str(key[0])))
    pairs = [(key, a, b) for key in keys for a, b in [(one[key], other[key])] if a is not None and b is not None]
    if len(pairs) < len(keys):
        return Effect(contrast=contrast, undefined=f"{len(keys) - len(pairs)} of {len(keys)} pairs have no value")
    items, seeds = [key[0] for key, _, _ in pairs], [key[1] for key, _, _ in pairs]
    count, trainings = len(set(items)), len(set(seeds))
    if len(pairs) != count * trainings:
        return Effect(contrast=contrast, undefined=f"{trainings} seeds were not evaluated on the same items")
    first, second = [float(a) for _, a, _ in pairs], [float(b) for _, _, b in pairs]
    return Effect(
        contrast=contrast,
        runs=paired_difference(first, second, confidence, clusters=items if trainings > 1 else None),
        claim=mechanism_claim(first, second, items=items, seeds=seeds, confidence=confidence),
        items=count,
        seeds=trainings,
    )
