"""Engines: where jobs run. One small protocol, and anything that can start a command fits it."""

from __future__ import annotations

from stepwell.engine.base import Engine, Handle, JobCall, Outcome
from stepwell.plan import Plan

__all__ = ["Engine", "Handle", "JobCall", "Outcome", "engine_of"]


def engine_of(plan: Plan) -> Engine:
    """The engine a plan asks for. StepwellError where it is not to be had here."""
    if plan.engine == "inline":
        from stepwell.engine.inline import InlineEngine

        return InlineEngine()
    if plan.engine == "ray":
        from stepwell.engine.ray import RayEngine

        return RayEngine(plan)
    if plan.engine == "slurm":
        from stepwell.engine.slurm import SlurmEngine

        return SlurmEngine(plan)
    from stepwell.engine.process import ProcessEngine

    return ProcessEngine(plan.workers)
