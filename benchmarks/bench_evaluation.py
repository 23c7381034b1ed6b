"""Evaluation of `continuous`: batched over a cache, against one item at a time without a cache.

GPT-2-small shape from scratch, fp32, 100 items of 360 tokens (question and six thoughts), at most 16 new tokens. Same
weights, same items; every continuation that both have written is compared, token by token. The naive side's items do
not depend on each other, so it is asked some of each batch (--naive-items), and times are seconds an item. Aim: at
least 10 times as fast.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

import common
import naive
from bench_thoughts import QUICK_SHAPE
from stepwell.backbone import HFBackbone, Shape
from stepwell.evaluate import score
from stepwell.latents.thoughts import IGNORE, Batch, Thoughts
from stepwell.tasks.prosqa.reading import Answer

LATENTS = 6
LIMIT = 16


class RandomItems:
    """Questions of random tokens, as a `Reader`: what is asked, and what was written, without any text."""

    def __init__(self, ids: Tensor, eos: int) -> None:
        # `score` lets a row write twice the longest tail.
        self.ids, self.eos, self.longest_tail = ids, eos, LIMIT // 2

    @classmethod
    def drawn(cls, n: int, tokens: int, vocabulary: int) -> RandomItems:
        """n items; the last token of the vocabulary is in none of them, and ends what is written."""
        generator = torch.Generator().manual_seed(1)
        return cls(torch.randint(0, vocabulary - 1, (n, tokens), generator=generator), vocabulary - 1)

    def some(self, rows: slice | list[int]) -> RandomItems:
        """Some of the items."""
        return RandomItems(self.ids[rows], self.eos)

    def __len__(self) -> int:
        return len(self.ids)

    def ask(self, rows: Tensor, arm: str, stage: int, generator: torch.Generator) -> Batch:
        """Prompts that end with their latents."""
        ids = self.ids[rows]
        latent = torch.zeros_like(ids, dtype=torch.bool)
        latent[:, -stage:] = True
        labels = torch.full_like(ids, IGNORE)
        mask = torch.ones_like(latent)
        return Batch(ids=ids, mask=mask, latent=latent, labels=labels, first=ids.shape[1] - stage, items=rows)

    def answer(self, batch: Batch, row: int, ids: Sequence[int]) -> Answer:
        """The tokens themselves."""
        return Answer(text="", correct=False, steps=tuple(ids), chain_valid=None)


def batched(model: Thoughts, items: RandomItems) -> list[list[int]]:
    """What Stepwell decodes for every item, in one batch."""
    found = score(model, items, stage=LATENTS, seed=0, batch_size=len(items), forced=False)  # pyright: ignore[reportArgumentType]
    return [list(scored.answer.steps) for scored in found]


def one_by_one(model: Thoughts, items: RandomItems, rows: Sequence[int]) -> list[list[int]]:
    """What the naive implementation decodes for some of them."""
    columns = items.ids.shape[1]
    latents = tuple(range(columns - LATENTS, columns))
    written = []
    for row in rows:
        ids = items.ids[row : row + 1]
        plain = naive.NaiveBatch(ids=ids, labels=ids, mask=torch.ones_like(ids, dtype=torch.bool), latents=latents)
        written.append(naive.generate(model.backbone.model, plain, limit=LIMIT, stop=items.eos))
    return written


def compare(model: Thoughts, items: RandomItems, ours: list[list[int]], theirs: list[list[int]], rows: list[int]):
    """Equal, or, where float32 rounding decided between two tokens, equal in float64."""
    differing = [row for row, tokens in zip(rows, theirs, strict=True) if ours[row] != tokens]
    if differing:
        model.double()
        again = items.some(differing)
        equal = batched(model, again) == one_by_one(model, again, range(len(again)))
        model.float()
        common.same("decoded tokens", equal, f"{len(differing)} rows were decided by rounding, equal in float64")
        return
    tokens = sum(map(len, theirs))
    common.same("decoded tokens", True, f"all {tokens} tokens of {len(rows)} items")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--items", type=int, help="items (100)")
    parser.add_argument("--batch-size", type=int, help="of the batched side (25)")
    parser.add_argument("--naive-items", type=int, default=2, help="of each batch, asked naively as well (2)")
    given = parser.parse_args(arguments)
    common.header("bench_evaluation", given, arguments)
    n, batch_size = given.items or (6 if given.quick else 100), given.batch_size or (3 if given.quick else 25)
    shape, tokens = (QUICK_SHAPE, 24) if given.quick else (Shape(), 360)
    print(f"{n} items of {tokens} tokens, {LATENTS} of them thoughts, at most {LIMIT} new ones")
    with common.threads(given.threads):
        model = Thoughts(HFBackbone.from_shape(shape, device="cpu"), "continuous")
        items = RandomItems.drawn(n, tokens, model.backbone.vocabulary)
        batched(model, items.some(slice(1)))  # warm-up
        naive_each, our_each, rows, theirs, ours = [], [], [], [], []
        for start in range(0, n, batch_size):
            end = min(start + batch_size, n)
            asked = range(start, min(start + given.naive_items, end))
            some = items.some(slice(start, end))
            began = common.clock(given.clock)
            theirs += one_by_one(model, items, asked)
            between = common.clock(given.clock)
            ours += batched(model, some)
            naive_each.append((between - began) / len(asked))
            our_each.append((common.clock(given.clock) - between) / len(some))
            rows += asked
        compare(model, items, ours, theirs, rows)
    found = common.Pairs(a=tuple(naive_each), b=tuple(our_each))
    print(f"  seconds an item, {len(rows)} items one by one, {n} in batches of {batch_size}:")
    common.show_pairs("batch 1 without cache / batched", ("batch 1 without cache", "batched over a cache"), found)
    common.aim("batch 1 without cache / batched", found.ratio, ">=", 10.0, meant=not given.quick)


if __name__ == "__main__":
    main()
