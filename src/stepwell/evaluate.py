"""Evaluation of thoughts: free decoding, two-option forced choice, answer margin, interventions. One record an item.

The prompt is read once. Interventions on thoughts go on from the cache of the chain, at the first thought that they
touch: the question is read once for all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stepwell.answering import decoded, margins, read_of
from stepwell.latents.conditions import DONATED, Intervention
from stepwell.latents.interventions import Material, applies, edit, put_in, unchanged
from stepwell.latents.thoughts import Batch, Chain, Thoughts
from stepwell.tasks.prosqa.reading import Answer, Reader


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What a model did with one item.

    Attributes:
        answer: free decoding, read back.
        margin: log-probability of the right option minus the wrong one's, in nats, each the whole `### answer`; None
            where it was not asked for, or the items have no two options.
    """

    row: int
    answer: Answer
    margin: float | None

    @property
    def forced_correct(self) -> bool | None:
        """Whether the right option is the likelier one; a tie is not. None where no options were compared."""
        return None if self.margin is None else self.margin > 0


@dataclass(frozen=True, kw_only=True)
class Intervened:
    """What a model did with one item under one intervention.

    Attributes:
        what: the intervention.
        row: the item's.
        latents: thoughts in the columns.
        donor: the row whose chain was put in; None where none was.
        answer: free decoding; None where it was not asked for.
        margin: as `Scored.margin`; without decoding, the options follow the thoughts at once.
        flipped: whether the forced choice differs from the same item's clean one; None without options.
        changed: whether the decoded answer differs from the clean one; None without decoding.
        vacuous: whether the thoughts are what they were: the edit could change nothing.
    """

    what: Intervention
    row: int
    latents: int
    donor: int | None
    answer: Answer | None
    margin: float | None
    flipped: bool | None
    changed: bool | None
    vacuous: bool

    @property
    def forced_correct(self) -> bool | None:
        """Whether the right option is the likelier one; a tie is not. None where no options were compared."""
        return None if self.margin is None else self.margin > 0


@torch.no_grad()
def score(
    model: Thoughts, reader: Reader, *, stage: int, seed: int, batch_size: int, items: int = 0, forced: bool = True
) -> Iterator[Scored]:
    """Ask a model every item of a reader, or the first `items`, in order.

    Args:
        model: in evaluation mode.
        stage: of the curriculum: the number of latents is the stage's, never the item's.
        seed: of the names that symbols get.
        forced: also score both options, where the items have two.
    """
    for rows, batch in asked(model, reader, stage=stage, seed=seed, batch_size=batch_size, items=items):
        cache = model.backbone.new_cache()
        hidden = model(batch, cache=cache)[:, -1]
        read = read_of(model, batch, hidden, cache)
        answers = decoded(model, reader, batch, read)
        nats: list[Any] = [None] * len(answers)
        if forced and reader.choice:
            nats = margins(model, reader, batch, read, [answer.steps for answer in answers]).tolist()
        for row, answer, margin in zip(rows.tolist(), answers, nats, strict=True):
            yield Scored(row=row, answer=answer, margin=margin)


@torch.no_grad()
def intervened(
    model: Thoughts, reader: Reader, what: Sequence[Intervention], given: Material, *, stage: int, seed: int,
    batch_size: int, items: int = 0, decode: bool = True,
) -> Iterator[list[Intervened]]:  # fmt: skip
    """Ask a model every item under every intervention, batch by batch: the question is read once for all of them.

    Args:
        model: of an arm with latents, in evaluation mode.
        reader: the set.
        what: `clean` first, as `interventions` gives them: the others are compared with it.
        given: of the thoughts that `collect` gives with the same stage, seed and batch size.
        stage, seed, batch_size, items: as for `score`.
        decode: also let it write its answer; without, only the two options are compared, right after the thoughts:
            nothing is left of items that have none.

    Yields:
        The items of one batch under one intervention; an item that has no donor for it is left out.
    """
    for rows, batch in asked(model, reader, stage=stage, seed=seed, batch_size=batch_size, items=items):
        most = max([batch.thoughts, *(one.count or 0 for one in what)])
        chain = model.chain(batch.with_thoughts(most))
        clean: list[Intervened] = []
        for one in what:
            found = _under(model, reader, one, given, rows, batch, chain, decode, clean)
            clean = clean or found
            kept = applies(one, given, rows)
            yield [answer for answer, has in zip(found, kept, strict=True) if has]


def _under(
    model: Thoughts, reader: Reader, what: Intervention, given: Material, rows: Tensor, batch: Batch, chain: Chain,
    decode: bool, clean: list[Intervened],
) -> list[Intervened]:  # fmt: skip
    """One batch under one intervention; `clean` is empty where this is the clean one."""
    latents = batch.thoughts
    own, vacuous = chain.thoughts[:, :latents], [False] * len(rows)
    if what.family in ("clean", "thoughts"):
        batch = batch if what.count is None else batch.with_thoughts(what.count)
        hidden, cache, _ = model.resume(batch, chain, start=batch.thoughts)
    else:
        start = what.touched(latents).start
        if what.propagates and model.arm == "continuous":
            how: dict[str, Any] = {"edit": edit(what, given, rows)}
        else:  # what stands in the columns of the other arms does not depend on the chain
            how = {"put_in": put_in(what, given, rows).to(own.device)}
        hidden, cache, thoughts = model.resume(batch, chain, start=start, **how)
        vacuous = unchanged(thoughts, own).tolist()
    read = read_of(model, batch, hidden, cache)
    answers = decoded(model, reader, batch, read) if decode else None
    steps = [()] * len(rows) if answers is None else [answer.steps for answer in answers]
    donor = given.donors[what.family][rows].tolist() if what.family in DONATED else [None] * len(rows)
    found = []
    nats: list[Any] = margins(model, reader, batch, read, steps).tolist() if reader.choice else [None] * len(rows)
    for i, margin in enumerate(nats):
        answer = None if answers is None else answers[i]
        before = clean[i] if clean else None
        one = Intervened(
            what=what, row=int(rows[i]), latents=batch.thoughts, donor=donor[i], answer=answer, margin=margin,
            flipped=None if margin is None else before is not None and (margin > 0) != before.forced_correct,
            vacuous=vacuous[i], changed=None if answer is None else before is not None and answer.text != _text(before),
        )  # fmt: skip
        found.append(one)
    return found


def _text(found: Intervened) -> str | None:
    return None if found.answer is None else found.answer.text


@torch.no_grad()
def collect(model: Thoughts, reader: Reader, *, stage: int, seed: int, batch_size: int, items: int = 0) -> Tensor:
    """The thoughts (n, K, D) that stand in the latent columns, item by item, on the CPU."""
    every = asked(model, reader, stage=stage, seed=seed, batch_size=batch_size, items=items)
    return torch.cat([model.chain(batch).thoughts.cpu() for _, batch in every])


def asked(
    model: Thoughts, reader: Reader, *, stage: int, seed: int, batch_size: int, items: int = 0
) -> Iterator[tuple[Tensor, Batch]]:
    """Prompts in batches; the same seed gives the same names, whatever is done with the thoughts."""
    device = next(model.parameters()).device
    total = min(items, len(reader)) if items else len(reader)
    for start in range(0, total, batch_size):
        rows = torch.arange(start, min(start + batch_size, total))
        generator = torch.Generator().manual_seed(seed + start)
        yield rows, reader.ask(rows, model.arm, stage, generator).to(device)


def accuracy(found: list[Scored]) -> tuple[int, int]:
    """How many answers are right, of how many."""
    return sum(scored.answer.correct for scored in found), len(found)
