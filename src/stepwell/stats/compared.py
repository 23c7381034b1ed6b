"""Two things asked the same questions: everything that may be said about the difference, in one place."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from stepwell.stats.crossed import FEWEST_SEEDS, crossed_error, crossed_mean, grid
from stepwell.stats.effects import cohens_dz, cohens_h, discordant_odds
from stepwell.stats.equivalence import Equivalence, tost_crossed, tost_means, tost_proportions
from stepwell.stats.estimate import Estimate, Floats, finite, is_binary
from stepwell.stats.intervals import (
    PairTable,
    bootstrap_mean,
    clustered_error,
    pair_table,
    paired_difference,
    proportion,
)
from stepwell.stats.p_values import PValue, mcnemar_exact


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A paired comparison.

    Args:
        items: items that both were asked.
        seeds: trainings of each.
        first, second: the two means, each with its interval.
        difference: mean of first - second.
        test: which test gave `p_value`: `mcnemar`, `t`, or `crossed-t` (items x seeds).
        p_value: two-sided, that there is no difference; None where undefined.
        effects: sizes by name: `cohens_h`, `discordant_odds`, `cohens_dz`.
        table: the pairs of a 0/1 metric; over several seeds, of all their pairs.
        equivalence: two one-sided tests, where a margin was given.
    """

    items: int
    seeds: int
    first: Estimate
    second: Estimate
    difference: Estimate
    test: str
    p_value: PValue | None
    effects: dict[str, Estimate]
    table: PairTable | None
    equivalence: Equivalence | None

    @property
    def conclusion(self) -> str:
        """One sentence: what is shown, what is not. No difference shown is never called equivalence."""
        alpha = _level(self.difference.confidence)
        level = f"at the {alpha:.3g} level"
        if self.p_value is None or self.difference.value is None:
            says = "undefined: the differences have no spread, or there are too few of them"
        elif self.p_value <= alpha:
            says = f"the {'first' if self.difference.value > 0 else 'second'} is higher, {level}"
        else:
            says = f"no difference is shown {level}"
        if self.equivalence is not None:
            margin = f"{self.equivalence.margin:g}"
            says += {
                True: f"; shown to lie within the margin of {margin}",
                False: f"; not shown to lie within the margin of {margin}",
                None: f"; whether within the margin of {margin} is undefined",
            }[self.equivalence.equivalent]
        elif self.p_value is not None and self.p_value > alpha:
            says += ", and without a margin fixed before the run nothing says that they are equivalent"
        if self.seeds < FEWEST_SEEDS:
            says += f"; about these trained models, not the arms: that takes {FEWEST_SEEDS} seeds"
        return says


def compare_pairs(
    first: ArrayLike,
    second: ArrayLike,
    *,
    items: Sequence[Hashable],
    seeds: Sequence[Hashable],
    confidence: float = 0.95,
    margin: float | None = None,
) -> Compared:
    """Compare two vectors of values paired by item and seed (every item under every seed, else ValueError).

    One seed: pairs are independent items; exact McNemar, Newcombe's interval and Tango's equivalence for 0/1 values,
    else Student's t and the bootstrap. Several seeds: items x seeds, both random (`crossed_error`), and items for the
    means of each side. With `margin`, equivalence at level 1 - confidence.
    """
    a, b = finite(first), finite(second)
    if len(a) != len(b):
        raise ValueError(f"{len(a)} values cannot be paired with {len(b)}")
    if grid(a - b, items, seeds).shape[1] > 1:
        return _over_seeds(a, b, items, seeds, confidence, margin)
    if is_binary(a) and is_binary(b):
        return _of_pairs(a, b, confidence, margin)
    error, alpha = clustered_error(a - b, None), _level(confidence)
    return Compared(
        items=len(a),
        seeds=len(set(seeds)),
        first=bootstrap_mean(a, confidence),
        second=bootstrap_mean(b, confidence),
        difference=bootstrap_mean(a - b, confidence),
        test="t",
        p_value=error.p_value() if error else None,
        effects={"cohens_dz": cohens_dz(a, b, confidence)},
        table=None,
        equivalence=None if margin is None else tost_means(a, b, margin=margin, alpha=alpha),
    )


def _level(confidence: float) -> float:
    return round(1 - confidence, 12)


def _of_pairs(a: Floats, b: Floats, confidence: float, margin: float | None) -> Compared:
    """0/1 values under one seed."""
    table, alpha = pair_table(a, b), _level(confidence)
    return Compared(
        items=len(a),
        seeds=min(1, len(a)),
        first=proportion(a, confidence),
        second=proportion(b, confidence),
        difference=paired_difference(a, b, confidence),
        test="mcnemar",
        p_value=mcnemar_exact(table.only_first, table.only_second) if len(a) else None,
        effects={"cohens_h": cohens_h(table, confidence), "discordant_odds": discordant_odds(table, confidence)},
        table=table,
        equivalence=None if margin is None else tost_proportions(a, b, margin=margin, alpha=alpha),
    )


def _over_seeds(
    a: Floats,
    b: Floats,
    items: Sequence[Hashable],
    seeds: Sequence[Hashable],
    confidence: float,
    margin: float | None,
) -> Compared:
    matrix = grid(a - b, items, seeds)
    first, second, difference = (crossed_mean(v, confidence, items=items, seeds=seeds) for v in (a, b, a - b))
    error = crossed_error(matrix)
    # Of items, each averaged over its seeds: an item's pairs under several seeds are not independent.
    size = cohens_dz(matrix.mean(1), np.zeros(len(matrix)), confidence)
    equivalence = None
    if margin is not None:
        equivalence = tost_crossed(a, b, items=items, seeds=seeds, margin=margin, alpha=_level(confidence))
    return Compared(
        items=len(matrix),
        seeds=matrix.shape[1],
        first=first,
        second=second,
        difference=difference,
        test="crossed-t",
        p_value=error.p_value() if error else None,
        effects={"cohens_dz": size},
        table=pair_table(a, b) if is_binary(a) and is_binary(b) else None,
        equivalence=equivalence,
    )
