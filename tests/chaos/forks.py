"""Runs in forks of one warm process: begun in milliseconds, killed at will."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepwell.plan import Plan, dump_plan
from stepwell.store import is_held

HERE = Path(__file__).resolve().parent
SOURCE = HERE.parents[1] / "src"
SECONDS_BETWEEN_LOOKS = 0.001
VERDICTS = (0, 1, 2)
PROXIES = ("http_proxy", "https_proxy", "all_proxy")


def environment() -> dict[str, str]:
    """This one, with one thread, the sources, and no proxy between a run and a server here."""
    own = {name: value for name, value in os.environ.items() if name.lower() not in (*PROXIES, "openai_api_key")}
    return {**own, "PYTHONPATH": os.pathsep.join([str(SOURCE), str(HERE)]), "OMP_NUM_THREADS": "1"}


@dataclass
class Attempt:
    """One process that runs a plan; it may have ended."""

    server: Forks
    pid: int
    folder: Path
    out: Path
    code: int | None = None

    def kill(self) -> None:
        """SIGKILL to it and to what it has in its group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.wait()

    def wait(self) -> int:
        """Its exit code; of a signal, negative."""
        if self.code is None:
            self.code = self.server.heard()["code"]
        assert self.code is not None
        return self.code

    def said(self) -> str:
        """What it wrote to standard error."""
        return self.out.with_suffix(".err").read_text()

    def children(self) -> list[int]:
        """The processes it has started that still run."""
        with contextlib.suppress(OSError):
            return [int(one) for one in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]
        return []

    def alive(self) -> bool:
        """Whether it still runs."""
        with contextlib.suppress(OSError):
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        return False


@dataclass
class Forks:
    """The warm process; one run at a time."""

    process: subprocess.Popen[str]
    begun: int = 0
    last: Attempt | None = None

    def begin(self, plan: Plan, folder: Path, mishaps: Mapping[str, Mapping[str, Any]] | None = None) -> Attempt:
        """`stepwell run PLAN --out FOLDER`, with mishaps by name and options."""
        if self.last is not None and self.last.code is None:
            self.last.kill()  # of a test that failed: what it has to say would be taken for this one's
        self.begun += 1
        cwd = folder.with_name(f"{folder.name}.forks")
        cwd.mkdir(exist_ok=True)
        file, out = cwd / "plan.yaml", cwd / f"{self.begun}.out"
        file.write_text(dump_plan(plan))
        asked = {
            "command": ["run", str(file), "--out", str(folder), "--quiet"], "mishaps": mishaps or {}, "cwd": str(cwd),
            "out": str(out), "err": str(out.with_suffix(".err")),
        }  # fmt: skip
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        self.last = Attempt(self, int(self.heard()["pid"]), folder, out)
        return self.last

    def run(self, plan: Plan, folder: Path, mishaps: Mapping[str, Mapping[str, Any]] | None = None) -> Attempt:
        """To its end, which must be a verdict."""
        attempt = self.begin(plan, folder, mishaps)
        assert attempt.wait() in VERDICTS and attempt.said() == "", f"exit code {attempt.code}: {attempt.said()}"
        return attempt

    def heard(self) -> dict[str, Any]:
        """The next line of the server."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the process that forks has died"
        return json.loads(line)


@contextlib.contextmanager
def forks() -> Iterator[Forks]:
    """Start it; it takes as long as importing torch and transformers does."""
    command = [sys.executable, str(HERE / "fork_server.py")]
    process = subprocess.Popen(
        command, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, process_group=0
    )
    try:
        yield Forks(process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def until(ready: Callable[[], object], attempt: Attempt, seconds: float = 60.0) -> bool:
    """Whether it came to pass while the attempt ran."""
    deadline = time.monotonic() + seconds
    while attempt.alive() and time.monotonic() < deadline:
        if ready():
            return True
        time.sleep(SECONDS_BETWEEN_LOOKS)
    return bool(ready())


def held_locks(folder: Path) -> list[str]:
    """The locks of a run folder that somebody holds."""
    return [path.name for path in (folder / "lock", *sorted((folder / "jobs").glob("*.lock"))) if is_held(path)]


class Tail:
    """Follows events.jsonl at little cost."""

    def __init__(self, folder: Path) -> None:
        self.path, self.offset = folder / "events.jsonl", 0
        with contextlib.suppress(OSError):
            self.offset = self.path.stat().st_size

    def new(self) -> list[dict[str, Any]]:
        """The events that came since the last look."""
        with contextlib.suppress(OSError):
            if self.path.stat().st_size > self.offset:
                with self.path.open("rb") as file:
                    file.seek(self.offset)
                    lines = file.read()
                whole = lines[: lines.rfind(b"\n") + 1]
                self.offset += len(whole)
                return [json.loads(line) for line in whole.splitlines()]
        return []

    def saw(self, event: str, job: str) -> bool:
        """Whether this event of a job came since the last look."""
        return any(one["event"] == event and one.get("job") == job for one in self.new())
