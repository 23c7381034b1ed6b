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


class ModelMark:
    """Marks a field as the name of a model: a hub id, a pulled name, or a folder, then known by its content."""


ModelName = Annotated[str, ModelMark()]
"""A model by hub id, pulled name or folder. A folder's content enters the job's fingerprint in place of its path."""


def _listed(value: Any) -> Any:
    return (value,) if isinstance(value, type_of_scalars) else value


Scalars = Annotated[tuple[Scalar, ...], BeforeValidator(_listed)]
"""A tuple of scalars; one scalar alone is taken as a tuple of one."""


def data_files(spec: Spec) -> Iterator[tuple[tuple[str | int, ...], Path]]:
    """The files that a spec names in fields of type `DataFile`, nested ones too, as (path of keys, file)."""
    return _marked(spec, FileMark)


def model_folders(spec: Spec) -> Iterator[tuple[tuple[str | int, ...], Path]]:
    """The fields of type `ModelName` that name a folder on this machine, as (path of keys, folder)."""
    for keys, name in _marked(spec, ModelMark):
        folder = Path(name).expanduser()
        if folder.is_dir():
            yield keys, folder


def _marked(spec: Spec, mark: type) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    for name, field in type(spec).model_fields.items():
        carries = any(isinstance(found, mark) for found in field.metadata)
        annotation = Annotated[Any, mark()] if carries else field.annotation
        yield from _marked_in(getattr(spec, name), annotation, (name,), mark)


def _marked_in(
    value: Any, annotation: Any, keys: tuple[str | int, ...], mark: type
) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    if isinstance(value, Spec):
        yield from ((keys + inner, found) for inner, found in _marked(value, mark))
        return
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        if isinstance(value, Path | str) and any(isinstance(found, mark) for found in arguments[1:]):
            yield keys, value
        else:
            yield from _marked_in(value, arguments[0], keys, mark)
    elif origin in (Union, UnionType):
        for argument in arguments:
            yield from _marked_in(value, argument, keys, mark)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _marked_in(item, arguments[1] if len(arguments) == 2 else Any, (*keys, key), mark)
    elif isinstance(value, tuple | list):
        homogeneous = len(arguments) == 1 or (len(arguments) == 2 and arguments[1] is Ellipsis)
        for index, item in enumerate(value):
            inner = arguments[0] if homogeneous else arguments[index] if index < len(arguments) else Any
            yield from _marked_in(item, inner, (*keys, index), mark)
