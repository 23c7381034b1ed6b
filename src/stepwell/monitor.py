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
SETTLED = 50
"""Steps of a later stage before its smoothed loss is compared: a single batch of a mix can be of an easier one."""
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
    `flat` asks about the start of the training alone: a later stage may begin with its task already learnt.
    """

    spec: Monitors
    steps_in_stage: int = 0
    smoothed: float = 0.0
    best_loss: float | None = None
    first_loss: float | None = None
    steps: int = 0
    looks: int = 0
    best: float | None = None
    best_low: float = 0.0
    broken_through: bool = False
    collapse_told: bool = False

    def new_stage(self) -> None:
        """Forget what belonged to the last curriculum stage."""
        self.steps_in_stage, self.smoothed, self.best_loss = 0, 0.0, None
        self.best, self.best_low, self.collapse_told = None, 0.0, False

    def loss(self, step: int, loss: float, grad_norm: float) -> list[Alert]:
        """Look at one step's loss (nats a token) and gradient norm."""
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            return self._alert("nan", step, f"loss {loss}, gradient norm {grad_norm}: not finite")
        self.steps += 1
        self.steps_in_stage += 1
        self.smoothed = SMOOTHING * self.smoothed + (1 - SMOOTHING) * loss
        # The average began at 0; this takes that start out of it, as Adam does.
        mean = self.smoothed / (1 - SMOOTHING**self.steps_in_stage)
        self.first_loss = loss if self.first_loss is None else self.first_loss
        return self._diverged(step, mean) + self._flat(step, mean)

    def _diverged(self, step: int, mean: float) -> list[Alert]:
        if self.steps_in_stage < min(SETTLED, self.steps):
            return []
        self.best_loss = mean if self.best_loss is None else min(self.best_loss, mean)
        # A best near zero makes any ratio large; a tenth of a nat is the least that counts as diverged.
        if mean <= max(self.spec.divergence_factor * self.best_loss, self.best_loss + 0.1):
            return []
        message = f"smoothed loss {mean:.3f} after a best of {self.best_loss:.3f}"
        self.best_loss = mean
        return self._alert("divergence", step, message)

    def _flat(self, step: int, mean: float) -> list[Alert]:
        assert self.first_loss is not None
        if self.steps != self.spec.flat_steps or mean <= (1 - self.spec.flat_share) * self.first_loss:
            return []
        message = f"loss {self.first_loss:.3f} at first, {mean:.3f} after {self.steps} steps"
        return self._alert("flat", step, message)

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
