"""The sections of study `tune`: results, how they came about, and the proof of each step between. Pure."""

from __future__ import annotations

from stepwell.report.cells import Section
from stepwell.report.folder import RunData
from stepwell.report.tune.failures import failures_section
from stepwell.report.tune.graded import stage_names
from stepwell.report.tune.lineage import lineage_section
from stepwell.report.tune.linted import lint_section
from stepwell.report.tune.merging import merging_section
from stepwell.report.tune.mined import mined_section
from stepwell.report.tune.reading import is_tune
from stepwell.report.tune.results import results_section
from stepwell.report.tune.training import training_section
from stepwell.report.tune.versus import versus_section

__all__ = [
    "failures_section",
    "is_tune",
    "lineage_section",
    "lint_section",
    "merging_section",
    "mined_section",
    "results_section",
    "stage_names",
    "training_section",
    "tune_sections",
    "versus_section",
]


def tune_sections(data: RunData) -> tuple[Section, ...]:
    """All of them but the single items to look at, in reading order."""
    return (
        results_section(data),
        versus_section(data),
        lint_section(data),
        training_section(data),
        merging_section(data),
        mined_section(data),
        lineage_section(data),
    )
