"""Becomes somebody else, or another system's master: users, mounts, clocks, raised limits."""

from __future__ import annotations

import ctypes
import os
import resource
import time
from typing import Any

NAMESPACES = {"user": 0x10000000, "mount": 0x00020000, "network": 0x40000000, "process": 0x20000000}


def escape(arena: dict[str, Any]) -> str:
    """What it became."""
    became: list[str] = []
    libc = ctypes.CDLL(None, use_errno=True)
    for name, attempt in {
        "root": lambda: os.setuid(0),
        "another user": lambda: os.setuid(65_534 if os.getuid() != 65_534 else 1),
        "the owner of another root": lambda: os.chroot("/tmp"),
        "the master of the clock": lambda: time.clock_settime(time.CLOCK_REALTIME, time.time()),
        "less nice": lambda: os.setpriority(os.PRIO_PROCESS, 0, -20),
        "free of its limit of memory": lambda: resource.setrlimit(resource.RLIMIT_AS, (-1, -1)),
        "free of its limit of processes": lambda: resource.setrlimit(resource.RLIMIT_NPROC, (-1, -1)),
    }.items():
        try:
            attempt()
            became.append(name)
        except (OSError, ValueError):
            continue
    for name, flag in NAMESPACES.items():
        if libc.unshare(flag) == 0:
            became.append(f"the owner of a {name} namespace")
    return ", ".join(became)
