"""Vectors fitted to single examples, thousands at a time: `fit`, and what it gives back.

A row is one target of one problem in one restart; rows of all problems share the forward passes of a frozen model.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from stepwell.fitting.recipe import FitRecipe

if TYPE_CHECKING:
    from stepwell.fitting.loop import fit
    from stepwell.fitting.measuring import Measured, measure
    from stepwell.fitting.result import Fitted, Record
    from stepwell.fitting.selftest import SelfTest, self_test
    from stepwell.latents.prompt import Problem, Target

# The recipe is read by plans, which must not load torch.
_HOMES = {
    "Fitted": "stepwell.fitting.result",
    "Measured": "stepwell.fitting.measuring",
    "Problem": "stepwell.latents.prompt",
    "Record": "stepwell.fitting.result",
    "SelfTest": "stepwell.fitting.selftest",
    "Target": "stepwell.latents.prompt",
    "fit": "stepwell.fitting.loop",
    "measure": "stepwell.fitting.measuring",
    "self_test": "stepwell.fitting.selftest",
}

__all__ = ["FitRecipe", "Fitted", "Measured", "Problem", "Record", "SelfTest", "Target", "fit", "measure", "self_test"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'stepwell.fitting' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
