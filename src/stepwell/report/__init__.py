"""The report of a run: its folder in, one HTML file out."""

from __future__ import annotations

from pathlib import Path


def write_report(folder: Path | str) -> Path:
    """Write RUN/report.html, one self-contained file that needs no network, and give its path.

    The file is replaced whole or not at all. Works on unfinished and failed runs: what is missing is said to be.

    Raises:
        StepwellError: the folder is no run folder, or cannot be written.
    """
    # Imported here: plotly and jinja2 are needed for drawing alone.
    from stepwell.report.draw import write_page
    from stepwell.report.view import view

    return write_page(view(folder), Path(folder) / "report.html")


__all__ = ["write_report"]
