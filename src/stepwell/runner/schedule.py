"""Which job may run now: a pure state machine over jobs and the routes that gates have taken."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

from stepwell.plan import GateSpec, Job, Plan, held_by, select
from stepwell.plan.order import agree
from stepwell.spec import Scalar

JobState = Literal["waiting", "running", "done", "failed", "stopped", "skipped", "blocked"]
LOST = ("failed", "stopped", "blocked")


class Schedule:
    """The jobs of a plan, what became of them, and where the gates lead.

    `blocked` jobs wait for something that failed or was stopped; `skipped` ones lie on a route that was not taken.
    """

    def __init__(self, plan: Plan, among: tuple[Job, ...]) -> None:
        self.plan, self.jobs = plan, among
        self.state: dict[str, JobState] = {job.id: "waiting" for job in among}
        self.reason: dict[str, str] = {}
        self.routes: dict[str, str] = {}
        self.unreached: dict[str, tuple[JobState, str]] = {}
        self._after = {gate.name: tuple(job.id for job in select(among, gate.after)) for gate in plan.gates}
        self._held: dict[str, list[str]] = {job.id: [] for job in among}
        for gate in plan.gates:
            for job in held_by(plan, gate, among):
                if job.id not in self._after[gate.name]:
                    self._held[job.id].append(gate.name)
        self._label = {job.id: plan.stage(job.stage).on for job in among}

    def after(self, gate: GateSpec) -> tuple[str, ...]:
        """The jobs a gate judges."""
        return self._after[gate.name]

    def to_decide(self) -> list[GateSpec]:
        """Gates that are asked, whose jobs are all done, and that have not decided yet."""
        return [
            gate
            for gate in self.plan.gates
            if gate.name not in self.routes
            and gate.name not in self.unreached
            and (gate.on is None or gate.on in self._taken(gate.at))
            and all(self.state[job] == "done" for job in self._after[gate.name])
        ]

    def ready(self) -> list[Job]:
        """Jobs that may run now, in the order of the plan."""
        return [job for job in self.jobs if self.state[job.id] == "waiting" and self._may_run(job)]

    def settle(self) -> list[Job]:
        """Follow up what failed and which routes were not taken; gives the jobs newly skipped or blocked."""
        settled: list[Job] = []
        while True:
            self._follow_gates()
            found = [
                (job, why) for job in self.jobs if self.state[job.id] == "waiting" for why in [self._barred(job)] if why
            ]
            if not found:
                return settled
            for job, (state, reason) in found:
                self.state[job.id], self.reason[job.id] = state, reason
                settled.append(job)

    def _follow_gates(self) -> None:
        for gate in self.plan.gates:
            if gate.name in self.routes or gate.name in self.unreached:
                continue
            if gate.on is not None and gate.on not in self._taken(gate.at) and self._routers_done(gate.on, gate.at):
                self.routes[gate.name] = "next"  # it is not asked, so nothing waits for it
                continue
            for job in self._after[gate.name]:
                if self.state[job] in (*LOST, "skipped"):
                    state: JobState = "skipped" if self.state[job] == "skipped" else "blocked"
                    self.unreached[gate.name] = (state, f"gate {gate.name} needs {job}, which {_fate(self.state[job])}")
                    break

    def _taken(self, at: Mapping[str, Scalar]) -> set[str]:
        """The routes that gates have taken for a point: a gate at another point leads nothing here."""
        return {self.routes[g.name] for g in self.plan.gates if g.name in self.routes and agree(g.at, at)}

    def _routers(self, label: str, at: Mapping[str, Scalar]) -> list[str]:
        return [gate.name for gate in self.plan.gates if label in gate.routes_to() and agree(gate.at, at)]

    def _routers_done(self, label: str, at: Mapping[str, Scalar]) -> bool:
        """Whether every gate that could route to a label has gone elsewhere, or will never decide."""
        return all(gate in self.routes or gate in self.unreached for gate in self._routers(label, at))

    def _may_run(self, job: Job) -> bool:
        label = self._label[job.id]
        return (
            all(self.state[need] == "done" for need in job.needs)
            and all(gate in self.routes for gate in self._held[job.id])
            and (label is None or label in self._taken(job.axes))
        )

    def _barred(self, job: Job) -> tuple[JobState, str] | None:
        """Why a waiting job will not run, where that is certain."""
        return next(self._bars(job), None)

    def _bars(self, job: Job) -> Iterator[tuple[JobState, str]]:
        for need in job.needs:
            if self.state[need] in (*LOST, "skipped"):
                state: JobState = "skipped" if self.state[need] == "skipped" else "blocked"
                yield state, f"it needs {need}, which {_fate(self.state[need])}"
        label = self._label[job.id]
        for gate in self._held[job.id]:
            if gate in self.unreached:
                yield self.unreached[gate]
            elif self.routes.get(gate, "next") not in ("next", label):
                yield "skipped", f"gate {gate} routed to `{self.routes[gate]}`"
        if label is not None and label not in self._taken(job.axes) and self._routers_done(label, job.axes):
            lost = [self.unreached[gate] for gate in self._routers(label, job.axes) if gate in self.unreached]
            yield next((why for why in lost if why[0] == "blocked"), ("skipped", f"no gate routed to `{label}`"))


def _fate(state: JobState) -> str:
    return {"failed": "failed", "stopped": "was stopped", "blocked": "cannot run"}.get(state, "is not run")
