"""Monitors: what is watched while a model trains. Each looks at numbers only, and names what it has seen.

`breakthrough` and `collapse` look again and again at accuracy. Their intervals hold at all looks together: look k is
given a share of the error, 6 / (pi k)^2, so that the shares sum to 1. A curve that only fluctuates thus raises a false
alarm in one training of twenty at most, however long it is watched.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from stepwell.recipe import Monitors
from stepwell.stats import wilson

SMOOTHING = 0.98
ERROR = 0.05
"""Of all looks of a training together."""


@dataclass(frozen=True, kw_only=True)
class Alert:
    """What a monitor saw. `stop` tells whether the plan wants the training stopped."""

    monitor: str
    step: int
    message: str
    stop: bool


@dataclass
class Watch:
    """The monitors of one training; its state is part of the checkpoint.

    A curriculum stage is another task: loss and accuracy are compared within a stage, and `new_stage` forgets them.
    """

    spec: Monitors
    steps_in_stage: int = 0
    smoothed: float | None = None
    best_loss: float | None = None
    first_loss: float | None = None
    looks: int = 0
    best: float | None = None
    best_low: float = 0.0
    broken_through: bool = False
    collapse_told: bool = False

    def new_stage(self) -> None:
        """Forget what belonged to the last curriculum stage."""
        self.steps_in_stage, self.smoothed, self.best_loss, self.first_loss = 0, None, None, None
        self.best, self.best_low, self.collapse_told = None, 0.0, False

    def loss(self, step: int, loss: float, grad_norm: float) -> list[Alert]:
        """Look at one step's loss (nats a token) and gradient norm."""
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            return self._alert("nan", step, f"loss {loss}, gradient norm {grad_norm}: not finite")
        self.steps_in_stage += 1
        self.smoothed = loss if self.smoothed is None else SMOOTHING * self.smoothed + (1 - SMOOTHING) * loss
        self.first_loss = loss if self.first_loss is None else self.first_loss
        self.best_loss = self.smoothed if self.best_loss is None else min(self.best_loss, self.smoothed)
        found: list[Alert] = []
        # A best near zero makes any ratio large; a tenth of a nat is the least that counts as diverged.
        if self.smoothed > max(self.spec.divergence_factor * self.best_loss, self.best_loss + 0.1):
            message = f"smoothed loss {self.smoothed:.3f} after a best of {self.best_loss:.3f}"
            found += self._alert("divergence", step, message)
            self.best_loss = self.smoothed
        at_the_look = self.steps_in_stage == self.spec.flat_steps
        if at_the_look and self.smoothed > (1 - self.spec.flat_share) * self.first_loss:
            message = f"loss {self.first_loss:.3f} at first, {self.smoothed:.3f} after {self.spec.flat_steps} steps"
            found += self._alert("flat", step, message)
        return found

    def accuracy(self, step: int, right: int, n: int) -> list[Alert]:
        """Look at `right` of `n` items of the steering split."""
        if n == 0:
            return []
        found: list[Alert] = []
        self.looks += 1
        now = wilson(right, n, 1 - ERROR * 6 / (math.pi * self.looks) ** 2)
        assert now.low is not None and now.high is not None and now.value is not None
        if not self.broken_through and now.low > self.spec.chance:
            self.broken_through = True
            found += self._alert("breakthrough", step, f"accuracy {now.value:.3f} of {n}, above {self.spec.chance:g}")
        if self.best is not None and now.high < self.best_low and not self.collapse_told:
            self.collapse_told = True
            found += self._alert("collapse", step, f"accuracy {now.value:.3f} of {n} after a best of {self.best:.3f}")
        self.best = now.value if self.best is None else max(self.best, now.value)
        # The best lower bound need not be the best value's: an earlier look has a tighter interval.
        self.best_low = max(self.best_low, now.low)
        return found

    def _alert(self, monitor: str, step: int, message: str) -> list[Alert]:
        action = getattr(self.spec, monitor)
        return [] if action == "off" else [Alert(monitor=monitor, step=step, message=message, stop=action == "stop")]

    def state(self) -> dict[str, Any]:
        """Everything but the spec, for the checkpoint."""
        return {name: value for name, value in asdict(self).items() if name != "spec"}

    @classmethod
    def from_state(cls, spec: Monitors, state: dict[str, Any]) -> Watch:
        """The watch as it stood when `state` was saved."""
        return cls(spec=spec, **state)
