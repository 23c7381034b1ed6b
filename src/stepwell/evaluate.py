"""Evaluation of thoughts: free decoding, two-option forced choice, answer margin, interventions. One record an item.

Everything is batched, over one cache: the prompt is read once, rows that are done leave the batch, and both options
are scored as continuations of what the row itself has written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from stepwell.decode import greedy
from stepwell.latents.thoughts import Batch, Thoughts
from stepwell.tasks.prosqa.reading import Answer, Reader

Edit = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What a model did with one item.

    Attributes:
        answer: free decoding, read back.
        margin: log-probability of the right option minus the wrong one's, in nats, each the whole `### answer`.
    """

    row: int
    answer: Answer
    margin: float

    @property
    def forced_correct(self) -> bool:
        """Whether the right option is the likelier one; a tie is not."""
        return self.margin > 0


@torch.no_grad()
def score(
    model: Thoughts, reader: Reader, *, stage: int, seed: int, batch_size: int, items: int = 0,
    edit: Edit | None = None, thoughts: Tensor | None = None, forced: bool = True,
) -> Iterator[Scored]:  # fmt: skip
    """Ask a model every item of a reader, or the first `items`, in order.

    Args:
        model: in evaluation mode.
        stage: of the curriculum: the number of latents is the stage's, never the item's.
        seed: of the names that symbols get.
        edit: (thoughts (B, K, D), rows (B,)) -> thoughts put in AFTER they were computed.
        thoughts: (n, K, D) computed thoughts of all items, as `collect` gives them; needed with `edit`.
        forced: also score both options; without, the margin is NaN.
    """
    device = next(model.parameters()).device
    for rows, batch in asked(model, reader, stage=stage, seed=seed, batch_size=batch_size, items=items):
        put_in = None
        if edit is not None:
            assert thoughts is not None
            put_in = edit(thoughts[rows].to(device), rows)
        cache, hidden = _read(model, batch, put_in)
        mask, positions = model.placed(batch)
        found = greedy(
            model.backbone, hidden, cache=cache, mask=mask, positions=positions, stop=(reader.eos,),
            limit=_limits(model, reader, batch, positions),
        )  # fmt: skip
        answers = [reader.answer(batch, i, decoded.ids) for i, decoded in enumerate(found)]
        margins = _margins(model, reader, batch, answers, cache, hidden) if forced else [float("nan")] * len(answers)
        for i, row in enumerate(rows.tolist()):
            yield Scored(row=row, answer=answers[i], margin=margins[i])


@torch.no_grad()
def collect(model: Thoughts, reader: Reader, *, stage: int, seed: int, batch_size: int, items: int = 0) -> Tensor:
    """The thoughts (n, K, D) that stand in the latent columns, item by item, on the CPU."""
    found = []
    for _, batch in asked(model, reader, stage=stage, seed=seed, batch_size=batch_size, items=items):
        found.append(model.columns(batch)[1].float().cpu())
    return torch.cat(found)


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


def _read(model: Thoughts, batch: Batch, put_in: Tensor | None) -> tuple[Any, Tensor]:
    """Cache and last hidden state (B, D) after the prompt and its latents."""
    cache = model.backbone.new_cache()
    if put_in is not None:
        return cache, model.replaced(batch, put_in, cache=cache)[:, -1]
    return cache, model(batch, cache=cache)[:, -1]


def _limits(model: Thoughts, reader: Reader, batch: Batch, positions: Tensor) -> list[int]:
    """New tokens at most for each row, such that its options still find positions after them."""
    # Twice the longest gold continuation: a longer chain may still be valid, an endless one is not.
    limit, known = 2 * reader.longest_tail, model.backbone.max_positions
    if known is None or int(positions.max()) + 2 * limit <= known:  # far off: an option is shorter than `limit`
        return [limit] * len(positions)
    options = [max(map(len, reader.options(batch, row))) for row in range(len(positions))]
    return [max(0, min(limit, known - p - o)) for p, o in zip(positions.tolist(), options, strict=True)]


def _margins(
    model: Thoughts, reader: Reader, batch: Batch, answers: list[Answer], cache: Any, hidden: Tensor
) -> list[float]:
    """Right minus wrong option, in nats, each as a continuation of the steps that the row wrote."""
    mask, positions = model.placed(batch)
    pairs = [reader.options(batch, i) for i in range(len(answers))]
    texts = [[*answer.steps, *option] for answer, pair in zip(answers, pairs, strict=True) for option in pair]
    skip = [len(answer.steps) for answer in answers for _ in range(2)]
    device = hidden.device
    longest = max(map(len, texts))
    ids = torch.tensor([text + [0] * (longest - len(text)) for text in texts], device=device)
    real = torch.tensor([[c < len(text) for c in range(longest)] for text in texts], device=device)
    scored = torch.tensor(
        [[s <= c < len(text) for c in range(longest)] for text, s in zip(texts, skip, strict=True)], device=device
    )
    # Columns of padding get a position that every model knows.
    place = (positions.repeat_interleave(2)[:, None] + torch.arange(longest, device=device)).where(real, 0)
    states = model.backbone(
        model.backbone.embed(ids), positions=place, mask=torch.cat((mask.repeat_interleave(2, 0), real), 1),
        cache=cache.repeat(2),
    )  # fmt: skip
    # The state before a token predicts it: the prompt's last for the first, then the option's own.
    before = torch.cat((hidden.repeat_interleave(2, 0)[:, None], states[:, :-1]), 1)
    nats = F.cross_entropy(model.backbone.logits(before[scored]).float(), ids[scored], reduction="none")
    total = torch.zeros(len(texts), device=device).index_add_(0, scored.nonzero()[:, 0], -nats)
    return (total[0::2] - total[1::2]).tolist()
