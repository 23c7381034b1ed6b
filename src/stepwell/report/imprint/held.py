"""What is held: bits, and the bytes they take beside the token ids and the text itself."""

from __future__ import annotations

from collections.abc import Sequence

from stepwell.report.cells import Cell, Column, Section, Table, number
from stepwell.report.folder import Record, RunData
from stepwell.report.imprint.geometry import geometry_tables, line_charts, line_tables
from stepwell.report.imprint.numbers import GROUP, average_cell, items, lines, portion_cell
from stepwell.report.imprint.reading import Group, grouped_by, modes_of, records_of
from stepwell.report.measures import grouped

TYPES = ("float32", "bfloat16", "int8", "int4")
AGAINST = {"packed_bytes": "packed ids", "ids_bytes": "ids", "text_bytes": "UTF-8 text"}
BITS = (
    "Bits held: (loss without any vector - loss with c) / ln 2 over all tokens of a target, the end token counted; "
    "below zero where c makes the target less likely. Both losses, and the bytes, are of the pair's own text, also "
    "where other wordings were fitted with it."
)
BYTES = (
    "Vectors often take more bytes than what they hold: packed ids take ceil(log2 V) bits a token; whole number types "
    "hold one float32 scale a vector. A ratio above 1 is a loss, and no compression."
)
ROBUST = (
    "Robustness: normal noise whose standard deviation is so many times the root mean square of the pair's vectors; "
    "and symmetric rounding to so few bits. Change: against the vectors as they were fitted."
)


def held_section(data: RunData) -> Section:
    """Bits, bytes, robustness, geometry, and lines between restarts."""
    bits, storage, robust = _bits(data), _storage(data), [*_noise(data), *_quantised(data)]
    geometry, between = geometry_tables(data), line_tables(data)
    tables = [*bits, *storage, *robust, *geometry, *between]
    lines_ = [text for text, shown in ((BITS, bits), (BYTES, storage), (ROBUST, robust)) if shown]
    return Section(
        key="held",
        title="What is held",
        lines=tuple(lines_),
        charts=tuple(line_charts(data)),
        tables=tuple(tables),
        missing="" if tables else "Nothing was measured of the vectors.",
    )


def _bits(data: RunData) -> list[Table]:
    rows: dict[Group, list[tuple[Cell, ...]]] = {}
    for group, mine in grouped_by(data, records_of(data, "gain")).items():
        modes = modes_of(mine)
        parts = [(mode, [record for record in mine if record["mode"] == mode]) for mode in modes]
        if len(modes) > 1:
            parts.append(
                ("all together", [whole_gain(i, some) for i, some in grouped(mine, lambda r: r["id"]).items()])
            )
        for name, some in parts:
            n, why = items(some), _reasons(some)
            cells = [average_cell(some, field, why, n) for field in ("bits", "bits_per_slot", "bits_per_token")]
            rows.setdefault(group, []).append((Cell(text=name, why=_reasons(some)), number(n), *cells))
    columns = (
        GROUP,
        Column(name="mode"),
        Column(name="n", note="pairs", numeric=True),
        Column(name="bits", note="a target", numeric=True),
        Column(name="bits", note="a vector", numeric=True),
        Column(name="bits", note="a token", numeric=True),
    )
    return [Table(title="Bits held", columns=columns, rows=lines(rows))] if rows else []


def whole_gain(id: str, rows: Sequence[Record]) -> Record:
    """The modes of a pair together, which share its vectors: bits add up; None where a mode has none."""
    sums = {name: _sum([row.get(name) for row in rows]) for name in ("bits", "bits_per_slot", "tokens")}
    per_token = sums["bits"] / sums["tokens"] if sums["bits"] is not None and sums["tokens"] else None
    why = "; ".join(dict.fromkeys(str(row["why"]) for row in rows if row.get("why")))
    return {"id": id, **sums, "bits_per_token": per_token, "why": why}


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _reasons(records: Sequence[Record]) -> str:
    """Why some have no bits, with how many."""
    lacking = [record for record in records if record.get("bits") is None]
    by = grouped(lacking, lambda record: str(record.get("why") or "no reason recorded"))
    return "; ".join(f"{why} ({len(some)})" for why, some in by.items())


def _storage(data: RunData) -> list[Table]:
    rows: dict[Group, list[tuple[Cell, ...]]] = {}
    for group, mine in grouped_by(data, records_of(data, "storage")).items():
        n = items(mine)
        for name, field in (("text (UTF-8)", "text_bytes"), ("ids", "ids_bytes"), ("packed ids", "packed_bytes")):
            cells = (Cell(text=name), number(n), average_cell(mine, field, "not recorded", n))
            rows.setdefault(group, []).append((*cells, *(Cell(text="") for _ in AGAINST)))
        for name in TYPES:
            field = f"{name}_bytes"
            over = [_ratio(mine, field, other, n) for other in AGAINST]
            cells = (Cell(text=f"vectors, {name}"), number(n), average_cell(mine, field, "not recorded", n))
            rows.setdefault(group, []).append((*cells, *over))
    columns = [GROUP, Column(name="held as"), Column(name="n", note="pairs", numeric=True)]
    columns += [Column(name="bytes", note="a pair", numeric=True)]
    columns += [Column(name=f"times the {name}", numeric=True) for name in AGAINST.values()]
    note = "Ratios are means of the pairs' ratios."
    return [Table(title="Bytes", columns=tuple(columns), rows=lines(rows), note=note)] if rows else []


def _ratio(records: Sequence[Record], field: str, other: str, n: int) -> Cell:
    found = [
        {"id": r["id"], "times": r[field] / r[other] if r.get(field) is not None and r.get(other) else None}
        for r in records
    ]
    return average_cell(found, "times", "not recorded, or of an empty text", n)


def _noise(data: RunData) -> list[Table]:
    columns = [GROUP, Column(name="scale", numeric=True), *ROBUST_COLUMNS]
    rows = _levels(data, "noise", "scale", ("nats", "change"))
    return [Table(title="Noise", columns=tuple(columns), rows=lines(rows))] if rows else []


def _quantised(data: RunData) -> list[Table]:
    columns = [GROUP, Column(name="bits", note="a number", numeric=True), *ROBUST_COLUMNS]
    columns += [Column(name="bytes", note="a pair", numeric=True)]
    rows = _levels(data, "quantised", "bits", ("nats", "change"), ("bytes",))
    return [Table(title="Quantisation", columns=tuple(columns), rows=lines(rows))] if rows else []


ROBUST_COLUMNS = (
    Column(name="n", note="pairs", numeric=True),
    Column(name="loss", note="nats a token", numeric=True),
    Column(name="change", note="nats a token", numeric=True),
    Column(name="exact", note="%", numeric=True),
)


def _levels(
    data: RunData, kind: str, field: str, before: Sequence[str], after: Sequence[str] = ()
) -> dict[Group, list[tuple[Cell, ...]]]:
    """A line for each value of `field`, from the least disturbance to the most."""
    rows: dict[Group, list[tuple[Cell, ...]]] = {}
    for group, mine in grouped_by(data, records_of(data, kind)).items():
        by = grouped((r for r in mine if r.get(field) is not None), lambda r: r[field])
        for value in sorted(by, reverse=field == "bits"):
            some, n = by[value], items(by[value])
            cells = [average_cell(some, name, "no finite value", n) for name in before]
            cells.append(portion_cell(some, "exact", "not recorded", n))
            cells += [average_cell(some, name, "not recorded", n) for name in after]
            rows.setdefault(group, []).append((Cell(text=f"{value:g}"), number(n), *cells))
    return rows
