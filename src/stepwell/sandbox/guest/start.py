"""The first thing that runs in the sandbox, before anything that somebody else wrote: it takes away what is left.

Reads its orders from standard input, sets the limits, gives up root, says what holds, and then becomes the program or
its tests. Bubblewrap has made the namespaces and loaded the filter of system calls before.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from typing import Any

from . import solver, tester
from .wire import Channel


def main() -> None:
    """Carry out the orders on standard input."""
    with os.fdopen(os.dup(0), "rb") as orders:
        job = json.loads(orders.read())
    _close_all_but(0, 1, 2, job["report"], job["read"], job["write"])
    os.dup2(os.open("/dev/null", os.O_RDWR), 0)
    confine(job["limits"], job["uid"])
    _say(job["report"], {"ready": state()})
    channel = Channel(job["read"], job["write"], job["limits"]["frame_bytes"])
    if job["role"] == "solver":
        os.close(job["report"])  # what the program says of itself is no evidence
        solver.serve(job["text"], channel)
    else:
        _say(job["report"], tester.judge(job["text"], job["entry_point"], channel))


def confine(limits: dict[str, int], uid: int | None) -> None:
    """Set hard limits, and become user `uid` where one is given: limits on processes do not hold for root."""
    with open("/proc/self/oom_score_adj", "w") as file:  # noqa: PTH123  (pathlib takes milliseconds to import)
        file.write("1000")  # should the machine itself run out, the kernel is to take this process first
    if uid is not None:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    for what, most in (
        (resource.RLIMIT_AS, limits["memory_bytes"]),
        (resource.RLIMIT_CPU, limits["cpu_seconds"]),
        (resource.RLIMIT_NPROC, limits["processes"]),
        (resource.RLIMIT_NOFILE, limits["open_files"]),
        (resource.RLIMIT_FSIZE, limits["disk_bytes"]),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
    ):
        resource.setrlimit(what, (most, most))


def state() -> dict[str, Any]:
    """What holds for this process: user, capabilities, privileges, the filter, network interfaces, limits."""
    with open("/proc/self/status") as file:  # noqa: PTH123
        fields = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
    with open("/proc/net/dev") as file:  # noqa: PTH123
        interfaces = [line.split(":")[0].strip() for line in file if ":" in line]
    return {
        "uid": os.getuid(),
        "processes_seen": sum(name.isdigit() for name in os.listdir("/proc")),  # noqa: PTH208
        "capabilities": int(fields["CapEff"], 16) | int(fields["CapPrm"], 16),
        "no_new_privileges": fields.get("NoNewPrivs") == "1",
        "filtered": fields.get("Seccomp") == "2",
        "interfaces": interfaces,
        "memory_bytes": resource.getrlimit(resource.RLIMIT_AS)[1],
        "processes": resource.getrlimit(resource.RLIMIT_NPROC)[1],
    }


def _close_all_but(*kept: int) -> None:
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
        if int(name) not in kept:
            try:
                os.close(int(name))
            except OSError:
                continue  # the one that listed the folder


def _say(report: int, message: Any) -> None:
    sys.stdout.flush()
    os.write(report, json.dumps(message).encode() + b"\n")
