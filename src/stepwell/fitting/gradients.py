"""Gradients of many separate problems side by side: conflicts between modes, clipping, the embedding table's pull."""

from __future__ import annotations

import torch
from torch import Tensor


def cosines(gradients: Tensor) -> Tensor:
    """Mean cosine (R,) between the gradients of the pairs of modes that a problem has; NaN where it has one mode only.

    Args:
        gradients: (R, M, P), zero where a problem lacks the mode.
    """
    norms = gradients.norm(dim=-1)
    inner = torch.einsum("rmp,rnp->rmn", gradients, gradients)
    scale = norms[:, :, None] * norms[:, None]
    pairs = (scale > 0).triu(1)
    # 0 / 0 = NaN is meant: a problem with one mode has no conflict to measure.
    return (inner / torch.where(pairs, scale, 1) * pairs).sum((1, 2)) / pairs.sum((1, 2))


def without_conflict(gradients: Tensor) -> Tensor:
    """The sum (R, P) of the modes' gradients, each without its part along those that it opposes.

    PCGrad (Yu et al. 2020, arXiv 2001.06782, algorithm 1): g_i is projected onto the normal plane of g_j where their
    inner product is negative, for one j after another. The paper draws the order of the j at random; here it is
    i + 1, i + 2, ... cyclically, so that a result can be had again. With two modes there is one order only.

    Args:
        gradients: (R, M, P), zero where a problem lacks the mode.
    """
    count = gradients.shape[1]
    total = torch.zeros_like(gradients[:, 0])
    for i in range(count):
        kept = gradients[:, i]
        for step in range(1, count):
            other = gradients[:, (i + step) % count]
            along = (kept * other).sum(-1, keepdim=True).clamp(max=0)
            kept = kept - along / (other * other).sum(-1, keepdim=True).clamp(min=1e-30) * other
        total = total + kept
    return total


def clipped(gradient: Tensor, norm: float) -> Tensor:
    """Gradients (R, K, P), each row scaled down to `norm` where it is longer."""
    lengths = gradient.flatten(1).norm(dim=1)
    return gradient * (norm / lengths.clamp(min=norm))[:, None, None]


def pull_slope(vectors: Tensor, table: Tensor, variance: Tensor, chunk: int = 256) -> Tensor:
    """Gradient of mean((c - e)^2) / variance with respect to c, e being the token embedding nearest to each vector.

    Args:
        vectors: (R, K, D).
        table: (V, D).
        variance: () of the table's entries.
        chunk: vectors at a time, for their distances to all V embeddings.
    """
    flat = vectors.flatten(0, 1)
    squares = (table * table).sum(1)
    nearest = torch.cat([(squares - 2 * part @ table.T).argmin(1) for part in flat.split(chunk)])
    count = vectors[0].numel()
    return (2 / (count * variance)) * (flat - table[nearest]).view_as(vectors)
