"""What may be wrong with a plan, said so that it can be corrected: place, key, what was found, what is allowed."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from stepwell.errors import StepwellError
from stepwell.plan.source import Keys, Source, dotted

MOST_SHOWN = 10


@dataclass(frozen=True)
class Problem:
    """One thing wrong at one key of the plan's data."""

    keys: Keys
    text: str


def raise_for(problems: Sequence[Problem], source: Source | None, raw: Any, name: str) -> None:
    """Raise one StepwellError that lists the problems, each with its place; none, and nothing happens.

    Args:
        source: where the plan was read from; None for a plan made in Python.
        raw: the plan's data, in which list items are called by their `name`.
        name: how to call a plan made in Python.
    """
    if not problems:
        return
    lines = []
    for problem in dict.fromkeys(problems):
        place = source.place(problem.keys) if source else name
        key = dotted(named(problem.keys, raw))
        lines.append(f"{place}: {key}: {problem.text}" if key else f"{place}: {problem.text}")
    more = f"\n... and {len(lines) - MOST_SHOWN} more" if len(lines) > MOST_SHOWN else ""
    raise StepwellError(
        "\n".join(lines[:MOST_SHOWN]) + more,
        "Correct the plan or the override; `stepwell plan` checks without running.",
    )


def named(keys: Keys, raw: Any) -> Keys:
    """The same keys with items of `stages` and `gates` called by name: stages.train.params, not stages.2.params."""
    if len(keys) >= 2 and keys[0] in ("stages", "gates") and isinstance(keys[1], int):
        try:
            item = raw[keys[0]][keys[1]]["name"]
        except (KeyError, IndexError, TypeError):
            return keys
        return (keys[0], str(item), *keys[2:])
    return keys


def near(found: object, allowed: Iterable[object]) -> str:
    """`; did you mean x?`, or nothing."""
    close = difflib.get_close_matches(str(found), [str(name) for name in allowed], n=1)
    return f"; did you mean `{close[0]}`?" if close else ""


def listed(names: Iterable[object]) -> str:
    """Names with commas, or `none`."""
    return ", ".join(str(name) for name in names) or "none"


def unknown(what: str, found: object, allowed: Iterable[object]) -> str:
    """`unknown stage `x`; stages: a, b; did you mean `a`?`"""
    allowed = list(allowed)
    plural = "axes" if what == "axis" else f"{what}s"
    return f"unknown {what} `{found}`; {plural}: {listed(allowed)}{near(found, allowed)}"


def from_pydantic(error: ValidationError, model: type[BaseModel], raw: Any, prefix: Keys = ()) -> list[Problem]:
    """The problems in a validation error, in this package's words. `prefix` leads from the plan to `raw`."""
    problems: dict[Keys, list[str]] = {}
    for detail in error.errors(include_url=False):
        keys = _real_keys(detail["loc"], raw, detail["type"])
        if detail["type"] == "too_short" and any(other[: len(keys)] == keys for other in problems):
            continue  # pydantic counts items that failed as absent
        problems.setdefault(keys, []).append(_text(detail, keys, model, raw))
    return [Problem(prefix + keys, _joined(texts)) for keys, texts in problems.items()]


def coerced(raw: Any, read: Any, prefix: Keys = ()) -> list[Problem]:
    """Where pydantic turned a text or a boolean into something else, which in a plan is a mistake, not a courtesy.

    A whole number written as a float (`1e4`) may fill an integer.
    """
    if isinstance(raw, dict) and isinstance(read, dict):
        return [problem for key in raw.keys() & read.keys() for problem in coerced(raw[key], read[key], (*prefix, key))]
    if isinstance(raw, list | tuple) and isinstance(read, list | tuple):
        pairs = enumerate(zip(raw, read, strict=False))
        return [problem for index, (one, other) in pairs for problem in coerced(one, other, (*prefix, index))]
    scalars = isinstance(raw, bool | int | float | str) and isinstance(read, bool | int | float | str)
    if scalars and type(raw) is not type(read) and (isinstance(raw, bool | str) or isinstance(read, bool | str)):
        return [Problem(prefix, f"must be {_SORTS[type(read)]}, found {shown(raw)}")]
    return []


