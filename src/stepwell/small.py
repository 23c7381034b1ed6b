"""Small transformers trained from scratch: the backbones of the demo and of the laptop rung.

`SmallLM` is a pre-norm causal transformer with tied embeddings. Two choices make deep questions cheap to ask of it:

- `head_bias`: one entry a head. A head biased to the previous token (`previous`) reads edge pairs, a head with ALiBi
  (`alibi`, Press et al. 2022, arXiv 2108.12409) reads the neighbourhood; the others are `none`.
- `prefix`: a prompt of facts whose columns see each other in both directions (prefix attention, Raffel et al. 2020,
  arXiv 1910.10683), one column a fact, embedded as P_source E[source] + P_target E[target]. Over skipped columns the
  last layer computes keys and values only, so that in a model of one layer a fact costs two projections.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HeadBias = Literal["none", "previous", "alibi"]


@dataclass(frozen=True, kw_only=True)
class SmallConfig:
    """The shape of a `SmallLM`; constructing one builds nothing.

    Attributes:
        vocabulary: number of symbols V.
        width: D; must be a multiple of the number of heads.
        max_positions: learned positions; 0 = no position encoding.
        facts: whether the prompt is a set of facts (adds P_source, P_target and P_query).
        embedding_std: standard deviation of the tied embedding's start.
    """

    vocabulary: int
    width: int = 128
    layers: int = 1
    heads: int = 4
    mlp_ratio: int = 4
    max_positions: int = 0
    head_bias: tuple[HeadBias, ...] = ()
    activation: Literal["relu", "gelu"] = "relu"
    facts: bool = False
    embedding_std: float = 0.02


class SmallCache:
    """Keys and values (B, H, S, D/H) of every layer, and the positions (B, S) of the columns, appended by `forward`.

    Each layer holds two parts: what the first pass left (the prompt), and what came after. Only the second, short one
    is ever copied when a thought is appended, and only to the parts does backward write gradients.
    """

    def __init__(self) -> None:
        self.layers: list[list[tuple[Tensor, Tensor]]] = []
        self.positions: Tensor | None = None

    @property
    def length(self) -> int:
        """Number of cached columns S."""
        return 0 if self.positions is None else self.positions.shape[1]

    def append(self, layer: int, key: Tensor, value: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Append one layer's columns; returns all parts of that layer, in order."""
        if layer == len(self.layers):
            self.layers.append([(key, value)])
        elif len(self.layers[layer]) == 1:
            self.layers[layer] = [*self.layers[layer], (key, value)]
        else:
            prompt, (keys, values) = self.layers[layer]
            self.layers[layer] = [prompt, (torch.cat((keys, key), dim=2), torch.cat((values, value), dim=2))]
        return self.layers[layer]

    def _map(self, change) -> SmallCache:
        copy = SmallCache()
        copy.layers = [[(change(key), change(value)) for key, value in parts] for parts in self.layers]
        copy.positions = None if self.positions is None else change(self.positions)
        return copy

    def select(self, rows: Tensor) -> SmallCache:
        """The cache of some rows (indices)."""
        return self._map(lambda x: x[rows])

    def repeat(self, n: int) -> SmallCache:
        """Each row n times, neighbours together."""
        return self._map(lambda x: x.repeat_interleave(n, dim=0))

    def clone(self) -> SmallCache:
        """A cache that can be continued without changing this one (appending never writes in place)."""
        return self._map(lambda x: x)

    def join(self, others: Sequence[SmallCache]) -> SmallCache:
        """The rows of this cache, then those of others; shorter ones after zeros, which a mask has to hide."""
        parts, copy = (self, *others), SmallCache()
        longest = max(part.length for part in parts)

        def together(layer: int, which: int) -> Tensor:
            whole = [torch.cat([pair[which] for pair in part.layers[layer]], dim=2) for part in parts]
            return torch.cat([F.pad(x, (0, 0, longest - x.shape[2], 0)) for x in whole])

        copy.layers = [[(together(layer, 0), together(layer, 1))] for layer in range(len(self.layers))]
        known = [part.positions for part in parts if part.positions is not None]
        copy.positions = torch.cat([F.pad(x, (longest - x.shape[1], 0)) for x in known]) if known else None
        return copy


