"""The named audits of the analyses, as a section: what was looked for, and what was found."""

from __future__ import annotations

from pathlib import Path

from stepwell.audit.run import CODES, Evidence, Fault, audit_run
from stepwell.report.answered import is_answered
from stepwell.report.cells import Cell, Column, Row, Section, Table, number
from stepwell.report.folder import RunData, read_folder
from stepwell.report.imprint import is_imprint
from stepwell.report.tune import is_tune

ANALYSES = ("intervention", "probe", "trace")
OF_ANY_STUDY = ("policy-changed", "p-value-zero", "null-as-equivalence")
"""Audits of gates and tests; the others look at the analyses of study `thoughts`, and can find nothing elsewhere."""


def evidence(folder: RunData | Path | str) -> Evidence:
    """What the audits may look at: a run's records and, where there is one, its report.

    Raises:
        StepwellError: the folder is no run folder.
    """
    data = folder if isinstance(folder, RunData) else read_folder(folder)
    report = data.path / "report.html"
    texts = {report.name: report.read_text(encoding="utf-8", errors="replace")} if report.is_file() else {}
    return _evidence(data, texts)


def _evidence(data: RunData, texts: dict[str, str]) -> Evidence:
    return Evidence(plan=data.plan, policy=data.policy, records=data.records, verdicts=data.verdicts, texts=texts)


def audits_of(data: RunData) -> tuple[str, ...]:
    """The audits that can find something in a run of this study."""
    other = is_tune(data) or is_imprint(data) or is_answered(data)
    return OF_ANY_STUDY if other else tuple(CODES)


def analyses_audit_section(data: RunData) -> Section:
    """Each audit by name, with what it found. The report that is about to be replaced is not looked at."""
    looked = audits_of(data)
    found = {fault.code: fault for fault in audit_run(_evidence(data, {}), looked)}
    rows = tuple(_row(code, CODES[code], found.get(code)) for code in looked)
    columns = (Column(name="audit"), Column(name="found", numeric=True), Column(name="what it looks for"))
    bad = len(found)
    line = (
        f"{bad} of {len(looked)} audits found a fault: what rests on it is not to be relied on."
        if bad
        else f"None of {len(looked)} audits of the records and verdicts of this run found a fault."
    )
    table = Table(title="Audits of the analyses", columns=columns, rows=rows, folded=not bad)
    return Section(key="analyses-audit", title="Audits of the analyses", lines=(line,), tables=(table,))


def _row(code: str, meaning: str, fault: Fault | None) -> Row:
    count = Cell(text="none") if fault is None else Cell(text=number(fault.count).text, tone="alert")
    return Row(cells=(Cell(text=code, code=True), count, Cell(text=meaning, why=fault.example if fault else "")))
