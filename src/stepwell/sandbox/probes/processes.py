"""Finds other processes, reads them and traces them."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any

PTRACE_TRACEME, PTRACE_ATTACH = 0, 16


def escape(arena: dict[str, Any]) -> str:
    """What it reached."""
    reached: list[str] = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        for name in ("cmdline", "environ"):
            try:
                if arena["mark"].encode() in (folder / name).read_bytes():
                    reached.append(f"{folder / name} of another process")
            except OSError:
                continue
    if int(str(Path("/proc/self").readlink())) > 1000:
        reached.append(f"it is process {Path('/proc/self').readlink()} of this machine")
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(PTRACE_ATTACH, arena["bystander"], None, None) == 0:
        reached.append("traces a process outside")
    # A child that asks to be traced: whether there is any tracing, without stopping a process that others need.
    if (child := os.fork()) == 0:
        os._exit(int(libc.ptrace(PTRACE_TRACEME, 0, None, None) == 0))
    if os.waitpid(child, 0)[1]:
        reached.append("processes can be traced")
    return ", ".join(reached)
