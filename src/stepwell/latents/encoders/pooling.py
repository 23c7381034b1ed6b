"""From the states of a text to M vectors: means of its stretches, or learned queries. Attention that ignores padding.

The queries see one another causally, so the first M of them are the same whether or not others follow: one model
serves every M up to its largest, and a smaller M costs less.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from stepwell.latents.encoder_specs import Queries


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Weights that are built in the block depend on the seed only; the global random state is left alone."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(seed)
        yield


class Attention(nn.Module):
    """Multi-head attention of columns (B, T, W) to states (B, S, W_s)."""

    def __init__(self, width: int, heads: int, states_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.key_value = nn.Linear(states_width, 2 * width)

    def forward(
        self,
        columns: Float[Tensor, "B T W"],
        states: Float[Tensor, "B S W_s"],
        mask: Bool[Tensor, "B S"] | None = None,
        *,
        causal: bool = False,
    ) -> Float[Tensor, "B T W"]:
        """What each column reads of the states that are real (`mask`; None = all), or of those up to its own."""
        query = self.query(columns).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.key_value(states).chunk(2, -1)
        )
        seen = None if mask is None else mask[:, None, None]
        read = F.scaled_dot_product_attention(query, key, value, attn_mask=seen, is_causal=causal)
        return self.out(read.transpose(1, 2).flatten(2))


def mlp(width: int) -> nn.Sequential:
    """The MLP of a layer: 4 x as wide inside, GELU."""
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))


class Layer(nn.Module):
    """One pre-norm layer in both directions: attention to all real columns, then an MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm, self.attention, self.mlp = nn.LayerNorm(width), Attention(width, heads, width), mlp(width)

    def forward(self, columns: Float[Tensor, "B T W"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T W"]:
        """The columns after this layer; finite but meaningless where `mask` is False."""
        normed = self.norm(columns)
        columns = columns + self.attention(normed, normed, mask)
        return columns + self.mlp(columns)


class QueryLayer(nn.Module):
    """One pre-norm layer of the queries: causally among themselves, to the states of the text, then an MLP."""

    def __init__(self, width: int, heads: int, states_width: int) -> None:
        super().__init__()
        self.among_norm, self.among = nn.LayerNorm(width), Attention(width, heads, width)
        self.to_norm, self.to_states = nn.LayerNorm(width), Attention(width, heads, states_width)
        self.mlp = mlp(width)

    def forward(
        self, queries: Float[Tensor, "B M W"], states: Float[Tensor, "B S W_s"], mask: Bool[Tensor, "B S"]
    ) -> Float[Tensor, "B M W"]:
        """The queries after this layer."""
        normed = self.among_norm(queries)
        queries = queries + self.among(normed, normed, causal=True)
        queries = queries + self.to_states(self.to_norm(queries), states, mask)
        return queries + self.mlp(queries)


class QueryPooling(nn.Module):
    """M learned queries that read the states of a text (perceiver pooling).

    Args:
        spec: width, layers and heads.
        states_width: W_s of the states.
        most: the largest M.
    """

    def __init__(self, spec: Queries, states_width: int, most: int) -> None:
        super().__init__()
        self.width = spec.inner
        # Short, so that what is read outweighs what every text has in common; the norms make their directions count.
        self.queries = nn.Parameter(torch.randn(most, spec.inner) * spec.inner**-0.5)
        self.states_norm = nn.LayerNorm(states_width)
        self.layers = nn.ModuleList(QueryLayer(spec.inner, spec.heads, states_width) for _ in range(spec.layers))

    def forward(
        self, states: Float[Tensor, "B S W_s"], mask: Bool[Tensor, "B S"], vectors: int
    ) -> Float[Tensor, "B M W"]:
        """The first `vectors` = M of them, after reading the states that are real."""
        states = self.states_norm(states)
        queries = self.queries[:vectors].expand(len(states), -1, -1)
        for layer in self.layers:
            queries = layer(queries, states, mask)
        return queries


class Projection(nn.Module):
    """From pooled vectors (..., W) to latents (..., d_z): LayerNorm, then linear."""

    def __init__(self, width: int, latents_width: int) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(width), nn.Linear(width, latents_width)

    @property
    def dtype(self) -> torch.dtype:
        """The precision it computes in."""
        return self.linear.weight.dtype

    def forward(self, pooled: Float[Tensor, "*rows W"]) -> Float[Tensor, "*rows d_z"]:
        """The latents."""
        return self.linear(self.norm(pooled))


def stretch_means(states: Float[Tensor, "B S W"], mask: Bool[Tensor, "B S"], vectors: int) -> Float[Tensor, "B M W"]:
    """Means over M stretches of each row's L real columns: stretch m is floor(m L / M) ... ceil((m + 1) L / M) - 1.

    Stretches are as long as they can equally be; neighbours share a column where L is no multiple of M, and columns
    repeat where L < M. This is adaptive average pooling of each row alone. Every row needs one real column.
    """
    weights = _stretches(mask, vectors).to(states.dtype)
    return weights @ states.masked_fill(~mask[..., None], 0)


def _stretches(mask: Bool[Tensor, "B S"], vectors: int) -> Float[Tensor, "B M S"]:
    place: Int[Tensor, "B 1 S"] = (mask.cumsum(1) - 1)[:, None]
    length = mask.sum(1)[:, None, None]
    stretch = torch.arange(vectors, device=mask.device)[None, :, None]
    begin, end = stretch * length // vectors, ((stretch + 1) * length + vectors - 1) // vectors
    inside = (place >= begin) & (place < end) & mask[:, None]
    return inside / inside.sum(2, keepdim=True)
