"""A run folder's trainings analysed: what `stepwell analyze` prints and the report shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepwell.analysis.wire import Training, analyse_training
from stepwell.analysis.wire_ladder import Outlook, Run, outlooks
from stepwell.errors import StepwellError
from stepwell.report.folder import RunData, read_folder
from stepwell.report.imprint.reading import stage_kinds

OURS = "wire."
FIRST_TOKENS = "first_tokens"
"""A kind of record that no other study writes: it tells whose run it is where plan.yaml is lost."""


@dataclass(frozen=True, kw_only=True)
class Analysed:
    """Trainings by run folder, and the forecasts from all of them together."""

    runs: tuple[tuple[Path, tuple[Training, ...]], ...]
    outlooks: tuple[Outlook, ...]

    def to_json(self) -> dict[str, Any]:
        """Everything as plain data."""
        runs = [{"run": str(path), "trainings": [one.to_json() for one in found]} for path, found in self.runs]
        return {"runs": runs, "forecasts": [each.to_json() for each in self.outlooks]}


def analysed(folders: Sequence[Path | str], *, examples: int | None = None) -> Analysed:
    """Analyse run folders: rungs of one ladder, or one run, finished or not.

    Args:
        folders: of study `wire`.
        examples: that the training to be forecast sees; None = as the plan's stage `hero` says.

    Raises:
        StepwellError: a folder is no run of this study, or has no training step yet.
    """
    read = [(Path(folder), read_folder(folder)) for folder in folders]
    found = []
    for path, data in read:
        if not is_wire(data):
            raise StepwellError("this is no run of the study `wire`", "name runs of `stepwell run wire`", path=path)
        trainings = trainings_of(data)
        if not trainings:
            raise StepwellError(
                "no training step has been recorded here", "analyze it once a training has begun", path=path
            )
        found.append((path, trainings))
    return Analysed(runs=tuple(found), outlooks=outlooks_of([data for _, data in read], examples))


def is_wire(data: RunData) -> bool:
    """Whether the plan has a stage of this study; where the plan is lost, whether the records are of it."""
    kinds = stage_kinds(data)
    if kinds:
        return any(kind.startswith(OURS) for kind in kinds.values())
    return any(r.get("kind") == FIRST_TOKENS for records in data.records.values() for r in records)


def trainings_of(data: RunData) -> tuple[Training, ...]:
    """Every job with a training step, in the plan's order."""
    order = {job: place for place, job in enumerate(data.planned_jobs())}
    jobs = sorted(data.records, key=lambda job: (order.get(job, len(order)), job))
    found = (analyse_training(job, data.records[job]) for job in jobs)
    return tuple(one for one in found if one is not None)


def outlooks_of(runs: Sequence[RunData], examples: int | None = None) -> tuple[Outlook, ...]:
    """Forecasts of the hero rung from the rungs of these runs."""
    return tuple(outlooks([Run(plan=data.plan, records=data.records) for data in runs], examples))
