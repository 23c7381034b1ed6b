"""YAML with places: values by the YAML 1.2 core schema, and for every key the file and line it came from.

PyYAML follows YAML 1.1, in which `on` is a boolean, `1e-3` a string and `1:30` a number; here they are what they look
like. Only plain data is built: a tag that asks for anything else is an error. So is a duplicate key.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from stepwell.errors import StepwellError

Keys = tuple[str | int, ...]
PLAIN_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("str", "null", "bool", "int", "float", "map", "seq")}
MAX_NODES = 100_000
MAX_DEPTH = 40


@dataclass(frozen=True)
class Place:
    """Where a value was written: a file and line, or a command-line override."""

    source: str
    line: int | None = None

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}:{self.line}"


@dataclass
class Source:
    """Plain data and the place of each of its keys and items."""

    data: Any
    places: dict[Keys, Place] = field(default_factory=dict)

    def place(self, keys: Keys) -> Place:
        """The place of a key, or of the nearest thing around it."""
        while keys and keys not in self.places:
            keys = keys[:-1]
        return self.places[keys]


CORE_SCHEMA: tuple[tuple[str, str, str], ...] = (
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 PyYAML's own protocol


class _Dumper(yaml.SafeDumper):
    # Keeps YAML 1.1's resolvers beside the core schema: what either would misread is quoted, so any parser reads it.
    def ignore_aliases(self, data: Any) -> bool:
        return True


for _name, _pattern, _first in CORE_SCHEMA:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(
            f"tag:yaml.org,2002:{_name}", re.compile(f"^(?:{_pattern})$"), ["" if c == "\0" else c for c in _first]
        )


def read_file(path: Path) -> Source:
    """The data of a YAML file. A file that is missing, not text, or not YAML raises StepwellError."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise StepwellError("no such file", "Check the path.", path=path) from None
    except IsADirectoryError:
        raise StepwellError("this is a folder, not a YAML file", "Name the file itself.", path=path) from None
    except UnicodeDecodeError:
        raise StepwellError("not a text file in UTF-8", "A plan is YAML text.", path=path) from None
    except OSError as error:
        raise StepwellError(f"cannot be read: {error.strerror}", "Check its permissions.", path=path) from None
    return read_text(text, str(path))


def read_text(text: str, source: str, *, lines: bool = True) -> Source:
    """The data of a YAML text. Places carry line numbers unless `lines` is False (a command-line value has one line).

    Raises StepwellError with source and line where the text is not YAML or holds a duplicate key.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = Place(source, mark.line + 1 if mark and lines else None)
        raise StepwellError(f"not YAML: {error.problem}", "Correct the syntax there.", path=str(place)) from None
    except (yaml.YAMLError, RecursionError) as error:
        raise StepwellError(f"not YAML: {error}", "Correct the syntax.", path=source) from None
    finally:
        loader.dispose()
    made = Source(None, {(): Place(source, 1 if lines else None)})
    if node is not None:
        made.data = _Builder(made, source, lines).build(node, ())
    return made


def dump(data: Any) -> str:
    """Plain data as YAML text, which `read_text` reads back to the same data."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


@dataclass
class _Builder:
    made: Source
    source: str
    lines: bool
    nodes: int = 0

    def fail(self, node: yaml.Node, cause: str, way_out: str) -> StepwellError:
        return StepwellError(cause, way_out, path=str(self.place(node)))

    def place(self, node: yaml.Node) -> Place:
        return Place(self.source, node.start_mark.line + 1 if self.lines else None)

    def build(self, node: yaml.Node, keys: Keys) -> Any:
        self.nodes += 1
        if self.nodes > MAX_NODES or len(keys) > MAX_DEPTH:
            raise self.fail(node, "too large or nested too deeply for a plan", "Check its aliases (`&name`, `*name`).")
        self.made.places.setdefault(keys, self.place(node))
        if node.tag not in PLAIN_TAGS:
            raise self.fail(
                node, f"tag `{node.tag}` is not plain data", "Remove the tag: nothing in a plan is executed."
            )
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, keys)
        if isinstance(node, yaml.SequenceNode):
            return [self.build(item, (*keys, index)) for index, item in enumerate(node.value)]
        return self.scalar(node)

    def mapping(self, node: yaml.MappingNode, keys: Keys) -> dict[str, Any]:
        built: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise self.fail(key_node, "a key must be a plain name", "Write the key as text.")
            key = str(key_node.value)
            if key in built:
                first = self.made.places[(*keys, key)].line
                where = f", first on line {first}" if first else ""
                raise self.fail(key_node, f"{dotted((*keys, key))}: duplicate key{where}", "Keep one of the two.")
            self.made.places[(*keys, key)] = self.place(key_node)
            built[key] = self.build(value_node, (*keys, key))
        return built

    def scalar(self, node: yaml.Node) -> Any:
        text, tag = str(node.value), str(node.tag).removeprefix("tag:yaml.org,2002:")
        try:
            match tag:
                case "str":
                    return text
                case "null":
                    return None
                case "bool":
                    return text.lower() == "true"
                case "int":
                    return int(text)
                case "float":
                    return float(re.sub(r"\.(inf|nan)$", r"\1", text.lower()))
        except ValueError:
            raise self.fail(node, f"`{text[:40]}` is no {tag} that can be read", "Correct the value.") from None
        raise self.fail(node, f"a {tag} is no scalar", "Correct the tag.")


def dotted(keys: Keys) -> str:
    """Keys as text: `stages.train.params.lr`."""
    return ".".join(str(key) for key in keys)
