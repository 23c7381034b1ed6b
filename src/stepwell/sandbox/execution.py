"""Programs and their tests, executed in sandboxes: each in two of its own, watched, and ended at its limits."""

from __future__ import annotations

import json
import os
import selectors
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import cache

from stepwell.errors import StepwellError
from stepwell.sandbox.box import Box, Role, bubblewrap, children, pipe, system_call_filter
from stepwell.sandbox.limits import MIB, Limits
from stepwell.sandbox.programs import Outcome, Program, Status

START_SECONDS = 60.0
"""How long a sandbox may take to begin: the machine's affair, so not counted as the program's time."""

TICK_SECONDS = 0.05
"""How often memory and files are looked at."""

KEPT_BYTES = 4000
"""How much of a program's output an outcome keeps."""

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
SIGNALS = {9: "memory", 24: "timeout", 25: "output"}


def execute(programs: Sequence[Program], limits: Limits | None = None, workers: int | None = None) -> list[Outcome]:
    """Run each program against its tests, in sandboxes.

    A program has no network, sees a read-only system and a private /tmp, and runs as nobody; its tests run in another
    sandbox, so that it can neither read them nor speak for them. Limits hold for root too.

    Args:
        programs: in any order; their outcomes come in the same.
        limits: for each program; `Limits()` where None.
        workers: how many at a time; as many as there are processors where None.

    Raises:
        StepwellError: this machine cannot isolate programs; none was run.
    """
    require()
    limits = limits or Limits()
    workers = workers or len(os.sched_getaffinity(0))
    pool = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="sandbox")
    try:
        return list(pool.map(lambda program: _one(program, limits), programs))
    finally:
        pool.shutdown(cancel_futures=True)


@cache
def require() -> None:
    """Make sure, once a process, that this machine can isolate programs.

    Raises:
        StepwellError: it cannot, and why: bubblewrap is missing, or is not allowed to make namespaces.
    """
    bubblewrap()
    system_call_filter()
    outcome = _one(Program(id="none", code="def one():\n    return 1\n", tests="assert one() == 1"), Limits())
    if outcome.status != "passed":
        raise StepwellError(
            f"the sandbox does not work here, so nothing is executed: {outcome.detail or outcome.status}",
            "`stepwell sandbox check` says more; in a container, allow user namespaces (sysctl "
            "kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0; docker run "
            "--security-opt seccomp=unconfined --security-opt systempaths=unconfined), or use another machine",
        )


def _one(program: Program, limits: Limits) -> Outcome:
    with ExitStack() as stack:
        from_tester, to_solver = pipe(stack)
        from_solver, to_tester = pipe(stack)
        watch = Watch(limits)
        try:
            ends: dict[Role, tuple[int, int]] = {"solver": (from_tester, to_tester), "tester": (from_solver, to_solver)}
            for role, pipes in ends.items():
                box = Box.start(stack, role, program, pipes, limits)
                stack.callback(box.end)
                watch.boxes.append(box)
        except OSError as error:
            return Outcome(id=program.id, status="sandbox-error", detail=f"no start: {error}", output="", seconds=0.0)
        for end in (from_tester, to_solver, from_solver, to_tester):
            os.close(end)
        status, detail = watch.until_the_end()
        output = watch.boxes[0].printed[-KEPT_BYTES:].decode(errors="replace")
        return Outcome(id=program.id, status=status, detail=detail, output=output, seconds=watch.seconds)


Ending = tuple[Status, str]


