"""Gates over axes: one gate written, one decided for each point of its axes."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping

from stepwell.plan.models import GateSpec, Plan, Selector
from stepwell.plan.order import held_stages, values
from stepwell.spec import Scalar

Point = Mapping[str, Scalar]


def axes_of(plan: Plan, gate: GateSpec) -> dict[str, tuple[Scalar, ...]]:
    """Axis -> values of a gate. KeyError where the plan lacks such an axis."""
    return {axis: plan.axes[given] if isinstance(given, str) else given for axis, given in gate.each.items()}


def expanded(plan: Plan) -> Plan:
    """The plan with every gate that has `each` made into one for each point; the same plan where none has.

    A gate at a point is about the jobs and records at that point, and holds the jobs at that point. With `ladder` it
    also holds every job at the later values of that axis: what it is about must pass before they begin.
    """
    gates = [made for gate in plan.gates for made in (_made(plan, gate) if gate.each else (gate,))]
    return plan.model_copy(update={"gates": tuple(gates)})


def _made(plan: Plan, gate: GateSpec) -> Iterator[GateSpec]:
    axes = axes_of(plan, gate)
    for point in itertools.product(*axes.values()):
        at = dict(zip(axes, point, strict=True))
        before = gate.before or tuple(Selector(stage=name) for name in held_stages(plan, gate))
        later = tuple(_later(plan, gate.ladder, axes, at)) if gate.ladder else ()
        criteria = [
            criterion.model_copy(update={"where": {**_shared(plan, criterion.stage, at), **criterion.where}})
            for criterion in gate.criteria
        ]
        yield gate.model_copy(
            update={
                "name": _name(gate.name, axes, at),
                "each": {},
                "ladder": None,
                "at": at,
                "after": tuple(_at(plan, selector, at) for selector in gate.after),
                "before": tuple(_at(plan, selector, at) for selector in before) + later,
                "criteria": tuple(criteria),
            }
        )


def _name(name: str, axes: Mapping[str, tuple[Scalar, ...]], at: Point) -> str:
    """With the values of the axes that have several, for only they tell the gates apart."""
    told = [re.sub(r"[^a-z0-9_-]", "-", str(at[axis]).lower()) for axis, given in axes.items() if len(given) > 1]
    return "-".join([name, *told])


def _shared(plan: Plan, stage: str, at: Point) -> dict[str, Scalar]:
    return {axis: value for axis, value in at.items() if axis in values(plan, plan.stage(stage))}


def _at(plan: Plan, selector: Selector, at: Point) -> Selector:
    mine = {axis: (value,) for axis, value in _shared(plan, selector.stage, at).items()}
    return Selector(stage=selector.stage, where={**mine, **selector.where})


def _later(plan: Plan, axis: str, among: Mapping[str, tuple[Scalar, ...]], at: Point) -> Iterator[Selector]:
    """All jobs at later values of an axis, the rest of the point the same.

    Not those that serve several points at once, such as the data that two models share: one model that fails would
    bar them for the other.
    """
    after = among[axis][among[axis].index(at[axis]) + 1 :]
    for stage in plan.stages:
        axes = values(plan, stage)
        if any(len(points) > 1 and other not in axes for other, points in among.items()):
            continue
        some = tuple(value for value in after if value in axes.get(axis, ()))
        if some:
            rest = {other: (value,) for other, value in _shared(plan, stage.name, at).items() if other != axis}
            yield Selector(stage=stage.name, where={axis: some, **rest})
