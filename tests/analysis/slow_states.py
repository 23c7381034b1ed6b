"""All layers' states the slow way, written out from the weights: no cache, no padding, no skipped column, no hook."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from reference_thoughts import graph_slowly
from stepwell.small import SmallLM


def small_slowly(model: SmallLM, vectors: Tensor, graph: int, patch: dict[tuple[int, int], Tensor]) -> list[Tensor]:
    """All layers' states of one row of a `SmallLM`, written out: no cache, no mask of padding, no skipped column."""
    count = len(vectors)
    places = torch.tensor([0] * graph + list(range(count - graph)))
    x = vectors if model.position is None else vectors + model.position(places)
    column = torch.arange(count)
    seen = (column[None] <= column[:, None]) | ((column[None] < graph) & (column[:, None] < graph))
    states = [_put(x, 0, patch)]
    for number, block in enumerate(model.blocks):
        x, bias = states[-1], torch.zeros(block.heads, count, count, dtype=vectors.dtype)
        if block.slopes is not None:
            distance = (places[:, None] - places[None]).to(vectors.dtype)
            bias = bias - block.slopes[:, None, None] * distance.abs()
            bias = bias + block.previous[:, None, None] * (distance == 1)
        normed = block.attention_norm(x)
        key, value = block.key_value(normed).chunk(2, -1)
        query, key, value = (t.view(count, block.heads, -1).transpose(0, 1) for t in (block.query(normed), key, value))
        scores = query @ key.transpose(1, 2) / key.shape[-1] ** 0.5 + bias
        mixed = scores.masked_fill(~seen, float("-inf")).softmax(-1) @ value
        x = x + block.output(mixed.transpose(0, 1).reshape(count, -1))
        x = x + block.down(block.activation(block.up(block.mlp_norm(x))))
        states.append(_put(x, number + 1, patch))
    return states


def gpt2_slowly(backbone: Any, vectors: Tensor, patch: dict[tuple[int, int], Tensor]) -> list[Tensor]:
    """The same of a GPT-2, from its weights."""
    base, count = backbone.model.transformer, len(vectors)
    states = [_put(vectors + base.wpe.weight[:count], 0, patch)]
    causal = torch.ones(count, count, dtype=torch.bool).tril()
    for number, block in enumerate(base.h):
        x, heads = states[-1], block.attn.num_heads
        parts = block.attn.c_attn(block.ln_1(x)).chunk(3, -1)
        query, key, value = (t.view(count, heads, -1).transpose(0, 1) for t in parts)
        scores = (query @ key.transpose(1, 2) / key.shape[-1] ** 0.5).masked_fill(~causal, float("-inf"))
        x = x + block.attn.c_proj((scores.softmax(-1) @ value).transpose(0, 1).reshape(count, -1))
        x = x + block.mlp.c_proj(F.gelu(block.mlp.c_fc(block.ln_2(x)), approximate="tanh"))
        states.append(_put(x, number + 1, patch))
    return states


def _put(states: Tensor, layer: int, patch: dict[tuple[int, int], Tensor]) -> Tensor:
    states = states.clone()
    for (where, column), value in patch.items():
        if where == layer:
            states[column] = value
    return states


def slowly(backbone: Any, name: str, batch: Any, row: int, patch: dict[tuple[int, int], Tensor]) -> list[Tensor]:
    """States of all layers of a row's real columns, each thought by a pass of its own; patches by real column."""
    vectors = graph_slowly(backbone, batch, row)
    graph = len(vectors)

    def run(vectors: list[Tensor]) -> list[Tensor]:
        here = {key: value for key, value in patch.items() if key[1] < len(vectors)}
        stacked = torch.stack(vectors)
        return gpt2_slowly(backbone, stacked, here) if name == "gpt2" else small_slowly(backbone, stacked, graph, here)

    for column in range(batch.ids.shape[1]):
        if batch.latent[row, column]:
            vectors.append(final_norm(backbone, name)(run(vectors)[-1][-1]))
        elif batch.mask[row, column]:
            vectors.append(backbone.embed(batch.ids[row : row + 1, column : column + 1])[0, 0])
    return run(vectors)


def final_norm(backbone: Any, name: str) -> Any:
    return backbone.model.transformer.ln_f if name == "gpt2" else backbone.norm
