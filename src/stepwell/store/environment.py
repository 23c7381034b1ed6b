"""env.json: with what a run was made. Facts of the machine and the code, none of which enters a record."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from stepwell.store.files import sha256_of


def environment(*, data_files: Iterable[Path] = (), cwd: Path | None = None) -> dict[str, Any]:
    """Packages, Python, git commit, devices, CPU count and hashes of data files; nothing heavy is imported for it."""
    return {
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "cpu_count": cpu_count(),
        "cpu": _cpu_name(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "devices": _gpus(),
        "git": git_state(cwd or Path.cwd()),
        "data": {str(path): sha256_of(path) for path in sorted(set(data_files))},
        "packages": packages(),
    }


def cpu_count() -> int:
    """CPUs this process may use, which may be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def packages() -> dict[str, str]:
    """Name -> version of every installed distribution."""
    found = {(item.metadata["Name"] or "").lower(): item.version for item in importlib.metadata.distributions()}
    return {name: found[name] for name in sorted(found) if name}


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit and dirty flag of the repository a folder lies in; None where there is no repository or no commit."""
    commit = _output("git", "-C", str(folder), "rev-parse", "HEAD")
    if not commit:
        return None
    changes = _output("git", "-C", str(folder), "status", "--porcelain", "--untracked-files=normal")
    return {"commit": commit, "dirty": None if changes is None else bool(changes)}


def _output(*command: str) -> str | None:
    """What a command prints, or None where it is missing, fails or takes too long."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (subprocess.SubprocessError, OSError):
        return None
    return done.stdout.strip()


def _gpus() -> list[str]:
    listed = _output("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
    return listed.splitlines() if listed else []


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
