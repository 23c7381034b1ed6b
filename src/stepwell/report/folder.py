"""A run folder as plain data: everything the report may know, read without the code that wrote it.

A folder of a run that was killed, or that another version wrote, must still give a report. So nothing here raises on a
missing, torn or foreign file: what could not be read becomes a note that the report prints.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from stepwell.errors import StepwellError

Record = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class RunData:
    """What one run left behind.

    Args:
        path: the folder.
        plan: plan.yaml as a mapping, empty where it is missing.
        policy: policy.json (the frozen gates and their hash).
        env: env.json (packages, commit, devices).
        events: events.jsonl, in order; wall-clock facts.
        records: per job id, its records in order.
        verdicts: records/gates.jsonl, in order.
        jobs: per job id, its done marker.
        notes: one sentence for each thing that could not be read.
    """

    path: Path
    plan: Mapping[str, Any]
    policy: Mapping[str, Any]
    env: Mapping[str, Any]
    events: tuple[Record, ...]
    records: Mapping[str, tuple[Record, ...]]
    verdicts: tuple[Record, ...]
    jobs: Mapping[str, Mapping[str, Any]]
    notes: tuple[str, ...]

    def of_kind(self, kind: str) -> Iterator[Record]:
        """Records of one kind over all jobs, in the order of job ids and then of writing."""
        return (record for job in sorted(self.records) for record in self.records[job] if record.get("kind") == kind)

    def planned(self) -> Iterator[tuple[str, str, Mapping[str, str]]]:
        """Stage, job id and axes, as text, of what the plan asks for: each stage over its axes, in the plan's order."""
        axes = self.plan.get("axes") or {}
        for stage in self.plan.get("stages") or ():
            name, each = str(stage.get("name")), stage.get("each") or {}
            values = [axes.get(each[axis], ()) if isinstance(each[axis], str) else each[axis] for axis in each]
            for point in itertools.product(*values):
                at = dict(zip(each, map(str, point), strict=True))
                yield name, ".".join([name, *at.values()]), at

    def planned_jobs(self) -> tuple[str, ...]:
        """Job ids that the plan asks for, in its order."""
        return tuple(job for _, job, _ in self.planned())

    def arms(self) -> tuple[str, ...]:
        """Arms in the plan's order, then any that only the records know."""
        planned = [str(arm) for arm in (self.plan.get("axes") or {}).get("arm") or ()]
        recorded = {str(r["arm"]) for job in self.records.values() for r in job[:1] if r.get("arm") is not None}
        return tuple(dict.fromkeys(planned + sorted(recorded)))


def read_folder(path: Path | str) -> RunData:
    """Read a run folder.

    Raises:
        StepwellError: the path is no folder, or holds neither a plan nor records.
    """
    path = Path(path)
    if not path.is_dir():
        raise StepwellError("no such run folder", "name a folder that `stepwell run` has written", path=path)
    if not (path / "plan.yaml").exists() and not (path / "records").is_dir():
        raise StepwellError(
            "not a run folder: it holds neither plan.yaml nor records/",
            "name a folder that `stepwell run` has written",
            path=path,
        )
    notes: list[str] = []
    files = sorted((path / "records").glob("*.jsonl")) if (path / "records").is_dir() else []
    markers = sorted((path / "jobs").glob("*.json")) if (path / "jobs").is_dir() else []
    return RunData(
        path=path,
        plan=_mapping(path / "plan.yaml", notes),
        policy=_mapping(path / "policy.json", notes),
        env=_mapping(path / "env.json", notes),
        events=_lines(path / "events.jsonl", notes),
        records={file.stem: _lines(file, notes) for file in files if file.stem != "gates"},
        verdicts=_lines(path / "records" / "gates.jsonl", notes) if any(f.stem == "gates" for f in files) else (),
        jobs={marker.stem: _mapping(marker, notes) for marker in markers},
        notes=tuple(notes),
    )


def _mapping(path: Path, notes: list[str]) -> Mapping[str, Any]:
    """A JSON or YAML mapping; empty, with a note, where there is none."""
    if not path.exists():
        notes.append(f"{path.name} is missing")
        return {}
    try:
        text = path.read_text(encoding="utf-8")
        value = yaml.safe_load(text) if path.suffix == ".yaml" else json.loads(text)
    except (OSError, UnicodeDecodeError, ValueError, yaml.YAMLError) as error:
        notes.append(f"{path.name} could not be read ({type(error).__name__})")
        return {}
    if isinstance(value, dict):
        return value
    notes.append(f"{path.name} is not a mapping")
    return {}


def _lines(path: Path, notes: list[str]) -> tuple[Record, ...]:
    """The JSON objects of a file, one a line. A line that a killed writer left torn is left out, and noted."""
    if not path.exists():
        notes.append(f"{path.name} is missing")
        return ()
    good, bad = [], 0
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except ValueError:
                value = None
            if isinstance(value, dict):
                good.append(value)
            else:
                bad += 1
    if bad:
        notes.append(f"{path.name}: {bad} unreadable {'line' if bad == 1 else 'lines'} left out")
    return tuple(good)
