"""Where items come from: a file, or a data set of the Hugging Face hub by its id.

A file that cannot be used gives one error that names it: there is none, it is empty, it is not JSON, it has another
format. Hub sets are read with `datasets`, which is loaded only then, and which runs no code of theirs.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from stepwell.errors import StepwellError
from stepwell.tasks.base import QA, check_ids

Entry = dict[str, Any]
Source = str | Path
HUB_ID = re.compile(r"(?P<name>[\w-]+/[\w.-]+)(?::(?P<config>[\w.-]+))?")
FILE_ENDINGS = frozenset({".json", ".jsonl", ".txt", ".md", ".csv", ".gz"})


def hub_id(source: Source) -> tuple[str, str | None] | None:
    """(name, configuration) where a source names a hub set, `owner/name` or `owner/name:configuration`; else None.

    A path that exists is a file, whatever it looks like, and so is what ends like one.
    """
    found = HUB_ID.fullmatch(source) if isinstance(source, str) else None
    if found is None or Path(source).exists() or Path(source).suffix in FILE_ENDINGS:
        return None
    return found["name"], found["config"]


def read_text(path: Path, expected: str) -> str:
    """The text of a file; of a gzip file what it holds.

    Raises:
        StepwellError: there is no such file, it cannot be read, or it is empty; the way out says what is `expected`.
    """
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8-sig").replace("\r\n", "\n")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        cause = "there is no such file" if isinstance(error, FileNotFoundError) else f"cannot be read: {error}"
        raise StepwellError(cause, f"name a readable file: {expected}", path=path) from None
    if not text.strip():
        raise StepwellError("the file is empty", f"expected {expected}", path=path)
    return text


def read_json(path: Path, expected: str) -> Any:
    """What a JSON file holds.

    Raises:
        StepwellError: as `read_text`, or it is not JSON.
    """
    text = read_text(path, expected)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise _not_json(error, error.lineno, expected, path) from None


def _not_json(error: json.JSONDecodeError, line: int, expected: str, path: Path) -> StepwellError:
    return StepwellError(f"not JSON: line {line}, column {error.colno}: {error.msg}", f"expected {expected}", path=path)


def _lines(text: str, expected: str, path: Path) -> Iterator[Any]:
    # Cut at line feeds alone: JSON may hold the other line ends of Unicode inside a text.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise _not_json(error, number, expected, path) from None


def read_entries(path: Path, expected: str) -> list[Entry]:
    """The objects of a JSON list, or of a file with one JSON object a line.

    Raises:
        StepwellError: as `read_json`, or it holds something else than objects, or none.
    """
    text = read_text(path, expected)
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        # One whole value and then more: objects, one a line. Anything else is broken where it says.
        if error.msg != "Extra data":
            raise _not_json(error, error.lineno, expected, path) from None
        found = list(_lines(text, expected, path))
    found = [found] if isinstance(found, dict) else found
    if not isinstance(found, list):
        cause = f"another format: one {type(found).__name__}, not objects"
        raise StepwellError(cause, f"expected {expected}", path=path)
    if not found:
        raise StepwellError("the list holds no items", f"expected {expected}", path=path)
    for number, entry in enumerate(found, start=1):
        if not isinstance(entry, dict):
            cause = f"another format: entry {number} is a {type(entry).__name__}, not an object"
            raise StepwellError(cause, f"expected {expected}", path=path)
    return found


def hub_entries(name: str, config: str | None, split: str) -> list[Entry]:
    """The rows of one split of a hub set.

    Raises:
        StepwellError: `datasets` is not installed, or the set cannot be had.
    """
    try:
        datasets = import_module("datasets")
    except ImportError:
        raise StepwellError(
            "a data set of the hub needs the package datasets, which is not installed",
            "pip install 'stepwell[data]', or name a file",
            path=name,
        ) from None
    try:
        return [dict(row) for row in datasets.load_dataset(name, config, split=split)]
    # Whatever goes wrong in there (no network, no such set, no such split) is the user's to solve, and in the message.
    except Exception as error:
        what = f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"
        raise StepwellError(
            f"the split {split!r} of this data set could not be had from the hub: {what}",
            "check its name and the network, or name a file",
            path=name,
        ) from None


def entries(source: Source, split: str, expected: str) -> list[Entry]:
    """The objects of a file (`read_entries`) or the rows of a hub set (`hub_entries`). Raises as they do."""
    hub = hub_id(source)
    return hub_entries(*hub, split) if hub else read_entries(Path(source), expected)


def items_of(
    found: Sequence[Entry], source: Source, expected: str, item: Callable[[Entry, str], QA | None]
) -> list[QA]:
    """The items that `item` makes of entries and of the names they have by default, `<file stem>-<place>`.

    Raises:
        StepwellError: `item` returns None for an entry, which has another format, or two items have one id.
    """
    stem = Path(source).stem.replace(":", "-")
    made: list[QA] = []
    for place, entry in enumerate(found):
        one = item(entry, f"{stem}-{place:05d}")
        if one is None:
            cause = f"another format: entry {place + 1} has the fields {', '.join(entry) or 'none'}"
            raise StepwellError(cause, f"expected {expected}", path=source)
        made.append(one)
    check_ids(made, str(source))
    return made


def texts(value: Any) -> tuple[str, ...] | None:
    """A list of texts without doubles, in order; None for anything else. Blank texts are left out."""
    if not isinstance(value, list | tuple) or not all(isinstance(text, str) for text in value):
        return None
    return tuple(dict.fromkeys(text for text in value if text.strip()))
