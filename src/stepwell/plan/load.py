"""Loading a plan: a shipped name or a YAML file, at a rung, with overrides; every error knows its line."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from stepwell.errors import StepwellError
from stepwell.plan.check import checked, params_of
from stepwell.plan.expand import expanded
from stepwell.plan.models import Plan
from stepwell.plan.override import apply
from stepwell.plan.problems import Problem, coerced, from_pydantic, listed, near, raise_for
from stepwell.plan.source import Place, Source, dump, read_file, read_text


def shipped_plans() -> tuple[str, ...]:
    """The names of the plans that come with the package, sorted."""
    folder = resources.files("stepwell") / "plans"
    if not folder.is_dir():
        return ()
    return tuple(sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml")))


def rungs_of(name_or_path: str | Path) -> tuple[str, ...]:
    """The rungs a plan knows, in the order written; none for a plan of one size."""
    return tuple(_rungs(_read(name_or_path)))


def title_of(name_or_path: str | Path) -> str:
    """The title of a plan, without loading the rest; empty where it has none."""
    return str(_read(name_or_path).data.get("title", ""))


def load_plan(name_or_path: str | Path, *, rung: str | None = None, overrides: Sequence[str] = ()) -> Plan:
    """A sound plan, with every parameter filled in.

    Args:
        name_or_path: a shipped name (`stepwell plans` lists them) or a YAML file.
        rung: which size; needed where the file has rungs. A file without has one size, named by its key `rung`.
        overrides: `dotted.key=value`, applied after the rung; the value is read as YAML. `train.lr=3e-4` sets a
            parameter of stage train; `train.each.arm=[cot]`, `axes.seed=[0, 1]`, `workers=2`,
            `gates.early.threshold=.6` set what they name.

    Raises:
        StepwellError: for whatever is wrong, with file:line, key, what was found and what is allowed.
    """
    source = _read(name_or_path)
    _apply_rung(source, rung)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            raise StepwellError(
                f"override `{override}` is not of the form key=value", "For example: train.lr=3e-4 workers=2."
            )
        value = read_text(text, f"override {override}", lines=False)
        apply(source, key.strip(), value, Place(f"override {override}"))
    return _validated(source)


def dump_plan(plan: Plan) -> str:
    """A plan as YAML text, complete, which `load_plan` reads back to an equal plan."""
    return dump(plan.model_dump(mode="json"))


def _read(name_or_path: str | Path) -> Source:
    source = read_file(_find(name_or_path))
    if not isinstance(source.data, dict):
        found = "nothing" if source.data is None else f"a {type(source.data).__name__}"
        raise StepwellError(
            f"a plan is a mapping of keys, found {found}", "See `stepwell plans`.", path=str(source.place(()))
        )
    return source


def _find(name_or_path: str | Path) -> Path:
    text = str(name_or_path)
    if isinstance(name_or_path, Path) or "/" in text or text.endswith((".yaml", ".yml")):
        return Path(name_or_path)
    names = shipped_plans()
    if text not in names:
        raise StepwellError(
            f"unknown plan `{text}`; shipped plans: {listed(names)}{near(text, names)}",
            "Name one of them, or a YAML file (with its ending .yaml).",
        )
    return Path(str(resources.files("stepwell") / "plans" / f"{text}.yaml"))


def _rungs(source: Source) -> dict[str, dict[str, Any]]:
    rungs = source.data.get("rungs", {})
    wrong = [] if isinstance(rungs, dict) else [("rungs",)]
    wrong += [("rungs", name) for name, given in rungs.items() if not isinstance(given, dict)] if not wrong else []
    text = "must be a mapping of dotted keys to values (`{}` for the plan as it is)"
    raise_for([Problem(keys, text) for keys in wrong], source, source.data, "plan")
    return rungs


def _apply_rung(source: Source, rung: str | None) -> None:
    rungs = _rungs(source)
    source.data.pop("rungs", None)
    if not rungs:
        held = source.data.get("rung", "base")
        if rung is not None and rung != held:
            raise StepwellError(
                f"unknown rung `{rung}`; this plan has one size, `{held}`",
                "Leave the rung out.",
                path=source.place(()).source,
            )
        return
    if rung is None or rung not in rungs:
        cause = "this plan has rungs, and none was named" if rung is None else f"unknown rung `{rung}`"
        raise StepwellError(
            f"{cause}; rungs: {listed(rungs)}{near(rung, rungs) if rung else ''}",
            f"For example: --rung {next(iter(rungs))}",
            path=source.place(()).source,
        )
    for key in rungs[rung]:
        keys = ("rungs", rung, key)
        inner = {place[3:]: at for place, at in source.places.items() if place[:3] == keys}
        apply(source, key, Source(rungs[rung][key], inner), source.place(keys))
    source.data["rung"] = rung


def _validated(source: Source) -> Plan:
    try:
        plan = Plan.model_validate(source.data)
        problems = coerced(source.data, plan.model_dump(mode="json"))
    except ValidationError as error:
        plan, problems = None, from_pydantic(error, Plan, source.data)
    raise_for(problems, source, source.data, "plan")
    assert plan is not None
    checked(plan, source)
    stages = (stage.model_copy(update={"params": params_of(stage).model_dump(mode="json")}) for stage in plan.stages)
    # Checked as it is written, for the places of faults, and as it will be asked.
    return checked(expanded(plan.model_copy(update={"stages": tuple(stages)})))
