"""A run folder as a report without a layout: sections of plain tables and series, verdicts first. Pure; no HTML."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from stepwell.report.account import data_section, environment_section, overrides_section
from stepwell.report.accuracy import accuracy_section, examples_section, outside_section
from stepwell.report.answer import Headline, headline
from stepwell.report.answered import answered_sections, browsed_section, is_answered
from stepwell.report.audits import analyses_audit_section
from stepwell.report.browser import browser_section
from stepwell.report.cells import Section
from stepwell.report.curves import curves_section
from stepwell.report.factorial import factorial_section
from stepwell.report.folder import RunData, read_folder
from stepwell.report.imprint import group_names, imprint_sections, is_imprint
from stepwell.report.interventions import interventions_section
from stepwell.report.probes import probes_section
from stepwell.report.progress import cost_section, jobs_section, missing_section
from stepwell.report.seeds import alerts_section, seeds_section
from stepwell.report.tracing import tracing_section
from stepwell.report.tune import failures_section, is_tune, stage_names, tune_sections
from stepwell.report.verdicts import VerdictRow, verdict_rows, verdict_section
from stepwell.report.wire import is_wire, wire_sections

__all__ = ["Headline", "Report", "VerdictRow", "headline", "verdict_rows", "view"]


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything on the page.

    Args:
        title, study, rung, question: as the plan says.
        headline: the answer, from verdicts only.
        arms: in the plan's order, or what the study has instead (tiers and models, stages); each has its colour.
        sections: in reading order.
    """

    title: str
    study: str
    rung: str
    question: str
    headline: Headline
    arms: tuple[str, ...]
    sections: tuple[Section, ...]


def view(folder: RunData | Path | str) -> Report:
    """What the report of a run shows. Raises StepwellError where the folder is no run folder."""
    data = folder if isinstance(folder, RunData) else read_folder(folder)
    missing = missing_section(data)
    figures, looks = _shown(data)
    sections = (
        verdict_section(data),
        *((missing,) if missing else ()),
        *figures,
        alerts_section(data),
        *looks,
        data_section(data),
        analyses_audit_section(data),
        overrides_section(data),
        cost_section(data),
        environment_section(data),
        jobs_section(data),
    )
    plan = data.plan
    return Report(
        title=str(plan.get("title") or data.path.name),
        study=str(plan.get("study") or ""),
        rung=str(plan.get("rung") or ""),
        question=str(plan.get("question") or ""),
        headline=headline(data),
        arms=_coloured(data),
        sections=sections,
    )


def _coloured(data: RunData) -> tuple[str, ...]:
    """What the figures tell apart by colour."""
    if is_tune(data):
        return stage_names(data)
    return group_names(data) if is_imprint(data) else data.arms()


def _shown(data: RunData) -> tuple[tuple[Section, ...], tuple[Section, ...]]:
    """The sections of the study that the run is of: figures, and single items to look at."""
    if is_tune(data):  # first: where the plan is lost, its records of gains look like those of `imprint`
        return tune_sections(data), (failures_section(data),)
    if is_imprint(data):
        return imprint_sections(data), ()
    if is_wire(data):
        return wire_sections(data), (browsed_section(data),)
    if is_answered(data):
        return answered_sections(data), (browsed_section(data),)
    return _of_thoughts(data)


def _of_thoughts(data: RunData) -> tuple[tuple[Section, ...], tuple[Section, ...]]:
    """The sections of study `thoughts`: figures, and single items to look at."""
    figures = (
        accuracy_section(data),
        factorial_section(data),
        interventions_section(data),
        probes_section(data),
        tracing_section(data),
        outside_section(data),
        curves_section(data),
        seeds_section(data),
    )
    return figures, (examples_section(data), browser_section(data))
