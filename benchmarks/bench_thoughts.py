"""`continuous`: forward and backward against the single pass of `shared`, and against the naive implementation.

Same weights, same batch; loss and gradients of both implementations are compared in the run. GPT-2-small shape from
scratch, fp32. Parts, to be chosen with --only:

- single: continuous / shared, 180 question + 6 latents + 20 other columns, batch 8. Aim: at most 1.25.
- cached: naive with cache / continuous, the same batch. Aim: at least 1.7.
- recompute: naive without cache / continuous, the same batch, one pair.
- long: naive with cache / continuous, 366 columns, batch 16, one pair; and the share of this machine's matrix-product
  peak at which `continuous` runs, which says how much further it could go.
- long-recompute: naive without cache / continuous, the same batch, one pair; the naive side two rows at a time, for its
  passes do not fit into memory otherwise. Aim: at least 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import common
import naive
from stepwell.backbone import HFBackbone, Shape
from stepwell.latents.thoughts import IGNORE, Batch, Thoughts
from stepwell.objectives import cross_entropy, supervised

PARTS = ("single", "cached", "recompute", "long", "long-recompute")
NAIVE_ROWS = 2
"""Rows of a micro-batch of `long-recompute`."""


AIMS = {"cached": 1.7, "long-recompute": 5.0}


@dataclass(frozen=True, kw_only=True)
class Size:
    """Columns of a training batch: question, latents, the rest; and rows."""

    rows: int
    question: int
    latents: int
    rest: int


SMALL, LONG = Size(rows=8, question=180, latents=6, rest=20), Size(rows=16, question=340, latents=6, rest=20)
QUICK, QUICK_LONG = Size(rows=3, question=12, latents=3, rest=5), Size(rows=3, question=24, latents=3, rest=5)
QUICK_SHAPE = Shape(vocabulary=211, width=64, layers=2, heads=4, max_positions=64)


def batch_of(size: Size, vocabulary: int, *, seed: int = 0) -> Batch:
    """Random tokens; every row has some padding on its left, as questions of unequal length have."""
    generator = torch.Generator().manual_seed(seed)
    columns, end = size.question + size.latents + size.rest, size.question + size.latents
    ids = torch.randint(0, vocabulary, (size.rows, columns), generator=generator)
    column, row = torch.arange(columns), torch.arange(size.rows)[:, None]
    mask = column >= 3 * row % (size.question // 4)
    latent = ((column >= size.question) & (column < end)).expand(size.rows, -1)
    labels = torch.where(column >= end, ids, IGNORE)
    return Batch(ids=ids, mask=mask, latent=latent, labels=labels, first=size.question, items=torch.arange(size.rows))


def loss_of(thoughts: Thoughts, batch: Batch) -> Tensor:
    """Mean nats of the supervised tokens, as training computes it."""
    hidden = thoughts(batch.inputs())
    mask, targets = supervised(batch.labels, batch.first)
    nats, tokens = cross_entropy(thoughts.backbone.logits(hidden[mask[:, :-1]]), targets)
    return nats / tokens


class Work:
    """One backbone, one batch, and the ways to compute a step of it."""

    def __init__(self, backbone: HFBackbone, size: Size) -> None:
        self.backbone = backbone
        self.batch = batch_of(size, backbone.vocabulary)
        vector = backbone.embed(torch.tensor([[1]]))[0, 0]
        self.arms = {arm: Thoughts(backbone, arm, vector=vector) for arm in ("continuous", "shared")}
        latents = tuple(range(size.question, size.question + size.latents))
        self.plain = naive.NaiveBatch(
            ids=self.batch.ids, labels=self.batch.labels, mask=self.batch.mask, latents=latents
        )

    def ours(self, arm: str = "continuous") -> Tensor:
        """One step's loss, gradients left in the parameters."""
        return self._step(lambda: loss_of(self.arms[arm], self.batch))

    def naive(self, *, cached: bool, rows: int | None = None) -> Tensor:
        """The same by the naive implementation, so many rows at a time."""
        self.backbone.zero_grad(set_to_none=True)
        total, every = torch.zeros(()), int((self.plain.labels != IGNORE).sum())
        for start in range(0, len(self.plain.ids), rows or len(self.plain.ids)):
            some = slice(start, start + (rows or len(self.plain.ids)))
            part = naive.NaiveBatch(
                ids=self.plain.ids[some], labels=self.plain.labels[some], mask=self.plain.mask[some],
                latents=self.plain.latents,
            )  # fmt: skip
            share = int((part.labels != IGNORE).sum()) / every
            value = naive.loss(self.backbone.model, part, cached=cached) * share
            value.backward()
            total += value.detach()
        return total

    def _step(self, loss) -> Tensor:
        self.backbone.zero_grad(set_to_none=True)
        value = loss()
        value.backward()
        return value.detach()

    def flop(self) -> float:
        """Of a training step of `continuous`: 3 x 2 a parameter and column, and the logits at supervised positions."""
        ids, labels = self.batch.ids, self.batch.labels
        each = self.backbone.flop_per_token(ids.shape[1])
        head = 2 * self.backbone.width * self.backbone.vocabulary
        return 3.0 * (ids.numel() * each + int((labels != IGNORE).sum()) * head)

    def gradients(self) -> dict[str, Tensor]:
        """A copy of the gradients, by parameter."""
        return {n: p.grad.clone() for n, p in self.backbone.named_parameters() if p.grad is not None}

    def against_naive(self, pairs: int, *, cached: bool, kind: str, rows: int | None = None) -> common.Pairs:
        """Seconds of naive and of our steps in turn; leaves where losses or gradients differ beyond rounding."""
        theirs_seconds, our_seconds = [], []
        for _ in range(pairs):  # gradients are copied and compared outside of what is timed
            began = common.clock(kind)
            theirs = self.naive(cached=cached, rows=rows)
            theirs_seconds.append(common.clock(kind) - began)
            their_gradients = self.gradients()
            began = common.clock(kind)
            ours = self.ours()
            our_seconds.append(common.clock(kind) - began)
            worst = _worst(self.gradients(), their_gradients)
            ok = torch.allclose(ours, theirs, rtol=1e-4) and worst < 1e-3
            detail = f"loss {float(ours):.6f} and {float(theirs):.6f}, gradients within {worst:.1e} of their norm"
            common.same("loss and gradients", ok, detail)
        return common.Pairs(a=tuple(theirs_seconds), b=tuple(our_seconds))


