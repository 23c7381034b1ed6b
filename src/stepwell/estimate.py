"""What a plan will cost before it runs: FLOP, hours and memory on a named device, and a price.

Arithmetic, not a promise. A stage whose kind gives no estimate stays unknown; it is never counted as nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stepwell import kinds
from stepwell.devices import Device, Memory, Work, find_device
from stepwell.plan import Job, Plan, jobs
from stepwell.plan.check import params_needed, params_of

__all__ = ["Estimate", "StageEstimate", "Work", "at_once", "device_of", "estimate", "hours_alone", "works"]


@dataclass(frozen=True, kw_only=True)
class StageEstimate:
    """What one stage costs on one device; None where its kind gives no estimate.

    Args:
        conditional: the stage runs only when a gate routes to it, and is not in the totals.
        memory: of the job that holds most on the device.
    """

    stage: str
    kind: str
    jobs: int
    flop: float | None
    tokens: int | None
    hours: float | None
    conditional: bool
    memory: Memory | None = None


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a plan costs on one device.

    Args:
        flop, hours: sums over the stages with an estimate; None when there is none. Hours are of one device held: of
            this machine's CPU, time on the wall with the plan's workers; a GPU is taken to be shared by them without
            gain; and several devices to share a job's work without loss.
        price: hours x hourly price; None where the price is not known.
        unknown: stages without an estimate, which the sums leave out.
    """

    device: Device
    stages: tuple[StageEstimate, ...]
    flop: float | None
    hours: float | None
    price: float | None
    currency: str
    unknown: tuple[str, ...]


def estimate(plan: Plan, device: str | None = None, hourly_price: float | None = None) -> Estimate:
    """The cost of a plan.

    Args:
        device: a name from the table or from the calibration; by default the plan's, `h100` standing for `cuda`.
        hourly_price: of the device, in the plan's currency; by default the plan's.
    """
    where = device_of(plan, device)
    stages, found_of, together = [], defaultdict[str, list[Work | None]](list), at_once(plan, device)
    for job, work in works(plan):
        found_of[job.stage].append(work)
    for stage in plan.stages:
        found = found_of[stage.name]
        known = [work for work in found if work is not None]
        complete = len(known) == len(found)
        seconds = [where.seconds(work, plan.threads_per_job) for work in known]
        stages.append(
            StageEstimate(
                stage=stage.name,
                kind=stage.kind,
                jobs=len(found),
                flop=sum(work.flop for work in known) if complete else None,
                tokens=sum(work.tokens for work in known) if complete else None,
                hours=_spread(seconds, together) / 3600 if complete else None,
                conditional=stage.on is not None,
                memory=_largest([work.memory for work in known]) if complete else None,
            )
        )
    counted = [each for each in stages if not each.conditional]
    hours = [each.hours for each in counted if each.hours is not None]
    price = hourly_price if hourly_price is not None else plan.hourly_price
    return Estimate(
        device=where,
        stages=tuple(stages),
        flop=sum(each.flop for each in counted if each.flop is not None) if hours else None,
        hours=sum(hours) if hours else None,
        price=sum(hours) * price if hours and price is not None else None,
        currency=plan.currency,
        unknown=tuple(each.stage for each in counted if each.hours is None),
    )


def hours_alone(plan: Plan, device: str | None = None) -> dict[str, float | None]:
    """Job -> hours of one device that it takes by itself; None where its kind gives no estimate."""
    where = device_of(plan, device)
    return {
        job.id: None if work is None else where.seconds(work, plan.threads_per_job) / 3600 for job, work in works(plan)
    }


def works(plan: Plan) -> list[tuple[Job, Work | None]]:
    """Every job with what it has to do; None where its kind gives no estimate."""
    return [(job, _work(plan, job.stage, job.axes)) for job in jobs(plan)]


def at_once(plan: Plan, device: str | None = None) -> int:
    """How many jobs share one device with gain: the workers of this machine's CPU, one job elsewhere."""
    return plan.workers if device_of(plan, device).cores and plan.on_one_machine else 1


def device_of(plan: Plan, device: str | None = None) -> Device:
    """The device of an estimate: the one named, else the plan's, `h100` standing for `cuda`."""
    return find_device(device or {"cuda": "h100"}.get(plan.device, "cpu"))


def _largest(held: list[Memory | None]) -> Memory | None:
    known = [each for each in held if each is not None]
    return max(known, key=lambda each: each.device) if known and len(known) == len(held) else None


def _spread(seconds: list[float], workers: int) -> float:
    """Time on the wall when each free worker takes the next job."""
    busy = [0.0] * workers
    for job in seconds:
        busy[busy.index(min(busy))] += job
    return max(busy)


def _work(plan: Plan, stage: str, axes: Mapping[str, Any]) -> Work | None:
    reference = kinds.kind(plan.stage(stage).kind).estimate
    if reference is None:
        return None
    return kinds.resolve(reference)(params_of(plan.stage(stage)), axes, params_needed(plan, plan.stage(stage)))
