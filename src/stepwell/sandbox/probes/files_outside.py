"""Reads and writes files of this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def escape(arena: dict[str, Any]) -> str:
    """What it reached."""
    reached: list[str] = []
    for path in map(Path, (arena["secret"], arena["folder"], "/etc/shadow", "/etc/passwd", "/home", "/var", "/sys")):
        try:
            reached.append(f"{path}: {list(path.iterdir()) if path.is_dir() else path.read_text()[:20]!r}")
        except OSError:
            continue
    for folder in (arena["folder"], "/", "/usr", "/usr/lib", "/box", "/box/guest", "/dev", "/etc", arena["python"]):
        try:
            made = Path(folder) / "stepwell-probe"
            made.write_text("written from within")
            reached.append(f"wrote {made}")
        except OSError:
            continue
    for number in range(3, 256):
        try:
            where = str(Path(f"/proc/self/fd/{number}").readlink())
        except OSError:
            continue
        if where.startswith("/") and not where.startswith(("/proc", "/tmp", "/dev/null")):
            reached.append(f"holds {where} open")
    return ", ".join(reached)
