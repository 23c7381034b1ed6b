"""One sandbox: bubblewrap with the namespaces, mounts and filter that every program gets, and what it reports."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from stepwell.errors import StepwellError
from stepwell.sandbox.guest import start
from stepwell.sandbox.limits import Limits
from stepwell.sandbox.programs import Program
from stepwell.sandbox.seccomp import filter_program

GUEST = Path(start.__file__).parent
START = "import sys; sys.path.insert(0, '/box'); from guest.start import main; main()"
SYSTEM_FOLDERS = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")

# Users that no system gives to anybody (between systemd's 60578 and 61183): what counts processes by user counts each
# sandbox by itself.
FIRST_UID, UIDS = 60_600, 580
_turns = itertools.count(os.getpid() * 16)


@cache
def bubblewrap() -> str:
    """The path of bubblewrap.

    Raises:
        StepwellError: it is not installed.
    """
    found = shutil.which("bwrap")
    if found is None:
        raise StepwellError(
            "bubblewrap is not installed: nothing here can keep generated code apart from this machine",
            "install it (apt-get install bubblewrap, dnf install bubblewrap); generated code is not run without it",
        )
    return found


@cache
def system_call_filter() -> bytes | None:
    """The filter of system calls; None where this kind of processor has none and user namespaces do without.

    Raises:
        StepwellError: there is none, and this is root, whose sandbox has no user namespace that could be closed.
    """
    found = filter_program()
    if found is None and os.getuid() == 0:
        raise StepwellError(
            f"no filter of system calls is known for {os.uname().machine}, and root needs one",
            "run as an ordinary user",
        )
    return found


def dropped_uid() -> int | None:
    """The user that root's next sandbox becomes; None for an ordinary user, who has nothing to give up."""
    return FIRST_UID + next(_turns) % UIDS if os.getuid() == 0 else None


