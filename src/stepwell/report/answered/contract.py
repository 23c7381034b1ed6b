"""What every arm reads, and what the limits of the prompt cut."""

from __future__ import annotations

from stepwell.report.answered.reading import records_of
from stepwell.report.cells import Cell, Column, Row, Section, Table, dash, number
from stepwell.report.folder import Record, RunData
from stepwell.report.measures import counted, share_cell

LIMITS = {
    "contexts_cut": "contexts cut",
    "answers_lost": "answers cut away with them",
    "answers_cut": "answers too long to be written",
}
TOLD = (
    "BOS, template, instruction and anchor are the same for the text, its embeddings and every arm, in training and in "
    "evaluation. Where a prompt is too long the context is cut; the question never."
)


def contract_section(data: RunData) -> Section:
    """The contract as the model stage wrote it, and how many items its limits touch."""
    contracts, coverage = records_of(data, "contract"), records_of(data, "coverage")
    tables = [_contract(record) for record in contracts]
    if coverage:
        tables.append(_coverage(coverage))
    return Section(
        key="contract",
        title="What is read",
        lines=(TOLD,) if tables else (),
        tables=tuple(tables),
        missing="" if tables else "No prompt contract was recorded.",
    )


def _contract(record: Record) -> Table:
    rows = []
    for line in str(record.get("shown") or "not recorded").splitlines():
        name, found, text = line.partition(":")
        named = found and name in ("text", "latent")
        rows.append(
            Row(cells=(Cell(text=name if named else "limits"), Cell(text=(text if named else line).strip(), code=True)))
        )
    about = f"{record.get('model') or 'model not recorded'}, {record.get('precision') or 'precision not recorded'}"
    parameters = number(record.get("parameters")).text
    title = f"The prompt contract of `{about}`, {parameters} parameters"
    return Table(title=title, columns=(Column(name="for"), Column(name="tokens, between bars")), rows=tuple(rows))


def _coverage(records: list[Record]) -> Table:
    rows = tuple(
        Row(cells=(Cell(text=record["set"]), number(record.get("n")), *(_share(record, field) for field in LIMITS)))
        for record in records
    )
    columns = (
        Column(name="set"),
        Column(name="items", numeric=True),
        *(Column(name=text, note="%", numeric=True) for text in LIMITS.values()),
    )
    return Table(title="What the limits cost", columns=columns, rows=rows)


def _share(record: Record, field: str) -> Cell:
    count, n = record.get(field), record.get("n")
    if count is None or not n or not 0 <= count <= n:
        return dash("not recorded")
    return share_cell(counted(count, n), "")
