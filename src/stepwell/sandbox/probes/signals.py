"""Sends signals to processes outside, and to all that it can see."""

from __future__ import annotations

import os
import signal
from typing import Any


def escape(arena: dict[str, Any]) -> str:
    """What it reached."""
    reached: list[str] = []
    for pid in (arena["bystander"], -arena["bystander"]):
        try:
            os.kill(pid, signal.SIGUSR1)
            reached.append(f"a signal to {pid}")
        except OSError:
            continue
    return ", ".join(reached)