def command(limits: Limits, filter_fd: int | None) -> list[str]:
    """The command line of a sandbox: everything is taken away, then little is given back, and that read-only."""
    line = [bubblewrap(), "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
    if os.getuid() == 0:
        line += ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        line += ["--unshare-user"]
    if filter_fd is None:
        line += ["--disable-userns"]  # with the filter there are no further user namespaces either
    else:
        line += ["--seccomp", str(filter_fd)]
    line += ["--die-with-parent", "--new-session", "--hostname", "sandbox", "--clearenv"]
    # Hashes of texts, and so the order of sets, are the same in every run.
    for name, value in {"PYTHONHASHSEED": "0", "MALLOC_ARENA_MAX": "1", "HOME": "/tmp", "LC_ALL": "C.UTF-8"}.items():
        line += ["--setenv", name, value]
    prefixes = sorted({sys.base_prefix, sys.base_exec_prefix} - {"/usr"})
    # Folders that bubblewrap would make by itself are closed to the user that root becomes.
    for folder in dict.fromkeys(["/box", "/dev", "/etc", *(one for prefix in prefixes for one in _parents(prefix))]):
        line += ["--perms", "0755", "--dir", folder]
    line += ["--ro-bind", "/usr", "/usr"]
    for folder in map(Path, SYSTEM_FOLDERS):
        if folder.is_symlink():
            line += ["--symlink", str(folder.readlink()), str(folder)]
        elif folder.is_dir():
            line += ["--ro-bind", str(folder), str(folder)]
    line += ["--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    for prefix in prefixes:
        line += ["--ro-bind", prefix, prefix]
    line += ["--ro-bind", str(GUEST), "/box/guest", "--proc", "/proc"]
    for device in DEVICES:
        line += ["--dev-bind", device, device]
    line += ["--perms", "1777", "--size", str(limits.disk_bytes), "--tmpfs", "/tmp", "--symlink", "/tmp", "/dev/shm"]
    line += ["--chdir", "/tmp", "--remount-ro", "/"]
    # -s -S -P: no packages but the standard library's, and none from the working folder.
    return [*line, "--", os.path.realpath(sys.executable), "-s", "-S", "-P", "-B", "-c", START]


Role = Literal["solver", "tester"]


@dataclass(kw_only=True)
class Box:
    """A running sandbox.

    Attributes:
        process: bubblewrap outside; what runs inside are its descendants.
        report_fd, output_fd: where it says how it stands, and what it prints.
        uid: what it has to report as its user, where it gave up root.
        ready: whether it has begun, with everything in force.
        printed: its output so far, as much as is allowed.
    """

    process: subprocess.Popen[bytes]
    report_fd: int
    output_fd: int
    uid: int | None
    limits: Limits
    ready: bool = False
    printed: bytearray = field(default_factory=bytearray)
    reported: bytearray = field(default_factory=bytearray)

    @classmethod
    def start(cls, stack: ExitStack, role: Role, program: Program, pipes: tuple[int, int], limits: Limits) -> Box:
        """Start the program (`solver`) or its tests (`tester`). `pipes`: what it reads from and writes to."""
        report, report_in = pipe(stack)
        output, output_in = pipe(stack)
        uid = dropped_uid()
        order = {
            "role": role,
            "text": program.code if role == "solver" else program.tests,
            "entry_point": program.entry_point,
            "uid": uid,
            "report": report_in,
            "read": pipes[0],
            "write": pipes[1],
            "limits": {
                "memory_bytes": limits.memory_bytes,
                "cpu_seconds": int(limits.seconds) + 2,
                "processes": limits.processes,
                "open_files": limits.open_files,
                "disk_bytes": limits.disk_bytes,
                "frame_bytes": limits.frame_bytes,
            },
        }
        orders = _held(stack, json.dumps(order).encode())
        rules = system_call_filter()
        filter_fd = None if rules is None else _held(stack, rules)
        process = subprocess.Popen(
            command(limits, filter_fd),
            stdin=orders,
            stdout=output_in,
            stderr=output_in,
            pass_fds=[fd for fd in (report_in, *pipes, filter_fd) if fd is not None],
            umask=0o022,
            env={},
            cwd="/",
        )
        os.close(report_in)
        os.close(output_in)
        return cls(process=process, report_fd=report, output_fd=output, uid=uid, limits=limits)

    def begins(self, state: dict[str, Any]) -> str:
        """Mark it as ready; or what does not hold of that which must, before anything of the program was run."""
        wrong = [
            name
            for name, holds in {
                "it still is root": state["uid"] == self.uid if self.uid is not None else state["uid"] != 0,
                "it has capabilities": state["capabilities"] == 0,
                "it could gain privileges": state["no_new_privileges"],
                "system calls are not filtered": state["filtered"] or system_call_filter() is None,
                # Bubblewrap's own first process, and this one.
                "it sees other processes": state["processes_seen"] <= 2,
                "it has a network": state["interfaces"] in ([], ["lo"]),
                "its memory is not limited": state["memory_bytes"] == self.limits.memory_bytes,
                "its processes are not limited": state["processes"] == self.limits.processes,
            }.items()
            if not holds
        ]
        self.ready = not wrong
        return ", ".join(wrong)

    def end(self) -> None:
        """Kill all that runs in it, and wait until it is gone."""
        # The first process of its namespace takes all others with it, and bubblewrap outside waits for it.
        for pid in children(self.process.pid):
            _kill(pid)
        try:
            self.process.wait(2)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def pipe(stack: ExitStack) -> tuple[int, int]:
    """(read end, write end), closed with the stack if they are still open."""
    ends = os.pipe()
    for end in ends:
        stack.callback(_close, end, os.fstat(end).st_ino)
    return ends


def children(pid: int) -> list[int]:
    """The processes that a process started, or inherited, and that still are; [] where it is gone."""
    found: list[int] = []
    try:
        tasks = Path(f"/proc/{pid}/task").iterdir()
        for task in tasks:
            found += [int(name) for name in (task / "children").read_text().split()]
    except OSError:
        return found
    return found


def _parents(path: str) -> list[str]:
    return [str(one) for one in reversed(Path(path).parents) if str(one) not in ("/", "/usr")]


def _close(fd: int, inode: int) -> None:
    # The number may since belong to another file, which is not ours to close.
    try:
        if os.fstat(fd).st_ino == inode:
            os.close(fd)
    except OSError:
        return


def _kill(pid: int) -> None:
    try:
        os.kill(pid, 9)
    except ProcessLookupError:
        return


def _held(stack: ExitStack, content: bytes) -> int:
    fd = os.memfd_create("stepwell", os.MFD_CLOEXEC)
    stack.callback(os.close, fd)
    with os.fdopen(os.dup(fd), "wb") as file:
        file.write(content)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd
