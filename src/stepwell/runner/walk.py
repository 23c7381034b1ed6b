"""Walk a plan: run what may run, decide gates as soon as their jobs are done, go on where an earlier run ended."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepwell import __version__, kinds
from stepwell.engine import Engine, Handle, JobCall, Outcome, engine_of
from stepwell.engine.base import log_of
from stepwell.errors import Interrupted, StageFailed, StepwellError
from stepwell.plan import GateSpec, Job, Plan
from stepwell.runner.budget import Watch
from stepwell.runner.schedule import JobState, Schedule
from stepwell.runner.signals import StopRequest, stopping
from stepwell.runner.table import unsaid
from stepwell.store import (
    RunFolder,
    override_of,
    read_events,
    read_records,
    write_atomically,
)
from stepwell.store.records import line_of

if TYPE_CHECKING:
    from stepwell.gate import Verdict
    from stepwell.plan import Decision

ATTEMPTS = 2
SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_TO_DIE = 10.0
GO_ON = "Run the same command again: it goes on from where it stopped."


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """How a run ended.

    Args:
        verdicts: of the gates that were reached, in the order of the plan.
        decision: `no-go` where any verdict is, else `inconclusive` where any is, else `go`.
        overrides: every change of the frozen gates, with its reason.
        jobs: what became of each job.
    """

    folder: Path
    verdicts: tuple[Verdict, ...]
    decision: Decision
    overrides: tuple[Mapping[str, Any], ...]
    jobs: Mapping[str, JobState]


class Walk:
    """One run of a plan; holds the folder's lock."""

    def __init__(
        self,
        plan: Plan,
        among: tuple[Job, ...],
        identities: Mapping[str, str],
        folder: RunFolder,
        policy: Mapping[str, Any],
    ) -> None:
        self.plan, self.jobs, self.identities, self.folder, self.policy = plan, among, identities, folder, policy
        self.schedule = Schedule(plan, among)
        self.engine: Engine = engine_of(plan)
        self.watch = Watch(plan, folder, self.engine)
        self.under_way: dict[Handle, tuple[Job, float]] = {}
        self.attempts: dict[str, int] = {}
        self.failures: list[tuple[str, Outcome]] = []
        self.verdicts: dict[str, Verdict] = {}
        self.checked: set[str] = set()
        self.unsaid = unsaid(read_events(folder.events_path))

    def to_the_end(self, resumed: bool) -> RunResult:
        """Walk until nothing can run any more."""
        facts = {"pid": os.getpid(), "host": socket.gethostname(), "stepwell": __version__, "resumed": resumed}
        self.folder.event(
            "run-started", jobs=len(self.jobs), engine=self.plan.engine, workers=self.engine.slots, **facts
        )
        for job in sorted(self.folder.known_jobs() - set(self.identities)):
            self.folder.retire(job)
        with stopping(self.engine) as request, self.watch:
            try:
                self._loop(request)
            except KeyboardInterrupt:
                request.count += 2  # from the inline engine, stopped at once
            finally:
                self._end_workers()
        if request.count and any(state in ("waiting", "running", "stopped") for state in self.schedule.state.values()):
            self.folder.event("run-stopped", asked=request.count)
            raise Interrupted("the run was stopped, as asked", GO_ON, path=self.folder.path)
        if self.failures:
            raise self._failure()
        self.watch.check(self.schedule.state)
        for job in self.jobs:
            if self.schedule.state[job.id] == "skipped" and job.id in self.folder.known_jobs():
                self.folder.retire(job.id)
        result = self._result()
        self.folder.event("run-done", decision=result.decision)
        return result

    def _loop(self, request: StopRequest) -> None:
        while True:
            self._follow_up()
            if self.folder.stop_path.exists() and not self.watch.asked:
                request.count = max(1, request.count)
            if not request.count and self._start():
                continue  # what was found done may have opened the way for more
            if not self.under_way:
                return
            if request.count or self.watch.asked:
                # A worker that was just being started when the signal came has not heard of it.
                self.engine.stop(now=request.count > 1 or self.watch.over)
            for handle in self.engine.wait(list(self.under_way), self.watch.pause()):
                self._ended(handle, request)

    def _follow_up(self) -> None:
        """Decide the gates that can be, and mark the jobs that will not run."""
        decided = False
        while gates := self.schedule.to_decide():  # one may ask for another
            decided |= any([self._decide(gate) for gate in gates])
        if decided or not self.checked:
            self._write_verdicts()
        for job in self.schedule.settle():
            self.folder.event(f"job-{self.schedule.state[job.id]}", job=job.id, reason=self.schedule.reason[job.id])

    def _start(self) -> bool:
        """Submit what may run, as far as there is room; tells whether a job was found to be done already."""
        found = False
        for job in self.schedule.ready():
            if job.id not in self.checked:
                self.checked.add(job.id)
                fault = self.folder.fault(job, self.identities[job.id])
                if fault is None:
                    self.folder.drop_checkpoint(job.id)  # a run killed right behind the marker has left it
                    self.schedule.state[job.id] = "done"
                    if job.id in self.unsaid:
                        self._say_done(job)
                    found = True
                    continue
                if self.folder.marker_path(job.id).exists():
                    self.folder.event("job-rerun", job=job.id, reason=fault)
            devices = kinds.kind(job.kind).holds(self.plan.devices)
            if len(self.under_way) < self.engine.slots and self.watch.may_begin(job, devices):
                self._submit(job, devices)
        return found

    def _submit(self, job: Job, devices: int) -> None:
        attempt = self.attempts[job.id] = self.attempts.get(job.id, 0) + 1
        self.folder.event("job-started", job=job.id, attempt=attempt)
        call = JobCall(
            folder=str(self.folder.path),
            job=job.id,
            fingerprint=self.identities[job.id],
            threads=self.plan.threads_per_job,
            ranks=kinds.kind(job.kind).ranks(self.plan.devices),
        )
        self.schedule.state[job.id] = "running"
        self.watch.begun(job, devices)
        self.under_way[self.engine.submit(call)] = (job, time.monotonic())

    def _ended(self, handle: Handle, request: StopRequest) -> None:
        job, began = self.under_way.pop(handle)
        self.watch.ended(job)
        outcome = handle.outcome
        assert outcome is not None
        seconds = round(time.monotonic() - began, 3)
        if outcome.state == "died" and self.folder.fault(job, self.identities[job.id]) is None:
            outcome = Outcome(state="done")  # right behind its marker: nothing is lost, and nothing to be retried
        if outcome.state == "done":
            self.schedule.state[job.id] = "done"
            self._say_done(job)
        elif outcome.state == "stopped" or (outcome.state == "died" and (request.count or self.watch.asked)):
            self.schedule.state[job.id] = "stopped"
            self.folder.event("job-stopped", job=job.id, seconds=seconds)
        elif outcome.state == "died" and self.attempts[job.id] < ATTEMPTS:
            self.schedule.state[job.id] = "waiting"
            self.folder.event("job-retried", job=job.id, cause=outcome.cause, end_of_log=outcome.traceback)
        else:
            again = f" (in {ATTEMPTS} attempts)" if outcome.state == "died" else ""
            outcome = replace(outcome, cause=outcome.cause + again)
            self.schedule.state[job.id], self.schedule.reason[job.id] = "failed", outcome.cause
            self.failures.append((job.id, outcome))
            log = log_of(handle.call).relative_to(self.folder.path).as_posix()
            facts = {"cause": outcome.cause, "traceback": outcome.traceback, "log": log}
            self.folder.event("job-failed", job=job.id, seconds=seconds, **facts)

    def _say_done(self, job: Job) -> None:
        """How long it took is what its worker counted, without its time in a queue."""
        self.folder.event("job-done", job=job.id, seconds=(self.folder.marker(job.id) or {}).get("seconds"))

    def _decide(self, gate: GateSpec) -> bool:
        from stepwell.gate import decide, spared

        stages = {criterion.stage for criterion in gate.criteria}
        records: dict[str, list[dict[str, Any]]] = {stage: [] for stage in stages}
        after = set(self.schedule.after(gate))
        for job in self.jobs:
            if job.id in after and job.stage in stages:
                records[job.stage] += read_records(self.folder.records(job.id))
        if (why := spared(gate, records)) is not None:
            self.schedule.routes[gate.name] = "next"  # nothing waits for it
            self.folder.event("gate-spared", gate=gate.name, reason=why)
            return False
        try:
            verdict = decide(gate, records)
        except StepwellError as error:
            # Jobs are under way: they finish first, and what waits for this gate does not run.
            outcome = Outcome(state="failed", cause=f"the gate cannot be decided: {error.cause}", way_out=error.way_out)
            self.schedule.unreached[gate.name] = ("blocked", f"gate {gate.name} cannot be decided")
            self.failures.append((gate.name, outcome))
            self.folder.event("gate-failed", gate=gate.name, cause=error.cause)
            return False
        verdict = replace(verdict, override=override_of(self.policy, gate.name))
        self.verdicts[gate.name] = verdict
        self.schedule.routes[gate.name] = verdict.route
        self.folder.event(
            "gate-decided", gate=gate.name, decision=verdict.decision, route=verdict.route, reason=verdict.reason
        )
        return True

    def _write_verdicts(self) -> None:
        """All verdicts so far in the order of the plan, whatever the order in which jobs ended."""
        lines = b"".join(line_of(verdict.to_record()) for verdict in self._in_order())
        path = self.folder.gates_path
        if lines:
            if not path.exists() or path.read_bytes() != lines:
                write_atomically(path, lines)
        else:
            path.unlink(missing_ok=True)

    def _in_order(self) -> tuple[Verdict, ...]:
        return tuple(self.verdicts[gate.name] for gate in self.plan.gates if gate.name in self.verdicts)

    def _end_workers(self) -> None:
        """Leave no worker behind, whatever ended the walk."""
        if self.under_way:
            self.engine.stop(now=True)
            deadline = time.monotonic() + SECONDS_TO_DIE
            while self.under_way and time.monotonic() < deadline:
                for handle in self.engine.wait(list(self.under_way), SECONDS_BETWEEN_LOOKS):
                    del self.under_way[handle]

    def _failure(self) -> StageFailed:
        name, outcome = self.failures[0]
        others = [other for other, _ in self.failures[1:]]
        also = f" (failed too: {', '.join(others)})" if others else ""
        self.folder.event("run-failed", failed=[name, *others])
        path = self.folder.log(name) if self.folder.log(name).exists() else self.folder.path
        return StageFailed(f"{outcome.cause}{also}", outcome.way_out, stage=name, path=path)

    def _result(self) -> RunResult:
        verdicts = self._in_order()
        decisions = {verdict.decision for verdict in verdicts}
        worst: Decision = "no-go" if "no-go" in decisions else "inconclusive" if "inconclusive" in decisions else "go"
        return RunResult(
            folder=self.folder.path,
            verdicts=verdicts,
            decision=worst,
            overrides=tuple(self.policy["overrides"]),
            jobs=dict(self.schedule.state),
        )
