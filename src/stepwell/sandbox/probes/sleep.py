"""Sleeps past the limit, and deaf to signals."""

from __future__ import annotations

import signal
import time
from typing import Any


def escape(arena: dict[str, Any]) -> str:
    """How long it slept."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGALRM, signal.SIGXCPU):
        signal.signal(number, signal.SIG_IGN)
    time.sleep(60)
    return "60 s"
