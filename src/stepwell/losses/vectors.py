"""Losses on vectors: prefixes against what they replace, and restored embeddings against the real ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from stepwell.errors import StepwellError
from stepwell.latents.encoders.pooling import stretch_means
from stepwell.losses.summed import Summed, wide


def prefix_alignment(
    prefix: Float[Tensor, "B M D"],
    embeds: Float[Tensor, "B T D"],
    real: Bool[Tensor, "B T"],
    used: Bool[Tensor, "B M"] | None = None,
) -> Summed:
    """1 - cosine between each prefix vector and the mean embedding of its stretch of the prompt.

    The prompt's real tokens are cut into M stretches as equal as can be (`stretch_means`, by which the encoders pool
    too), so vector m stands for what is there in the text. Only the direction counts: the length is the calibration's.

    Args:
        prefix: what replaces the prompt.
        embeds: of the prompt's tokens; no gradient goes there.
        real: which of them are tokens.
        used: which vectors count; None = all.

    Raises:
        StepwellError: shapes that do not fit together, or a prompt without a token.
    """
    _need_shapes("prefix_alignment", embeds, real)
    if prefix.shape[::2] != embeds.shape[::2] or (used is not None and used.shape != prefix.shape[:2]):
        raise _misfit("prefix_alignment", prefix, embeds)
    if not real.any(1).all():
        raise StepwellError("a prompt has no real token to align the prefix with", "leave empty prompts out")
    wanted = stretch_means(wide(embeds.detach()), real, prefix.shape[1])
    found = wide(prefix)
    if used is None:
        found, wanted = found.flatten(0, 1), wanted.flatten(0, 1)
    else:
        found, wanted = found[used], wanted[used]
    return Summed(sum=(1 - F.cosine_similarity(found, wanted, dim=-1)).sum(), count=len(found))


@dataclass(frozen=True, kw_only=True)
class TableMoments:
    """Mean and standard deviation (D,) of the rows of an embedding table, per dimension."""

    mean: Float[Tensor, " D"]
    deviation: Float[Tensor, " D"]

    @classmethod
    def of(cls, table: Float[Tensor, "V D"]) -> Self:
        """The moments of a table, computed in float64.

        Raises:
            StepwellError: a dimension that is the same in all rows, against which nothing can be measured.
        """
        # MPS has no float64.
        rows = (table.detach().cpu() if table.device.type == "mps" else table.detach()).double()
        deviation, mean = torch.std_mean(rows, 0, correction=0)
        if not bool((deviation > 0).all()):
            raise StepwellError(
                f"{int((deviation <= 0).sum())} dimensions of the embedding table never vary",
                "leave the manifold loss out for this model",
            )
        dtype = torch.float64 if table.dtype == torch.float64 else torch.float32
        return cls(mean=mean.to(table.device, dtype), deviation=deviation.to(table.device, dtype))


def manifold(prefix: Float[Tensor, "B M D"], table: TableMoments, used: Bool[Tensor, "B M"] | None = None) -> Summed:
    """How far the vectors of each prefix lie from the embedding table, by mean and variance, per example and dimension.

    ((m - mu)^2 + (s - sigma)^2) / sigma^2 for an example's mean m and deviation s over its vectors: the squared
    2-Wasserstein distance of two normal distributions (Dowson and Landau 1982), in units of the table's own variance.
    It is of examples and not of batches, so that accumulation equals one large batch. One vector alone has s = 0.

    Args:
        prefix: (B, M, D).
        table: moments of the embedding table.
        used: which vectors count; None = all. An example without any is left out.

    Raises:
        StepwellError: shapes that do not fit together.
    """
    if prefix.shape[-1] != len(table.mean) or (used is not None and used.shape != prefix.shape[:2]):
        raise _misfit("manifold", prefix, table.mean)
    found = wide(prefix)
    if used is None:
        used = torch.ones(prefix.shape[:2], dtype=torch.bool, device=prefix.device)
    some = used.any(1)
    found, weight = found[some], used[some].to(found.dtype)
    weight = (weight / weight.sum(1, keepdim=True))[..., None]
    # What is not used may be anything, and 0 x NaN is NaN.
    found = found.masked_fill(weight == 0, 0.0)
    mean = (weight * found).sum(1)
    variance = (weight * (found - mean[:, None]).square()).sum(1)
    # The root's slope at zero is infinite.
    deviation = (variance + torch.finfo(variance.dtype).tiny).sqrt()
    values = ((mean - table.mean).square() + (deviation - table.deviation).square()) / table.deviation.square()
    return Summed(sum=values.sum(), count=values.numel())


def reconstruction(
    restored: Float[Tensor, "B T D"], embeds: Float[Tensor, "B T D"], real: Bool[Tensor, "B T"]
) -> Summed:
    """Mean square error over D of each real token's restored embedding. No gradient goes to `embeds`.

    Raises:
        StepwellError: shapes that do not fit together.
    """
    found, wanted = _pairs("reconstruction", restored, embeds, real)
    return Summed(sum=(found - wanted).square().mean(-1).sum(), count=len(found))


def cosine_rms(
    restored: Float[Tensor, "B T D"],
    embeds: Float[Tensor, "B T D"],
    real: Bool[Tensor, "B T"],
    *,
    square: float = 0.1,
) -> Summed:
    """1 - cosine, plus `square` times the square error in units of the token's own mean square.

    With r the ratio of the RMS of the restored to that of the real embedding, that error is (r - 1)^2 + 2 r (1 -
    cosine): it is what matches the RMS of every token, rare ones with small embeddings as well.

    Args:
        restored, embeds: (B, T, D); no gradient goes to `embeds`.
        real: which tokens count. One whose embedding is zero has neither direction nor size, and is left out.
        square: weight of the square error.

    Raises:
        StepwellError: shapes that do not fit together.
    """
    found, wanted = _pairs("cosine_rms", restored, embeds, real)
    size = wanted.square().mean(-1)
    found, wanted, size = found[size > 0], wanted[size > 0], size[size > 0]
    error = (found - wanted).square().mean(-1) / size
    values = 1 - F.cosine_similarity(found, wanted, dim=-1, eps=torch.finfo(found.dtype).tiny) + square * error
    return Summed(sum=values.sum(), count=len(found))


def _pairs(name: str, restored: Tensor, embeds: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    _need_shapes(name, embeds, real)
    if restored.shape != embeds.shape:
        raise _misfit(name, restored, embeds)
    # Selected before anything is computed: at padding there may be NaN, whose gradient no later mask would stop.
    return wide(restored[real]), wide(embeds.detach()[real])


def _need_shapes(name: str, embeds: Tensor, real: Tensor) -> None:
    if real.shape != embeds.shape[:2]:
        raise _misfit(name, embeds, real)


def _misfit(name: str, *tensors: Tensor) -> StepwellError:
    shapes = " and ".join(str(tuple(tensor.shape)) for tensor in tensors)
    return StepwellError(
        f"{name}: {shapes} do not fit together", "rows, columns and width must agree; masks are (rows, columns)"
    )
