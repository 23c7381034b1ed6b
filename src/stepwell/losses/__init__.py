"""Losses of what reads vectors in place of a prompt: elementwise values, a mask, then a sum and a count.

Where tokens are predicted is said once, by `Targets`; what a model says there is a `Reading` of one forward pass, from
which every loss on tokens is computed. Losses on vectors (prefixes, restored embeddings) take the vectors themselves.
`Weighing` makes one number of all of them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from stepwell.losses.specs import LossWeights, Ramp, TextToLatent, coins, gold_share

if TYPE_CHECKING:
    from stepwell.losses.summed import Summed
    from stepwell.losses.targets import Answers, Targets
    from stepwell.losses.teacher import TeacherStates
    from stepwell.losses.tokens import Reading, first_token_ce, hidden_kd, k_token_ce, kd, teacher_forced_ce
    from stepwell.losses.vectors import (
        TableMoments,
        cosine_rms,
        manifold,
        prefix_alignment,
        reconstruction,
    )
    from stepwell.losses.weighing import Logged, Weighing

# The specs are read by plans, which must not load torch.
_HOMES = {
    "Answers": "targets",
    "Logged": "weighing",
    "Reading": "tokens",
    "Summed": "summed",
    "TableMoments": "vectors",
    "Targets": "targets",
    "TeacherStates": "teacher",
    "Weighing": "weighing",
    "cosine_rms": "vectors",
    "first_token_ce": "tokens",
    "hidden_kd": "tokens",
    "k_token_ce": "tokens",
    "kd": "tokens",
    "manifold": "vectors",
    "prefix_alignment": "vectors",
    "reconstruction": "vectors",
    "teacher_forced_ce": "tokens",
}

__all__ = [
    "Answers",
    "Logged",
    "LossWeights",
    "Ramp",
    "Reading",
    "Summed",
    "TableMoments",
    "Targets",
    "TeacherStates",
    "TextToLatent",
    "Weighing",
    "coins",
    "cosine_rms",
    "first_token_ce",
    "gold_share",
    "hidden_kd",
    "k_token_ce",
    "kd",
    "manifold",
    "prefix_alignment",
    "reconstruction",
    "teacher_forced_ce",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'stepwell.losses' has no attribute {name!r}")
    return getattr(importlib.import_module(f"stepwell.losses.{_HOMES[name]}"), name)
