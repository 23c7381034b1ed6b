"""The records of answered questions, made safe to compute with: each field has its type, or is None.

A run that was killed, or that another version wrote, must still give a report. So what a field cannot hold (a text
where a number belongs, a number that is not finite) is None here, once for all sections.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from stepwell.report.folder import Record, RunData
from stepwell.report.imprint.reading import number_of, stage_kinds
from stepwell.report.measures import grouped

OURS = ("qa.", "squeeze.")
KINDS = frozenset({"contract", "coverage", "compressor", "reconstruction"})
"""Kinds of record that no other study writes: they tell whose run it is where plan.yaml is lost."""
CEILING, TEXT = "ceiling", "text"
FLAGS = frozenset({"em", "first_top1", "first_top5", "stopped", "skipped"})
SHARES = frozenset({"f1", "ceiling_f1"})
NUMBERS = frozenset({
    "n", "contexts_cut", "answers_lost", "answers_cut", "parameters", "bytes", "text_bytes", "nll_per_token", "tokens",
    "mse", "cosine", "relative_error", "norm_ratio", "explained", "corpus_tokens", "distinct", "width", "step", "bits",
})  # fmt: skip
APART = ("arm", "seed")
"""Axes that are not part of a line's name: an arm is its condition, and seeds are pooled."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """What one condition answered, all seeds together.

    Args:
        name: what tables call it; arms after a second phase with their stage.
        detail: the values of axes other than arm and seed, such as `dims 128`.
        condition, stage, arm: as recorded; no arm is "".
        records: its items, cleaned.
    """

    name: str
    detail: str
    condition: str
    stage: str
    arm: str
    records: tuple[Record, ...]

    @property
    def label(self) -> str:
        """Name and detail on one line."""
        return f"{self.name}, {self.detail}" if self.detail else self.name


def is_answered(data: RunData) -> bool:
    """Whether the plan has a stage of such a study; where the plan is lost, whether the records are of one."""
    kinds = stage_kinds(data)
    if kinds:
        return any(kind.startswith(OURS) for kind in kinds.values())
    return any(str(record.get("kind")) in KINDS for records in data.records.values() for record in records)


def records_of(data: RunData, kind: str) -> list[Record]:
    """Records of one kind over all jobs, in the plan's order, cleaned, each with its `job`, `stage` and `detail`."""
    axes = {job: at for _, job, at in data.planned()}
    order = {job: place for place, job in enumerate(axes)}
    jobs = sorted(data.records, key=lambda job: (order.get(job, len(order)), job))
    return [
        _cleaned(record, job, axes.get(job))
        for job in jobs
        for record in data.records[job]
        if record.get("kind") == kind
    ]


def _cleaned(record: Record, job: str, axes: Mapping[str, Any] | None) -> Record:
    found = {name: _value(name, value) for name, value in record.items()}
    for name in ("id", "condition", "set", "arm", "seed"):
        found[name] = "" if record.get(name) is None else str(record.get(name))
    known = axes if axes is not None else {name: record[name] for name in ("dims",) if record.get(name) is not None}
    detail = ", ".join(f"{name} {value}" for name, value in known.items() if name not in APART)
    return {**found, "job": job, "stage": job.partition(".")[0], "detail": detail}


def _value(name: str, value: Any) -> Any:
    if name in FLAGS:
        return value if isinstance(value, bool) else None
    if name in SHARES:
        share = number_of(value)
        return share if share is not None and 0 <= share <= 1 else None
    if name in NUMBERS or name.startswith(("loss", "weighted", "weight")):
        return number_of(value)
    if name == "answers":
        return tuple(map(str, value)) if isinstance(value, list) else None
    return None if value is None else str(value)


def lines_of(data: RunData) -> list[Line]:
    """Every condition that was answered under, in the plan's order."""
    groups = grouped(
        (record for record in records_of(data, "item") if record["condition"]),
        lambda record: (record["stage"], record["condition"], record["detail"]),
    )
    stages: dict[tuple[str, str], set[str]] = {}
    for stage, condition, detail in groups:
        stages.setdefault((condition, detail), set()).add(stage)
    return [
        Line(
            name=f"{condition} ({stage})" if len(stages[condition, detail]) > 1 else condition,
            detail=detail, condition=condition, stage=stage, arm=records[0]["arm"], records=tuple(records),
        )
        for (stage, condition, detail), records in groups.items()
    ]  # fmt: skip


def ceiling_of(lines: Iterable[Line]) -> dict[Hashable, float]:
    """F1 of the uncompressed embeddings, by item."""
    return of_condition(lines, CEILING, "f1")


def of_condition(lines: Iterable[Line], condition: str, field: str) -> dict[Hashable, float]:
    """A number that one condition has for each item."""
    return {
        record["id"]: record[field]
        for line in lines
        if line.condition == condition and not line.arm
        for record in line.records
        if record.get(field) is not None
    }
