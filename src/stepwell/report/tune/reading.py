"""The records of study `tune`, made safe to compute with: each field has its type, or is None.

A run that was killed, or that another version wrote, must still give a report. So what a field cannot hold (a text
where a number belongs, a share above one) is None here, once for all sections.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from stepwell.report.folder import Record, RunData
from stepwell.report.imprint.reading import number_of, stage_kinds

OURS = "tune."
KINDS = frozenset({"training-set", "merged", "mined", "regression", "versus"})
"""Kinds of record that no other study writes: they tell whose run it is where plan.yaml is lost."""
FLAGS = frozenset({"passed", "correct", "allowed", "quantised", "verified", "rolled_back", "stopped"})
SHARES = frozenset({
    "accuracy", "cut", "share", "survived", "top1_agreement", "greedy_agreement", "padding_share", "flips",
    "flips_low", "flips_high", "took_first", "took_longer", "p_value", "margin", "share_low", "share_high",
})  # fmt: skip
COUNTS = frozenset({
    "n", "count", "of", "sample", "unmarked", "looping", "left_out", "replayed", "rows", "tokens", "supervised_tokens",
    "steps", "step", "trainable", "right", "columns", "agreed", "pairs", "unparsed", "length_wins", "length_losses",
    "failures", "ties", "contaminated", "without", "right_before", "lost", "gained", "needed", "pieces", "tasks",
    "support_tokens", "query_tokens",
})  # fmt: skip
NUMBERS = frozenset({
    "low", "high", "difference", "difference_low", "difference_high", "loss_low", "loss_high", "loss", "lr",
    "grad_norm", "delta_share", "max_logit_difference", "largest_logit", "kl_nats", "effect_kl_nats", "partial",
    "seconds", "tokens_per_second", "support_before", "support_after", "query",
})  # fmt: skip
OUTCOMES = ("win", "tie", "loss", "undecided")
OWN = {
    **dict.fromkeys([("versus", outcome) for outcome in OUTCOMES], COUNTS),
    ("regression", "loss"): SHARES,
    ("correction", "right"): FLAGS,
}
"""Fields that are something else in one kind of record: items, a share of them, a mark."""
VOID = frozenset({"job-rerun", "job-retired"})
"""Events after which a job begins from nothing: what it said before is void."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job of the run.

    Attributes:
        name: its id.
        stage, kind: its stage, and of which kind that is; "" where the plan is lost.
        detail: the values of its axes, such as `seed 1`; "" where the run has only one point of them.
    """

    name: str
    stage: str
    kind: str
    detail: str

    @property
    def label(self) -> str:
        """Stage and axes on one line."""
        return f"{self.stage}, {self.detail}" if self.detail else self.stage


def is_tune(data: RunData) -> bool:
    """Whether the plan has a stage of this study; where the plan is lost, whether the records are of it."""
    kinds = stage_kinds(data)
    if kinds:
        return any(kind.startswith(OURS) for kind in kinds.values())
    return any(str(record.get("kind")) in KINDS for records in data.records.values() for record in records)


def jobs_of(data: RunData) -> dict[str, Job]:
    """Every job that left records, by id, in the plan's order."""
    planned = {job: (stage, axes) for stage, job, axes in data.planned()}
    order = {job: place for place, job in enumerate(planned)}
    kinds = stage_kinds(data)
    several = {axis for axis in _axes(planned.values()) if len(_values(planned.values(), axis)) > 1}
    found = {}
    for name in sorted(data.records, key=lambda job: (order.get(job, len(order)), job)):
        stage, axes = planned.get(name, (name.partition(".")[0], {}))
        told = {axis: value for axis, value in axes.items() if axis in several}
        detail = ", ".join(f"{axis} {value}" for axis, value in told.items()) if name in planned else _rest(name)
        found[name] = Job(name=name, stage=stage, kind=kinds.get(stage, ""), detail=detail)
    return found


def records_of(data: RunData, kind: str) -> list[Record]:
    """Records of one kind over all jobs, in the plan's order, cleaned, each with its `job` (a `Job`)."""
    return [
        cleaned(record, job)
        for name, job in jobs_of(data).items()
        for record in data.records[name]
        if record.get("kind") == kind
    ]


def cleaned(record: Record, job: Job) -> Record:
    """The fields of a record, each of its type or None; texts for all that is neither number nor flag."""
    kind = str(record.get("kind"))
    return {name: _value(kind, name, value) for name, value in record.items()} | {"job": job}


def events_of(data: RunData, event: str) -> list[Record]:
    """Events of one name that still hold, cleaned, each with its `job` as text. What was said twice is there once."""
    last: dict[str, int] = {}
    for place, one in enumerate(data.events):
        if one.get("event") in VOID:
            last[str(one.get("job"))] = place
    found: dict[tuple[str, ...], Record] = {}
    for place, one in enumerate(data.events):
        job = str(one.get("job"))
        if one.get("event") == event and place > last.get(job, -1):
            told = {name: _value(event, name, value) for name, value in one.items()} | {"job": job}
            # A resumed job repeats the steps after its checkpoint: the last telling is the one that holds.
            found[job, *(str(told.get(name)) for name in ("step", "monitor"))] = told
    return list(found.values())


def text_of(record: Record, field: str) -> str:
    """A text, "" where there is none."""
    value = record.get(field)
    return "" if value is None else str(value)


def stage_params(data: RunData, stage: str) -> Mapping[str, Any]:
    """The parameters of a stage as the plan has them; none where it is lost."""
    stages = data.plan.get("stages")
    for one in stages if isinstance(stages, list) else ():
        if isinstance(one, Mapping) and str(one.get("name")) == stage and isinstance(one.get("params"), Mapping):
            return one["params"]
    return {}


def sides_of(data: RunData, job: Job, sides: tuple[str, str], usual: tuple[str, str]) -> tuple[str, str]:
    """The two stages that a job compares: those that its parameters name, else the kind's own."""
    params = stage_params(data, job.stage)
    first, second = (str(params.get(side) or name) for side, name in zip(sides, usual, strict=True))
    return first, second


def _value(kind: str, name: str, value: Any) -> Any:
    usual = next((names for names in (FLAGS, SHARES, COUNTS, NUMBERS) if name in names), None)
    meant = OWN.get((kind, name), usual)
    if meant is None:
        return None if value is None else str(value)
    if meant is FLAGS:
        return value if isinstance(value, bool) else None
    number = number_of(value)
    if meant is NUMBERS or number is None:
        return number
    if meant is SHARES:
        return number if 0 <= number <= 1 else None
    return int(number) if number >= 0 and number.is_integer() else None


def _axes(planned: Iterable[tuple[str, Mapping[str, str]]]) -> list[str]:
    return list(dict.fromkeys(axis for _, axes in planned for axis in axes))


def _values(planned: Iterable[tuple[str, Mapping[str, str]]], axis: str) -> set[str]:
    return {axes[axis] for _, axes in planned if axis in axes}


def _rest(name: str) -> str:
    return name.partition(".")[2]
