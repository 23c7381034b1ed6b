"""The sections of studies in which a model answers questions about texts (`squeeze`). Pure: records in, tables out."""

from __future__ import annotations

from stepwell.report.answered.browsed import browsed_section
from stepwell.report.answered.contract import contract_section
from stepwell.report.answered.reading import is_answered
from stepwell.report.answered.reconstructed import reconstructed_section
from stepwell.report.answered.scores import scores_section
from stepwell.report.answered.training import training_section
from stepwell.report.cells import Section
from stepwell.report.folder import RunData

__all__ = [
    "answered_sections",
    "browsed_section",
    "contract_section",
    "is_answered",
    "reconstructed_section",
    "scores_section",
    "training_section",
]


def answered_sections(data: RunData) -> tuple[Section, ...]:
    """All of them but the single items to look at, in reading order."""
    return (contract_section(data), scores_section(data), reconstructed_section(data), training_section(data))
