"""One number of several losses: weighed by schedule or by running means, exact over micro-batches, logged both ways."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from stepwell.errors import StepwellError
from stepwell.losses.specs import LossWeights
from stepwell.losses.summed import Summed
from stepwell.ranks import Ranks


@dataclass(frozen=True, kw_only=True)
class Logged:
    """The losses of one optimizer step.

    Attributes:
        loss: what was minimised: the sum of `weighted`.
        unweighted: name -> mean over its elements; None where there was none.
        weighted: name -> weight x mean; None likewise.
        weights: name -> weight.
    """

    loss: float
    unweighted: Mapping[str, float | None]
    weighted: Mapping[str, float | None]
    weights: Mapping[str, float]

    @property
    def finite(self) -> bool:
        """Whether all of it is."""
        return all(math.isfinite(value) for value in self.unweighted.values() if value is not None)

    def fields(self) -> dict[str, float | None]:
        """Flat, for a record: `loss`, and for each term `loss_NAME`, `weighted_NAME`, `weight_NAME`."""
        flat: dict[str, float | None] = {"loss": self.loss}
        for name, weight in self.weights.items():
            flat |= {f"loss_{name}": self.unweighted[name], f"weighted_{name}": self.weighted[name]}
            flat[f"weight_{name}"] = weight
        return flat


class Weighing:
    """Weighs the terms of every optimizer step; `state` belongs into the checkpoint.

    Use: `step = weighing.step(share, counts)`, then `step.loss(terms).backward()` for each micro-batch, and
    `step.close()` for what is logged.

    Args:
        weights: which terms, and how.
    """

    def __init__(self, weights: LossWeights) -> None:
        self.weights = weights
        self._sums: dict[str, float] = {}
        self._shares: dict[str, float] = {}

    def running_mean(self, name: str) -> float | None:
        """The mean of a term over the steps so far; None before the first."""
        return self._sums[name] / self._shares[name] if name in self._sums else None

    def step(self, share: float, counts: Mapping[str, int]) -> Step:
        """Begin an optimizer step.

        Args:
            share: of the training that is done, 0 to 1.
            counts: name -> elements of the term in all micro-batches of the step together, so that every micro-batch
                counts by its elements.

        Raises:
            StepwellError: counts for other terms than the weights name.
        """
        now = self.weights.at(share)
        if counts.keys() != now.keys():
            raise _mismatch("counted", counts, now)
        return Step(self, now, dict(counts))

    def observe(self, means: Mapping[str, float | None]) -> None:
        """Take a step's means into the running ones; one that is undefined or not finite is left out."""
        memory = self.weights.memory
        for name, mean in means.items():
            if mean is not None and math.isfinite(mean):
                self._sums[name] = memory * self._sums.get(name, 0.0) + (1 - memory) * mean
                self._shares[name] = memory * self._shares.get(name, 0.0) + (1 - memory)

    def state(self) -> dict[str, Any]:
        """The running means, for a checkpoint."""
        return {"sums": dict(self._sums), "shares": dict(self._shares)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`."""
        self._sums, self._shares = dict(state["sums"]), dict(state["shares"])


class Step:
    """The losses of one optimizer step, micro-batch by micro-batch; `Weighing.step` makes it."""

    def __init__(self, weighing: Weighing, scheduled: Mapping[str, float], counts: dict[str, int]) -> None:
        self._weighing, self._scheduled, self._counts = weighing, scheduled, counts
        self._weights = self._balanced({}) if self.is_weighed else None
        self._sums: dict[str, Tensor] = {}
        self._seen = dict.fromkeys(counts, 0)

    def loss(self, terms: Mapping[str, Summed]) -> Tensor:
        """The part of a micro-batch in the step's loss (); the parts add up to it.

        Args:
            terms: all of them; with a count of 0 where the micro-batch has no element of one.

        Raises:
            StepwellError: other terms than the weights name.
        """
        if terms.keys() != self._scheduled.keys():
            raise _mismatch("given", terms, self._scheduled)
        if self._weights is None:
            self._weights = self._balanced(terms)
        parts = []
        for name, term in terms.items():
            if not term.count and not term.sum.requires_grad:
                continue  # else a process goes along with the others' passes
            total = term.sum.detach().double() if term.sum.device.type != "mps" else term.sum.detach()
            self._sums[name] = self._sums[name] + total if name in self._sums else total
            self._seen[name] += term.count
            parts.append(self._weights[name] * term.sum / max(self._counts[name], 1))
        if not parts:
            raise StepwellError("a micro-batch has no element of any loss", "leave empty batches out")
        return sum(parts[1:], parts[0])

    @property
    def is_weighed(self) -> bool:
        """Whether the weights are known, or have to be measured on the first micro-batch."""
        weighing = self._weighing
        return weighing.weights.balance == "fixed" or all(
            weighing.running_mean(name) is not None for name in self._scheduled
        )

    def measure(self, terms: Mapping[str, Summed]) -> None:
        """Weigh by the step's first micro-batch, in each of several processes: not every one computes it."""
        self._weights = self._balanced(terms)

    def close(self, ranks: Ranks | None = None) -> Logged:
        """What the step's losses were; the running means learn of them.

        Args:
            ranks: processes that shared the step's micro-batches.

        Raises:
            StepwellError: no micro-batch came, or their elements do not add up to what was counted.
        """
        names = list(self._counts)
        told = [*(float(self._sums.get(name, 0.0)) for name in names), *(float(self._seen[name]) for name in names)]
        told = (ranks or Ranks()).add_up((), told)
        sums, seen = dict(zip(names, told, strict=False)), dict(zip(names, map(int, told[len(names) :]), strict=True))
        if self._weights is None or seen != self._counts:
            raise StepwellError(
                f"the micro-batches had {seen} elements, and {self._counts} were counted for the step",
                "count the elements of every term over all micro-batches of the step beforehand",
            )
        means = {n: sums[n] / count if count else None for n, count in self._counts.items()}
        self._weighing.observe(means)
        weighted = {n: None if mean is None else self._weights[n] * mean for n, mean in means.items()}
        loss = sum(value for value in weighted.values() if value is not None)
        return Logged(loss=loss, unweighted=means, weighted=weighted, weights=self._weights)

    def _balanced(self, terms: Mapping[str, Summed]) -> dict[str, float]:
        """The weights of the whole step; a term seen for the first time is measured by its first micro-batch."""
        if self._weighing.weights.balance == "fixed":
            return dict(self._scheduled)
        found = {}
        for name, weight in self._scheduled.items():
            mean = self._weighing.running_mean(name)
            if mean is None and (first := terms[name].mean) is not None:
                mean = float(first.detach())
            # A term that is 0 so far pulls nowhere, whatever its weight; 1 / 0 would be no weight.
            found[name] = weight / mean if mean else 0.0
        return found


def _mismatch(what: str, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> StepwellError:
    missing, spare = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    parts = [f"{word}: {', '.join(names)}" for word, names in (("missing", missing), ("not weighed", spare)) if names]
    return StepwellError(f"the losses {what} are not those of the weights ({'; '.join(parts)})", "make the two agree")
