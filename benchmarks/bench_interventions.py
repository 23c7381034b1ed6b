"""All interventions of the study on `continuous`, over cached prefixes, against evaluations of the set without a cache.

GPT-2-small shape from scratch, fp32, 300 items of 360 tokens (question and six thoughts), at most 16 new tokens, both
options compared: what an evaluation of an item costs without a cache is the passes of `naive.py`, one item at a time.
Ours is the whole of what the stage does: the chain of every item, then each item under every intervention (noise on the
first k, the last k and one thought, propagating and not; order, swaps, transplants, other numbers of thoughts), with
a written answer and both options each time. Items do not depend on each other, so both sides are asked some of them, in
turn (--items, --naive-items), and times are seconds an item. Aim: all interventions cost less than 3 evaluations
without a cache.

A margin of some interventions is compared with that of the naive passes over the same thoughts, put in by hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import common
import naive
from bench_evaluation import LATENTS, LIMIT, RandomItems
from bench_thoughts import QUICK_SHAPE
from stepwell.backbone import HFBackbone, Shape
from stepwell.evaluate import Intervened, asked, collect, intervened
from stepwell.latents.conditions import FAMILIES, Intervention, interventions
from stepwell.latents.interventions import Material, material, put_in
from stepwell.latents.thoughts import Batch, Thoughts
from stepwell.tasks.prosqa.reading import Answer

COUNTS = (0, 2, 3, 4, 5, 6, 7, 8)
OPTION = 5
"""Tokens of an option: `### Sally is a hilpus.`"""
EVALUATIONS = 3


class RandomQuestions(RandomItems):
    """Random items with two random options each, and a number of hops."""

    choice = True

    @classmethod
    def drawn(cls, n: int, tokens: int, vocabulary: int) -> RandomQuestions:
        """As for `RandomItems`."""
        return cls(super().drawn(n, tokens, vocabulary).ids, vocabulary - 1)

    def options(self, batch: Batch, row: int) -> tuple[list[int], list[int]]:
        """Two continuations of the same length, of this item alone."""
        generator = torch.Generator().manual_seed(int(batch.ids[row, :8].sum()))
        right, wrong = torch.randint(0, self.eos, (2, OPTION), generator=generator).tolist()
        return right, wrong

    def answer(self, batch: Batch, row: int, ids: Sequence[int]) -> Answer:
        """All of it is the answer: a model without steps."""
        return Answer(text=" ".join(map(str, ids)), correct=False, steps=(), chain_valid=None)

    def some(self, rows: slice | list[int]) -> RandomQuestions:
        """Some of the items."""
        return RandomQuestions(self.ids[rows], self.eos)


def every() -> tuple[Intervention, ...]:
    """All interventions of the study, noise of one size."""
    return interventions(LATENTS, families=FAMILIES, scales=(1.0,), propagates=(True, False), counts=COUNTS)


def all_of_them(model: Thoughts, items: RandomQuestions, batch_size: int) -> tuple[Material, list[Intervened]]:
    """What the stage does with these items."""
    asking: dict[str, Any] = {"stage": LATENTS, "seed": 0, "batch_size": batch_size}
    thoughts = collect(model, items, **asking)  # pyright: ignore[reportArgumentType]
    given = material(thoughts, [3 + i % 2 for i in range(len(items))], seed=0)
    batches = intervened(model, items, every(), given, **asking)  # pyright: ignore[reportArgumentType]
    return given, [one for batch in batches for one in batch]


@torch.no_grad()
def evaluated(model: Thoughts, items: RandomQuestions, row: int) -> None:
    """One item as an evaluation without a cache asks it: the chain, an answer token by token, both options."""
    columns = items.ids.shape[1]
    ids, latents = items.ids[row : row + 1], tuple(range(columns - LATENTS, columns))
    plain = naive.NaiveBatch(ids=ids, labels=ids, mask=torch.ones_like(ids, dtype=torch.bool), latents=latents)
    lm: Any = model.backbone.model
    _, embeds = naive.forward(lm, plain, cached=False)
    written = 0
    while written < LIMIT:
        output = lm(inputs_embeds=embeds, use_cache=False, output_hidden_states=True)
        token, written = int(output.logits[0, -1].argmax()), written + 1
        if token == items.eos:
            break
        embeds = torch.cat((embeds, lm.get_input_embeddings()(torch.tensor([[token]]))), 1)
    ((_, batch),) = asked(model, items.some([row]), stage=LATENTS, seed=0, batch_size=1)  # pyright: ignore[reportArgumentType]
    margin(model, embeds[:, :columns], items.some([row]).options(batch, 0))


@torch.no_grad()
def margin(model: Thoughts, embeds: Tensor, options: Sequence[Sequence[int]]) -> float:
    """Right minus wrong option in nats after embeddings (1, T, D), each in a pass over everything."""
    lm, nats = model.backbone.model, []
    for option in options:
        more = lm.get_input_embeddings()(torch.tensor([list(option)]))
        logits = lm(inputs_embeds=torch.cat((embeds, more), 1), use_cache=False).logits[0, embeds.shape[1] - 1 : -1]
        nats.append(-float(F.cross_entropy(logits.float(), torch.tensor(list(option)), reduction="sum")))
    return nats[0] - nats[1]


def compare(model: Thoughts, items: RandomQuestions, given: Material, ours: Sequence[Intervened]) -> None:
    """The first item's margins under all edits that are put in afterwards, recomputed from the first column."""
    ((_, batch),) = asked(model, items.some([0]), stage=LATENTS, seed=0, batch_size=1)  # pyright: ignore[reportArgumentType]
    options, worst, compared = items.some([0]).options(batch, 0), 0.0, 0
    question = model.backbone.embed(items.ids[:1, :-LATENTS])
    for one in ours:
        if one.row == 0 and one.what.propagates is not True and one.what.count is None:
            own = given.thoughts[:1] if one.what.family == "clean" else put_in(one.what, given, torch.tensor([0]))
            wanted = margin(model, torch.cat((question, own), 1), options)
            worst, compared = max(worst, abs(one.margin - wanted)), compared + 1
    common.same("margins", worst < 1e-3, f"{compared} conditions of one item, at most {worst:.1g} nats apart")


