"""The order of stages, and the points of their axes: pure functions of a plan, used by checks and by expansion."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping

from stepwell.plan.models import GateSpec, Plan, Selector, StageSpec
from stepwell.spec import Scalar


def values(plan: Plan, stage: StageSpec) -> dict[str, tuple[Scalar, ...]]:
    """Axis -> values of a stage, names of plan axes looked up. KeyError where the plan lacks such an axis."""
    return {axis: plan.axes[given] if isinstance(given, str) else given for axis, given in stage.each.items()}


def points(plan: Plan, stage: StageSpec) -> tuple[dict[str, Scalar], ...]:
    """The product of a stage's axes; a stage without axes has one point, {}."""
    axes = values(plan, stage)
    return tuple(dict(zip(axes, point, strict=True)) for point in itertools.product(*axes.values()))


def job_id(stage: str, axes: dict[str, Scalar]) -> str:
    """The id of a job, e.g. `train.cot.0`."""
    return ".".join([stage, *(str(value) for value in axes.values())])


def held_stages(plan: Plan, gate: GateSpec) -> tuple[str, ...]:
    """The names of the stages that wait for a gate: those of `before`, or all that need a stage of `after`."""
    if gate.before:
        return tuple(dict.fromkeys(selector.stage for selector in gate.before))
    after = {selector.stage for selector in gate.after}
    return tuple(stage.name for stage in plan.stages if after & set(stage.needs))


def meant(stage: str, axes: Mapping[str, Scalar], selector: Selector) -> bool:
    """Whether a selector means the job of a stage at a point of its axes."""
    return stage == selector.stage and all(axes.get(axis) in values for axis, values in selector.where.items())


def agree(one: Mapping[str, Scalar], other: Mapping[str, Scalar]) -> bool:
    """Whether two points have the same value on every axis they share."""
    return all(one[axis] == other[axis] for axis in one.keys() & other.keys())


def waits(plan: Plan, gates: Iterable[GateSpec] = ()) -> dict[str, list[str]]:
    """Job id -> ids of the jobs it waits for: those it needs, and those that the gates before it wait for.

    Jobs, not stages: a gate may stand between two arms of one stage.
    """
    places = [(stage, axes) for stage in plan.stages for axes in points(plan, stage)]
    needs = {
        job_id(stage.name, axes): [
            job_id(other.name, point) for other, point in places if other.name in stage.needs and agree(point, axes)
        ]
        for stage, axes in places
    }
    for gate in gates:
        before = gate.before or tuple(Selector(stage=name) for name in held_stages(plan, gate))
        after = [job_id(s.name, axes) for s, axes in places if any(meant(s.name, axes, one) for one in gate.after)]
        for stage, axes in places:
            if any(meant(stage.name, axes, one) for one in before):
                needs[job_id(stage.name, axes)] += after
    return needs


def ordered(plan: Plan) -> tuple[StageSpec, ...]:
    """Stages such that each comes after what it needs; the written order otherwise. The plan has no cycle."""
    waiting, done = list(plan.stages), {}
    while waiting:
        ready = next(stage for stage in waiting if all(need in done for need in stage.needs))
        waiting.remove(ready)
        done[ready.name] = ready
    return tuple(done.values())


def cycle(edges: dict[str, list[str]]) -> list[str] | None:
    """One cycle a -> b -> ... -> a of a directed graph, or None."""
    state: dict[str, int] = {}
    trail: list[str] = []

    def walk(node: str) -> list[str] | None:
        state[node] = 1
        trail.append(node)
        for following in edges.get(node, ()):
            if state.get(following) == 1:
                return [*trail[trail.index(following) :], following]
            if following not in state and (found := walk(following)):
                return found
        trail.pop()
        state[node] = 2
        return None

    return next((found for node in edges if node not in state and (found := walk(node))), None)
