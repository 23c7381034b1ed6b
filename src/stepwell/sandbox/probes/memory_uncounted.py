"""Takes memory that belongs to no process: segments, memory files, queues, file systems, files in /dev/shm."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any

NEW_USER, NEW_MOUNTS = 0x10000000, 0x00020000


def escape(arena: dict[str, Any]) -> str:
    """What it took."""
    taken: list[str] = []
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.shmget(0, 1 << 20, 0o1600) >= 0:
        taken.append("a shared memory segment")
    if libc.msgget(0, 0o1600) >= 0:
        taken.append("a message queue")
    try:
        os.close(os.memfd_create("probe"))
        taken.append("a memory file")
    except OSError:
        pass
    if libc.unshare(NEW_USER | NEW_MOUNTS) == 0:
        taken.append("a user namespace")
    if libc.mount(b"none", b"/tmp", b"tmpfs", 0, None) == 0:
        taken.append("a file system")
    written = 0
    try:
        with Path("/dev/shm/probe").open("wb", buffering=0) as file:
            while written < 2 * arena["disk_mib"] << 20:
                written += file.write(bytes(1 << 20))
    except OSError:
        pass
    if written > arena["disk_mib"] << 20:
        taken.append(f"{written >> 20} MiB in /dev/shm")
    return ", ".join(taken)
