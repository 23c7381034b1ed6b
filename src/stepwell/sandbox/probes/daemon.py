"""Leaves a process behind, in a session of its own, that would go on when the program has ended."""

from __future__ import annotations

import ctypes
import os
import time
from typing import Any

SET_NAME = 15


def escape(arena: dict[str, Any]) -> str:
    """Nothing to report; whether the process lives is seen outside, by the name that it gives itself."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            ctypes.CDLL(None).prctl(SET_NAME, arena["daemon"].encode(), 0, 0, 0)
            time.sleep(120)
        os._exit(0)
    time.sleep(0.3)
    return ""
