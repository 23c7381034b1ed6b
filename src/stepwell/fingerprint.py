"""Identity from literals: the sha256 of canonical JSON. What has no canonical form raises, rather than hash by chance.

Canonical: keys sorted, no spaces, UTF-8, numbers as Python's shortest repr. A path, an object, a NaN or a set has no
canonical form here: a file is known by its content (`of_file`), not by where it lies.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stepwell.errors import StepwellError
from stepwell.spec import Spec, data_files

BLOCK = 1 << 20


def canonical(value: Any) -> str:
    """Canonical JSON of literals: None, bool, int, finite float, str, and lists, tuples and mappings of them.

    A tuple is written as a list. Raises StepwellError, which names the place, for anything else.
    """
    return json.dumps(
        _literal(value, "value"), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def fingerprint(value: Any) -> str:
    """The sha256 (64 hex digits) of the canonical JSON of a value. Raises StepwellError where there is none."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def of_file(path: Path) -> str:
    """The sha256 (64 hex digits) of a file's content. Raises StepwellError where it cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                digest.update(block)
    except OSError as error:
        raise StepwellError(
            f"cannot be read: {error.strerror}", "Check the path and its permissions.", path=path
        ) from None
    return digest.hexdigest()


def of_spec(spec: Spec) -> dict[str, Any]:
    """A spec as literals in which each `DataFile` is replaced by the sha256 of its content: what identifies it.

    Moving a file changes nothing; changing its content does.
    """
    literals = spec.model_dump(mode="json")
    for keys, path in data_files(spec):
        here: Any = literals
        for key in keys[:-1]:
            here = here[key]
        here[keys[-1]] = {"sha256": of_file(path)}
    return literals


def _literal(value: Any, place: str) -> Any:
    # Exact types: a subclass (an enum, numpy's float64) may print itself differently from version to version.
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        if math.isfinite(value):
            return value
        raise _cannot(place, f"{value} is not a number that JSON knows")
    if isinstance(value, list | tuple):
        return [_literal(item, f"{place}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, Mapping):
        for key in value:
            if type(key) is not str:
                raise _cannot(place, f"key {key!r} is a {type(key).__name__}, not a text")
        return {key: _literal(item, f"{place}.{key}") for key, item in value.items()}
    raise _cannot(place, f"a {type(value).__module__}.{type(value).__qualname__} has no canonical form")


def _cannot(place: str, why: str) -> StepwellError:
    return StepwellError(
        f"{place} cannot be fingerprinted: {why}", "Use literals; name a file in a field of type DataFile."
    )
