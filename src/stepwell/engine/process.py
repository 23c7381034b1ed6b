"""The process engine: each job in a Python of its own, which dies with this one."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, cast

from stepwell.engine.base import Handle, JobCall, Outcome, log_of

SECONDS_BETWEEN_LOOKS = 0.1
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
END_OF_LOG_BYTES = 2000
# glibc may give each freed tensor back to the system and take it anew at the next step, page by page. 32 MiB is the
# largest threshold that it accepts. Other C libraries ignore all three.
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(512 << 20),
    "MALLOC_TOP_PAD_": str(64 << 20),
}


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
        options = ["--fingerprint", call.fingerprint, "--threads", str(call.threads), "--parent", str(os.getpid())]
        command = [sys.executable, "-m", "stepwell.engine.worker", call.folder, call.job, *options]
        with path.open("ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env=_environment(call.threads),
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
        try:
            handle.outcome = Outcome.from_json(bytes(handle.answer))
        except (ValueError, TypeError):
            handle.outcome = _death(handle.call, code)
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


def _death(call: JobCall, code: int) -> Outcome:
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        hint = " (often the system's answer to a lack of memory)" if -code == signal.SIGKILL else ""
        cause = f"its worker was killed by {name}{hint}"
    else:
        cause = f"its worker ended with exit code {code} and no result"
    return Outcome(
        state="died",
        cause=cause,
        way_out="Read its log; give it more memory or fewer `workers`; then run the same command again.",
        traceback=_end_of(log_of(call)),
    )


def _end_of(log: Path) -> str:
    try:
        return log.read_bytes()[-END_OF_LOG_BYTES:].decode(errors="replace")
    except OSError:
        return ""


def _environment(threads: int) -> dict[str, str]:
    """The worker's environment: its threads, a fixed order of sets, and the import path of this process."""
    places = sysconfig.get_paths()
    standard = tuple(places[name] for name in ("stdlib", "platstdlib", "purelib", "platlib"))
    own = [path for path in sys.path if path and not path.startswith(standard)]
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return {
        **ALLOCATOR,
        **os.environ,
        **dict.fromkeys(THREAD_VARIABLES, str(threads)),
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "PYTHONHASHSEED": "0",
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(path for path in (*own, *given) if path)),
    }
