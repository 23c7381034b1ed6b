"""The process engine: each job in a Python of its own, which dies with this one."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import IO, cast

from stepwell.engine.base import Handle, JobCall, Outcome
from stepwell.engine.launch import end_group, outcome_of, start

SECONDS_BETWEEN_LOOKS = 0.1


@dataclass(eq=False)
class ProcessHandle:
    """A job in a process of its own."""

    call: JobCall
    process: subprocess.Popen[bytes]
    outcome: Outcome | None = None
    answer: bytearray = field(default_factory=bytearray)


class ProcessEngine:
    """Runs up to `slots` jobs, each as `python -m stepwell.engine.worker`.

    Each worker leads a process group of its own: Ctrl-C in a terminal reaches the runner alone, which decides, and a
    stop at once also ends what the stage started itself.
    """

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self._live: list[ProcessHandle] = []

    def submit(self, call: JobCall) -> ProcessHandle:
        """Start a worker."""
        handle = ProcessHandle(call, start(call))
        self._live.append(handle)
        return handle

    def wait(self, handles: Collection[Handle], seconds: float) -> set[Handle]:
        """Those whose worker ended."""
        deadline = time.monotonic() + seconds
        ours = cast("Collection[ProcessHandle]", handles)
        while True:
            done: set[Handle] = {handle for handle in ours if self._ended(handle)}
            left = deadline - time.monotonic()
            if done or left <= 0 or not ours:
                return done
            # A worker's answer wakes this at once. One that died, while a child of it holds the pipe, is found by
            # looking again.
            _wait_for_answers([handle for handle in ours if handle.outcome is None], min(left, SECONDS_BETWEEN_LOOKS))

    def stop(self, *, now: bool) -> None:
        """SIGTERM to each worker, or SIGKILL to each worker's process group."""
        for handle in list(self._live):
            if handle.process.returncode is None:
                if now:
                    end_group(handle.process)
                    continue
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(handle.process.pid, signal.SIGTERM)

    def _ended(self, handle: ProcessHandle) -> bool:
        if handle.outcome is not None:
            return True
        code = handle.process.poll()
        if code is None:
            return False
        stream = handle.process.stdout
        assert stream is not None
        _drain(stream, handle.answer)
        stream.close()
        self._live.remove(handle)
        handle.outcome = outcome_of(handle.call, bytes(handle.answer), code)
        if handle.outcome.state == "died":
            end_group(handle.process)
        return True


def _wait_for_answers(handles: list[ProcessHandle], seconds: float) -> None:
    with selectors.DefaultSelector() as selector:
        for handle in handles:
            assert handle.process.stdout is not None
            selector.register(handle.process.stdout, selectors.EVENT_READ, handle)
        events = selector.select(seconds)
    for key, _ in events:
        block = os.read(key.fd, 1 << 16)
        key.data.answer += block
        if not block:  # closed: the process is about to end
            with contextlib.suppress(subprocess.TimeoutExpired):
                key.data.process.wait(seconds)


def _drain(stream: IO[bytes], answer: bytearray) -> None:
    """What is left in the pipe of a process that ended; a child of it may keep the pipe open, so never wait."""
    os.set_blocking(stream.fileno(), False)
    with contextlib.suppress(BlockingIOError):
        while block := os.read(stream.fileno(), 1 << 16):
            answer += block
