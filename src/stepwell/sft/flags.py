"""Red flags of a fine-tuning that `stepwell.monitor` does not see: a spike, and a device that waits."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from statistics import median

from stepwell.monitor import Alert

__all__ = ["Flags"]

WINDOW, FEWEST = 50, 10
"""Steps that a loss is compared with, at most and at least."""
DEVIATIONS, LEAST_NATS = 8.0, 0.3
"""A spike is so many deviations above the median, and so many nats a token."""
IDLE_SHARE = 0.3
"""Of a step's time, from which on the device is told to be idle."""


@dataclass
class Flags:
    """What the numbers of the last steps tell; they need not survive a resume."""

    losses: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    idle: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=FEWEST))
    idle_told: bool = False

    def loss(self, step: int, loss: float) -> list[Alert]:
        """Look at one step's loss, in nats a token."""
        found, before = [], list(self.losses)
        self.losses.append(loss)
        if len(before) >= FEWEST:
            middle = median(before)
            # The median of the distances, as 1.4826 of it is a normal distribution's deviation (Hampel 1974).
            deviation = 1.4826 * median(abs(each - middle) for each in before)
            if loss > middle + max(DEVIATIONS * deviation, LEAST_NATS):
                found = [_alert("spike", step, f"loss {loss:.3f} after a median of {middle:.3f}")]
        return found

    def time(self, step: int, busy_seconds: float, seconds: float) -> list[Alert]:
        """Look at how long a step took, and for how much of it the device computed. Told once."""
        self.idle.append((busy_seconds, seconds))
        busy, whole = (sum(part) for part in zip(*self.idle, strict=True))
        if self.idle_told or len(self.idle) < FEWEST or busy >= (1 - IDLE_SHARE) * whole:
            return []
        self.idle_told = True
        return [_alert("idle", step, f"the device waited {1 - busy / whole:.0%} of the last {FEWEST} steps")]


def _alert(monitor: str, step: int, message: str) -> Alert:
    return Alert(monitor=monitor, step=step, message=message, stop=False)
