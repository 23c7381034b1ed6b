"""What isolation this machine gives: every attempt to get out, made in a sandbox, and what came of it."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from stepwell.errors import StepwellError
from stepwell.sandbox import probes
from stepwell.sandbox.box import bubblewrap, system_call_filter
from stepwell.sandbox.execution import execute, require
from stepwell.sandbox.limits import Limits
from stepwell.sandbox.programs import Outcome, Program, Status

LIMITS = Limits(seconds=8, memory_mib=256, disk_mib=4, files=200, output_kib=64)
"""Of the probes: narrow, so that reaching them takes little of the machine."""

PATIENT = Limits(seconds=120)
"""Of reference solutions: MBPP/123 alone counts for seconds, and a busy machine makes it a minute."""

PATIENCE = 10
"""Times its limit that a probe gets, alone, where it ran out of time beside the others: slowness is no leak."""

DYING_SECONDS = 5.0
"""What a killed process may take to be gone on a busy machine; one that got out would go on for minutes."""

HELD_TESTS = "arena = {arena!r}\nevidence = escape(arena)\nassert evidence == '', evidence\n"
FORGED_TESTS = "arena = {arena!r}\nassert escape(arena) == {secret!r}\nassert all([False])\n"


@dataclass(frozen=True, kw_only=True)
class Probe:
    """An attempt to get out.

    Attributes:
        name: of its file in `stepwell.sandbox.probes`.
        what: what it tries, in a few words.
        expected: the statuses with which the sandbox holds.
        tests: what decides about it: "passed" says that it reached nothing.
        seconds: its limit of time.
    """

    name: str
    what: str
    expected: tuple[Status, ...] = ("passed",)
    tests: str = HELD_TESTS
    seconds: float = LIMITS.seconds

    def code(self) -> str:
        """The program."""
        return (Path(probes.__file__).parent / f"{self.name}.py").read_text(encoding="utf-8")


PROBES = (
    Probe(name="network", what="a connection to this machine and beyond"),
    Probe(name="files_outside", what="reading and writing files outside"),
    Probe(name="symlinks", what="leaving by symbolic links"),
    Probe(name="processes", what="seeing and tracing other processes"),
    Probe(name="signals", what="signals to a process outside"),
    Probe(name="signal_to_all", what="killing all it can see", expected=("passed", "failed", "memory")),
    Probe(name="privileges", what="becoming root, namespaces, raised limits"),
    Probe(name="fork_bomb", what="processes and threads without end"),
    Probe(name="memory", what="more memory than is allowed", expected=("memory",)),
    Probe(name="memory_of_many", what="more memory, by several processes", expected=("memory",)),
    Probe(name="memory_uncounted", what="memory that belongs to no process"),
    Probe(name="disk", what="more on disk than is allowed"),
    Probe(name="many_files", what="empty files without end", expected=("output",)),
    Probe(name="output_flood", what="output without end", expected=("output",)),
    Probe(name="answer_flood", what="a value that is too long", expected=("output",)),
    Probe(name="sleep", what="sleeping past the limit", expected=("timeout",), seconds=1.0),
    Probe(name="daemon", what="a process left behind"),
    Probe(name="tests_read", what="reading its tests"),
    Probe(name="verdict_forged", what="saying that it passed", expected=("failed",), tests=FORGED_TESTS),
    Probe(name="verdict_by_exit", what="ending as if it had passed", expected=("failed",)),
)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What came of one probe.

    Attributes:
        held: whether it reached nothing, neither by its own word nor by what is seen outside.
        detail: what it reached, or how it was ended.
    """

    probe: str
    what: str
    held: bool
    status: Status
    detail: str


