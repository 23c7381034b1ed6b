"""The records of study `imprint`, made safe to compute with: each field has its type, or is None.

A run that was killed, or that another version wrote, must still give a report. So what a field cannot hold (a text
where a number belongs, a number that is not finite) is None here, once for all sections.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from stepwell.report.folder import Record, RunData

Group = tuple[str, str]
"""Tier and model: what the rows of every table are grouped by."""

FIT = "imprint.fit"
KINDS = frozenset({"baseline", "target", "curve", "spot", "control", "capability", "gain", "smallest"})
"""Kinds of record that no other study writes: they tell whose run it is where plan.yaml is lost."""
FLAGS = frozenset({"converged", "zero", "alarm", "passed", "exact_decode", "fallback"})
SHARES = frozenset({"exact", "correct"})
"""True or false; or, where several draws or scores were averaged, a number from 0 to 1."""
NUMBERS = frozenset({
    "restart", "steps", "nats", "own_nats", "tokens", "held", "lead", "ratio_to_random", "ratio_to_baseline",
    "gradient_cosine", "opposed", "conflict", "n", "share", "low", "high", "mean", "step", "similarity", "random",
    "random_low", "random_high", "full_context", "random_token", "text_prompt", "nothing", "bar", "bits",
    "bits_per_slot", "bits_per_token", "text_bytes", "ids_bytes", "packed_bytes", "float32_bytes", "bfloat16_bytes",
    "int8_bytes", "int4_bytes", "scale", "change", "bytes", "slot", "distance", "cosine", "norm", "fractions",
    "barrier", "slots", "parameters", "width", "vocabulary", "max_positions",
})  # fmt: skip
LISTS = {
    "curve": frozenset({"steps", "nats"}),
    "line": frozenset({"fractions", "nats"}),
    "example": frozenset({"answers"}),
}
"""Fields that hold one value after another, by kind of record."""
MOST = 1e60
"""No measurement is larger, and squares of products of two such numbers are still finite."""


def is_imprint(data: RunData) -> bool:
    """Whether the plan has a stage of this study; where the plan is lost, whether the records are of it."""
    kinds = stage_kinds(data)
    if kinds:
        return any(kind.startswith("imprint.") for kind in kinds.values())
    return any(str(record.get("kind")) in KINDS for records in data.records.values() for record in records)


def stage_kinds(data: RunData) -> dict[str, str]:
    """Kind of each stage of the plan, in its order."""
    return {str(stage.get("name")): str(stage.get("kind")) for stage in _stages(data)}


def records_of(data: RunData, kind: str) -> list[Record]:
    """Records of one kind over all jobs, cleaned, each with its `stage`, its `job` and its `group`."""
    jobs = sorted(data.records)
    return [cleaned(record, job) for job in jobs for record in data.records[job] if record.get("kind") == kind]


def cleaned(record: Record, job: str) -> Record:
    """The fields of a record, each of its type or None; texts for all that is neither number, flag nor list."""
    listed = LISTS.get(str(record.get("kind")), frozenset())
    found = {name: _listed(name, value) if name in listed else _value(name, value) for name, value in record.items()}
    group = (str(record.get("tier") or ""), str(record.get("model") or ""))
    for name in ("id", "mode"):
        found[name] = str(record.get(name) or "")
    return {**found, "job": job, "stage": job.partition(".")[0], "group": group}


def _listed(name: str, value: Any) -> tuple[Any, ...] | None:
    return tuple(_value(name, each) for each in value) if isinstance(value, list) else None


def _value(name: str, value: Any) -> Any:
    if name in FLAGS:
        return value if isinstance(value, bool) else None
    if name in SHARES:
        known = value if isinstance(value, bool) else number_of(value)
        return known if known is not None and 0 <= known <= 1 else None
    if name in NUMBERS:
        return number_of(value)
    return None if value is None else str(value)


def number_of(value: Any) -> float | None:
    """A number no larger than any measurement, or None. True and false are no numbers."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) <= MOST else None


def grouped_by(data: RunData, records: Iterable[Record]) -> dict[Group, list[Record]]:
    """Cleaned records by tier and model: tiers and models in the plan's order, then as the records have them."""
    groups: dict[Group, list[Record]] = {}
    for record in records:
        groups.setdefault(record["group"], []).append(record)
    orders = [_axis(data, name) for name in ("tier", "model")]

    def place(group: Group) -> tuple[int, ...]:
        return tuple(
            order.index(name) if name in order else len(order) for name, order in zip(group, orders, strict=True)
        )

    return {group: groups[group] for group in sorted(groups, key=place)}


def group_name(group: Group) -> str:
    """`squad, SmolLM2-135M`; what is not known is left out."""
    return ", ".join(part for part in group if part)


def group_names(data: RunData) -> tuple[str, ...]:
    """Every group that fits or measures are about; their order gives each its colour."""
    kinds = ("target", "pair", "baseline", "smallest")
    return tuple(map(group_name, grouped_by(data, (r for kind in kinds for r in records_of(data, kind)))))


def ordered_stages(data: RunData, records: Iterable[Record]) -> list[str]:
    """The stages of records, in the plan's order, then any others by name."""
    planned, found = list(stage_kinds(data)), {record["stage"] for record in records}
    return [*(name for name in planned if name in found), *sorted(found - set(planned))]


def fitted_apart(data: RunData, stage: str) -> bool:
    """Whether a stage fits vectors of their own for each mode of a pair."""
    params = next((found.get("params") for found in _stages(data) if str(found.get("name")) == stage), None)
    together = params.get("together") if isinstance(params, Mapping) else None
    return stage == "single" if together is None else together is False


def checked_stage(data: RunData, stage: str, fits: Sequence[str]) -> str:
    """Which fit a stage looked at: the last fit it needs that left records, else `joint`."""
    found = next((found for found in _stages(data) if str(found.get("name")) == stage), {})
    needs = found.get("needs")
    known = [str(need) for need in needs if str(need) in fits] if isinstance(needs, list) else []
    return known[-1] if known else "joint"


def modes_of(records: Iterable[Record]) -> list[str]:
    """Modes as they first occur; a question before its answer."""
    found = dict.fromkeys(record["mode"] for record in records)
    return sorted(found, key=lambda mode: (mode != "question", mode != "answer"))


def pairs_planned(data: RunData) -> dict[str, int]:
    """How many pairs each tier has."""
    found: dict[str, int] = {}
    for record in records_of(data, "dataset"):
        n = record.get("n")
        if n is not None:
            found[record["group"][0] or str(record.get("set") or "")] = int(n)
    return found


def _stages(data: RunData) -> list[Mapping[str, Any]]:
    stages = data.plan.get("stages")
    return [stage for stage in stages if isinstance(stage, Mapping)] if isinstance(stages, list) else []


def _axis(data: RunData, name: str) -> list[str]:
    axes = data.plan.get("axes")
    values = axes.get(name) if isinstance(axes, Mapping) else None
    return [str(value) for value in values] if isinstance(values, list) else []
