"""The sections of study `imprint`: what vectors fitted to single examples hold. Pure: records in, tables out."""

from __future__ import annotations

from stepwell.report.cells import Section
from stepwell.report.folder import RunData
from stepwell.report.imprint.baselines import baselines_section
from stepwell.report.imprint.conflicts import conflicts_section
from stepwell.report.imprint.controls import controls_section
from stepwell.report.imprint.convergence import convergence_section
from stepwell.report.imprint.decoded import decoded_section
from stepwell.report.imprint.health import health_section
from stepwell.report.imprint.held import held_section
from stepwell.report.imprint.price import price_section
from stepwell.report.imprint.reading import group_names, is_imprint
from stepwell.report.imprint.sweep import sweep_section

__all__ = [
    "baselines_section",
    "conflicts_section",
    "controls_section",
    "convergence_section",
    "decoded_section",
    "group_names",
    "health_section",
    "held_section",
    "imprint_sections",
    "is_imprint",
    "price_section",
    "sweep_section",
]


def imprint_sections(data: RunData) -> tuple[Section, ...]:
    """All of them, in reading order."""
    return (
        convergence_section(data),
        decoded_section(data),
        baselines_section(data),
        health_section(data),
        sweep_section(data),
        controls_section(data),
        conflicts_section(data),
        held_section(data),
        price_section(data),
    )
