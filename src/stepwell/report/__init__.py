"""The report of a run: its folder in, one HTML file out, and its figures as JSON."""

from __future__ import annotations

from pathlib import Path


def write_report(folder: Path | str) -> Path:
    """Write RUN/report.html, one self-contained file that needs no network, and give its path.

    RUN/summary.json beside it holds verdicts and tables for programs. Each is replaced whole or not at all. Works on
    unfinished and failed runs: what is missing is said to be.

    Raises:
        StepwellError: the folder is no run folder, or cannot be written.
    """
    # Imported here: plotly and jinja2 are needed for drawing alone.
    from stepwell.report.draw import page
    from stepwell.report.folder import read_folder
    from stepwell.report.summary import summary
    from stepwell.report.view import verdict_rows, view

    data = read_folder(folder)
    report = view(data)
    # Both are made before either is written, so that they are not of two states of the folder.
    texts = {"report.html": page(report), "summary.json": summary(report, verdict_rows(data))}
    for name, text in texts.items():
        _write(data.path / name, text)
    return data.path / "report.html"


def _write(path: Path, text: str) -> None:
    from stepwell.errors import StepwellError
    from stepwell.store import write_atomically

    try:
        write_atomically(path, text)
    except OSError as error:
        cause = f"the report cannot be written: {error.strerror or error}"
        raise StepwellError(cause, "Free space, or get the right to write this folder.", path=path) from error


__all__ = ["write_report"]
