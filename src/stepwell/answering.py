"""What follows a prompt that has been read: the answer as it is decoded, and how likely each of two options is.

Everything is batched, over one cache, which is not changed. Rows that are done leave the batch; both options are scored
as continuations of what the row itself has written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from stepwell.decode import greedy, right_padded
from stepwell.latents.thoughts import Batch, Thoughts
from stepwell.shapes import Backbone
from stepwell.tasks.prosqa.reading import Answer, Reader


@dataclass(frozen=True, kw_only=True)
class Read:
    """Columns that are in a cache, and how they go on.

    Attributes:
        hidden: (B, D) of the last column.
        cache: with the S columns so far.
        mask: (B, S), True where a column is real.
        positions: (B,) of the next column.
    """

    hidden: Tensor
    cache: Any
    mask: Tensor
    positions: Tensor


def read_of(model: Thoughts, batch: Batch, hidden: Tensor, cache: Any) -> Read:
    """A prompt with its thoughts, as `Thoughts` left it."""
    mask, positions = model.placed(batch)
    return Read(hidden=hidden, cache=cache, mask=mask, positions=positions)


def carried_on(backbone: Backbone, read: Read, ids: Tensor, real: Tensor) -> Tensor:
    """States (B, T, D) of further columns, which go into `read.cache`; ids (B, T), real (B, T) of them."""
    # Columns of padding get a position that every model knows.
    place = (read.positions[:, None] + torch.arange(ids.shape[1], device=ids.device)).where(real, 0)
    return backbone(backbone.embed(ids), positions=place, mask=torch.cat((read.mask, real), 1), cache=read.cache)


@torch.no_grad()
def decoded(
    model: Thoughts, reader: Reader, batch: Batch, read: Read, before: Sequence[Sequence[int]] | None = None
) -> list[Answer]:
    """What each row writes, read back together with what it had written before."""
    before = before or [()] * len(read.positions)
    found = greedy(
        model.backbone, read.hidden, cache=read.cache, mask=read.mask, positions=read.positions, stop=(reader.eos,),
        limit=_limits(model, reader, batch, read.positions, before),
    )  # fmt: skip
    rows = enumerate(zip(before, found, strict=True))
    return [reader.answer(batch, row, [*ids, *more.ids]) for row, (ids, more) in rows]


def _limits(
    model: Thoughts, reader: Reader, batch: Batch, positions: Tensor, before: Sequence[Sequence[int]]
) -> list[int]:
    """New tokens at most for each row, such that its options still find positions after them."""
    # Twice the longest gold continuation: a longer chain may still be valid, an endless one is not.
    most, known = 2 * reader.longest_tail, model.backbone.max_positions
    limits = [max(0, most - len(ids)) for ids in before]
    if known is None or int(positions.max()) + 2 * most <= known:  # far off: an option is shorter than `most`
        return limits
    options = [max(map(len, reader.options(batch, row))) for row in range(len(limits))]
    return [max(0, min(n, known - p - o)) for n, p, o in zip(limits, positions.tolist(), options, strict=True)]


@torch.no_grad()
def margins(model: Thoughts, reader: Reader, batch: Batch, read: Read, steps: Sequence[Sequence[int]]) -> Tensor:
    """(B,) right minus wrong option, in nats, each the whole `### answer` after the steps that are still to be read."""
    pairs = [reader.options(batch, row) for row in range(len(steps))]
    texts = [[*some, *option] for some, pair in zip(steps, pairs, strict=True) for option in pair]
    ids, real = right_padded(texts, device=read.hidden.device)
    begins = torch.tensor([len(some) for some in steps], device=ids.device).repeat_interleave(2)
    scored = real & (torch.arange(ids.shape[1], device=ids.device) >= begins[:, None])
    twice = Read(
        hidden=read.hidden.repeat_interleave(2, 0), cache=read.cache.repeat(2), mask=read.mask.repeat_interleave(2, 0),
        positions=read.positions.repeat_interleave(2),
    )  # fmt: skip
    states = carried_on(model.backbone, twice, ids, real)
    # The state before a token predicts it: the prompt's last for the first, then the option's own.
    states = torch.cat((twice.hidden[:, None], states[:, :-1]), 1)[scored]
    nats = F.cross_entropy(model.backbone.logits(states).float(), ids[scored], reduction="none")
    total = torch.zeros(len(ids), device=ids.device).index_add_(0, scored.nonzero()[:, 0], -nats)
    return total[0::2] - total[1::2]
