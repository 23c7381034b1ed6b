"""What a run is doing, read from its folder alone: the rows of the live table."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from stepwell.errors import StepwellError
from stepwell.plan import jobs
from stepwell.runner.schedule import JobState
from stepwell.store import RunFolder, is_held, read_events

ENDS: dict[str, JobState] = {
    "job-done": "done",
    "job-failed": "failed",
    "job-stopped": "stopped",
    "job-skipped": "skipped",
    "job-blocked": "blocked",
}
FRAME = frozenset({"time", "event", "job", "done", "total", "seconds", "attempt"})


@dataclass(frozen=True, kw_only=True)
class JobStatus:
    """One row.

    Args:
        done: steps done of `total`, where the stage tells.
        seconds: since the job began, or that it took; None where it has not run.
        fields: the stage's last words on its progress, e.g. loss and accuracy.
        message: why it failed, was skipped or was run again; empty otherwise.
        alert: the last thing that a monitor said; it stays when the job ends, or goes on after an interruption.
    """

    job: str
    stage: str
    axes: Mapping[str, Any]
    state: JobState
    done: int | None = None
    total: int | None = None
    seconds: float | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    message: str = ""
    alert: str = ""


def status(folder: Path | str) -> list[JobStatus]:
    """One row for each job of the plan in the folder, in its order; nothing is changed or verified.

    Raises StepwellError where there is no plan.
    """
    run = RunFolder(folder)
    if not run.plan_path.exists():
        raise StepwellError("no run lies here", "Name a folder that `stepwell run` has written.", path=run.path)
    rows = {
        job.id: JobStatus(job=job.id, stage=job.stage, axes=dict(job.axes), state="waiting")
        for job in jobs(run.read_plan())
    }
    began: dict[str, datetime.datetime] = {}
    stale: set[str] = set()
    for event in read_events(run.events_path):
        if event["event"] == "run-started":
            rows = {name: row if row.state == "done" else _again(row) for name, row in rows.items()}
        elif event.get("job") in rows:
            name = event["job"]
            if event["event"] == "job-started":
                began[name] = datetime.datetime.fromisoformat(event["time"])
                stale.discard(name)
            elif event["event"] == "job-rerun":
                stale.add(name)  # its marker lies there until the job begins anew
            rows[name] = _follow(rows[name], event)
    alive = is_held(run.path / "lock")
    return [row if name in stale else _as_found(run, row, began.get(name), alive) for name, row in rows.items()]


def unsaid(events: Iterable[Mapping[str, Any]]) -> set[str]:
    """Jobs that began, and whose end no session of the run lived to log."""
    last = {event["job"]: event["event"] for event in events if event["event"] in ("job-started", *ENDS)}
    return {job for job, event in last.items() if event == "job-started"}


def _anew(row: JobStatus) -> JobStatus:
    return JobStatus(job=row.job, stage=row.stage, axes=row.axes, state="waiting")


def _again(row: JobStatus) -> JobStatus:
    """The row before it goes on: a checkpoint remembers what was told, and does not tell it again."""
    return replace(_anew(row), alert=row.alert)


def _follow(row: JobStatus, event: Mapping[str, Any]) -> JobStatus:
    kind = event["event"]
    if kind == "job-started":
        return replace(_again(row), state="running", message=event.get("reason", ""))
    if kind == "alert":
        return replace(row, alert=str(event.get("message", "")))
    if kind in ("job-retired", "job-rerun"):
        return _anew(row)
    if kind == "progress":
        fields = {key: value for key, value in event.items() if key not in FRAME}
        return replace(row, done=event["done"], total=event["total"], seconds=event["seconds"], fields=fields)
    if kind in ENDS:
        message = event.get("cause") or event.get("reason") or ""
        return replace(row, state=ENDS[kind], seconds=event.get("seconds", row.seconds), message=message)
    return row


def _as_found(run: RunFolder, row: JobStatus, began: datetime.datetime | None, alive: bool) -> JobStatus:
    """The row once the folder itself is asked: a killed run wrote no last word, and a marker says done."""
    marker = run.marker(row.job)
    if row.state == "done" and marker is None:
        return replace(row, state="waiting", message="its done marker is missing")
    if marker is not None and (row.state == "waiting" or (row.state == "running" and not alive)):
        return replace(row, state="done", seconds=marker.get("seconds"), message="")
    if row.state == "running" and not alive:
        return replace(row, state="stopped", message="the run was killed")
    if row.state == "running" and began is not None:
        seconds = (datetime.datetime.now(datetime.UTC) - began).total_seconds()
        return replace(row, seconds=round(max(0.0, seconds), 3))
    return row