FEW_QUERIES = 16


def _attention(query: Tensor, parts: list[tuple[Tensor, Tensor]], bias: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias) v over the parts of a cache; query (B, H, T, d) -> (B, H, T, d).

    With few queries the fused kernel's backward is bound by its set-up; plain products are faster, and need no copy of
    the parts into one.
    """
    if len(parts) == 1 and query.shape[2] > FEW_QUERIES:
        return F.scaled_dot_product_attention(query, *parts[0], attn_mask=bias)
    query = query * query.shape[-1] ** -0.5
    scores = torch.cat([query @ key.transpose(2, 3) for key, _ in parts], -1)
    scores = scores.masked_fill(~bias, float("-inf")) if bias.dtype == torch.bool else scores + bias
    weights = scores.softmax(-1).split([key.shape[2] for key, _ in parts], -1)
    mixed = [weight @ value for weight, (_, value) in zip(weights, parts, strict=True)]
    return mixed[0] if len(mixed) == 1 else mixed[0] + mixed[1]


class Block(nn.Module):
    """One pre-norm layer: attention, then a two-layer MLP."""

    def __init__(self, config: SmallConfig, slopes: Tensor | None, previous: Tensor | None) -> None:
        super().__init__()
        d = config.width
        self.heads = config.heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(d), nn.LayerNorm(d)
        self.query, self.key_value, self.output = nn.Linear(d, d), nn.Linear(d, 2 * d), nn.Linear(d, d)
        self.up, self.down = nn.Linear(d, config.mlp_ratio * d), nn.Linear(config.mlp_ratio * d, d)
        self.activation = F.relu if config.activation == "relu" else F.gelu
        self.register_buffer("slopes", slopes, persistent=False)
        self.register_buffer("previous", previous, persistent=False)

    def attend(self, x: Tensor, bias: Tensor, cache: SmallCache, layer: int, skip: int) -> Tensor:
        """x (B, T, D), bias (B, 1 or H, T - skip, S) -> (B, T - skip, D)."""
        batch, columns, width = x.shape
        normed = self.attention_norm(x)
        shape = (batch, columns, 2, self.heads, width // self.heads)
        # Made contiguous once here, or every later product over this part would copy it again.
        key, value = self.key_value(normed).view(shape).permute(2, 0, 3, 1, 4).contiguous().unbind(0)
        parts = cache.append(layer, key, value)
        query = self.query(normed[:, skip:]).view(batch, columns - skip, *shape[3:]).transpose(1, 2)
        mixed = _attention(query, parts, bias)
        return self.output(mixed.transpose(1, 2).reshape(batch, columns - skip, width))

    def forward(self, x: Tensor, bias: Tensor, cache: SmallCache, layer: int, skip: int) -> Tensor:
        """x (B, T, D) -> (B, T - skip, D); the first `skip` columns only leave their keys and values."""
        attended = self.attend(x, bias, cache, layer, skip)
        x = x[:, skip:] + attended
        return x + self.down(self.activation(self.up(self.mlp_norm(x))))


class SmallLM(nn.Module):
    """A small causal LM behind the `Backbone` protocol (see `stepwell.backbone`).

    Args:
        config: the shape.
        seed: of the initial weights; the global random state is left alone.
    """

    def __init__(self, config: SmallConfig, *, seed: int = 0) -> None:
        super().__init__()
        self.config, self.width, self.vocabulary = config, config.width, config.vocabulary
        self.max_positions = config.max_positions or None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embedding = nn.Embedding(config.vocabulary, config.width)
            self.position = nn.Embedding(config.max_positions, config.width) if config.max_positions else None
            if config.facts:
                d = config.width
                self.source, self.target = nn.Linear(d, d), nn.Linear(d, d, bias=False)
                self.option, self.root = nn.Linear(d, d), nn.Linear(d, d)
            self.blocks = nn.ModuleList(Block(config, *_head_biases(config)) for _ in range(config.layers))
            self.norm = nn.LayerNorm(config.width)
            nn.init.normal_(self.embedding.weight, std=config.embedding_std)
            if self.position is not None:
                nn.init.normal_(self.position.weight, std=config.embedding_std)

    def embed(self, ids: Tensor) -> Tensor:
        """ids (B, T) -> (B, T, D); positions are added in `forward`, for thoughts have a position too."""
        return self.embedding(ids)

    def embed_graph(self, facts: Tensor, options: Tensor, root: Tensor) -> Tensor:
        """A graph question as F + 2 columns: each fact, then both options as a set, then the root.

        Args:
            facts: (B, F, 2) symbols of source and target.
            options: (B, 2) symbols; their order is not seen.
            root: (B,) symbols.

        Returns:
            (B, F + 2, D).
        """
        # P E[symbol] = (P E)[symbol]: two products over the vocabulary instead of over every fact of the batch.
        table = self.embedding.weight
        source, target = F.embedding(facts[..., 0], self.source(table)), F.embedding(facts[..., 1], self.target(table))
        pair = F.embedding(options, self.option(table)).sum(1, keepdim=True)
        return torch.cat((source + target, pair, F.embedding(root, self.root(table))[:, None]), 1)

    def forward(
        self,
        embeds: Tensor,
        *,
        positions: Tensor,
        mask: Tensor,
        cache: SmallCache | None = None,
        skip: int = 0,
        prefix: int = 0,
    ) -> Tensor:
        """Last hidden state after the final norm, as `Backbone.forward`.

        Args:
            embeds: (B, T, D).
            positions: (B, T) from 0 at a row's first real token.
            mask: (B, S), S = cached + T; True where the key is real.
            cache: appended to, where given.
            skip: columns whose hidden state is not wanted.
            prefix: leading columns that see each other in both directions; only for an empty cache.

        Returns:
            (B, T - skip, D).
        """
        cache = SmallCache() if cache is None else cache
        past, columns = cache.length, embeds.shape[1]
        cache.positions = positions if cache.positions is None else torch.cat((cache.positions, positions), 1)
        row = torch.arange(past, past + columns, device=embeds.device)[:, None]
        column = torch.arange(past + columns, device=embeds.device)[None]
        seen = (column <= row) | ((column < prefix) & (row < prefix))
        # A padded row sees itself, so that no softmax is over nothing.
        allowed = (seen & mask[:, None]) | (row == column)
        x = embeds if self.position is None else embeds + self.position(positions.clamp(min=0))
        for layer, block in enumerate(self.blocks):
            left_out = skip if layer == len(self.blocks) - 1 else 0
            x = block(
                x, self._bias(allowed[:, left_out:], positions[:, left_out:], cache, block), cache, layer, left_out
            )
        return self.norm(x)

    def _bias(self, allowed: Tensor, positions: Tensor, cache: SmallCache, block: nn.Module) -> Tensor:
        if block.slopes is None:
            return allowed[:, None]
        assert isinstance(block.slopes, Tensor) and isinstance(block.previous, Tensor) and cache.positions is not None
        distance = positions[:, :, None] - cache.positions[:, None]  # (B, T, S)
        bias = -block.slopes[:, None, None] * distance[:, None].abs()
        bias = bias + block.previous[:, None, None] * (distance == 1)[:, None]
        return bias.masked_fill(~allowed[:, None], float("-inf"))

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden (..., D) -> (..., V) through the tied embedding."""
        return hidden @ self.embedding.weight.T

    def new_cache(self) -> SmallCache:
        """An empty cache."""
        return SmallCache()

    def flop_per_column(self, keys: int) -> int:
        """Forward FLOP of one column that attends to `keys` keys: 2 a multiply-add, norms and embeddings left out."""
        d, config = self.width, self.config
        return config.layers * (2 * d * d * (4 + 2 * config.mlp_ratio) + 4 * d * keys)


def _head_biases(config: SmallConfig) -> tuple[Tensor | None, Tensor | None]:
    """Slopes of the ALiBi heads and strength of the previous-token heads, (H,) each; None where no head is biased."""
    if not any(kind != "none" for kind in config.head_bias):
        return None, None
    kinds = (*config.head_bias, *(["none"] * (config.heads - len(config.head_bias))))
    slopes = torch.tensor([0.25 if kind == "alibi" else 0.0 for kind in kinds])
    return slopes, torch.tensor([5.0 if kind == "previous" else 0.0 for kind in kinds])