def main(arguments: Sequence[str] | None = None) -> None:
    """Time both sides in turn and judge the aim."""
    parser = common.parser(__doc__)
    parser.add_argument("--items", type=int, help="items asked under all interventions (300)")
    parser.add_argument("--batch-size", type=int, help="of them (25)")
    parser.add_argument("--naive-items", type=int, default=1, help="of each batch, evaluated without a cache (1)")
    given = parser.parse_args(arguments)
    common.header("bench_interventions", given, arguments)
    n, batch_size = given.items or (4 if given.quick else 300), given.batch_size or (2 if given.quick else 25)
    shape, tokens = (QUICK_SHAPE, 24) if given.quick else (Shape(), 360)
    print(f"{n} items of {tokens} tokens, {LATENTS} of them thoughts; {len(every())} conditions an item")
    with common.threads(given.threads):
        model = Thoughts(HFBackbone.from_shape(shape, device="cpu"), "continuous")
        items = RandomQuestions.drawn(n, tokens, model.backbone.vocabulary)
        ours, theirs = [], []
        for start in range(0, n, batch_size):
            some = items.some(slice(start, min(start + batch_size, n)))
            began = common.clock(given.clock)
            found, answers = all_of_them(model, some, batch_size)
            between = common.clock(given.clock)
            for row in range(min(given.naive_items, len(some))):
                evaluated(model, some, row)
            theirs.append((common.clock(given.clock) - between) / min(given.naive_items, len(some)))
            ours.append((between - began) / len(some))
            if start == 0:
                compare(model, some, found, answers)
        pairs = common.Pairs(a=tuple(ours), b=tuple(theirs))
        common.show_pairs("all interventions / one evaluation without a cache, seconds an item",
                          ("all interventions", "one evaluation without a cache"), pairs)  # fmt: skip
        common.aim("all interventions in evaluations", pairs.ratio, "<=", EVALUATIONS, meant=not given.quick)


if __name__ == "__main__":
    main()
