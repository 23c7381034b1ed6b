"""Engines: where jobs run. One small protocol; `inline` and `process` here, anything that can start a command later."""

from __future__ import annotations

from stepwell.engine.base import Engine, Handle, JobCall, Outcome
from stepwell.plan import Plan

__all__ = ["Engine", "Handle", "JobCall", "Outcome", "engine_of"]


def engine_of(plan: Plan) -> Engine:
    """The engine a plan asks for."""
    if plan.engine == "inline":
        from stepwell.engine.inline import InlineEngine

        return InlineEngine()
    from stepwell.engine.process import ProcessEngine

    return ProcessEngine(plan.workers)
