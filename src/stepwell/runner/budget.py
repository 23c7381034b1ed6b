"""The budget: what a run may spend, and the watch that stops it at a checkpoint before it has spent that."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from stepwell.engine import Engine
from stepwell.errors import StepwellError
from stepwell.estimate import at_once, hours_alone
from stepwell.plan import Job, Plan
from stepwell.runner.schedule import JobState
from stepwell.runner.spending import Meter, Spent, spent_of
from stepwell.store import RunFolder, is_held, read_events

SECONDS_BETWEEN_LOOKS = 1.0
SHORTEST_LOOK_SECONDS = 0.02
LONGEST_SECONDS_BETWEEN_EVENTS = 30.0
# A job is asked to stop when what is left is this many of the longest time between two of its checkpoints ...
GAPS_LEFT = 1.25
# ... and a little, for whatever a worker does between its checkpoint and its end: seconds, or a share of the budget.
FLOOR_SECONDS = 10.0
FLOOR_SHARE = 0.05


def limit_hours(plan: Plan) -> float | None:
    """Device hours that a plan's budget allows: the smaller of its hours and what its price buys; None without one."""
    if plan.budget is None:
        return None
    bought = None if plan.budget.price is None else plan.budget.price / (plan.hourly_price or math.nan)
    return min(hours for hours in (plan.budget.hours, bought) if hours is not None)


@dataclass(kw_only=True)
class Saving:
    """A job under way: whether it holds its devices yet, and when it saved its checkpoint, by the monotonic clock."""

    job: Job
    devices: int
    holds: bool
    file: tuple[int, int] | None
    at: float | None = None


class Watch:
    """Counts what a session spends, writes it to the log, and asks the engine to stop in time. A context manager.

    A thread looks on, since the inline engine leaves the runner no time while a job runs. Without a budget it only
    counts, so that a budget that is given later knows what was spent before.

    Args:
        plan: with its budget, where it has one.
        folder: the run; the caller holds its lock.
        engine: asked to stop at the next checkpoint. The caller ends it where `over` says so.
        clock: see `Meter`.
    """

    def __init__(
        self, plan: Plan, folder: RunFolder, engine: Engine, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.plan, self.folder, self.engine, self.clock = plan, folder, engine, clock
        before = spent_of(read_events(folder.events_path)) or Spent()
        hours = limit_hours(plan)
        self.limit = None if hours is None else 3600 * hours
        self.alone = {} if hours is None else hours_alone(plan)
        self.shares = {} if hours is None else _shares_left(folder)
        self.asked = False
        self.over = False
        self.held_back: list[str] = []
        self._gaps = dict(before.gaps)
        self._under_way: dict[str, Saving] = {}
        self._meter = Meter(plan, before, clock)
        self._began = self._told = clock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="budget")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._tell()

    def may_begin(self, job: Job, devices: int) -> bool:
        """Whether what is left suffices for a checkpoint of the job, and for its estimate where it has one."""
        if self.limit is None:
            return True
        left = self.limit - self._meter.device_seconds()
        needed = self._meter.rate(devices) * self._margin(self._gaps.get(job.stage, 0.0))
        alone = self._hours_left(job.id)
        if not self.asked and left > needed and (alone is None or 3600 * alone <= left):
            return True
        if job.id not in self.held_back:
            self.held_back.append(job.id)
        return False

    def begun(self, job: Job, devices: int) -> None:
        """A job was given to the engine. Where each has devices of its own, it holds none while it queues."""
        holds = self.plan.on_one_machine
        if holds:
            self._meter.begin(job.id, job.stage, devices)
        self._under_way[job.id] = Saving(job=job, devices=devices, holds=holds, file=self._file(job.id))

    def ended(self, job: Job) -> None:
        """The engine gave it back."""
        self._under_way.pop(job.id)
        self._meter.end(job.id)

    def pause(self) -> float:
        """Seconds until it must be looked at again."""
        if self.limit is None:
            return SECONDS_BETWEEN_LOOKS
        left = (self.limit - self._meter.device_seconds()) / max(1, self._meter.rate())
        due = left - (self._floor() / 2 if self.asked else self._margin(self._longest_gap()))
        # A small budget needs closer looks, or checkpoints between two of them are not seen.
        return min(SECONDS_BETWEEN_LOOKS, max(SHORTEST_LOOK_SECONDS, min(due, self._floor() / 2)))

    def check(self, states: Mapping[str, JobState]) -> None:
        """Raise StepwellError, with the way to go on, where the budget left jobs undone; and log it."""
        undone = [job for job, state in states.items() if state not in ("done", "skipped")]
        if self.limit is None or not undone or not (self.asked or self.held_back):
            return
        self.shares = _shares_left(self.folder)
        asked = {stage.name for stage in self.plan.stages if stage.on is None}
        hours = {job: self._hours_left(job) for job in undone if job.partition(".")[0] in asked}
        known = [each for each in hours.values() if each is not None]
        left = sum(known) / at_once(self.plan) if known else None
        unknown = tuple(dict.fromkeys(job.partition(".")[0] for job, each in hours.items() if each is None))
        spent = self._meter.device_seconds() / 3600
        error = _used_up(self.plan, spent, left, unknown, [(job, hours.get(job)) for job in self.held_back])
        self.folder.event(
            "budget",
            limit_hours=self.limit / 3600,
            spent_hours=round(spent, 6),
            left_hours=left,
            undone=undone,
            reason=error.cause,
        )
        raise StepwellError(error.cause, error.way_out, path=self.folder.path)

    def _run(self) -> None:
        while not self._ended.wait(self.pause()):
            self._look()

    def _look(self) -> None:
        for saving in list(self._under_way.values()):
            self._observe(saving)
        now = self.clock()
        if now - self._told >= min(LONGEST_SECONDS_BETWEEN_EVENTS, max(1.0, (now - self._began) / 100)):
            self._tell()
        if self.limit is None:
            return
        left, rate = self.limit - self._meter.device_seconds(), self._meter.rate()
        if not self.asked and left <= rate * self._margin(self._longest_gap()):
            self.asked = True
            self.engine.stop(now=False)
        self.over = self.over or left <= rate * self._floor() / 2

    def _observe(self, saving: Saving) -> None:
        """Whether a job that queued has begun, and whether it saved: asked of its lock and of its checkpoint."""
        if not saving.holds and is_held(self.folder.job_lock_path(saving.job.id)):
            saving.holds = True
            self._meter.begin(saving.job.id, saving.job.stage, saving.devices)
            if saving.job.id not in self._under_way:  # it ended meanwhile
                self._meter.end(saving.job.id)
        now, file = self.clock(), self._file(saving.job.id)
        if saving.at is not None:  # a time that is not over yet counts too
            self._gaps[saving.job.stage] = max(self._gaps.get(saving.job.stage, 0.0), now - saving.at)
        if file is not None and file != saving.file:
            saving.file, saving.at = file, now

    def _file(self, job: str) -> tuple[int, int] | None:
        """Which file the checkpoint is: each one replaces the last. Its time is compared with itself alone."""
        with contextlib.suppress(OSError):
            found = self.folder.checkpoint(job).stat()
            return found.st_ino, found.st_mtime_ns
        return None

    def _longest_gap(self) -> float:
        stages = {saving.job.stage for saving in list(self._under_way.values())}
        return max((self._gaps.get(stage, 0.0) for stage in stages), default=0.0)

    def _margin(self, gap: float) -> float:
        return GAPS_LEFT * gap + self._floor()

    def _floor(self) -> float:
        assert self.limit is not None
        return min(FLOOR_SECONDS, FLOOR_SHARE * self.limit / max(1, self._meter.rate()))

    def _hours_left(self, job: str) -> float | None:
        """The estimate of a job, less what its checkpoint holds."""
        alone = self.alone.get(job)
        return None if alone is None else alone * self.shares.get(job, 1.0)

    def _tell(self) -> None:
        self._told = self.clock()
        stages = {stage: round(seconds, 3) for stage, seconds in self._meter.stages().items()}
        gaps = {stage: round(seconds, 3) for stage, seconds in self._gaps.items()}
        self.folder.event("spent", device_seconds=round(self._meter.device_seconds(), 3), stages=stages, gaps=gaps)


