"""The checks a plan passes before anything runs: names, cycles, axes, parameters, and what the gates ask of records."""

from __future__ import annotations

import importlib
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, TypeVar, runtime_checkable

from pydantic import ValidationError

from stepwell import kinds
from stepwell.plan.models import EQUIVALENT, Band, Criterion, GateSpec, Plan, Selector, StageSpec
from stepwell.plan.order import cycle, job_id, points, values, waits
from stepwell.plan.problems import Problem, coerced, from_pydantic, listed, near, raise_for, unknown
from stepwell.plan.source import Keys, Source
from stepwell.spec import Spec, data_files

Found = TypeVar("Found", bound=Spec)
AXIS_VALUE = re.compile(r"[A-Za-z0-9_+.-]+")


class Needed(dict[str, Spec]):
    """The parameters of every stage that a stage needs, directly or not, by name.

    Attributes:
        direct: of those that it needs directly, what they need themselves.
    """

    def __init__(self, direct: Mapping[str, tuple[Spec, Needed]]) -> None:
        super().__init__()
        self.direct = {name: theirs for name, (_, theirs) in direct.items()}
        for name, (params, theirs) in direct.items():
            self.update({name: params} | theirs)

    def directly(self, params: type[Found]) -> dict[str, Found]:
        """The direct needs with such parameters, in the order in which the stage names them."""
        return {name: one for name in self.direct if isinstance(one := self[name], params)}


@runtime_checkable
class ChecksNeeds(Protocol):
    """Parameters that are sound or not only beside those of the stages they need."""

    def problems(self, needed: Needed) -> list[Problem]:
        """What is wrong, its keys within these parameters."""
        ...


@runtime_checkable
class Withholds(Protocol):
    """Parameters that leave fields of their stage's records undefined, beside those of the stages they need."""

    def withheld(self, needed: Mapping[str, Spec]) -> Mapping[str, str]:
        """Field -> why no record has it; `needed` as for `ChecksNeeds`."""
        ...


def checked(plan: Plan, source: Source | None = None) -> Plan:
    """The plan, found sound. Otherwise StepwellError with every problem, each with its place and what is allowed."""
    import stepwell.studies  # noqa: F401 registers the shipped kinds

    raw = plan.model_dump(mode="json")
    for check in (_extensions, _names, _budget, _stages, _cycles, _kinds, _across, _engine, _gates):
        # Each check may rely on what the ones before it found sound.
        raise_for(list(check(plan)), source, raw, f"plan {plan.study}")
    return plan


def params_of(stage: StageSpec) -> Spec:
    """A stage's parameters as its kind's model, defaults filled in. Raises pydantic's ValidationError."""
    return kinds.kind(stage.kind).params.model_validate(stage.params)


def params_needed(plan: Plan, stage: StageSpec) -> Needed:
    """The parameters of every stage that this one needs, directly or not."""
    needs = [plan.stage(name) for name in stage.needs]
    return Needed({need.name: (params_of(need), params_needed(plan, need)) for need in needs})


def _extensions(plan: Plan) -> Iterator[Problem]:
    for index, name in enumerate(plan.extensions):
        try:
            importlib.import_module(name)
        except ImportError as error:
            yield Problem(("extensions", index), f"module `{name}` cannot be imported: {error}")


def _names(plan: Plan) -> Iterator[Problem]:
    for what in ("stages", "gates"):
        counts = Counter(item.name for item in getattr(plan, what))
        for index, item in enumerate(getattr(plan, what)):
            if counts[item.name] > 1:
                yield Problem((what, index, "name"), f"`{item.name}` is the name of {counts[item.name]} {what}")
    for index, stage in enumerate(plan.stages):
        if stage.name in Plan.model_fields:
            yield Problem(
                ("stages", index, "name"), f"`{stage.name}` is a key of the plan; give the stage another name"
            )


def _budget(plan: Plan) -> Iterator[Problem]:
    if plan.budget is not None and plan.budget.price is not None and not plan.hourly_price:
        found = "is not given" if plan.hourly_price is None else "is 0"
        yield Problem(("budget", "price"), f"hours cannot be told from a price: `hourly_price` {found}")


