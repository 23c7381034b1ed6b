"""Makes files without content, which fill no disk and yet take memory."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any


def escape(arena: dict[str, Any]) -> str:
    """How many it made, where that is more than is allowed."""
    made = 0
    try:
        for number in range(arena["files"] * 4):
            Path(f"/tmp/probe-{number}").touch()
            made += 1
    except OSError:
        return ""
    time.sleep(30)
    return f"{made} files"
