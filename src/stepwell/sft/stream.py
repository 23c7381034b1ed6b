"""A corpus as training data by number: the same step gives the same rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

import torch

from stepwell.errors import StepwellError
from stepwell.sft.packing import Batch, Corpus, first_fit_decreasing

__all__ = ["SftStream", "mixed"]


class SftStream:
    """Batches of rows in a new order each epoch; rows that do not fill a step are left for another epoch.

    Where categories are given, the rows of a micro-batch are all of one category. An epoch shows each row at most once,
    of a small category as of a large one: a category weighs as much as it has rows, as it does without.

    Args:
        corpus: the training set.
        max_tokens: of a row.
        batch_size: rows a micro-batch; without categories fewer, where the corpus has not enough for one step.
        accumulation: micro-batches a step.
        seed: of order and dropout.
        pack: several examples in a row; otherwise one in each.
        categories: of each conversation by its id; a category with too few rows for a micro-batch is left out.

    Attributes:
        rows: numbers of the corpus's examples.
        groups: by category (None: all alike) the numbers of its rows, and none where it is left out.

    Raises:
        StepwellError: there are fewer rows than micro-batches in a step; or, with categories, a conversation has none,
            or fewer than two of them have rows for a micro-batch.
    """

    def __init__(
        self,
        corpus: Corpus,
        *,
        max_tokens: int,
        batch_size: int,
        accumulation: int,
        seed: int,
        pack: bool = True,
        categories: Mapping[str, str | None] | None = None,
    ) -> None:
        self.corpus, self.accumulation, self.seed = corpus, accumulation, seed
        examples = {None: range(len(corpus))} if categories is None else _by_category(corpus.names, categories)
        lengths = corpus.lengths
        self.rows: list[tuple[int, ...]] = []
        self.groups: dict[str | None, range] = {}
        for name, own in examples.items():
            sizes = [lengths[number] for number in own]
            packed = first_fit_decreasing(sizes, max_tokens) if pack else [(place,) for place in range(len(own))]
            begin = len(self.rows)
            if categories is None or len(packed) >= batch_size:
                self.rows += [tuple(own[place] for place in row) for row in packed]
            self.groups[name] = range(begin, len(self.rows))
        if categories is None:
            batch_size = min(batch_size, max(1, len(self.rows) // self.accumulation))
        else:
            _need_categories(self.groups, batch_size)
        whole = sum(len(rows) // batch_size for rows in self.groups.values())
        if whole < self.accumulation:
            what = f"{len(self.rows)} rows" if categories is None else f"{whole} micro-batches of one category each"
            raise StepwellError(
                f"{len(corpus)} conversations fill {what}, and a step has {self.accumulation} micro-batches",
                "lower `accumulation` or `max_tokens`, or bring more data",
            )
        self.batch_size, self.steps_per_epoch = batch_size, whole // self.accumulation
        # An epoch's order is asked for at every step of it.
        self._epoch = lru_cache(maxsize=1)(self._order)

    def batches(self, step: int, stages: Callable[[torch.Generator], int]) -> Sequence[Batch]:
        """The micro-batches of optimizer step `step` (from 0). There are no curriculum stages."""
        epoch, inside = divmod(step, self.steps_per_epoch)
        first = inside * self.accumulation
        order = self._epoch(epoch)
        return [
            self.corpus.batch(
                [self.rows[row] for row in order[number]], seed=mixed(self.seed, epoch * len(self.rows) + number)
            )
            for number in range(first, first + self.accumulation)
        ]

    def _order(self, epoch: int) -> list[list[int]]:
        """The rows of each micro-batch."""
        generator = torch.Generator().manual_seed(mixed(self.seed, -1 - epoch))
        size, made = self.batch_size, []
        for rows in self.groups.values():
            order = [rows[at] for at in torch.randperm(len(rows), generator=generator).tolist()]
            made += [order[at : at + size] for at in range(0, len(order) - size + 1, size)]
        if len(self.groups) == 1:
            return made
        return [made[at] for at in torch.randperm(len(made), generator=generator).tolist()]


def mixed(seed: int, number: int) -> int:
    """One seed out of two numbers, in the 63 bits that a generator takes."""
    return (seed * 1_000_003 + number * 7_919 + 12_345) % (2**63 - 1)


def _by_category(names: Sequence[str], categories: Mapping[str, str | None]) -> dict[str | None, list[int]]:
    """The numbers of the examples, by category in the order of the categories' names."""
    if without := [name for name in names if categories.get(name) is None]:
        raise StepwellError(
            f"{len(without)} of {len(names)} conversations have no category, {without[0]} for one",
            "give each conversation a `category`, or train without `meta`",
        )
    found: dict[str | None, list[int]] = {name: [] for name in sorted({str(categories[name]) for name in names})}
    for number, name in enumerate(names):
        found[categories[name]].append(number)
    return found


def _need_categories(groups: Mapping[str | None, Sequence[int]], batch_size: int) -> None:
    kept = [name for name, rows in groups.items() if rows]
    if len(kept) < 2:
        raise StepwellError(
            f"{len(kept)} of {len(groups)} categories ({', '.join(map(str, groups))}) have the {batch_size} rows of a "
            "task, and two at least must",
            "bring conversations of more categories, lower `batch_size`, switch packing off, or train without `meta`",
        )
