"""Batched decoding over a cache, greedy or sampled, for any `Backbone`.

A row stops at its own stop token or its own limit, and leaves the batch: later steps cost only the rows that still
write. One forward of one column a step; logits of that column only.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence
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


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        temperature: logits are divided by it; above 0.
        top_p: of the most likely tokens, as many as are needed for this share of the probability; in (0, 1]
            (nucleus sampling, Holtzman et al. 2020, arXiv 1904.09751).
        seeds: one for each prompt, so that what a prompt draws depends neither on its batch nor on the others.
    """

    temperature: float
    top_p: float
    seeds: Sequence[int]

    def __post_init__(self) -> None:
        if not (self.temperature > 0 and 0 < self.top_p <= 1):
            raise StepwellError(
                f"a temperature of {self.temperature:g} and top_p of {self.top_p:g} cannot be sampled with",
                "give a temperature above 0 and top_p above 0, up to 1; or decode greedily",
            )


# Logits (b, V) and the b rows they are of, as places in the batch -> tokens (b,).
Choose = Callable[[Tensor, list[int]], Tensor]


def most_likely(logits: Tensor, rows: list[int]) -> Tensor:
    """The greedy choice."""
    return logits.argmax(-1)


def drawn(sampling: Sampling, prompts: Sequence[int]) -> Choose:
    """Choices at random for a batch of these prompts, by place; one number of a prompt's own stream a token."""
    streams = [random.Random(sampling.seeds[prompt]) for prompt in prompts]

    def choose(logits: Tensor, rows: list[int]) -> Tensor:
        # float64: a cumulative sum over a large vocabulary has to end at 1.
        shares, tokens = (logits.double() / sampling.temperature).softmax(-1).sort(dim=-1, descending=True, stable=True)
        # A token is in where the share before it is below top_p, so the first always is.
        before = shares.cumsum(-1) - shares
        shares = shares.masked_fill(before >= sampling.top_p, 0.0)
        sums = shares.cumsum(-1)
        points = torch.tensor([[streams[row].random()] for row in rows], dtype=sums.dtype, device=sums.device)
        # The first token whose sum exceeds the point: one without any share is never it.
        place = torch.searchsorted(sums, points * sums[:, -1:], right=True).clamp(max=sums.shape[-1] - 1)
        return tokens.gather(-1, place)[:, 0]

    return choose


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
    return _continued(backbone, (hidden, cache, mask, positions), stop, limit, most_likely)


def _continued(
    backbone: Backbone,
    read: tuple[Tensor, Any, Tensor, Tensor],
    stop: Collection[int],
    limit: int | Sequence[int],
    choose: Choose,
) -> list[Decoded]:
    """As `greedy`, each token as `choose` says; `read` is hidden, cache, mask and positions."""
    hidden, cache, mask, positions = read
    rows = hidden.shape[0]
    limits = [limit] * rows if isinstance(limit, int) else list(limit)
    _check(backbone, positions, limits, rows)
    stops = frozenset(stop)
    written: list[list[int]] = [[] for _ in range(rows)]
    stopped = [False] * rows
    alive = [row for row in range(rows) if limits[row]]
    cache, hidden, mask, positions = _keep(alive, cache.clone(), hidden, mask, positions)
    while alive:
        tokens = choose(backbone.logits(hidden), alive)
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
    return _from_prompts(backbone, prompts, stop, limit, batch_size, lambda batch: most_likely)


@torch.no_grad()
def sampled_prompts(
    backbone: Backbone,
    prompts: Sequence[Sequence[int]],
    *,
    sampling: Sampling,
    stop: Collection[int],
    limit: int | Sequence[int],
    batch_size: int = 64,
) -> list[Decoded]:
    """As `greedy_prompts`, each token drawn as `sampling` says; the same for the same seeds, in whatever batches.

    Raises:
        StepwellError: as `greedy_prompts`, or seeds for other prompts.
    """
    if len(sampling.seeds) != len(prompts):
        raise StepwellError(
            f"there are {len(sampling.seeds)} seeds for {len(prompts)} prompts", "give one seed a prompt"
        )
    return _from_prompts(backbone, prompts, stop, limit, batch_size, lambda batch: drawn(sampling, batch))


def _from_prompts(
    backbone: Backbone,
    prompts: Sequence[Sequence[int]],
    stop: Collection[int],
    limit: int | Sequence[int],
    batch_size: int,
    choose_for: Callable[[Sequence[int]], Choose],
) -> list[Decoded]:
    """Sorted by length into batches; `choose_for` gives each batch of prompts, by place, how its tokens are chosen."""
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
        read = (hidden, cache, mask, positions[:, -1] + 1)
        found = _continued(backbone, read, stop, [limits[i] for i in batch], choose_for(batch))
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
