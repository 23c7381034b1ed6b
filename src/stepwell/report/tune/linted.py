"""What the linter found in what is trained on, first and again, each kind of fault with an example."""

from __future__ import annotations

from stepwell.report.cells import Cell, Column, Row, Section, Table, number, plural
from stepwell.report.folder import RunData
from stepwell.report.tune.reading import jobs_of, records_of, text_of

TOLD = (
    "The rows that would be trained on, as they are packed: what a training on them would learn that nobody meant. "
    "Counts are of all conversations that are trained on."
)
LINT = "lint"


def lint_section(data: RunData) -> Section:
    """One line for each kind of fault."""
    key, title = "lint", "Linter"
    findings = records_of(data, "finding")
    checks = [one for one in records_of(data, "check") if text_of(one, "name") == LINT]
    if not findings and not checks:
        begun = any(job.kind == "tune.lint" for job in jobs_of(data).values())
        why = "The linter did not get to its end." if begun else "The training set was not linted."
        return Section(key=key, title=title, missing=why)
    rows = []
    for one in findings:
        allowed = one.get("allowed")
        state = Cell(text="allowed by the plan", tone="muted") if allowed else Cell(text="fault", tone="no-go")
        cells = (
            Cell(text=one["job"].label), Cell(text=text_of(one, "code"), why=text_of(one, "meaning"), code=True),
            number(one.get("count")), number(one.get("of")), state, Cell(text=text_of(one, "example")),
        )  # fmt: skip
        rows.append(Row(cells=cells))
    columns = (
        Column(name="linter"),
        Column(name="finding"),
        Column(name="conversations", numeric=True),
        Column(name="of", numeric=True),
        Column(name="state"),
        Column(name="example"),
    )
    lines = [TOLD] if findings else [f"{TOLD} None was found."]
    for one in records_of(data, "linted"):
        of_them = f", {one['replayed']} of them replayed beside failures" if one.get("replayed") else ""
        lines.append(f"{one['job'].label}: {plural(one.get('n') or 0, 'conversation')}{of_them}.")
    failed = [one for one in checks if one.get("passed") is False]
    lines += [f"{one['job'].label} not passed: {text_of(one, 'detail')}." for one in failed]
    table = Table(title="Findings", columns=columns, rows=tuple(rows))
    return Section(key=key, title=title, lines=tuple(lines), tables=(table,) if rows else ())