def _stages(plan: Plan) -> Iterator[Problem]:
    names = [stage.name for stage in plan.stages]
    for index, stage in enumerate(plan.stages):
        at: Keys = ("stages", index)
        for position, need in enumerate(stage.needs):
            if need not in names:
                yield Problem((*at, "needs", position), unknown("stage", need, names))
        given_axes = [(axis, given) for axis, given in stage.each.items() if isinstance(given, str)]
        missing = [(axis, given) for axis, given in given_axes if given not in plan.axes]
        for axis, given in missing:
            text = f"{unknown('axis', given, plan.axes)} (a value is written as a list: [{given}])"
            yield Problem((*at, "each", axis), text)
        if not missing:
            yield from _axis_values(plan, stage, at)


def _axis_values(plan: Plan, stage: StageSpec, at: Keys) -> Iterator[Problem]:
    for axis, given in values(plan, stage).items():
        for value in given:
            if not AXIS_VALUE.fullmatch(str(value)):
                text = f"`{value}` cannot be part of a file name; allowed: letters, digits, _+.-"
                yield Problem((*at, "each", axis), text)
        if not given:
            yield Problem((*at, "each", axis), "an axis without values makes no job")
    ids = Counter(job_id(stage.name, point) for point in points(plan, stage))
    for name, count in ids.items():
        if count > 1:
            yield Problem((*at, "each"), f"{count} jobs would be called `{name}`; values must differ")


def _cycles(plan: Plan) -> Iterator[Problem]:
    edges = {stage.name: list(stage.needs) for stage in plan.stages}
    found = cycle(edges)
    if found:
        at = [stage.name for stage in plan.stages].index(found[0])
        yield Problem(("stages", at, "needs"), f"cycle: {' needs '.join(found)}")
        return
    problems = [problem for index, gate in enumerate(plan.gates) for problem in _gate_axes(plan, gate, index)]
    problems += [problem for index, gate in enumerate(plan.gates) for problem in _selectors(plan, gate, index)]
    yield from problems
    if problems:
        return
    if cycle(waits(plan, plan.gates)) is None:
        return  # looked for once: a ladder over tiers and models makes hundreds of gates
    # Each gate by itself first, so that a cycle is laid to the gate that closes it.
    alone = [(index, (gate,)) for index, gate in enumerate(plan.gates)]
    for index, gates in [*alone, (len(plan.gates) - 1, plan.gates)]:
        found = cycle(waits(plan, gates))
        if found:
            path = " waits for ".join(job.partition(".")[0] for job in found)
            yield Problem(("gates", index, "before"), f"cycle through a gate: {path}")
            return


def _gate_axes(plan: Plan, gate: GateSpec, index: int) -> Iterator[Problem]:
    names = [stage.name for stage in plan.stages]
    judged = [selector.stage for selector in gate.after if selector.stage in names]
    known = {axis for name in judged for axis in values(plan, plan.stage(name))}
    for axis, given in gate.each.items():
        at: Keys = ("gates", index, "each", axis)
        if judged and axis not in known:
            yield Problem(at, f"of the stages of `after`: {unknown('axis', axis, sorted(known))}")
        elif isinstance(given, str) and given not in plan.axes:
            yield Problem(at, f"{unknown('axis', given, plan.axes)} (a value is written as a list: [{given}])")
        elif not (plan.axes[given] if isinstance(given, str) else given):
            yield Problem(at, "an axis without values makes no gate")


def _selectors(plan: Plan, gate: GateSpec, index: int) -> Iterator[Problem]:
    names = [stage.name for stage in plan.stages]
    for side in ("after", "before"):
        for position, selector in enumerate(getattr(gate, side)):
            at: Keys = ("gates", index, side, position)
            if selector.stage not in names:
                yield Problem(at, unknown("stage", selector.stage, names))
            else:
                yield from _selector(plan, selector, at)


def _selector(plan: Plan, selector: Selector, at: Keys) -> Iterator[Problem]:
    axes = values(plan, plan.stage(selector.stage))
    strange = [axis for axis in selector.where if axis not in axes]
    for axis in strange:
        yield Problem((*at, "where", axis), f"of stage {selector.stage}: {unknown('axis', axis, axes)}")
    where = selector.where.items()
    if not strange and any(not set(wanted) & set(axes[axis]) for axis, wanted in where):
        for axis, wanted in where:
            if not set(wanted) & set(axes[axis]):
                text = (
                    f"selects no job: {axis} of stage {selector.stage} is {listed(axes[axis])}, found {listed(wanted)}"
                )
                yield Problem((*at, "where", axis), text)


