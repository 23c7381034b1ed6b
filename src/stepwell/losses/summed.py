"""Elementwise values under a mask, as a sum and a count."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Summed:
    """A loss over some elements.

    Attributes:
        sum: (), differentiable.
        count: elements in the sum. Sums and counts add over micro-batches; means do not.
    """

    sum: Tensor
    count: int

    @property
    def mean(self) -> Tensor | None:
        """The mean (); None over no element."""
        return self.sum / self.count if self.count else None

    def __add__(self, other: Summed) -> Summed:
        return Summed(sum=self.sum + other.sum, count=self.count + other.count)


def wide(values: Tensor) -> Tensor:
    """In the precision that losses are computed in: fp32, or fp64 where the values have it."""
    return values if values.element_size() == 8 else values.float()
