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

OURS = ("qa.", "squeeze.", "wire.")
KINDS = frozenset({"contract", "coverage", "compressor", "reconstruction"})
"""Kinds of record that no other study writes: they tell whose run it is where plan.yaml is lost."""
CEILING, TEXT, LATENT = "ceiling", "text", "latent"
FLAGS = frozenset({"em", "first_top1", "first_top5", "stopped", "skipped"})
SHARES = frozenset({"f1", "ceiling_f1"})
NUMBERS = frozenset({
    "n", "contexts_cut", "answers_lost", "answers_cut", "parameters", "bytes", "text_bytes", "nll_per_token", "tokens",
    "mse", "cosine", "relative_error", "norm_ratio", "explained", "corpus_tokens", "distinct", "width", "step", "bits",
    "grad_norm",
})  # fmt: skip
TEXTS, COUNTS = frozenset({"answers", "tokens", "gold_tokens"}), frozenset({"counts", "gold_counts"})
"""Fields of texts or numbers one after another, where they hold a list; `tokens` may be a number as well."""
OWN_AXES = ("dims", "vectors")
"""What records say themselves: where the plan is lost, or where one encoder answers with several M."""
APART = ("arm", "seed")
"""Axes that are not part of a line's name: an arm is its condition, and seeds are pooled."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """What one condition answered, all seeds together.

    Args:
        name: what tables call it: the condition, with its arm where that is not the same; arms after a second phase
            with their stage.
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

    @property
    def main(self) -> bool:
        """Whether it is a text or an arm as it is: neither quantised nor a control of its arm."""
        return self.condition in (TEXT, CEILING, LATENT, self.arm) or not self.arm


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
    own = {name: record[name] for name in OWN_AXES if record.get(name) is not None}
    known = own if axes is None else {**axes, **(own if record.get("kind") == "item" else {})}
    detail = ", ".join(f"{name} {value}" for name, value in known.items() if name not in APART)
    return {**found, "job": job, "stage": job.partition(".")[0], "detail": detail}


def _value(name: str, value: Any) -> Any:
    if isinstance(value, list) and name in TEXTS | COUNTS:
        return tuple(map(str, value)) if name in TEXTS else tuple(map(number_of, value))
    if name in ("answers", *COUNTS):
        return None
    if name in FLAGS:
        return value if isinstance(value, bool) else None
    if name in SHARES:
        share = number_of(value)
        return share if share is not None and 0 <= share <= 1 else None
    if name in NUMBERS or name.startswith(("loss", "weighted", "weight")):
        return number_of(value)
    return None if value is None else str(value)


def lines_of(data: RunData) -> list[Line]:
    """Every condition that was answered under, in the plan's order."""
    groups = grouped(
        (record for record in records_of(data, "item") if record["condition"]),
        lambda record: (record["stage"], record["arm"], record["condition"], record["detail"]),
    )
    stages: dict[tuple[str, str, str], set[str]] = {}
    for stage, arm, condition, detail in groups:
        stages.setdefault((arm, condition, detail), set()).add(stage)
    return [
        Line(
            name=_named(arm, condition) + (f" ({stage})" if len(stages[arm, condition, detail]) > 1 else ""),
            detail=detail, condition=condition, stage=stage, arm=arm, records=tuple(records),
        )
        for (stage, arm, condition, detail), records in groups.items()
    ]  # fmt: skip


def _named(arm: str, condition: str) -> str:
    """A condition of an arm is named by itself where it bears the arm's name, as `residual-8bit` does."""
    return condition if condition.startswith(arm) else f"{arm}: {condition}"


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
