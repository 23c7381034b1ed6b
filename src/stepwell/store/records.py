"""Records: one JSON object a line, the same bytes whenever the same stage runs, however often it was interrupted."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stepwell.store.files import sha256_of


def line_of(record: Mapping[str, Any]) -> bytes:
    """A record as its line. Numbers that are not finite become null; numbers of numpy and torch become plain ones."""
    try:
        text = _dumps(record, allow_nan=False)
    except ValueError:
        text = _dumps(_finite(json.loads(_dumps(record, allow_nan=True))), allow_nan=False)
    try:
        return text.encode() + b"\n"
    except UnicodeEncodeError:  # half a surrogate pair, as a model may produce: written as an escape
        return json.dumps(json.loads(text), separators=(",", ":")).encode() + b"\n"


def _dumps(value: Any, *, allow_nan: bool) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=allow_nan, default=_plain)


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    for method in ("tolist", "item"):  # numpy and torch, neither of which is imported for this
        if hasattr(value, method):
            return getattr(value, method)()
    raise TypeError(f"a record cannot hold {value!r} of type {type(value).__name__}")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list) else value


class RecordWriter:
    """Appends to one job's records and knows, at each moment, their length and hash.

    Args:
        path: of the records; it is cut off at `offset` when the writer opens it.
        stamp: fields put into each record after `kind`: the job's axes.
        offset: where to go on, in bytes.
    """

    def __init__(self, path: Path, stamp: Mapping[str, Any], *, offset: int = 0) -> None:
        self._stamp = dict(stamp)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self._digest, self.bytes, self.lines = hashlib.sha256(), 0, 0
        while self.bytes < offset and (block := os.read(self._handle, min(1 << 20, offset - self.bytes))):
            self._digest.update(block)
            self.bytes += len(block)
            self.lines += block.count(b"\n")
        os.ftruncate(self._handle, self.bytes)

    def write(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Append one record. A field that contradicts an axis of the job raises ValueError.

        When the disk is full the OSError passes through, and the file ends with the record before.
        """
        record = {"kind": kind, **self._stamp, **fields}
        for name in fields.keys() & (self._stamp.keys() | {"kind"}):
            if record[name] != (kind if name == "kind" else self._stamp[name]):
                raise ValueError(f"record {kind}: field {name} = {fields[name]!r} contradicts the job's own")
        line = line_of(record)
        try:
            written = os.write(self._handle, line)
            while written < len(line):
                written += os.write(self._handle, line[written:])
        except OSError:
            os.ftruncate(self._handle, self.bytes)
            os.lseek(self._handle, self.bytes, os.SEEK_SET)
            raise
        self._digest.update(line)
        self.bytes += len(line)
        self.lines += 1

    @property
    def sha256(self) -> str:
        """Hex sha256 of all records so far."""
        return self._digest.hexdigest()

    def sync(self) -> None:
        """Flush to the disk."""
        os.fsync(self._handle)

    def close(self) -> None:
        """Close the file; nothing is buffered."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


def begins_with(path: Path, length: int, sha256: str) -> bool:
    """Whether the first `length` bytes of a file are there and have this hash."""
    return path.exists() and path.stat().st_size >= length and sha256_of(path, length=length) == sha256
