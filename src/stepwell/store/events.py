"""The log of wall-clock facts, events.jsonl: whole lines, whoever writes at the same time. Never compared or hashed."""

from __future__ import annotations

import datetime
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stepwell.store.records import line_of


def append_event(path: Path, event: str, /, **fields: Any) -> None:
    """Append one event, with the time in UTC.

    The file is locked for the write: a torn line that a killed or starved writer left is cut off first, and when the
    disk is full the OSError passes through and leaves whole lines.
    """
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    line = line_of({"time": now, "event": event, **fields})
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        size = _whole_size(handle)
        try:
            written = os.write(handle, line)
            while written < len(line):
                written += os.write(handle, line[written:])
        except OSError:
            os.ftruncate(handle, size)
            raise
    finally:
        os.close(handle)


def _whole_size(handle: int) -> int:
    """The size of the file once a torn last line is cut off."""
    size = os.fstat(handle).st_size
    if not size or os.pread(handle, 1, size - 1) == b"\n":
        return size
    end = size
    while end:
        start = max(0, end - 4096)
        newline = os.pread(handle, end - start, start).rfind(b"\n")
        end = start if newline < 0 else start + newline + 1
        if newline >= 0:
            break
    os.ftruncate(handle, end)
    return end


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """The events of a file in order; a line that is not yet whole is left out."""
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace", newline="\n") as lines:
        for line in lines:
            if line.endswith("\n"):
                yield json.loads(line)
