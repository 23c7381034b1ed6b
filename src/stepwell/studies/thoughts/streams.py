"""Training data by number: optimizer step s always gets the same batches, so a resumed run sees what it would have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from stepwell.latents.thoughts import Arm, Batch
from stepwell.tasks.prosqa.reading import Reader

StageOf = Callable[[torch.Generator], int]
POOL = 50
"""Batches that are sorted by length together: padding falls to a few per cent, and order stays nearly random."""


class ThoughtStream:
    """Batches of a reader: a new order each epoch, prompts of like length together, micro-batches for accumulation.

    Args:
        reader: the training set.
        arm: whose sequences.
        batch_size, accumulation: items a micro-batch, micro-batches a step.
        seed: of order, names and stage draws.
    """

    def __init__(self, reader: Reader, arm: Arm, *, batch_size: int, accumulation: int, seed: int) -> None:
        self.reader, self.seed = reader, seed
        self.arm: Arm = arm
        self.batch_size, self.accumulation = min(batch_size, len(reader)), accumulation
        self.steps_per_epoch = max(1, len(reader) // (self.batch_size * accumulation))
        # An epoch's order is asked for at every step of it.
        self._epoch = lru_cache(maxsize=1)(self._order)

    def batches(self, step: int, stages: StageOf) -> Sequence[Batch]:
        """The micro-batches of optimizer step `step` (from 0)."""
        generator = torch.Generator().manual_seed(_mixed(self.seed, step))
        epoch, inside = divmod(step, self.steps_per_epoch)
        rows = self._epoch(epoch)[inside * self.accumulation : (inside + 1) * self.accumulation]
        return [self.reader.train_batch(part, self.arm, stages, generator) for part in rows]

    def _order(self, epoch: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(_mixed(self.seed, -1 - epoch))
        order = torch.randperm(len(self.reader), generator=generator)
        pools = order.split(POOL * self.batch_size)
        batches = [part for pool in pools for part in pool[self.reader.lengths[pool].argsort()].split(self.batch_size)]
        whole = [part for part in batches if len(part) == self.batch_size]
        # Sorted pools would show short prompts first; the batches themselves come in random order.
        return [whole[i] for i in torch.randperm(len(whole), generator=generator).tolist()]


def _mixed(seed: int, number: int) -> int:
    """One seed out of two numbers, in the 63 bits that a generator takes."""
    return (seed * 1_000_003 + number * 7_919 + 12_345) % (2**63 - 1)
