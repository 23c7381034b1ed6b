"""What must be alike on both sides before their numbers may be subtracted, and the values joined item by item."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from stepwell.compare.sides import Side, refusal
from stepwell.errors import StepwellError
from stepwell.plan.models import EQUIVALENT
from stepwell.report.folder import RunData
from stepwell.store import override_of


def refuse_unlike(one: Side, other: Side) -> None:
    """StepwellError where the sides are the same jobs, were asked in different ways, or have different seeds."""
    same_run = one.run.path.resolve() == other.run.path.resolve()
    if same_run and one.axes == other.axes:
        raise refusal("both name the same jobs of the same run", "Name two arms, seeds or runs.")
    for (name, ours), (_, theirs) in zip(_protocol(one.run), _protocol(other.run), strict=True):
        if ours != theirs:
            raise refusal(
                f"different protocol: {name} is {ours} in {one.label} and {theirs} in {other.label}",
                "Compare models that were asked in the same way.",
            )
    if len(one.seeds) != len(other.seeds) or (len(one.seeds) > 1 and one.seeds != other.seeds):
        raise refusal(
            f"{one.label} has seeds {', '.join(one.seeds)}, {other.label} has {', '.join(other.seeds)}",
            "Name one seed of each, e.g. RUN:arm=cot,seed=0, or give both the same seeds.",
        )


def _protocol(run: RunData) -> tuple[tuple[str, str], ...]:
    """How the questions are put, as the plan says; what a plan leaves out has the default of its kind."""
    from pydantic import ValidationError

    from stepwell.studies.thoughts.params import ModelParams

    for stage in run.plan.get("stages") or ():
        if stage.get("kind") == "thoughts.model":
            try:
                model = ModelParams.model_validate(stage.get("params") or {}).model
            except ValidationError:
                break
            return ("the kind of model", model.kind), ("the prompt", getattr(model, "prompt", "text"))
    return ("the kind of model", "unknown"), ("the prompt", "unknown")


def shared_sets(one: Side, other: Side, only: str | None) -> list[str]:
    """The sets that both were asked; StepwellError where there is none, or where their data are not the same."""
    shared = [name for name in one.rows if name in other.rows]
    if only is not None and only not in shared:
        for side in (one, other):
            if only not in side.rows:
                raise refusal(f"{side.label} was not asked set `{only}`", f"Sets there: {', '.join(side.rows)}.")
    if not shared:
        raise refusal(
            f"no set in common: {', '.join(one.rows)} and {', '.join(other.rows)}", "Evaluate both on one set."
        )
    names = shared if only is None else [only]
    for name in names:
        ours, theirs = (_data_hash(side, name) for side in (one, other))
        if ours != theirs:
            raise refusal(
                f"set `{name}` is not the same data: sha256 {ours[:12]} in {one.label}, {theirs[:12]} in {other.label}",
                "Name another set with --set, or evaluate both on the same file.",
            )
    return names


def _data_hash(side: Side, name: str) -> str:
    found = {str(r.get("sha256")) for r in side.run.of_kind("dataset") if str(r.get("set")) == name}
    if len(found) != 1:
        raise refusal(
            f"{side.label} has {len(found) or 'no'} `dataset` records of set `{name}`, so its data are unknown",
            "Compare runs whose data stage is recorded.",
        )
    return found.pop()


def joined(one: Side, other: Side, name: str, metric: str) -> tuple[list[float], list[float], list[str], list[str]]:
    """Values of both, item by item and seed by seed. Two single seeds are joined by item, whatever their numbers."""
    first, second = (_by_pair(side, name, metric) for side in (one, other))
    if first.keys() != second.keys():
        ids = [{item for item, _ in side} for side in (first, second)]
        raise refusal(
            f"different items of set `{name}`: {len(ids[0])} in {one.label}, {len(ids[1])} in {other.label}, of which "
            f"{len(ids[0] & ids[1])} are shared",
            "Evaluate both on the same items.",
        )
    keys = list(first)
    return [first[k] for k in keys], [second[k] for k in keys], [k[0] for k in keys], [k[1] for k in keys]


def _by_pair(side: Side, name: str, metric: str) -> dict[tuple[str, str], float]:
    single = len(side.seeds) <= 1
    found: dict[tuple[str, str], float] = {}
    rows = side.rows[name]
    for row in rows:
        key = str(row.get("id")), "" if single else str(row.get("seed"))
        if key in found:
            raise refusal(f"{side.label} has several records of item {key[0]} of set `{name}`", "Select one stage.")
        value = row.get(metric)
        if not isinstance(value, bool | int | float) or not math.isfinite(value):
            if metric not in row:
                fields = ", ".join(sorted(field for field in row if isinstance(row[field], bool | float)))
                raise refusal(f"{side.label} records no `{metric}`", f"Metrics there: {fields}.")
            lacking = sum(r.get(metric) is None for r in rows)
            raise refusal(
                f"`{metric}` has no value in {lacking} of {len(rows)} records of {side.label}", "Name another --metric."
            )
        found[key] = float(value)
    return found


def refuse_late_margin(sides: tuple[Side, Side], metric: str, margin: float) -> None:
    """StepwellError where a margin was not in the gates of both runs, as they were frozen."""
    for side in sides:
        fixed = frozen_margins(side.run.policy, metric)
        if not any(math.isclose(margin, known) for known in fixed):
            known = ", ".join(f"{m:g}" for m in fixed) or "none"
            raise StepwellError(
                f"the margin {margin:g} for `{metric}` was not fixed before {side.label} began; margins in its frozen "
                f"gates: {known}",
                f"A margin chosen after the run proves nothing: put a band [-margin, margin] -> {EQUIVALENT} into a "
                "gate of the plan, and run it in a new folder.",
                path=side.run.path / "policy.json",
            )


def frozen_margins(policy: Mapping[str, Any], metric: str) -> tuple[float, ...]:
    """Equivalence margins for a metric that were fixed before the run, in order.

    They are the bands around zero that route to `equivalent`; a gate that an override changed no longer counts.
    """
    margins = set()
    for gate in policy.get("gates") or ():
        about = [criterion.get("metric") for criterion in gate.get("criteria") or ()]
        if about != [metric] or override_of(policy, str(gate.get("name"))) is not None:
            continue
        for band in gate.get("bands") or ():
            if band.get("route") == EQUIVALENT and band["low"] < 0 < band["high"]:
                margins.add(min(-band["low"], band["high"]))
    return tuple(sorted(margins))
