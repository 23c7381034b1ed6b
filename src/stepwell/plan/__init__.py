"""Plans: a study as data. Models, loading from YAML, checks, and the jobs a plan expands to."""

from __future__ import annotations

from stepwell.plan.check import checked
from stepwell.plan.jobs import Job, held_by, jobs, select
from stepwell.plan.load import dump_plan, load_plan, rungs_of, shipped_plans
from stepwell.plan.models import Band, Criterion, Decision, GateSpec, Plan, Selector, StageSpec

__all__ = [
    "Band",
    "Criterion",
    "Decision",
    "GateSpec",
    "Job",
    "Plan",
    "Selector",
    "StageSpec",
    "checked",
    "dump_plan",
    "held_by",
    "jobs",
    "load_plan",
    "rungs_of",
    "select",
    "shipped_plans",
]
