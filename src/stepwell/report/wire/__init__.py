"""The sections of study `wire`: how latents were trained, and what they buy for their bytes. Pure.

What was read and answered is drawn by `stepwell.report.answered`, as for every study that answers questions.
"""

from __future__ import annotations

from stepwell.report.answered.contract import contract_section
from stepwell.report.answered.scores import scores_section
from stepwell.report.cells import Section
from stepwell.report.folder import RunData
from stepwell.report.wire.analysed import is_wire
from stepwell.report.wire.bought import bought_section
from stepwell.report.wire.outlook import outlook_section
from stepwell.report.wire.shares import shares_section
from stepwell.report.wire.timeline import timeline_section
from stepwell.report.wire.tokens import tokens_section

__all__ = [
    "bought_section",
    "is_wire",
    "outlook_section",
    "shares_section",
    "timeline_section",
    "tokens_section",
    "wire_sections",
]


def wire_sections(data: RunData) -> tuple[Section, ...]:
    """All of them but the single items to look at, in reading order."""
    return (
        contract_section(data),
        scores_section(data),
        bought_section(data),
        timeline_section(data),
        shares_section(data),
        tokens_section(data),
        outlook_section(data),
    )