def _kinds(plan: Plan) -> Iterator[Problem]:
    for index, stage in enumerate(plan.stages):
        at: Keys = ("stages", index)
        if stage.kind not in kinds.known():
            yield Problem((*at, "kind"), unknown("kind", stage.kind, kinds.known()))
            continue
        try:
            params = params_of(stage)
        except ValidationError as error:
            yield from from_pydantic(error, kinds.kind(stage.kind).params, stage.params, (*at, "params"))
            continue
        yield from coerced(stage.params, params.model_dump(mode="json"), (*at, "params"))
        for keys, path in data_files(params):
            if not path.is_file():
                yield Problem((*at, "params", *keys), f"no such file: {path}")
        yield from _needs_match(plan, stage, at)


def _across(plan: Plan) -> Iterator[Problem]:
    for index, stage in enumerate(plan.stages):
        mine = params_of(stage)
        if isinstance(mine, ChecksNeeds):
            for problem in mine.problems(params_needed(plan, stage)):
                yield Problem(("stages", index, "params", *problem.keys), problem.text)


def _needs_match(plan: Plan, stage: StageSpec, at: Keys) -> Iterator[Problem]:
    mine = values(plan, stage)
    for position, need in enumerate(stage.needs):
        theirs = values(plan, plan.stage(need))
        for axis in mine.keys() & theirs.keys():
            lacking = [value for value in mine[axis] if value not in theirs[axis]]
            if lacking:
                text = f"stage {need} has no job with {axis} {listed(lacking)}; its {axis}: {listed(theirs[axis])}"
                yield Problem((*at, "needs", position), text)


def _engine(plan: Plan) -> Iterator[Problem]:
    for stage in plan.stages:
        if plan.devices > 1 and plan.engine == "inline" and kinds.kind(stage.kind).parallel == "ranks":
            cause = f"{stage.name} is to train on {plan.devices} devices, and one process has one; take engine=process"
            yield Problem(("engine",), cause)
            return
    if plan.shard and plan.devices == 1:
        yield Problem(("shard",), "a model is held in parts by several processes: set `devices` to 2 at least")
    for stage in plan.stages:
        if plan.shard and getattr(params_of(stage), "optimizer", None) == "muon":
            cause = f"{stage.name} trains by Muon, which needs whole matrices; set `optimizer: adamw` in its params"
            yield Problem(("shard",), cause)


def _gates(plan: Plan) -> Iterator[Problem]:
    names = [stage.name for stage in plan.stages]
    marked = [*plan.stages, *plan.gates]
    labels = ["next", "stop", *dict.fromkeys(each.on for each in marked if each.on)]
    for index, gate in enumerate(plan.gates):
        at: Keys = ("gates", index)
        before = sorted(set().union(*(other.routes_to() for other in plan.gates[:index])))
        if gate.on is not None and gate.on not in before:
            text = f"no gate before this one routes to `{gate.on}`; they route to {listed(before) or 'nothing'}"
            yield Problem((*at, "on"), text)
        yield from _given(plan, gate, (*at, "given"))
        for decision, label in gate.routes.items():
            if label == EQUIVALENT:
                a = "an" if decision == "inconclusive" else "a"
                text = f"{a} {decision} is no proof of equivalence; only a band of a paired difference routes there"
                yield Problem((*at, "routes", decision), text)
            elif label not in labels:
                yield Problem((*at, "routes", decision), unknown("route", label, labels))
        for position, band in enumerate(gate.bands):
            if band.route == EQUIVALENT:
                yield from _margin(gate, band, (*at, "bands", position))
            elif band.route not in labels:
                yield Problem((*at, "bands", position, "route"), unknown("route", band.route, labels))
        for position, criterion in enumerate(gate.criteria):
            here: Keys = (*at, "criteria", position)
            if criterion.stage not in names:
                yield Problem((*here, "stage"), unknown("stage", criterion.stage, names))
            elif criterion.stage not in {selector.stage for selector in gate.after}:
                after = listed(selector.stage for selector in gate.after)
                yield Problem((*here, "stage"), f"`{criterion.stage}` is not in the gate's `after` ({after})")
            else:
                yield from _criterion(plan, criterion, here)


