"""What a fine-tuning costs: tokens, steps, hours and price from a throughput that was measured, and room on disk."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import nn

from stepwell.errors import StepwellError
from stepwell.recipe import Recipe
from stepwell.sft.packing import Batch
from stepwell.sft.stream import SftStream

__all__ = ["Cost", "cost", "measured_throughput", "need_free_disk"]


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a training comes to.

    Attributes:
        steps: optimizer steps.
        tokens: real ones read in all steps, all processes together.
        supervised_tokens: of these, learnt.
        padding_share: of the columns that are computed where every row is as long as the longest, in [0, 1).
        hours: None where no throughput is known.
        price: hours x hourly price; None where one of them is not known.
    """

    steps: int
    tokens: int
    supervised_tokens: int
    padding_share: float
    hours: float | None
    price: float | None


def cost(
    stream: SftStream,
    recipe: Recipe,
    *,
    tokens_per_second: float | None = None,
    hourly_price: float | None = None,
    steps_done: int = 0,
    learnt: float = 1.0,
) -> Cost:
    """The cost of a training, or of what is left of it.

    Args:
        stream: its data.
        recipe: its length.
        tokens_per_second: real tokens, of all processes together (`measured_throughput`, the event `throughput`).
        hourly_price: of all their devices together, in any currency.
        steps_done: optimizer steps that are behind it.
        learnt: share of the rows whose answers are learnt; in meta-learning those of the query.
    """
    lengths = [sum(row) for row in stream.corpus.lengths_of(stream.rows)]
    steps = max(0, recipe.total_steps(stream.steps_per_epoch) - steps_done)
    share = steps * stream.batch_size * stream.accumulation / len(stream.rows)
    tokens = round(share * sum(lengths))
    seconds = None if tokens_per_second is None else tokens / tokens_per_second
    return Cost(
        steps=steps,
        tokens=tokens,
        supervised_tokens=round(share * learnt * _supervised(stream)),
        padding_share=1 - sum(lengths) / (max(lengths) * len(lengths)),
        hours=None if seconds is None else seconds / 3600,
        price=None if seconds is None or hourly_price is None else seconds / 3600 * hourly_price,
    )


def _supervised(stream: SftStream) -> int:
    """Tokens that are learnt in one pass over all rows."""
    corpus = stream.corpus
    return sum(
        int(corpus.supervised[corpus.starts[i] : corpus.starts[i + 1]].sum()) for row in stream.rows for i in row
    )


class _Computes(Protocol):
    def compute(self, batch: Batch) -> object: ...


def measured_throughput(model: _Computes, batches: Sequence[Batch]) -> float:
    """Real tokens a second of forward and backward passes over batches; the first is warm-up. No weight is changed.

    Raises:
        StepwellError: fewer than two batches.
    """
    if len(batches) < 2:
        raise StepwellError("a throughput is to be measured on one batch or none", "give two at least")
    model.compute(batches[0])
    began = time.perf_counter()
    for batch in batches[1:]:
        model.compute(batch)
    return sum(batch.real_tokens for batch in batches[1:]) / (time.perf_counter() - began)


def need_free_disk(folder: Path, adapter: nn.Module) -> None:
    """Refuse to begin where checkpoints and adapter do not fit.

    A checkpoint holds weights and two moments; the next is written before the last is deleted. Then the adapter itself.

    Raises:
        StepwellError: there is less room.
    """
    size = sum(parameter.numel() * parameter.element_size() for parameter in adapter.parameters())
    needed, free = 7 * size, shutil.disk_usage(folder).free
    if free < needed:
        raise StepwellError(
            f"the disk has {free / 1e9:.2g} GB free, and checkpoints and adapter need {needed / 1e9:.2g}",
            "Free space, name another folder, or lower the rank.",
            path=folder,
        )
