"""From stages to jobs: each stage expanded over its axes, needs matched, in an order that can be walked."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from stepwell.plan.check import checked, params_of
from stepwell.plan.models import GateSpec, Plan, Selector
from stepwell.plan.order import agree, held_stages, job_id, meant, ordered, points
from stepwell.spec import Scalar


@dataclass(frozen=True, kw_only=True)
class Job:
    """A stage at one point of its axes.

    Args:
        id: stage name and axis values, e.g. `train.cot.0`; unique in the plan and safe as a file name.
        params: the kind's validated parameters, defaults filled in, as plain JSON values.
        needs: ids of the jobs whose results this one reads.
    """

    id: str
    stage: str
    kind: str
    axes: Mapping[str, Scalar]
    params: Mapping[str, Any]
    needs: tuple[str, ...] = ()


def jobs(plan: Plan) -> tuple[Job, ...]:
    """All jobs of a plan in topological order (within a stage: as the axes are written).

    A need is matched on shared axes: `evaluate[arm=cot, seed=0]` needs `train[arm=cot, seed=0]`; where the needed stage
    has axes that the consumer lacks, all its jobs that agree on the shared ones. Raises StepwellError when the plan is
    not sound.
    """
    checked(plan)
    made: dict[str, tuple[Job, ...]] = {}
    for stage in ordered(plan):
        params = params_of(stage).model_dump(mode="json")
        made[stage.name] = tuple(
            Job(
                id=job_id(stage.name, axes),
                stage=stage.name,
                kind=stage.kind,
                axes=axes,
                params=params,
                needs=tuple(job.id for need in stage.needs for job in made[need] if agree(job.axes, axes)),
            )
            for axes in points(plan, stage)
        )
    return tuple(itertools.chain.from_iterable(made.values()))


def select(among: Iterable[Job], selectors: Iterable[Selector]) -> tuple[Job, ...]:
    """The jobs that any of the selectors means, in the order given."""
    wanted = tuple(selectors)
    return tuple(job for job in among if any(meant(job.stage, job.axes, selector) for selector in wanted))


def held_by(plan: Plan, gate: GateSpec, among: Iterable[Job]) -> tuple[Job, ...]:
    """The jobs that wait for a gate: those of `before`, or of every stage that needs a stage of `after`."""
    return select(among, gate.before or tuple(Selector(stage=name) for name in held_stages(plan, gate)))
