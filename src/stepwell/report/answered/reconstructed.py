"""How near restored embeddings are to those that went in, for each arm and set."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from stepwell.report.answered.reading import records_of
from stepwell.report.cells import Cell, Column, Row, Section, Table, dash, digits_of, number, plural
from stepwell.report.folder import Record, RunData
from stepwell.report.measures import grouped

MEASURES = {"mse": "MSE", "cosine": "cosine", "relative_error": "relative error", "norm_ratio": "norm ratio"}
TOLD = (
    "Means over real tokens of prompts that nothing was fitted on; padding is not there to be counted. Relative error "
    "is |restored - original| / |original|, norm ratio |restored| / |original|. Variance kept: of all token "
    "vectors of the training corpus, by the c numbers alone, before any adapter."
)


def reconstructed_section(data: RunData) -> Section:
    """One line for each arm, set and point of the plan's axes; seeds are averaged, with their range."""
    records, compressors = records_of(data, "reconstruction"), records_of(data, "compressor")
    tables = [*([_measured(data, records, compressors)] if records else []), *_compressors(compressors)]
    return Section(
        key="reconstruction",
        title="Reconstruction",
        lines=(TOLD,) if records else (),
        tables=tuple(tables),
        missing="" if records else "Nothing was restored and measured.",
    )


def _measured(data: RunData, records: Sequence[Record], compressors: Sequence[Record]) -> Table:
    kept = grouped(compressors, lambda record: (record["arm"], record["detail"]))
    stages = {record["stage"] for record in records}
    rows = []
    for (stage, arm, detail, name), same in grouped(
        records, lambda record: (record["stage"], record["arm"], record["detail"], record["set"])
    ).items():
        shown = f"{arm} ({stage})" if len(stages) > 1 else arm
        cells = (
            Cell(text=shown, interval=detail),
            Cell(text=name),
            number(same[0].get("tokens")),
            *(_over_seeds(same, field) for field in MEASURES),
            _over_seeds(kept.get((arm, detail), ()), "explained", scale=100),
        )
        rows.append(Row(cells=cells, group=stage))
    columns = (
        Column(name="arm"),
        Column(name="set"),
        Column(name="tokens", numeric=True),
        *(Column(name=title, numeric=True) for title in MEASURES.values()),
        Column(name="variance kept", note="%", numeric=True),
    )
    return Table(title="Restored embeddings beside the original", columns=columns, rows=tuple(rows))


def _over_seeds(records: Sequence[Record], field: str, *, scale: float = 1.0) -> Cell:
    """The mean over jobs that differ in their seed only, and their range."""
    values = [scale * record[field] for record in records if record.get(field) is not None]
    if not values:
        return dash("undefined, or not recorded")
    span = f"{digits_of(min(values))} to {digits_of(max(values))}" if len(values) > 1 else ""
    return Cell(text=digits_of(fmean(values)), interval=span, count=plural(len(values), "seed") if span else "")


def _compressors(records: Sequence[Record]) -> list[Table]:
    rows = []
    for (arm, detail), same in grouped(records, lambda record: (record["arm"], record["detail"])).items():
        one = same[0]
        cells = (
            Cell(text=arm, interval=detail),
            Cell(text=str(one.get("subspace") or "not recorded")),
            number(one.get("width")),
            number(one.get("corpus_tokens")),
            number(one.get("distinct")),
        )
        rows.append(Row(cells=cells))
    columns = (
        Column(name="arm"),
        Column(name="subspace"),
        Column(name="width", numeric=True),
        Column(name="tokens fitted on", numeric=True),
        Column(name="distinct among them", numeric=True),
    )
    return [Table(title="Compressors", columns=columns, rows=tuple(rows))] if rows else []
