"""A corpus as training data by number: the same step gives the same rows, however many processes share it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch

from stepwell.errors import StepwellError
from stepwell.sft.packing import Batch, Corpus, first_fit_decreasing
from stepwell.sft.parallel import Ranks

__all__ = ["SftStream"]


class SftStream:
    """Batches of rows in a new order each epoch; rows that do not fill a step are left for another epoch.

    A step has accumulation x processes micro-batches; process r takes every one whose number leaves r. So n processes
    see in a step what one sees with n times the accumulation.

    Args:
        corpus: the training set.
        max_tokens: of a row.
        batch_size: rows a micro-batch; fewer where the corpus has not enough for one step.
        accumulation: micro-batches a step and process.
        seed: of order and dropout.
        pack: several examples in a row; otherwise one in each.
        ranks: which of how many processes this is.

    Raises:
        StepwellError: there are fewer rows than micro-batches in a step.
    """

    def __init__(
        self,
        corpus: Corpus,
        *,
        max_tokens: int,
        batch_size: int,
        accumulation: int,
        seed: int,
        pack: bool = True,
        ranks: Ranks | None = None,
    ) -> None:
        self.corpus, self.accumulation, self.seed, self.ranks = corpus, accumulation, seed, ranks or Ranks()
        self.rows = first_fit_decreasing(corpus.lengths, max_tokens) if pack else [(i,) for i in range(len(corpus))]
        self.micro_batches = accumulation * self.ranks.size
        if len(self.rows) < self.micro_batches:
            raise StepwellError(
                f"{len(corpus)} conversations fill {len(self.rows)} rows, and a step has {self.micro_batches} "
                "micro-batches",
                "lower `accumulation` or `max_tokens`, or bring more data",
            )
        self.batch_size = min(batch_size, len(self.rows) // self.micro_batches)
        self.steps_per_epoch = len(self.rows) // (self.batch_size * self.micro_batches)
        # An epoch's order is asked for at every step of it.
        self._epoch = lru_cache(maxsize=1)(self._order)

    def batches(self, step: int, stages: Callable[[torch.Generator], int]) -> Sequence[Batch]:
        """This process's micro-batches of optimizer step `step` (from 0). There are no curriculum stages."""
        epoch, inside = divmod(step, self.steps_per_epoch)
        first = inside * self.micro_batches
        order, size = self._epoch(epoch), self.batch_size
        return [
            self.corpus.batch(
                [self.rows[row] for row in order[number * size : (number + 1) * size]],
                seed=_mixed(self.seed, epoch * len(self.rows) + number),
            )
            for number in range(first + self.ranks.rank, first + self.micro_batches, self.ranks.size)
        ]

    def _order(self, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(_mixed(self.seed, -1 - epoch))
        return torch.randperm(len(self.rows), generator=generator).tolist()


def _mixed(seed: int, number: int) -> int:
    """One seed out of two numbers, in the 63 bits that a generator takes."""
    return (seed * 1_000_003 + number * 7_919 + 12_345) % (2**63 - 1)