@dataclass(frozen=True, kw_only=True)
class Isolation:
    """What isolation this machine gives this user.

    Attributes:
        user: "root", who becomes nobody inside, or "user", in a user namespace.
        bubblewrap, kernel: their versions.
        system_calls_filtered: whether calls that a program has no use for are refused.
        findings: of each probe; () where there is no sandbox at all.
        refused: why there is none; None where there is.
    """

    user: str
    bubblewrap: str | None
    kernel: str
    system_calls_filtered: bool
    findings: tuple[Finding, ...] = ()
    refused: str | None = None

    @property
    def ok(self) -> bool:
        """Whether generated code may be run here."""
        return self.refused is None and bool(self.findings) and all(finding.held for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {**asdict(self), "ok": self.ok}


def check(probes: Sequence[Probe] = PROBES) -> Isolation:
    """Try the probes. What cannot be tried is told in `refused`; nothing is raised."""
    found: dict[str, Any] = {
        "user": "root" if os.getuid() == 0 else "user",
        "bubblewrap": None,
        "kernel": os.uname().release,
        "system_calls_filtered": False,
    }
    try:
        version = subprocess.run([bubblewrap(), "--version"], capture_output=True, text=True, check=False)
        found["bubblewrap"] = version.stdout.strip()
        found["system_calls_filtered"] = system_call_filter() is not None
        require()
    except StepwellError as error:
        return Isolation(**found, refused=str(error))
    with ThreadPoolExecutor(max_workers=len(os.sched_getaffinity(0))) as pool:
        findings = list(pool.map(attempt, probes))
    for at, (probe, finding) in enumerate(zip(probes, findings, strict=True)):
        if finding.status == "timeout" and not finding.held:
            findings[at] = attempt(replace(probe, seconds=PATIENCE * probe.seconds))
    return Isolation(**found, findings=tuple(findings))


def negative_control() -> Isolation:
    """Make sure that no probe gets out, before a run that executes what a model wrote.

    Raises:
        StepwellError: there is no sandbox here, or one got out.
    """
    found = check()
    if not found.ok:
        out = "; ".join(f"{one.probe}: {one.detail or one.status}" for one in found.findings if not one.held)
        raise StepwellError(
            found.refused or f"the sandbox does not hold: {out}",
            "`stepwell sandbox check` says more; nothing that a model wrote is executed here until it holds",
        )
    return found


def positive_control(programs: Sequence[Program], workers: int | None = None) -> list[Outcome]:
    """Execute right solutions, which may take their time here. The outcomes of those that do not pass.

    Of their items a model's failure says nothing about the model.
    """
    return [one for one in execute(programs, PATIENT, workers) if one.status != "passed"]


def attempt(probe: Probe) -> Finding:
    """Run one probe in a sandbox, beside things that it must not touch."""
    limits = LIMITS.model_copy(update={"seconds": probe.seconds})
    with arena(limits) as (given, touched):
        secret = f"{given['first_half']}-of-the-tests"
        # The mark stands in the tests and, whole, nowhere else.
        tests = probe.tests.format(arena=given, secret=secret) + f"# {secret}\n"
        outcome = execute([Program(id=probe.name, code=probe.code(), tests=tests)], limits, workers=1)[0]
        seen = touched()
    late = outcome.seconds > probe.seconds + 2
    held = outcome.status in probe.expected and not seen and not late
    detail = "; ".join([outcome.detail, *seen, *(["it went on past its limit"] if late else [])]).strip("; ")
    return Finding(probe=probe.name, what=probe.what, held=held, status=outcome.status, detail=detail)


@contextmanager
def arena(limits: Limits) -> Iterator[tuple[dict[str, Any], Any]]:
    """Things outside that a probe is told of, and a function that lists which of them were touched."""
    mark, daemon = f"stepwell-mark-{secrets.token_hex(8)}", f"probe{secrets.token_hex(4)}"
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="stepwell-probe-")))
        folder.chmod(0o755)  # the mode of the folder is not what is to keep a probe out
        secret = folder / "secret.txt"
        secret.write_text(mark, encoding="utf-8")
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        server.setblocking(False)
        beside = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        beside.bind(f"\0{mark}")
        beside.listen()
        bystander = subprocess.Popen([sys.executable, "-S", "-c", f"import time; time.sleep(600)  # {mark}"])
        stack.callback(bystander.wait)
        stack.callback(bystander.kill)
        given = {
            "secret": str(secret),
            "folder": str(folder),
            "python": sys.base_prefix,
            "port": server.getsockname()[1],
            "address": "192.0.2.1",  # of no machine (RFC 5737)
            "abstract": mark,
            "mark": mark,
            "bystander": bystander.pid,
            "daemon": daemon,
            "first_half": f"half-{secrets.token_hex(8)}",
            **{name: getattr(limits, name) for name in ("memory_mib", "processes", "disk_mib", "files", "output_kib")},
        }

        def touched() -> list[str]:
            seen = []
            try:
                server.accept()[0].close()
                seen.append("it reached a server")
            except BlockingIOError:
                pass
            if bystander.poll() is not None:
                seen.append("it ended a process outside")
            if secret.read_text(encoding="utf-8") != mark or len(list(folder.iterdir())) != 1:
                seen.append("it changed files outside")
            if left := _left(daemon):
                seen.append(f"it left process {left} behind")
            return seen

        yield given, touched


def _left(name: str) -> int | None:
    """A process of this name that stays: one that was killed with its sandbox can be seen for a moment yet."""
    until = time.monotonic() + DYING_SECONDS
    while (found := _named(name)) is not None and time.monotonic() < until:
        time.sleep(0.01)
    return found


def _named(name: str) -> int | None:
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and (folder / "comm").read_text().strip() == name:
                return int(folder.name)
        except OSError:
            continue
    return None
