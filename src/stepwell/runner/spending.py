"""What a run has spent, in seconds of a device held: counted by a clock that nobody sets, across sessions."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stepwell.plan import Plan
from stepwell.store import RunFolder, read_events


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What the sessions of a run have spent so far, as its last event `spent` says.

    Args:
        device_seconds: all of it, pauses between jobs and work that was thrown away included.
        stages: stage -> device seconds of its jobs.
        gaps: stage -> the longest time in seconds that was seen between two checkpoints of a job of it.
    """

    device_seconds: float = 0.0
    stages: Mapping[str, float] = field(default_factory=dict)
    gaps: Mapping[str, float] = field(default_factory=dict)


def spent_of(events: Iterable[Mapping[str, Any]]) -> Spent | None:
    """What a run had spent when it last said so; None where it never did. Times of day are not looked at."""
    last = None
    for event in events:
        if event["event"] == "spent":
            last = event
    if last is None:
        return None
    return Spent(device_seconds=last["device_seconds"], stages=last["stages"], gaps=last["gaps"])


def spent_hours(folder: Path | str) -> float | None:
    """Device hours that the run in a folder has spent, up to 30 s ago where it is under way; None where unknown."""
    spent = spent_of(read_events(RunFolder(folder).events_path))
    return None if spent is None else spent.device_seconds / 3600


class Meter:
    """Counts device seconds of one session on top of those before it. Threads may share it.

    One machine is paid for as long as the run holds it, busy or not, and its jobs share it in equal parts. Where each
    job holds devices of its own, nothing is held between jobs.

    Args:
        plan: on one machine that has as many devices as a job of it may use.
        before: spent in earlier sessions.
        clock: seconds since any moment; must never be set, as `time.monotonic`.
    """

    def __init__(self, plan: Plan, before: Spent, clock: Callable[[], float] = time.monotonic) -> None:
        self._machine = plan.devices if plan.on_one_machine else None
        self._total, self._stages = before.device_seconds, dict(before.stages)
        self._clock, self._last = clock, clock()
        self._jobs: dict[str, tuple[str, int]] = {}
        self._lock = threading.Lock()

    def begin(self, job: str, stage: str, devices: int) -> None:
        """From now on a job holds so many devices."""
        with self._lock:
            self._settle()
            self._jobs[job] = (stage, devices)

    def end(self, job: str) -> None:
        """From now on it holds none."""
        with self._lock:
            self._settle()
            self._jobs.pop(job, None)

    def rate(self, more: int = 0) -> int:
        """Devices held now; with `more`, if a job that takes so many were begun."""
        with self._lock:
            return self._rate() + (more if self._machine is None else 0)

    def device_seconds(self) -> float:
        """Spent until now, earlier sessions included."""
        with self._lock:
            self._settle()
            return self._total

    def stages(self) -> dict[str, float]:
        """Stage -> device seconds of its jobs until now."""
        with self._lock:
            self._settle()
            return dict(self._stages)

    def _rate(self) -> int:
        return self._machine if self._machine is not None else sum(devices for _, devices in self._jobs.values())

    def _settle(self) -> None:
        now = self._clock()
        seconds, self._last = (now - self._last) * self._rate(), now
        self._total += seconds
        held = sum(devices for _, devices in self._jobs.values())
        for stage, devices in self._jobs.values():
            self._stages[stage] = self._stages.get(stage, 0.0) + seconds * devices / held
