"""Identity from literals: the sha256 of canonical JSON. What has no canonical form raises, rather than hash by chance.

Canonical: keys sorted, no spaces, UTF-8, numbers as Python's shortest repr. A path, an object, a NaN or a set has no
canonical form here: a file is known by its content (`of_file`), not by where it lies.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from stepwell.errors import StepwellError
from stepwell.spec import Spec, data_files, model_folders

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


def of_folder(folder: Path) -> str:
    """The sha256 (64 hex digits) of the names and contents of all files of a folder. Raises as `of_file`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return fingerprint([[path.relative_to(folder).as_posix(), _remembered(path)] for path in files])


def _remembered(path: Path) -> str:
    """`of_file`, once for a file that has not changed since: every job asks for the same gigabytes of weights."""
    status = path.stat()
    return _of_file_as_it_stands(path, status.st_mtime_ns, status.st_size, status.st_ino)


@lru_cache(maxsize=4096)
def _of_file_as_it_stands(path: Path, *status: int) -> str:
    return of_file(path)


def of_spec(spec: Spec) -> dict[str, Any]:
    """A spec as literals in which each `DataFile`, and each `ModelName` that is a folder, is known by its content.

    Moving a file or a folder changes nothing; changing what is in it does.
    """
    literals = spec.model_dump(mode="json")
    contents = {keys: of_file(path) for keys, path in data_files(spec)}
    contents |= {keys: of_folder(folder) for keys, folder in model_folders(spec)}
    for keys, digest in contents.items():
        here: Any = literals
        for key in keys[:-1]:
            here = here[key]
        here[keys[-1]] = {"sha256": digest}
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
