"""Starts processes and threads until it is stopped."""

from __future__ import annotations

import os
import threading
import time
from typing import Any


def escape(arena: dict[str, Any]) -> str:
    """How many it could start, where that is more than is allowed."""
    started = 0
    try:
        for _ in range(arena["processes"] * 4):
            if os.fork() == 0:
                time.sleep(60)
                os._exit(0)
            started += 1
    except OSError:
        pass
    threads = 0
    try:
        for _ in range(arena["processes"] * 4):
            threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
            threads += 1
    except (RuntimeError, MemoryError):
        pass
    return f"{started} processes and {threads} threads" if started + threads >= arena["processes"] else ""
