"""Kills every process that it may: its parents, the first of its namespace, all at once."""

from __future__ import annotations

import os
import signal
from typing import Any


def escape(arena: dict[str, Any]) -> str:
    """Nothing to report; whether the bystander lives is seen outside."""
    for pid in (os.getppid(), 1, 2, -1):
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                if pid != os.getpid():
                    os.kill(pid, number)
            except OSError:
                continue
    return ""
