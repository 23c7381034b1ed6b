"""Dotted overrides: which key of the plan's data `train.lr` or `gates.early.threshold` means, and setting it there."""

from __future__ import annotations

from typing import Any

from stepwell.errors import StepwellError
from stepwell.plan.models import Budget, Criterion, GateSpec, Plan, StageSpec
from stepwell.plan.options import RayOptions, SlurmOptions
from stepwell.plan.problems import listed, near, shown
from stepwell.plan.source import Keys, Place, Source, dotted
from stepwell.spec import Spec

STAGE_KEYS = frozenset(StageSpec.model_fields) - {"name", "params"}
PLAN_KEYS = tuple(key for key in Plan.model_fields if key not in ("rung", "stages", "gates", "axes"))
PARTS: dict[str | int, type[Spec]] = {"budget": Budget, "ray": RayOptions, "slurm": SlurmOptions}


def apply(source: Source, key: str, value: Source, place: Place) -> None:
    """Set one dotted key of the plan's data, and remember that `place` set it.

    `GATE` or `STAGE` set to null is left out of the plan, and `gates` may be set as a whole.

    Raises StepwellError when the key names no stage, gate, axis or field, or leads through a value that has no keys.
    """
    if value.data is None and (whole := _whole(source.data, key)):
        _leave_out(source, *whole)
        return
    keys = _resolve(source.data, key, place)
    here = source.data
    for depth, part in enumerate(keys[:-1]):
        here = _step(here, part, key, keys[: depth + 1], place)
    last = keys[-1]
    if isinstance(here, list):
        if not isinstance(last, int) or last >= len(here):
            raise _unusable(key, keys[:-1], here, place)
        here[last] = value.data
    elif isinstance(here, dict):
        here[str(last)] = value.data
    else:
        raise _unusable(key, keys[:-1], here, place)
    for old in [old for old in source.places if old[: len(keys)] == keys]:
        del source.places[old]
    source.places.update({keys + inner: at for inner, at in value.places.items()})
    source.places[keys] = place


def _whole(data: dict[str, Any], key: str) -> tuple[str, int] | None:
    """`stages` or `gates` and the place in it, where a key names a stage or a gate and nothing within it."""
    first, _, rest = key.partition(".")
    what, name = ("gates", rest) if first == "gates" else ("stages", key)
    index = _by_name(data, what).get(name)
    return None if index is None else (what, index)


def _leave_out(source: Source, what: str, index: int) -> None:
    del source.data[what][index]
    moved: dict[Keys, Place] = {}
    for keys, at in source.places.items():
        number = keys[1] if keys[:1] == (what,) and len(keys) > 1 else None
        if not isinstance(number, int) or number < index:
            moved[keys] = at
        elif number > index:
            moved[what, number - 1, *keys[2:]] = at
    source.places = moved


def _step(here: Any, part: str | int, key: str, keys: Keys, place: Place) -> Any:
    if isinstance(here, list) and isinstance(part, int) and part < len(here):
        return here[part]
    if isinstance(here, dict):
        if here.get(str(part)) is None:
            here[str(part)] = {}
        return here[str(part)]
    raise _unusable(key, keys[:-1], here, place)


def _resolve(data: dict[str, Any], key: str, place: Place) -> Keys:
    """The path of keys through the data that a dotted key means."""
    first, *rest = (int(part) if part.isdecimal() else part for part in key.split("."))
    stages, gates = _by_name(data, "stages"), _by_name(data, "gates")
    if first == "gates" and not rest:
        return ("gates",)
    if first == "gates":
        return _gate_key(data, key, rest, gates, place)
    if first == "axes" and rest:
        return ("axes", *rest)
    if first in stages:
        if rest and rest[0] in STAGE_KEYS:
            return ("stages", stages[str(first)], *rest)
        if rest:
            return ("stages", stages[str(first)], "params", *rest)
        raise _unknown(
            f"{key} is a stage; say which of its parameters: {key}.PARAMETER, or leave it out: {key}=null", place
        )
    if first in PLAN_KEYS and not rest:
        return (first,)
    if first in PARTS and rest and rest[0] in PARTS[first].model_fields:
        return (first, *rest)
    allowed = [*(f"{name}.…" for name in stages), "gates.…", "axes.…", *PLAN_KEYS]
    candidates = [*stages, "gates", "axes", *PLAN_KEYS]
    raise _unknown(f"unknown key `{key}`; allowed: {listed(allowed)}{near(first, candidates)}", place)


def _gate_key(data: dict[str, Any], key: str, rest: list[Any], gates: dict[str, int], place: Place) -> Keys:
    if rest[0] not in gates:
        raise _unknown(f"unknown gate `{rest[0]}`; gates: {listed(gates)}{near(rest[0], gates)}", place)
    index = gates[rest[0]]
    if len(rest) == 1:
        raise _unknown(f"{key} is a gate; say which of its fields: {key}.threshold, or leave it out: {key}=null", place)
    if rest[1] in GateSpec.model_fields:
        return ("gates", index, *rest[1:])
    if rest[1] in Criterion.model_fields:
        criteria = data["gates"][index].get("criteria")
        if isinstance(criteria, list) and len(criteria) == 1:
            return ("gates", index, "criteria", 0, *rest[1:])
        count = len(criteria) if isinstance(criteria, list) else 0
        raise _unknown(f"gate {rest[0]} has {count} criteria; say which: gates.{rest[0]}.criteria.0.{rest[1]}", place)
    allowed = [*GateSpec.model_fields, *Criterion.model_fields]
    raise _unknown(f"unknown key `{key}`; allowed: {listed(allowed)}{near(rest[1], allowed)}", place)


def _by_name(data: dict[str, Any], what: str) -> dict[str, int]:
    items = data.get(what)
    if not isinstance(items, list):
        return {}
    return {str(item["name"]): index for index, item in enumerate(items) if isinstance(item, dict) and "name" in item}


def _unknown(cause: str, place: Place) -> StepwellError:
    way_out = "Dotted keys are STAGE.PARAMETER, gates.GATE.FIELD, axes.AXIS or a plan field."
    return StepwellError(cause, way_out, path=str(place))


def _unusable(key: str, keys: Keys, here: Any, place: Place) -> StepwellError:
    return StepwellError(
        f"`{key}` leads through {dotted(keys)}, which holds {shown(here)}", "Set that key as a whole.", path=str(place)
    )
