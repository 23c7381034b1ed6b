"""The base of everything a user may write in a plan: frozen, closed models, and the types their fields are made of."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict

type_of_scalars = (bool, int, float, str)
Scalar = bool | int | float | str
"""What an axis, a filter or a record field may hold; YAML keeps the four apart."""


class Spec(BaseModel):
    """A frozen model that knows its keys: unknown ones are errors. Constructing one loads nothing."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


class FileMark:
    """Marks a field as the path of an input file, whose content (not its path) is part of a job's identity."""


def _absolute(path: Path) -> Path:
    return path.expanduser().absolute()


DataFile = Annotated[Path, AfterValidator(_absolute), FileMark()]
"""The path of an input file, made absolute when read. Its sha256 enters the job's fingerprint in place of the path."""


def _listed(value: Any) -> Any:
    return (value,) if isinstance(value, type_of_scalars) else value


Scalars = Annotated[tuple[Scalar, ...], BeforeValidator(_listed)]
"""A tuple of scalars; one scalar alone is taken as a tuple of one."""


def data_files(spec: Spec) -> Iterator[tuple[tuple[str | int, ...], Path]]:
    """The files that a spec names in fields of type `DataFile`, nested ones too, as (path of keys, file)."""
    for name, field in type(spec).model_fields.items():
        is_file = any(isinstance(mark, FileMark) for mark in field.metadata)
        annotation = Annotated[Path, FileMark()] if is_file else field.annotation
        yield from _files_in(getattr(spec, name), annotation, (name,))


def _files_in(value: Any, annotation: Any, keys: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], Path]]:
    if isinstance(value, Spec):
        yield from ((keys + inner, path) for inner, path in data_files(value))
        return
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        if isinstance(value, Path) and any(isinstance(mark, FileMark) for mark in arguments[1:]):
            yield keys, value
        else:
            yield from _files_in(value, arguments[0], keys)
    elif origin in (Union, UnionType):
        for argument in arguments:
            yield from _files_in(value, argument, keys)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _files_in(item, arguments[1] if len(arguments) == 2 else Any, (*keys, key))
    elif isinstance(value, tuple | list):
        homogeneous = len(arguments) == 1 or (len(arguments) == 2 and arguments[1] is Ellipsis)
        for index, item in enumerate(value):
            inner = arguments[0] if homogeneous else arguments[index] if index < len(arguments) else Any
            yield from _files_in(item, inner, (*keys, index))
