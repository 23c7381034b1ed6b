"""Locks that a dead process cannot hold: flock on a file that says who holds it. The file itself stays."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import os
import socket
import time
import weakref
from pathlib import Path
from types import TracebackType
from typing import Self

from stepwell.errors import StepwellError


class Lock:
    """An exclusive lock on a file, held until released or until the process is gone, however it goes.

    Args:
        path: the file; it is created where missing.
        what: what it guards, for the message.
        wait_seconds: how long to wait for another holder, e.g. a worker that is just dying.

    As a context manager it raises StepwellError, naming the holder's process, host and time, when the lock is taken.
    """

    def __init__(self, path: Path, what: str, *, wait_seconds: float = 0.0) -> None:
        self.path, self.what, self.wait_seconds = path, what, wait_seconds
        self._handle = -1

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        deadline = time.monotonic() + self.wait_seconds
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    os.close(handle)
                    raise self._taken() from None
                time.sleep(0.02)
        self._handle = handle
        _HELD.add(self)
        since = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        holder = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since})
        with contextlib.suppress(OSError):  # a full disk is no reason not to hold the lock
            os.ftruncate(handle, 0)
            os.pwrite(handle, holder.encode(), 0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._drop()

    def _drop(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1
        _HELD.discard(self)

    def _taken(self) -> StepwellError:
        try:
            held = json.loads(self.path.read_text())
            holder = f"process {held['pid']} on {held['host']} since {held['since']}"
        except (OSError, ValueError, KeyError):
            holder = "another process"
        return StepwellError(
            f"{self.what} is in use by {holder}",
            "Wait until it ends, stop it, or name another run folder.",
            path=self.path.parent,
        )


_HELD: weakref.WeakSet[Lock] = weakref.WeakSet()


def _drop_in_child() -> None:
    # A forked child (a data loader's worker, say) shares the lock and would hold it after its parent was killed.
    for lock in list(_HELD):
        lock._drop()


os.register_at_fork(after_in_child=_drop_in_child)


def is_held(path: Path) -> bool:
    """Whether anybody holds the lock of this file now."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False
