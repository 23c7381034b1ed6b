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

from stepwell.engine.base import Handle, JobCall, Outcome, log_of
from stepwell.engine.launch import command, environment, outcome_of

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
        path = log_of(call)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as log:
            process = subprocess.Popen(
                command(call),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment(call.threads),
                process_group=0,
            )
        handle = ProcessHandle(call, process)
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
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    if now:
                        os.killpg(handle.process.pid, signal.SIGKILL)
                    else:
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
            # What the stage had started must not outlive it: it would write beside a second attempt.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(handle.process.pid, signal.SIGKILL)
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
