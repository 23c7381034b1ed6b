"""One side of a comparison: a run, the jobs of it that a selection means, and why they may not be used."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stepwell.errors import StepwellError
from stepwell.report.folder import Record, RunData, read_folder
from stepwell.store import sha256_of

SELECTED = re.compile(r"^(?P<run>.+?)(?::(?P<axes>\w+=[^,=]+(?:,\w+=[^,=]+)*))?$", re.DOTALL)
KINDS = ("item", "intervention")
ASKING = ("thoughts.evaluate", "thoughts.intervene")


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two: a run, and the axes that single out its jobs.

    Args:
        label: as the user named it.
        run: the folder.
        rows: per set, its records under the condition asked for.
        axes: axis -> the values selected, as text.
    """

    label: str
    run: RunData
    rows: Mapping[str, tuple[Record, ...]]
    axes: Mapping[str, frozenset[str]]

    @property
    def seeds(self) -> tuple[str, ...]:
        """Seeds selected, as text, in order of number."""
        return tuple(sorted(self.axes.get("seed", frozenset()), key=lambda seed: (len(seed), seed)))


def refusal(cause: str, way_out: str) -> StepwellError:
    """What is raised where two sides cannot be compared."""
    return StepwellError(f"not comparable: {cause}", way_out)


def side_of(text: str, condition: str) -> Side:
    """The run and its records; StepwellError where the selection holds several arms, or a stage has not finished."""
    run, wanted = _selected(text)
    every = [(job, record) for job, records in run.records.items() for record in records if record.get("kind") in KINDS]
    meant = [(j, r) for j, r in every if all(str(r.get(axis)) == value for axis, value in wanted.items())]
    if not meant:
        _refuse_unfinished(text, run, _asking(run, every), wanted)
        raise StepwellError(f"{text}: no record is meant by it", _ways_in(every), path=run.path)
    chosen = [(job, record) for job, record in meant if record.get("condition", "clean") == condition]
    # The clean answers stand in the records of the evaluation, and again beside the interventions.
    kind = min((str(record["kind"]) for _, record in chosen), key=KINDS.index, default="")
    chosen = [(job, record) for job, record in chosen if record["kind"] == kind]
    if not chosen:
        _refuse_unfinished(text, run, _asking(run, meant), wanted)
        known = ", ".join(sorted({str(record.get("condition", "clean")) for _, record in meant}))
        raise refusal(f"{text} has no answers under condition `{condition}`", f"Conditions there: {known}.")
    stages = _asking(run, chosen)
    axes = _axes(run, stages, [record for _, record in chosen])
    for axis, values in axes.items():
        if axis != "seed" and len(values) > 1:
            raise StepwellError(
                f"{text} holds several values of {axis}: {', '.join(sorted(values))}",
                f"Name one: {run.path}:{axis}={min(values)}",
            )
    _refuse_unfinished(text, run, stages, wanted)
    rows: dict[str, list[Record]] = {}
    for _, record in chosen:
        rows.setdefault(str(record.get("set")), []).append(record)
    return Side(label=text, run=run, rows={k: tuple(v) for k, v in rows.items()}, axes=axes)


def _asking(run: RunData, rows: Sequence[tuple[str, Record]]) -> frozenset[str]:
    """The stages that wrote the records; without any, those that the plan has for it."""
    wrote = {job.partition(".")[0] for job, _ in rows}
    return frozenset(wrote or {str(s.get("name")) for s in run.plan.get("stages") or () if s.get("kind") in ASKING})


def _ways_in(rows: Sequence[tuple[str, Record]]) -> str:
    """What may be selected."""
    found = [
        f"{axis}: {', '.join(sorted({str(row[axis]) for _, row in rows if axis in row}))}" for axis in ("arm", "seed")
    ]
    return f"Its records have {'; '.join(found)}." if rows else "Run a plan that evaluates something."


def _selected(text: str) -> tuple[RunData, dict[str, str]]:
    if Path(text).is_dir():
        return read_folder(text), {}
    match = SELECTED.match(text)
    assert match is not None
    axes = dict(pair.split("=") for pair in (match["axes"] or "").split(",") if pair)
    return read_folder(match["run"]), axes


def _axes(run: RunData, stages: frozenset[str], rows: Sequence[Record]) -> dict[str, frozenset[str]]:
    names = {axis for stage, _, axes in run.planned() if stage in stages for axis in axes}
    names |= {axis for axis in ("arm", "seed") if any(axis in row for row in rows)}
    return {axis: frozenset(str(row.get(axis)) for row in rows) for axis in sorted(names)}


def _refuse_unfinished(text: str, run: RunData, stages: frozenset[str], wanted: Mapping[str, str]) -> None:
    """Every job that the selection means must be done, and its records be those that it wrote."""
    for stage, job, axes in run.planned():
        if stage not in stages or any(axes.get(axis) != value for axis, value in wanted.items() if axis in axes):
            continue
        marker = run.jobs.get(job)
        if not marker:
            raise refusal(
                f"{text}: stage {job} has not finished",
                f"Go on with the run, or select what is done, e.g. {run.path}:seed=0",
            )
        records = run.path / "records" / f"{job}.jsonl"
        expected = (marker.get("records") or {}).get("sha256")
        if not records.is_file() or sha256_of(records) != expected:
            raise refusal(f"{text}: the records of {job} were changed after it finished", "Run that stage again.")