_SORTS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def _joined(texts: list[str]) -> str:
    """Several members of a union complain of one value: what each allows, what was found once."""
    texts = list(dict.fromkeys(texts))
    if len(texts) == 1:
        return texts[0]
    wanted, found = zip(*(text.rpartition(", found ")[::2] for text in texts), strict=True)
    return f"must be {' or '.join(text.removeprefix('must be ') for text in wanted)}, found {found[0]}"


def _real_keys(location: Sequence[str | int], raw: Any, kind: str) -> Keys:
    """pydantic puts union members and validators between the keys: keep what leads through the data."""
    keys: list[str | int] = []
    here: Any = raw
    for step, part in enumerate(location):
        last = step == len(location) - 1
        if (isinstance(here, dict) and part in here) or (isinstance(here, list | tuple) and part in range(len(here))):
            here = cast(Any, here)[part]
        elif not (last and kind == "missing"):
            continue
        keys.append(part)
    return tuple(keys)


_WANTED = {
    "bool": "must be true or false",
    "dict": "must be a mapping of keys",
    "float": "must be a number",
    "int": "must be a whole number",
    "list": "must be a list",
    "model": "must be a mapping of keys",
    "path": "must be a path",
    "string": "must be a text",
    "tuple": "must be a list",
}


def _text(detail: ErrorDetails, keys: Keys, model: type[BaseModel], raw: Any) -> str:
    sort, input_ = detail["type"], detail["input"]
    if sort == "extra_forbidden":
        owner = model_at(model, keys[:-1], raw)
        allowed = list(owner.model_fields) if owner else []
        return f"unknown key; allowed: {listed(allowed)}{near(keys[-1], allowed)}"
    if sort == "missing":
        return "required key is missing"
    if sort == "value_error":
        return detail["msg"].removeprefix("Value error, ")
    if sort == "literal_error":
        allowed = str(detail.get("ctx", {})["expected"]).replace("'", "`")
        return f"allowed: {allowed}, found {shown(input_)}{near(input_, allowed.split('`')[1::2])}"
    family, _, rest = sort.partition("_")
    if family in _WANTED and rest in ("type", "parsing", "from_float", "attributes_type"):
        return f"{_WANTED[family]}, found {shown(input_)}"
    message = detail["msg"].replace("Input should be ", "must be ")
    return f"{message[0].lower()}{message[1:]}, found {shown(input_)}"


def shown(value: Any) -> str:
    """A value as a user would write it, cut where long."""
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def model_at(model: type[BaseModel], keys: Keys, raw: Any) -> type[BaseModel] | None:
    """The model of the value that lies under these keys of the data, where it is one."""
    here: Any = model
    for key in keys:
        here, raw = _inner(here, key, raw), cast(Any, raw)[key]
    return _as_model(here, raw)


def _inner(annotation: Any, key: str | int, raw: Any) -> Any:
    model = _as_model(annotation, raw)
    if model is not None:
        return model.model_fields[str(key)].annotation if str(key) in model.model_fields else None
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _inner(arguments[0], key, raw)
    if origin in (Union, UnionType):
        return next((inner for each in arguments if (inner := _inner(each, key, raw)) is not None), None)
    if origin is dict:
        return arguments[1]
    return arguments[0] if origin in (tuple, list) else None


def _as_model(annotation: Any, raw: Any) -> type[BaseModel] | None:
    """A model, or the member of a union of models that the data means: whose literals (`kind`) are those found."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Union, UnionType, Annotated):
        models = [model for inner in get_args(annotation) if (model := _as_model(inner, raw)) is not None]
        return next((model for model in models if _literals_match(model, raw)), models[0] if models else None)
    return None


def _literals_match(model: type[BaseModel], raw: Any) -> bool:
    literals = ((name, field.annotation) for name, field in model.model_fields.items())
    return isinstance(raw, dict) and all(
        name not in raw or raw[name] in get_args(annotation)
        for name, annotation in literals
        if get_origin(annotation) is Literal
    )