class Watch:
    """Looks after the two sandboxes of a program until the tests have spoken or a limit is reached.

    Attributes:
        boxes: the program's and the tests'.
        seconds: since both began; 0 before.
    """

    def __init__(self, limits: Limits) -> None:
        self.boxes: list[Box] = []
        self._limits = limits
        self._started = time.monotonic()
        self._began: float | None = None

    @property
    def seconds(self) -> float:
        """Wall-clock time since both sandboxes began."""
        return 0.0 if self._began is None else time.monotonic() - self._began

    def until_the_end(self) -> Ending:
        """How it ended."""
        with selectors.DefaultSelector() as selector:
            for box in self.boxes:
                selector.register(box.report_fd, selectors.EVENT_READ, (box, True))
                selector.register(box.output_fd, selectors.EVENT_READ, (box, False))
            looked = 0.0
            while True:
                for key, _ in selector.select(TICK_SECONDS):
                    box, is_report = key.data
                    data = os.read(key.fd, 1 << 16)
                    if not data:
                        selector.unregister(key.fd)
                    ending = self._reported(box, data) if is_report else self._printed(box, data)
                    if ending:
                        return ending
                if time.monotonic() - looked >= TICK_SECONDS:
                    looked = time.monotonic()
                    if ending := self._late() or self._too_much():
                        return ending

    def _reported(self, box: Box, data: bytes) -> Ending | None:
        box.reported += data
        while b"\n" in box.reported:
            line, _, rest = bytes(box.reported).partition(b"\n")
            box.reported[:] = rest
            message = json.loads(line)
            if "ready" not in message:
                return self._verdict(message["status"], message["detail"])
            if wrong := box.begins(message["ready"]):
                return "sandbox-error", f"the sandbox does not hold: {wrong}"
            if all(box.ready for box in self.boxes):
                self._began = time.monotonic()
        if not data and (not box.ready or box is self.boxes[1]):
            return self._broken(box)
        return None

    def _verdict(self, status: str, detail: str) -> Ending:
        if status != "gone":
            return status, detail  # pyright: ignore[reportReturnType]  (the words of tester.judge)
        code = _wait(self.boxes[0])
        if code is None or code < 128:
            return "failed", f"the program left with code {code} before its tests had ended"
        named: Status = SIGNALS.get(code - 128, "failed")  # pyright: ignore[reportAssignmentType]
        return named, f"the program was ended by signal {code - 128}"

    def _broken(self, box: Box) -> Ending:
        code = _wait(box)
        os.set_blocking(box.output_fd, False)
        with suppress(BlockingIOError):
            box.printed += os.read(box.output_fd, 1 << 16)
        said = box.printed.decode(errors="replace").strip().splitlines()
        return "sandbox-error", f"the sandbox ended with code {code}: {said[-1] if said else 'it said nothing'}"

    def _printed(self, box: Box, data: bytes) -> Ending | None:
        box.printed += data
        if len(box.printed) > self._limits.output_bytes:
            return "output", f"more than {self._limits.output_kib} KiB printed"
        return None

    def _late(self) -> Ending | None:
        if self._began is None and time.monotonic() - self._started > START_SECONDS:
            return "sandbox-error", f"the sandbox did not begin within {START_SECONDS:g} s"
        if self.seconds > self._limits.seconds:
            return "timeout", f"not done after {self._limits.seconds:g} s"
        return None

    def _too_much(self) -> Ending | None:
        for box in self.boxes:
            if not box.ready:
                continue
            held, files = usage(box.process.pid)
            if held > self._limits.memory_bytes:
                return "memory", f"its processes held {held // MIB} MiB, {self._limits.memory_mib} allowed"
            if files > self._limits.files:
                return "output", f"{files} files in /tmp, {self._limits.files} allowed"
        return None


def usage(pid: int) -> tuple[int, int]:
    """(bytes of memory that the descendants of a process hold, files in the /tmp of the first of them)."""
    inner = children(pid)
    files = 0
    for first in inner:
        try:
            space = os.statvfs(f"/proc/{first}/root/tmp")
            files = space.f_files - space.f_ffree
        except (FileNotFoundError, ProcessLookupError):
            continue
    held, waiting, seen = 0, inner, set[int]()
    while waiting:
        one = waiting.pop()
        if one not in seen:
            seen.add(one)
            held += _resident(one)
            waiting += children(one)
    return held, files


def _resident(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/statm") as file:  # noqa: PTH123  (many times a second)
            return int(file.read().split()[1]) * PAGE_BYTES
    except (OSError, IndexError):
        return 0


def _wait(box: Box) -> int | None:
    try:
        return box.process.wait(2)
    except Exception:
        return None
