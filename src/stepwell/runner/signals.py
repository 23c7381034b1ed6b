"""Ctrl-C once: stop at the next checkpoint. Twice: at once. Both leave a folder that can be gone on with."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType

from stepwell.engine import Engine


@dataclass
class StopRequest:
    """How often the run was asked to stop."""

    count: int = 0


@contextlib.contextmanager
def stopping(engine: Engine) -> Iterator[StopRequest]:
    """Pass SIGINT and SIGTERM on to the engine while the block runs.

    Only the main thread may set signal handlers; in another one the block runs without.
    """
    request = StopRequest()

    def handle(number: int, frame: FrameType | None) -> None:
        del number, frame
        request.count += 1
        engine.stop(now=request.count > 1)

    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, old in before.items():
            signal.signal(number, old)
