"""Continuous thoughts as the published implementation computes them, written anew from its description.

COCONUT (Hao et al. 2024, arXiv 2412.06769): the last hidden state before a latent column becomes that column's input
embedding. What makes it slow is kept on purpose, for it is what the benchmarks measure against:

- before each next pass all B x T input embeddings are taken apart into single vectors and stacked again, so that one of
  them a row can be exchanged; in backward each vector is a gradient of full size;
- every pass keeps the hidden states of all layers and computes logits over the whole vocabulary for all its columns;
- K + 1 passes, over what is new with a cache (variant A), or over everything up to there without one (variant B);
- generation runs one item at a time and recomputes the whole sequence for every token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache


@dataclass(frozen=True, kw_only=True)
class NaiveBatch:
    """B sequences of T columns, latents in the same columns of every row.

    Attributes:
        ids, labels: (B, T); -100 where nothing is predicted. The label of a column is its own token.
        mask: (B, T) True where a column is real.
        latents: the latent columns, in order.
    """

    ids: Tensor
    labels: Tensor
    mask: Tensor
    latents: tuple[int, ...]

    @property
    def positions(self) -> Tensor:
        """(B, T), from 0 at each row's first real column."""
        return (self.mask.long().cumsum(1) - 1).clamp(min=0)


def _exchanged(embeds: Tensor, column: int, thoughts: Tensor) -> Tensor:
    """The embeddings (B, T, D) with `thoughts` (B, D) in one column, rebuilt vector by vector."""
    rows = []
    for b in range(embeds.shape[0]):
        row = [embeds[b, t] for t in range(embeds.shape[1])]
        row[column] = thoughts[b]
        rows.append(torch.stack(row))
    return torch.stack(rows)


def forward(model: Any, batch: NaiveBatch, *, cached: bool) -> tuple[Tensor, Tensor]:
    """Logits (B, T, V) of all columns and the input embeddings (B, T, D) with all thoughts in them.

    Args:
        model: a causal LM of transformers.
        batch: the sequences.
        cached: variant A, with a cache; else B, in which each pass begins at column 0 again.
    """
    embeds = model.get_input_embeddings()(batch.ids)
    cache = DynamicCache() if cached else None
    done, parts = 0, []
    for end in (*batch.latents, batch.ids.shape[1]):
        begin = done if cached else 0
        output = model(
            inputs_embeds=embeds[:, begin:end], attention_mask=batch.mask[:, :end].long(),
            position_ids=batch.positions[:, begin:end], past_key_values=cache, use_cache=cached,
            output_hidden_states=True,
        )  # fmt: skip
        parts.append(output.logits[:, done - begin :])
        done = end
        if end < batch.ids.shape[1]:
            embeds = _exchanged(embeds, end, output.hidden_states[-1][:, -1])
    return torch.cat(parts, 1), embeds


def loss(model: Any, batch: NaiveBatch, *, cached: bool) -> Tensor:
    """Mean nats of the supervised tokens, from logits of all columns."""
    logits, _ = forward(model, batch, cached=cached)
    flat = logits[:, :-1].reshape(-1, logits.shape[-1])
    return F.cross_entropy(flat, batch.labels[:, 1:].reshape(-1), ignore_index=-100)


@torch.no_grad()
def generate(model: Any, batch: NaiveBatch, *, limit: int, stop: int) -> list[int]:
    """Greedy continuation of ONE item, whose columns end where it is to write: no cache for what is written."""
    if batch.ids.shape[0] != 1:
        raise ValueError("the published generation takes one item at a time")
    logits, embeds = forward(model, batch, cached=True)
    written: list[int] = []
    token = int(logits[0, -1].argmax())
    while token != stop and len(written) < limit:
        written.append(token)
        if len(written) == limit:
            break
        new = model.get_input_embeddings()(torch.tensor([[token]], device=embeds.device))
        embeds = torch.cat((embeds, new), 1)
        positions = torch.arange(embeds.shape[1], device=embeds.device)[None]
        output = model(inputs_embeds=embeds, position_ids=positions, use_cache=False, output_hidden_states=True)
        token = int(output.logits[0, -1].argmax())
    return written
