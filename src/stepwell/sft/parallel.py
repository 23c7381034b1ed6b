"""Several processes that train one adapter together, as `torchrun` starts them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

import torch
import torch.distributed as distributed
from torch import Tensor

__all__ = ["Ranks"]


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """Which of how many processes this is. Each has the whole model; a step's micro-batches are dealt out among them.

    Attributes:
        rank: from 0; only 0 is to write records, checkpoints and the adapter.
        size: processes.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    @contextmanager
    def joined(cls) -> Iterator[Self]:
        """The processes of a run by `torchrun`, connected in the block; one alone where there is no such run."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            yield cls()
            return
        distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        try:
            yield cls(rank=distributed.get_rank(), size=size)
        finally:
            distributed.destroy_process_group()

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the processes, which must all call this."""
        if self.size == 1:
            return
        # One message for all of them: an adapter has hundreds of small matrices.
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        distributed.all_reduce(flat)
        for tensor, summed in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(summed.view_as(tensor))

    def total(self, count: int, device: torch.device) -> int:
        """The sum of a number over the processes."""
        if self.size == 1:
            return count
        summed = torch.tensor(count, device=device)
        distributed.all_reduce(summed)
        return int(summed)