def _worst(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """The largest relative difference of a parameter's gradient; infinite where only one side has one."""
    if ours.keys() != theirs.keys():
        return float("inf")
    # A gradient that is zero by symmetry (the keys' bias) has nothing to be relative to: the whole gradient's scale.
    floor = 1e-3 * max(float(g.norm()) for g in theirs.values())
    return max(float((ours[n] - g).norm()) / max(float(g.norm()), floor) for n, g in theirs.items())


def run(part: str, work: Work, pairs: int, *, kind: str, meant: bool) -> None:
    """One part."""
    if part == "single":
        found = common.in_pairs(work.ours, lambda: work.ours("shared"), pairs=pairs, kind=kind)
        common.show_pairs("continuous / shared", ("continuous", "shared, one pass"), found)
        common.aim("continuous / shared", found.ratio, "<=", 1.25, meant=meant)
        return
    cached, rows = "recompute" not in part, NAIVE_ROWS if part == "long-recompute" else None
    found = work.against_naive(pairs if part == "cached" else 1, cached=cached, kind=kind, rows=rows)
    name = "naive with cache" if cached else "naive without cache"
    common.show_pairs(f"{name} / continuous", (name, "continuous"), found)
    if part == "long":
        share = work.flop() / min(found.b) / common.matmul_peak(torch.get_num_threads())
        print(f"  continuous: {100 * share:.0f}% of the matrix-product peak measured just now")
    if part in AIMS:
        common.aim(f"{name} / continuous", found.ratio, ">=", AIMS[part], meant=meant)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--only", default=",".join(PARTS), help="parts, separated by commas")
    given = parser.parse_args(arguments)
    common.header("bench_thoughts", given, arguments)
    pairs = given.pairs or (1 if given.quick else 5)
    with common.threads(given.threads):
        backbone = HFBackbone.from_shape(QUICK_SHAPE if given.quick else Shape(), device="cpu")
        short, long = (QUICK, QUICK_LONG) if given.quick else (SMALL, LONG)
        warm = Work(backbone, short)
        for arm in ("continuous", "shared"):
            warm.ours(arm)
        for part in given.only.split(","):
            size = long if part.startswith("long") else short
            print(f"{part}: batch {size.rows}, {size.question} + {size.latents} + {size.rest} columns")
            run(part, Work(backbone, size), pairs, kind=given.clock, meant=not given.quick)


if __name__ == "__main__":
    main()