def _shares_left(folder: RunFolder) -> dict[str, float]:
    """Job -> the share of its steps that is left, for jobs that have a checkpoint to go on from."""
    shares: dict[str, float] = {}
    for event in read_events(folder.events_path):
        if event["event"] == "progress" and event["total"]:
            shares[event["job"]] = 1.0 - event["done"] / event["total"]
    return {job: share for job, share in shares.items() if folder.checkpoint(job).exists()}


def _used_up(
    plan: Plan,
    spent: float,
    left: float | None,
    unknown: tuple[str, ...],
    held_back: list[tuple[str, float | None]],
) -> StepwellError:
    """What the budget was, what is spent and left to do in its unit, and the key that must be raised."""
    assert plan.budget is not None
    limit = limit_hours(plan)
    assert limit is not None
    by_hours = plan.budget.hours is not None and plan.budget.hours <= limit
    unit, per_hour = ("device hours", 1.0) if by_hours else (plan.currency, plan.hourly_price or math.nan)
    todo = "how much is left to do is not known" if left is None else f"about {left * per_hour:.3g} are left to do"
    todo += f" (without {', '.join(unknown)}, which have no estimate)" if left is not None and unknown else ""
    alone = [(job, hours) for job, hours in held_back if hours is not None and hours > limit - spent]
    large = f"; {alone[0][0]} alone is estimated at {alone[0][1] * per_hour:.3g}" if alone else ""
    cause = f"the budget of {limit * per_hour:.4g} {unit} ends the run: {spent * per_hour:.3g} are spent, {todo}{large}"
    way_out = (
        f"Run the same command with {_larger(plan, limit, left)}: it goes on from where it stopped, nothing is lost."
    )
    return StepwellError(cause, way_out)


def _larger(plan: Plan, limit: float, left: float | None) -> str:
    """The keys to raise: each that would end the run again. What is left is added to the limit, not to what is spent:
    the margin of the next stop comes off it too."""
    assert plan.budget is not None
    given = (("budget.hours", plan.budget.hours, 1.0), ("budget.price", plan.budget.price, plan.hourly_price))
    found = []
    for key, value, per_hour in given:
        if value is None or per_hour is None:
            continue
        if left:
            needed = (limit + left) * per_hour
            found += [f"{key}={_rounded_up(needed)} or more"] if value < needed else []
        elif value <= limit * per_hour:
            found.append(f"a larger {key}")
    return " and ".join(found)


def _rounded_up(value: float) -> str:
    """To three significant digits, never down."""
    step = 10.0 ** (math.floor(math.log10(value)) - 2)
    return f"{math.ceil(value / step - 1e-9) * step:.3g}"
