"""Batched greedy decoding over a cache, for any `Backbone`.

A row stops at its own stop token or its own limit, and leaves the batch: later steps cost only the rows that still
write. One forward of one column a step; logits of that column only.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stepwell.errors import StepwellError
from stepwell.shapes import Backbone


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """What one row wrote.

    Attributes:
        ids: new tokens, without the stop token.
        stopped: whether it wrote a stop token; False = it came to its limit.
    """

    ids: tuple[int, ...]
    stopped: bool


@torch.no_grad()
def greedy(
    backbone: Backbone,
    hidden: Tensor,
    *,
    cache: Any,
    mask: Tensor,
    positions: Tensor,
    stop: Collection[int],
    limit: int | Sequence[int],
) -> list[Decoded]:
    """Continue B rows whose columns are already in the cache; neither it nor the tensors are changed.

    Args:
        backbone: in evaluation mode, or dropout decides too.
        hidden: (B, D), the last column's hidden state of each row.
        cache: with the S columns so far.
        mask: (B, S), True where the cached column is real.
        positions: (B,), the position of each row's NEXT column.
        stop: ids that end a row.
        limit: new tokens at most (the stop token among them), for all rows or for each.

    Returns:
        One `Decoded` a row, in order.

    Raises:
        StepwellError: a negative limit, or positions beyond what the model knows.
    """
    rows = hidden.shape[0]
    limits = [limit] * rows if isinstance(limit, int) else list(limit)
    _check(backbone, positions, limits, rows)
    stops = frozenset(stop)
    written: list[list[int]] = [[] for _ in range(rows)]
    stopped = [False] * rows
    alive = [row for row in range(rows) if limits[row]]
    cache, hidden, mask, positions = _keep(alive, cache.clone(), hidden, mask, positions)
    while alive:
        tokens = backbone.logits(hidden).argmax(-1)
        for row, token in zip(alive, tokens.tolist(), strict=True):
            stopped[row] = token in stops
            if not stopped[row]:
                written[row].append(token)
        going = [i for i, row in enumerate(alive) if not stopped[row] and len(written[row]) < limits[row]]
        alive = [alive[i] for i in going]
        if alive:
            cache, tokens, mask, positions = _keep(going, cache, tokens, mask, positions)
            mask = torch.cat((mask, mask.new_ones(len(alive), 1)), dim=1)
            embeds = backbone.embed(tokens[:, None])
            hidden = backbone(embeds, positions=positions[:, None], mask=mask, cache=cache)[:, -1]
            positions = positions + 1
    return [Decoded(ids=tuple(ids), stopped=end) for ids, end in zip(written, stopped, strict=True)]


@torch.no_grad()
def greedy_prompts(
    backbone: Backbone,
    prompts: Sequence[Sequence[int]],
    *,
    stop: Collection[int],
    limit: int | Sequence[int],
    batch_size: int = 64,
) -> list[Decoded]:
    """Greedy continuations of prompts of any lengths, sorted by length into batches and left-padded.

    Args:
        backbone: in evaluation mode.
        prompts: token ids, at least one each.
        stop: ids that end a row.
        limit: new tokens at most, for all rows or for each.
        batch_size: rows at a time.

    Returns:
        One `Decoded` a prompt, in the prompts' order.

    Raises:
        StepwellError: an empty prompt, or limits for other prompts; otherwise as `greedy`.
    """
    for i, prompt in enumerate(prompts):
        if not prompt:
            raise StepwellError(f"prompt {i} is empty", "give each prompt one token at least, such as the end token")
    limits = [limit] * len(prompts) if isinstance(limit, int) else list(limit)
    if len(limits) != len(prompts):
        raise StepwellError(
            f"there are {len(limits)} limits for {len(prompts)} prompts", "give one limit, or one a prompt"
        )
    device = next(backbone.parameters()).device
    out: dict[int, Decoded] = {}
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        ids, mask = left_padded([prompts[i] for i in batch], device=device)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        cache = backbone.new_cache()
        columns = ids.shape[1]
        hidden = backbone(backbone.embed(ids), positions=positions, mask=mask, cache=cache, skip=columns - 1)[:, -1]
        found = greedy(backbone, hidden, cache=cache, mask=mask, positions=positions[:, -1] + 1, stop=stop,
                       limit=[limits[i] for i in batch])  # fmt: skip
        out.update(zip(batch, found, strict=True))
    return [out[i] for i in range(len(prompts))]


def left_padded(rows: Sequence[Sequence[int]], *, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Ids (B, T) padded with 0 on the left, and the mask (B, T), True where a column is real."""
    columns = max(map(len, rows), default=0)
    ids = torch.tensor([[0] * (columns - len(row)) + list(row) for row in rows], dtype=torch.long)
    mask = torch.tensor([[False] * (columns - len(row)) + [True] * len(row) for row in rows], dtype=torch.bool)
    return ids.to(device), mask.to(device)


def right_padded(
    rows: Sequence[Sequence[int]], *, device: torch.device | str = "cpu", filler: int = 0
) -> tuple[Tensor, Tensor]:
    """Ids (B, T) padded with `filler` on the right, and the mask (B, T), True where a column is real."""
    columns = max(map(len, rows), default=0)
    ids = torch.tensor([[*row, *[filler] * (columns - len(row))] for row in rows], dtype=torch.long)
    real = torch.arange(columns) < torch.tensor([len(row) for row in rows], dtype=torch.long)[:, None]
    return ids.to(device), real.to(device)


def _keep(
    rows: list[int], cache: Any, first: Tensor, second: Tensor, third: Tensor
) -> tuple[Any, Tensor, Tensor, Tensor]:
    if len(rows) == first.shape[0]:
        return cache, first, second, third
    index = torch.tensor(rows, dtype=torch.long, device=first.device)
    return cache.select(index), first[index], second[index], third[index]


def _check(backbone: Backbone, positions: Tensor, limits: Sequence[int], rows: int) -> None:
    if len(limits) != rows or any(limit < 0 for limit in limits):
        raise StepwellError(
            f"the limits {list(limits)[:8]} do not fit {rows} rows", "give one limit, 0 or more, or one a row"
        )
    if backbone.max_positions is None or not rows:
        return
    # The last token of a row is written, never read: it needs no position.
    last = max((p + limit - 2 for p, limit in zip(positions.tolist(), limits, strict=True)), default=0)
    if last >= backbone.max_positions:
        raise StepwellError(
            f"decoding may reach position {last}, but the model knows {backbone.max_positions} positions",
            "shorten the prompts or lower the limit",
        )
