"""What may befall a run, brought about inside its process."""

from __future__ import annotations

import datetime
import sys
import time
from types import ModuleType, SimpleNamespace
from typing import Any

HOUR = 3600.0
JUMPS = (0.0, 26 * HOUR, -50 * HOUR, 3 * 365 * 24 * HOUR, -0.5 * HOUR)


def clock(every_seconds: float) -> None:
    """The clock on the wall is set again and again, forward and back, by hours and by years; monotonic ones go on."""
    honest, honest_ns, began = time.time, time.time_ns, time.monotonic()

    def jump() -> float:
        return JUMPS[int((time.monotonic() - began) / every_seconds) % len(JUMPS)]

    class Jumping(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Any:
            return super().now(tz) + datetime.timedelta(seconds=jump())

    time.time = lambda: honest() + jump()
    time.time_ns = lambda: honest_ns() + int(jump() * 1e9)
    datetime.datetime = Jumping


def tracker(name: str, lasts: int | None) -> None:
    """A tracker of this name that takes so many calls before its connection is lost; None = all, 0 = not one."""
    left = float("inf") if lasts is None else lasts

    def call(*_: Any, **__: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise ConnectionError("the tracker is gone")
        return SimpleNamespace(log=call)

    module: Any = ModuleType(name)
    module.init = call
    sys.modules[name] = module
