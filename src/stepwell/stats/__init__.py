"""Estimates with intervals, exact tests, sizes of effects, and the number of items and seeds that would decide.

Undefined is None, never zero. `n` always counts independent units: items, pairs, or clusters where the values of a
cluster hang together. All intervals are two-sided, so a claim on one side errs with half of 1 - confidence at most.
"""

from __future__ import annotations

from stepwell.stats.compared import Compared, compare_pairs
from stepwell.stats.crossed import (
    FEWEST_SEEDS,
    Claim,
    Spread,
    crossed_error,
    crossed_mean,
    mechanism_claim,
    spread,
)
from stepwell.stats.deciding import MOST_ITEMS, n_to_decide, n_to_refute
from stepwell.stats.effects import cohens_dz, cohens_h, discordant_odds
from stepwell.stats.equivalence import Equivalence, tost_crossed, tost_means, tost_proportions
from stepwell.stats.estimate import Estimate, Floats, excludes, is_binary
from stepwell.stats.intervals import (
    BATCH_ELEMENTS,
    FEWEST_FOR_BOOTSTRAP,
    MOST_FOR_BCA,
    RESAMPLES,
    PairTable,
    StandardError,
    bootstrap_mean,
    clustered_error,
    pair_table,
    paired_difference,
    proportion,
    wilson,
)
from stepwell.stats.p_values import PValue, holm, holm_p, mcnemar_exact, p_text, permutation_p
from stepwell.stats.power import (
    crossed_power,
    items_for,
    items_for_mcnemar,
    items_for_mcnemar_about,
    mcnemar_power,
    paired_power,
    pairs_for,
    seeds_for,
)
from stepwell.stats.sequences import confidence_sequence, proportion_sequence

__all__ = [
    "BATCH_ELEMENTS",
    "FEWEST_FOR_BOOTSTRAP",
    "FEWEST_SEEDS",
    "MOST_FOR_BCA",
    "MOST_ITEMS",
    "RESAMPLES",
    "Claim",
    "Compared",
    "Equivalence",
    "Estimate",
    "Floats",
    "PValue",
    "PairTable",
    "Spread",
    "StandardError",
    "bootstrap_mean",
    "clustered_error",
    "cohens_dz",
    "cohens_h",
    "compare_pairs",
    "confidence_sequence",
    "crossed_error",
    "crossed_mean",
    "crossed_power",
    "discordant_odds",
    "excludes",
    "holm",
    "holm_p",
    "is_binary",
    "items_for",
    "items_for_mcnemar",
    "items_for_mcnemar_about",
    "mcnemar_exact",
    "mcnemar_power",
    "mechanism_claim",
    "n_to_decide",
    "n_to_refute",
    "p_text",
    "pair_table",
    "paired_difference",
    "paired_power",
    "pairs_for",
    "permutation_p",
    "proportion",
    "proportion_sequence",
    "seeds_for",
    "spread",
    "tost_crossed",
    "tost_means",
    "tost_proportions",
    "wilson",
]
