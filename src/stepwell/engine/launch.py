"""How a job is started as a process, whichever engine starts it: the command, its environment, and what it answered."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

from stepwell.engine.base import JobCall, Outcome, log_of, opened_log

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
END_OF_LOG_BYTES = 2000
# glibc may give each freed tensor back to the system and take it anew at the next step, page by page. 32 MiB is the
# largest threshold that it accepts. Other C libraries ignore all three.
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(512 << 20),
    "MALLOC_TOP_PAD_": str(64 << 20),
}


def command(call: JobCall) -> list[str]:
    """The command that runs a job and prints its outcome: a worker, or several under `torchrun`.

    It dies with the process that starts it.
    """
    module = "stepwell.engine.worker" if call.ranks == 1 else "stepwell.engine.torchrun"
    options = ["--fingerprint", call.fingerprint, "--threads", str(call.threads), "--parent", str(os.getpid())]
    several = [] if call.ranks == 1 else ["--ranks", str(call.ranks)]
    return [sys.executable, "-m", module, call.folder, call.job, *options, *several]


def environment(threads: int) -> dict[str, str]:
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


def start(call: JobCall, variables: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Start the process of a job, in a group of its own; its answer comes on its standard output.

    Args:
        call: the job.
        variables: that differ from `environment`.

    Raises:
        OSError: it cannot be started, or its log not be opened.
    """
    with opened_log(call) as log:
        return subprocess.Popen(
            command(call),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            env={**environment(call.threads), **(variables or {})},
            process_group=0,
        )


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a process that `start` gave, and what its stage has started: that would write beside a second attempt."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def outcome_of(call: JobCall, answer: bytes, code: int) -> Outcome:
    """What a process that ended has answered on its standard output, or how it died."""
    try:
        return Outcome.from_json(answer)
    except (ValueError, TypeError):
        return Outcome(
            state="died",
            cause=_death(code),
            way_out="Read its log; give it more memory or fewer `workers`; then run the same command again.",
            traceback=end_of(log_of(call)),
        )


def _death(code: int) -> str:
    if code >= 0:
        return f"its worker ended with exit code {code} and no result"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    hint = " (often the system's answer to a lack of memory)" if -code == signal.SIGKILL else ""
    return f"its worker was killed by {name}{hint}"


def end_of(log: Path) -> str:
    """The last lines of a log; empty where there is none."""
    try:
        return log.read_bytes()[-END_OF_LOG_BYTES:].decode(errors="replace")
    except OSError:
        return ""
