"""Objectives: elementwise values, then sum and count, then a number. The one label shift of the house is here."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

IGNORE = -100


def supervised(labels: Tensor, first: int) -> tuple[Tensor, Tensor]:
    """Which hidden states predict which tokens: THE shift.

    Args:
        labels: (B, T), each label at its own column.
        first: the column whose predecessor is hidden state 0 (`Batch.first`).

    Returns:
        A mask (B, T - first + 1) over the hidden states of columns first - 1 ... T - 1, and the targets (N,) in the
        order of `hidden[mask]`. The hidden state of column t predicts the label of column t + 1.
    """
    ahead = F.pad(labels[:, first:], (0, 1), value=IGNORE)
    mask = ahead != IGNORE
    return mask, ahead[mask]


def cross_entropy(logits: Tensor, targets: Tensor) -> tuple[Tensor, int]:
    """Sum of the nats of N targets, and N. logits (N, V), targets (N,)."""
    return F.cross_entropy(logits.float(), targets, reduction="sum"), targets.numel()