def _given(plan: Plan, gate: GateSpec, at: Keys) -> Iterator[Problem]:
    """Fields that no record has: the gate would never be asked."""
    stages = [stage for stage in plan.stages if stage.name in {criterion.stage for criterion in gate.criteria}]
    yields = {
        record: fields | set(values(plan, stage))
        for stage in stages
        for record, fields in kinds.kind(stage.kind).yields.items()
    }
    kind = gate.given.get("kind")
    if yields and kind not in (None, *yields):
        yield Problem((*at, "kind"), unknown("record kind", kind, yields))
    elif yields:
        known = {"kind"}.union(*(fields for record, fields in yields.items() if kind in (None, record)))
        for key in sorted(gate.given.keys() - known):
            yield Problem((*at, key), unknown("field", key, sorted(known)))


def _margin(gate: GateSpec, band: Band, at: Keys) -> Iterator[Problem]:
    """Two one-sided tests (TOST) need a difference, its interval, and a margin on both sides of zero."""
    criterion = gate.criteria[0]
    if not criterion.replaced:
        yield Problem((*at, "route"), "equivalence is about a difference: the criterion needs `minus`")
    if criterion.mode == "point":
        yield Problem((*at, "route"), "equivalence needs an interval; the criterion has mode point")
    if not math.isclose(band.low, -band.high):
        text = f"the margin of an equivalence is the same on both sides of zero; found {band.low:g} to {band.high:g}"
        yield Problem((*at, "low"), text)


def _criterion(plan: Plan, criterion: Criterion, at: Keys) -> Iterator[Problem]:
    stage = plan.stage(criterion.stage)
    yields = kinds.kind(stage.kind).yields
    axes = values(plan, stage)
    wanted = criterion.where.get("kind", tuple(yields))
    wanted = wanted if isinstance(wanted, tuple) else (wanted,)
    for record in wanted:
        if record not in yields:
            yield Problem((*at, "where", "kind"), unknown("record kind", record, yields))
            return
    holding = {record: yields[record] for record in map(str, wanted) if criterion.metric in yields[record]}
    if not holding:
        fields = sorted(set().union(*(yields[str(record)] for record in wanted)) if wanted else ())
        text = f"stage {stage.name} ({stage.kind}) yields no record with `{criterion.metric}`"
        yield Problem((*at, "metric"), f"{text}; fields: {listed(fields)}{near(criterion.metric, fields)}")
        return
    params = params_of(stage)
    withheld = params.withheld(params_needed(plan, stage)) if isinstance(params, Withholds) else {}
    if why := withheld.get(criterion.metric):
        text = f"no record of stage {stage.name} will have `{criterion.metric}`: {why}; ask for another or leave it out"
        yield Problem((*at, "metric"), text)
    fields = sorted({"kind"} | set(axes) | set().union(*holding.values()))
    asked: list[tuple[str, Any]] = [
        *((key, ("where", key)) for key in criterion.where),
        *((key, ("at_most", key)) for key in criterion.at_most),
        *((key, (*at, key)) for at, replaced in _replaced(criterion) for key in replaced),
        *((field, (name,)) for name in ("per", "any_of") if (field := getattr(criterion, name))),
    ]
    for key, keys in asked:
        if key not in fields:
            text = f"records of {listed(holding)} have no field `{key}`; fields: {listed(fields)}{near(key, fields)}"
            yield Problem((*at, *keys), text)
    asked_of: list[tuple[Keys, Mapping[str, Any]]] = [(("where",), criterion.where), *_replaced(criterion)]
    for part, fields_of in asked_of:
        for key, given in fields_of.items():
            options = given if isinstance(given, tuple) else (given,)
            if key in axes and not set(options) & set(axes[key]):
                text = f"stage {stage.name} has no job with {key} {listed(options)}; its {key}: {listed(axes[key])}"
                yield Problem((*at, *part, key), text)


def _replaced(criterion: Criterion) -> list[tuple[Keys, Mapping[str, Any]]]:
    """What `minus` replaces, each mapping with its place in the criterion."""
    several = isinstance(criterion.minus, tuple)
    return [(("minus", index) if several else ("minus",), each) for index, each in enumerate(criterion.replaced)]
