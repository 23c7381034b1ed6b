"""How a plan would do on many devices: hours, price, memory and efficiency by arithmetic, and where it stops scaling.

Each job takes what `stepwell.estimate` says, and a start; jobs wait for one another as needs and gates say, as if every
gate went on; ready ones begin where devices are free. Jobs without an estimate take no time here, and are named.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from stepwell import kinds
from stepwell.devices import Device, Steps, Work, find_device
from stepwell.errors import StepwellError
from stepwell.estimate import works
from stepwell.plan import Plan
from stepwell.plan.order import waits
from stepwell.scale.dispatch import Task, longest_path, schedule
from stepwell.scale.shares import A_MACHINE, Taken, can_share, held_by_one, taken

__all__ = ["WAITING", "Point", "Scale", "scale"]

WAITING = "waiting"
"""Devices that are free while jobs wait for one another."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """A plan on so many devices.

    Args:
        devices: that are there.
        each: `devices` of the plan, the best of 1, 2, 4, ...
        hours: on the wall.
        used: device hours that jobs hold.
        held: device hours until the last job has ended, whether used or not.
        price: of those held; None where the price is not known.
        efficiency: device hours on one device, over those held here.
        memory: bytes on one device, of the job that holds most; None where no stage says it.
        lost: cause -> device hours held beyond those on one device.
        chain: (stage, hours) along the longest chain of jobs: no more devices are faster than that.
    """

    devices: int
    each: int
    hours: float
    used: float
    held: float
    price: float | None
    efficiency: float
    memory: float | None
    lost: Mapping[str, float]
    chain: tuple[tuple[str, float], ...]


@dataclass(frozen=True, kw_only=True)
class Scale:
    """A plan on several numbers of devices.

    Args:
        points: one for each number asked for; none where no job has an estimate.
        half: the plan on the smallest number at which efficiency is below one half; None where there are no points.
        unknown: stage -> its jobs without an estimate, and all its jobs.
        conditional: stages that wait for a route, and are left out.
    """

    device: Device
    currency: str
    points: tuple[Point, ...]
    half: Point | None
    unknown: Mapping[str, tuple[int, int]]
    conditional: tuple[str, ...]


def scale(
    plan: Plan, devices: Sequence[int] = (1, 8, 64, 512), device: str = "h100", hourly_price: float | None = None
) -> Scale:
    """A plan on several numbers of devices.

    Args:
        devices: how many, 1 or more.
        device: a name from the table or from the calibration.
        hourly_price: of one device, in the plan's currency; by default the plan's.

    Raises:
        StepwellError: an unknown device, or one of a machine's own cores; the plan is not sound.
    """
    where = find_device(device)
    if where.cores:
        raise StepwellError(f"`{device}` is no device of which a machine has {A_MACHINE}", "Name a GPU: --device h100.")
    model = _Model.of(plan, where, plan.hourly_price if hourly_price is None else hourly_price)
    return Scale(
        device=where, currency=plan.currency,
        points=tuple(model.best(n) for n in devices) if model.works else (),
        half=model.half() if model.works else None,
        unknown=model.unknown,
        conditional=tuple(stage.name for stage in plan.stages if stage.on is not None),
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _Model:
    """What the arithmetic needs of a plan: the works of its jobs and what each waits for, known jobs alone."""

    plan: Plan
    device: Device
    price: float | None
    works: Mapping[str, Work]
    stages: Mapping[str, str]
    needs: Mapping[str, tuple[str, ...]]
    unknown: Mapping[str, tuple[int, int]]

    @classmethod
    def of(cls, plan: Plan, device: Device, price: float | None) -> _Model:
        found = [(job, work) for job, work in works(plan) if plan.stage(job.stage).on is None]
        known = {job.id: work for job, work in found if work is not None}
        without = Counter(job.stage for job, work in found if work is None)
        of_all = Counter(job.stage for job, _ in found)
        before = waits(plan, plan.gates)
        return cls(
            plan=plan, device=device, price=price, works=known, stages={job.id: job.stage for job, _ in found},
            needs={id: tuple(dict.fromkeys(_known(id, before, known))) for id in known},
            unknown={stage: (n, of_all[stage]) for stage, n in without.items()},
        )  # fmt: skip

    @cached_property
    def alone(self) -> float:
        """Hours of one device for all jobs, one after another."""
        work = self.works.values()
        return sum(taken(each, self.device, 1, self.plan.threads_per_job).seconds for each in work) / 3600

    def best(self, n: int) -> Point:
        """The fastest `devices` of the plan on n devices; of several, the smallest."""
        points = (self.at(n, each, among) for each in self._options(n) for among in {n, n - n % each})
        return min(points, key=lambda point: (point.hours, point.each))

    def _options(self, n: int) -> Iterator[int]:
        kinds_of = {kinds.kind(stage.kind).parallel for stage in self.plan.stages if stage.on is None}
        most = min(n, A_MACHINE) if "ranks" in kinds_of else n
        most = min(most, max(can_share(work, self.device) for work in self.works.values()))
        each = 1
        while each <= most:
            yield each
            each *= 2

    def at(self, n: int, each: int, among: int) -> Point:
        """On n devices, `each` for a job that can use several, with jobs on so many `among` them.

        A queue without foresight can be slower on a few more devices (Graham 1969): then those are left alone.
        """
        took = {id: taken(work, self.device, each, self.plan.threads_per_job) for id, work in self.works.items()}
        tasks = [self._task(id, job) for id, job in took.items()]
        hours = schedule(tasks, among, A_MACHINE).seconds / 3600
        used = sum(job.devices * job.seconds for job in took.values()) / 3600
        lost = {WAITING: max(0.0, n * hours - used)}
        for job in took.values():
            for cause, seconds in job.lost.items():
                lost[cause] = lost.get(cause, 0.0) + seconds / 3600
        memory = [held_by_one(self.works[id], job.devices, shard=self.plan.shard) for id, job in took.items()]
        chain: dict[str, float] = {}
        for task in longest_path(tasks):
            stage = self.stages[task.id]
            chain[stage] = chain.get(stage, 0.0) + task.seconds / 3600
        return Point(
            devices=n, each=each, hours=hours, used=used, held=n * hours, efficiency=self.alone / (n * hours),
            price=None if self.price is None else n * hours * self.price,
            memory=max((held for held in memory if held is not None), default=None),
            lost=lost, chain=tuple(chain.items()),
        )  # fmt: skip

    def _task(self, id: str, job: Taken) -> Task:
        together = isinstance(self.works[id].shared, Steps)
        return Task(id=id, seconds=job.seconds, devices=job.devices, together=together, needs=self.needs[id])

    def half(self) -> Point:
        """By doubling, then halving the stretch: efficiency falls with devices, but for small steps."""
        high = 1
        while self.best(high).efficiency >= 0.5:
            high *= 2
        low = high // 2
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.best(middle).efficiency < 0.5 else (middle, high)
        return self.best(high)


def _known(id: str, before: Mapping[str, Sequence[str]], known: Mapping[str, Work]) -> Iterator[str]:
    """What a job waits for, directly or through jobs that are not known."""
    for need in before[id]:
        if need in known:
            yield need
        else:
            yield from _known(need, before, known)
