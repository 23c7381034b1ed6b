"""The runner: walks a plan in a run folder, and tells what a run is doing."""

from __future__ import annotations

from stepwell.runner.schedule import JobState, Schedule
from stepwell.runner.spending import spent_hours
from stepwell.runner.start import job_fingerprints, run
from stepwell.runner.table import JobStatus, status
from stepwell.runner.walk import RunResult

__all__ = ["JobState", "JobStatus", "RunResult", "Schedule", "job_fingerprints", "run", "spent_hours", "status"]
