"""The registry of stage kinds: what a stage may be, its parameters, and which records it yields. It runs nothing.

A kind names its function by a string (`module:function`), which only a worker imports. So plans load without torch.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from stepwell.errors import StepwellError
from stepwell.spec import Spec


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of stage.

    Args:
        name: as plans write it, e.g. `thoughts.train`.
        params: the model of its parameters; unknown keys are errors.
        run: `module:function` with signature (params, context) -> None, imported where the stage runs.
        yields: record kind -> the fields of such a record, without the axes of the job, which the writer adds.
        estimate: `module:function` with signature (params, axes, inputs) -> stepwell.estimate.Work, where there is one.
            `inputs` maps the name of each needed stage to its validated params, direct and indirect needs alike.
        parallel: what several devices are to one job of it: `ranks`, processes that train together; `chunks`, workers
            that take its items in turn; `none`, of no use.
    """

    name: str
    params: type[Spec]
    run: str
    yields: Mapping[str, frozenset[str]]
    estimate: str | None = None
    parallel: Literal["none", "ranks", "chunks"] = "none"

    def ranks(self, devices: int) -> int:
        """Processes that train together, where a plan gives so many devices to a job."""
        return devices if self.parallel == "ranks" else 1

    def holds(self, devices: int) -> int:
        """Devices that a job holds, where a plan gives it so many."""
        return devices if self.parallel != "none" else 1


_KINDS: dict[str, Kind] = {}


def register(kind: Kind) -> Kind:
    """Add a kind to the registry. Another kind under a name already taken raises StepwellError."""
    held = _KINDS.get(kind.name)
    if held is not None and held != kind:
        raise StepwellError(
            f"kind `{kind.name}` is registered already, with run `{held.run}`", "Give the new kind another name."
        )
    _KINDS[kind.name] = kind
    return kind


def kind(name: str) -> Kind:
    """The kind of this name. An unknown one raises StepwellError, which lists those that are known."""
    if name not in _KINDS:
        raise StepwellError(*unknown_kind(name))
    return _KINDS[name]


def unknown_kind(name: str) -> tuple[str, str]:
    """Cause and way out for a kind that nobody registered."""
    near = difflib.get_close_matches(name, _KINDS, n=1)
    hint = f" (did you mean `{near[0]}`?)" if near else ""
    return f"unknown kind `{name}`{hint}", f"Known kinds: {', '.join(known()) or 'none'}."


def known() -> tuple[str, ...]:
    """The names of all registered kinds, sorted."""
    return tuple(sorted(_KINDS))


def resolve(reference: str) -> Any:
    """The object that `module:name` refers to. A reference that leads nowhere raises StepwellError."""
    module, _, name = reference.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise StepwellError(
            f"`{reference}` cannot be imported: {error}", "Correct the reference in the kind, or install what it needs."
        ) from error
