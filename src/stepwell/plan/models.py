"""A study as data: stages, gates and axes. Frozen objects, the same whether read from YAML or written in Python."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from stepwell.plan.options import RayOptions, SlurmOptions
from stepwell.spec import Scalar, Scalars, Spec

Decision = Literal["go", "no-go", "inconclusive"]
ROUTES: dict[Decision, str] = {"go": "next", "no-go": "stop", "inconclusive": "next"}
EQUIVALENT = "equivalent"
"""The route of a band around zero of a paired difference: two one-sided tests (TOST, Schuirmann 1987) with the band as
margin, at level alpha when the interval has confidence 1 - 2 alpha. Nothing else may route there."""
NAME = r"^[a-z][a-z0-9_-]*$"
Name = Annotated[str, Field(pattern=NAME)]


class Selector(Spec):
    """Jobs of one stage, filtered on its axes: a job is meant when each named axis has one of the values.

    In YAML a plain string is short for all jobs of the stage of that name.
    """

    stage: str
    where: dict[str, Scalars] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return {"stage": value} if isinstance(value, str) else value


class Criterion(Spec):
    """One question to the records, and the threshold that answers it.

    Args:
        metric: the field of the records that is judged.
        stage: the stage whose records are read.
        where: equality with a scalar, or membership in a tuple, of record fields (`kind` included).
        at_most: record field <= value, e.g. {"epoch": 10}.
        pick: of records that share everything but `step` and what is measured: all, the last, or the best.
        statistic: `mean` estimates with an interval; `every` asks whether all matching records are true (a fact).
        minus: paired difference with the records in which these fields are replaced, joined on `id` (and seed). Two of
            them, in a list, are a difference of differences: [{condition: zeroed}, {arm: shared}] asks how much more
            of the metric is lost by zeroing than `shared` loses.
        per: decide separately for each value of this field, e.g. seed.
        need: with `per`: how many of them must say go; all where it is not given.
        share: instead of `need`, the share of them that must, in (0, 1].
        any_of: with `per`: a value goes when it goes at one value at least of this field (Bonferroni), e.g. layer.
        comparison: metric, comparison, threshold read as one sentence.
        threshold: in the metric's unit; with `minus`, in units of the difference.
        confidence: of the interval, in (0, 1).
        smallest_n: below it the criterion is inconclusive.
        mode: `interval` decides from the interval; `point` from the value alone, and the report says so.
        claim: `runs` is about the trained models at hand; `mechanism` about what such a training does: its interval
            covers seeds as well as items, and fewer than 3 seeds leave it inconclusive.
        looks: `repeated` uses a confidence sequence, valid however often one looks.
    """

    metric: str
    stage: str
    where: dict[str, Scalar | tuple[Scalar, ...]] = Field(default_factory=dict)
    at_most: dict[str, float] = Field(default_factory=dict)
    pick: Literal["all", "last", "best"] = "all"
    statistic: Literal["mean", "every"] = "mean"
    minus: dict[str, Scalar] | tuple[dict[str, Scalar], ...] | None = None
    per: str | None = None
    need: int | None = Field(default=None, ge=1)
    share: float | None = Field(default=None, gt=0, le=1)
    any_of: str | None = None
    comparison: Literal[">=", ">", "<=", "<"]
    threshold: float
    confidence: float = Field(default=0.95, gt=0, lt=1)
    smallest_n: int = Field(default=1, ge=1)
    mode: Literal["interval", "point"] = "interval"
    claim: Literal["runs", "mechanism"] = "runs"
    looks: Literal["once", "repeated"] = "once"

    @property
    def replaced(self) -> tuple[dict[str, Scalar], ...]:
        """What `minus` replaces, one mapping for each difference taken; empty without one."""
        return () if self.minus is None else self.minus if isinstance(self.minus, tuple) else (self.minus,)

    @model_validator(mode="after")
    def _goes_with_per(self) -> Self:
        for name in ("need", "share", "any_of"):
            if getattr(self, name) is not None and self.per is None:
                raise ValueError(f"`{name}` is about the values of `per`, which is missing")
        if self.need is not None and self.share is not None:
            raise ValueError("`need` and `share` both say how many values must go; give one")
        return self

    @model_validator(mode="after")
    def _a_mechanism_is_estimated(self) -> Self:
        if self.claim == "mechanism" and (self.statistic, self.mode, self.looks) != ("mean", "interval", "once"):
            raise ValueError("`claim: mechanism` needs statistic mean, mode interval and looks once")
        return self

    @model_validator(mode="after")
    def _at_most_two_differences(self) -> Self:
        fields = [field for replaced in self.replaced for field in replaced]
        if self.minus is not None and (len(self.replaced) not in (1, 2) or not all(self.replaced)):
            raise ValueError("`minus` takes one mapping of fields to replace, or a list of two")
        if len(fields) != len(set(fields)):
            raise ValueError("the two differences of `minus` replace the same field")
        return self


class Band(Spec):
    """A stretch [low, high] of the metric and the route taken when the interval lies in it."""

    low: float
    high: float
    route: str

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low {self.low:g} is not below high {self.high:g}")
        return self


class GateSpec(Spec):
    """A decision between stages. Frozen and hashed before the run.

    Args:
        asks: the question in one sentence, for the report.
        after: the jobs whose records must be there before the gate decides.
        before: the jobs that wait for it; if empty, every stage that needs a stage of `after`.
        combine: `all` or `any` of the criteria, Holm-adjusted.
        bands: instead of a threshold, stretches that route; then there is exactly one criterion.
        routes: where each decision leads: `next`, `stop`, or the `on` label of a stage or of a gate further down.
        on: the gate is asked only when a gate before it routes to this label; otherwise nothing waits for it.
        given: it is asked only where one of the records it reads has these fields; otherwise nothing waits for it.
        each: axis -> values, or the name of an axis of the plan: one gate for each point, about the jobs and records
            at that point; its routes lead no other jobs.
        ladder: one of these axes, whose values are taken in order: jobs at later values wait for the gates at earlier
            ones.
        at: the point of a gate that was made from one with `each`.
    """

    name: Name
    asks: str
    on: str | None = None
    given: dict[str, Scalar] = Field(default_factory=dict)
    each: dict[Name, str | tuple[Scalar, ...]] = Field(default_factory=dict)
    ladder: str | None = None
    at: dict[Name, Scalar] = Field(default_factory=dict)
    after: tuple[Selector, ...] = Field(min_length=1)
    before: tuple[Selector, ...] = ()
    combine: Literal["all", "any"] = "all"
    criteria: tuple[Criterion, ...] = Field(min_length=1)
    bands: tuple[Band, ...] = ()
    routes: dict[Decision, str] = Field(default_factory=lambda: dict(ROUTES))

    @model_validator(mode="before")
    @classmethod
    def _complete_routes(cls, value: Any) -> Any:
        """A gate that names one route keeps the usual ones for the other decisions."""
        if isinstance(value, dict) and isinstance(value.get("routes", {}), dict):
            return {
                **value,
                "routes": {"go": "next", "no-go": "stop", "inconclusive": "next"} | value.get("routes", {}),
            }
        return value

    @model_validator(mode="after")
    def _ladder_is_an_axis(self) -> Self:
        if self.ladder is not None and self.ladder not in self.each:
            raise ValueError(f"`ladder` names an axis of `each`, found `{self.ladder}`")
        return self

    @model_validator(mode="after")
    def _bands_apart(self) -> Self:
        if self.bands and len(self.criteria) != 1:
            raise ValueError(f"bands go with exactly one criterion, found {len(self.criteria)}")
        ordered = sorted(self.bands, key=lambda band: band.low)
        for lower, upper in pairwise(ordered):
            if lower.high > upper.low:
                raise ValueError(
                    f"bands overlap: [{lower.low:g}, {lower.high:g}] -> {lower.route} and "
                    f"[{upper.low:g}, {upper.high:g}] -> {upper.route}"
                )
        return self

    def routes_to(self) -> frozenset[str]:
        """Every label this gate may route to."""
        return frozenset(self.routes.values()) | {band.route for band in self.bands}


class StageSpec(Spec):
    """One stage: a kind, its parameters, and the axes over which it becomes several jobs.

    Args:
        needs: stages that must be done before; matched on shared axes.
        each: axis -> values, or the name of an axis of the plan.
        on: the stage runs only when a gate routes to this label.
        params: parameters of the kind, validated against its model when the plan is loaded.
    """

    name: Name
    kind: str
    needs: tuple[str, ...] = ()
    each: dict[Name, str | tuple[Scalar, ...]] = Field(default_factory=dict)
    on: str | None = None
    params: dict[str, Any] = Field(default_factory=dict)


class Budget(Spec):
    """What a run may spend in all its sessions. It stops before it passes the smaller of the two.

    Args:
        hours: hours of one device held: 8 devices for an hour are 8.
        price: in the plan's currency, at its hourly price.
    """

    hours: float | None = Field(default=None, gt=0)
    price: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _limits_something(self) -> Self:
        if self.hours is None and self.price is None:
            raise ValueError("a budget has `hours`, `price` or both")
        return self


class Plan(Spec):
    """A whole study at one rung.

    Args:
        scope: what the findings of this rung are about, and what does not carry over; shown beside the answer.
        seed: of the whole study; each job's own seed is derived from it.
        axes: named lists of values that stages may expand over.
        engine: where jobs run: in this process, each in one of its own, as tasks of a Ray cluster, as jobs of SLURM.
        ray: which cluster `engine: ray` uses, and how.
        slurm: what `engine: slurm` asks of the queue.
        workers: jobs at a time.
        devices: of one job, where its kind can use several: processes of one training, or workers over its items.
        shard: whether the processes of one training hold the model's layers in parts (FSDP2) instead of whole.
        threads_per_job: CPU threads each job may use; part of a job's identity, for sums depend on it.
        hourly_price: price of one hour of the device, in `currency`; None where unknown.
        budget: what the run may spend; no part of a job's identity, so that it can be raised.
        device: `auto`, `cpu`, `cuda`, `mps`.
        extensions: modules of your own that register stage kinds when imported, here and in each worker.
    """

    study: Name
    title: str
    question: str
    rung: str = "base"
    scope: str = ""
    seed: int = Field(default=0, ge=0)
    axes: dict[Name, Scalars] = Field(default_factory=dict)
    engine: Literal["inline", "process", "ray", "slurm"] = "inline"
    ray: RayOptions = RayOptions()
    slurm: SlurmOptions = SlurmOptions()
    workers: int = Field(default=1, ge=1)
    devices: int = Field(default=1, ge=1)
    shard: bool = False
    threads_per_job: int = Field(default=1, ge=1)
    stages: tuple[StageSpec, ...] = Field(min_length=1)
    gates: tuple[GateSpec, ...] = ()
    hourly_price: float | None = Field(default=None, ge=0)
    currency: str = "USD"
    budget: Budget | None = None
    device: str = "auto"
    extensions: tuple[str, ...] = ()

    @property
    def on_one_machine(self) -> bool:
        """Whether all jobs share the devices of this machine; under the other engines each job holds its own."""
        return self.engine in ("inline", "process")

    def stage(self, name: str) -> StageSpec:
        """The stage of this name; KeyError when there is none."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise KeyError(name)

    def gate(self, name: str) -> GateSpec:
        """The gate of this name; KeyError when there is none."""
        for gate in self.gates:
            if gate.name == name:
                return gate
        raise KeyError(name)
