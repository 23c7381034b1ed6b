"""Stepwell: gated experiments on language models that think, remember or read in vectors instead of tokens.

Importing this loads nothing heavy: each name is fetched when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stepwell.audit.data import audit_files
    from stepwell.errors import StepwellError
    from stepwell.fitting import FitRecipe, Fitted, Problem, Target, fit
    from stepwell.plan import Plan, jobs, load_plan
    from stepwell.report import write_report
    from stepwell.runner import RunResult, run
    from stepwell.tasks.prosqa import generate_items, load_items, write_items

__version__ = "0.1.0"

_HOMES = {
    "FitRecipe": "stepwell.fitting",
    "Fitted": "stepwell.fitting",
    "Plan": "stepwell.plan",
    "Problem": "stepwell.fitting",
    "RunResult": "stepwell.runner",
    "StepwellError": "stepwell.errors",
    "Target": "stepwell.fitting",
    "audit_files": "stepwell.audit.data",
    "fit": "stepwell.fitting",
    "generate_items": "stepwell.tasks.prosqa",
    "jobs": "stepwell.plan",
    "load_items": "stepwell.tasks.prosqa",
    "load_plan": "stepwell.plan",
    "run": "stepwell.runner",
    "write_items": "stepwell.tasks.prosqa",
    "write_report": "stepwell.report",
}

__all__ = [
    "FitRecipe",
    "Fitted",
    "Plan",
    "Problem",
    "RunResult",
    "StepwellError",
    "Target",
    "__version__",
    "audit_files",
    "fit",
    "generate_items",
    "jobs",
    "load_items",
    "load_plan",
    "run",
    "write_items",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'stepwell' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
