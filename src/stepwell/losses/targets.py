"""Where answers stand in rows, and where they are predicted: said once, for a student and its teacher alike.

A row is whatever comes before (a prompt, or BOS, prefix and anchor), then the answer's tokens with the end token, then
padding. What is padding is known from the answers' lengths, never from ids: in many models the padding token is the
end token, which must be learned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from stepwell.errors import StepwellError
from stepwell.objectives import IGNORE, supervised


@dataclass(frozen=True, kw_only=True)
class Targets:
    """Which hidden states of (B, T) predict which tokens; N tokens in all, row after row.

    Make one with `Targets.of` or `Answers.after`, on the CPU, and move it with `to`.

    Attributes:
        index: (N,), of the predicting states among B x T.
        tokens: (N,), what they predict.
        order: (N,), 0 for the first token of its row, 1 for the second.
        rows: the tokens of each row.
        columns: T.
    """

    index: Int[Tensor, " N"]
    tokens: Int[Tensor, " N"]
    order: Int[Tensor, " N"]
    rows: tuple[tuple[int, ...], ...]
    columns: int

    @classmethod
    def of(cls, labels: Int[Tensor, "B C"], real: Bool[Tensor, "B C"], *, skip: int = 0) -> Self:
        """Targets from labels, each at its own column; `objectives.IGNORE` where there is none.

        Args:
            labels: (B, C), not shifted: the one shift is made here, by `objectives.supervised`.
            real: (B, C), False at padding.
            skip: leading columns without a hidden state, as given to `Backbone.forward`; so T = C - skip.

        Raises:
            StepwellError: a label at padding, a label predicted from padding, or one that no state can predict.
        """
        held = labels != IGNORE
        _refuse(held & ~real, "a token is supervised at a padded column", "mask padding by lengths, not by token id")
        _refuse(held[:, : skip + 1], "a token is supervised that no hidden state predicts", "skip fewer columns")
        from_padding = held[:, 1:] & ~real[:, :-1]
        _refuse(from_padding, "a token is predicted from a padded column", "pad prompts on the left")
        mask, tokens = supervised(labels, skip + 1)
        rows = tuple(tuple(row[keep].tolist()) for row, keep in zip(labels, held, strict=True))
        return cls(
            index=mask.flatten().nonzero().flatten(),
            tokens=tokens,
            order=(mask.cumsum(1) - 1)[mask],
            rows=rows,
            columns=mask.shape[1],
        )

    def __len__(self) -> int:
        return sum(map(len, self.rows))

    def within(self, k: int) -> int:
        """How many tokens are among the first k of their row."""
        return sum(min(k, len(row)) for row in self.rows)

    def to(self, device: torch.device | str) -> Self:
        """The same on a device."""
        moved = (tensor.to(device, non_blocking=True) for tensor in (self.index, self.tokens, self.order))
        return replace(self, **dict(zip(("index", "tokens", "order"), moved, strict=True)))

    def select(self, hidden: Tensor) -> Tensor:
        """The predicting states (N, ...) of (B, T, ...). Raises StepwellError where it has another shape."""
        if tuple(hidden.shape[:2]) != (len(self.rows), self.columns):
            raise StepwellError(
                f"the hidden states are {tuple(hidden.shape[:2])}, and the targets are of {len(self.rows)} rows of "
                f"{self.columns} states",
                "build targets with the columns and the `skip` of the forward pass",
            )
        return hidden.flatten(0, 1).index_select(0, self.index)


@dataclass(frozen=True, kw_only=True)
class Answers:
    """B answers as a block of columns, padded on the right.

    Attributes:
        ids: (B, A), what is read and predicted; 0 at padding.
        real: (B, A).
    """

    ids: Int[Tensor, "B A"]
    real: Bool[Tensor, "B A"]

    @classmethod
    def of(cls, answers: Sequence[Sequence[int]], *, eos: int, bos: int | None, cut_at: int | None = None) -> Self:
        """Lay answers out.

        Args:
            answers: tokens of each, with the end token.
            eos: the end token.
            bos: the token that begins a row, where the model has one.
            cut_at: an answer of exactly so many tokens was cut, and may lack its end.

        Raises:
            StepwellError: no answers; an answer that is empty, begins with BOS, or lacks its end token, so that
                stopping would not be learned.
        """
        if not answers:
            raise StepwellError("there are no answers to learn", "leave empty batches out")
        for place, answer in enumerate(answers):
            if not answer:
                raise _bad_answer(place, "has no tokens")
            if bos is not None and bos != eos and answer[0] == bos:
                raise _bad_answer(place, f"begins with BOS ({bos})")
            if answer[-1] != eos and len(answer) != cut_at:
                raise _bad_answer(place, f"does not end with the end token ({eos})")
        longest = max(map(len, answers))
        ids = torch.tensor([[*answer, *[0] * (longest - len(answer))] for answer in answers])
        lengths = torch.tensor([len(answer) for answer in answers])
        return cls(ids=ids, real=torch.arange(longest) < lengths[:, None])

    def mask(self, before: Bool[Tensor, "B C"]) -> Bool[Tensor, "B S"]:
        """What is real in rows of C columns and then the answers, S = C + A together."""
        return torch.cat((before, self.real), 1)

    def after(self, before: Bool[Tensor, "B C"], *, skip: int = 0) -> Targets:
        """Where every token of the answers is predicted in rows of C columns and then the answers.

        Args:
            before: (B, C), what is real of the columns before the answers: all ones for BOS, prefix and anchor; for
                prompts of differing length they are padded on the left.
            skip: as for `Targets.of`.

        Raises:
            StepwellError: as `Targets.of`.
        """
        ignored = self.ids.new_full(before.shape, IGNORE)
        labels = torch.cat((ignored, self.ids.masked_fill(~self.real, IGNORE)), 1)
        return Targets.of(labels, self.mask(before), skip=skip)

    def mixed(self, predicted: Int[Tensor, " N"], gold: Sequence[bool]) -> Int[Tensor, "B A"]:
        """The input of scheduled sampling: the answers' tokens, some of them replaced by the model's own.

        Args:
            predicted: (N,), the argmax of one forward pass over the gold answers, in the order of the `Targets`
                (`Reading.predicted`): each stands where the token stood that it was to predict (the parallel form,
                Mihaylova and Martins 2019, arXiv 1906.07651). What is supervised stays the gold answer.
            gold: (N,), whether a token stays (`coins(gold_share(...), ...)`).

        Raises:
            StepwellError: another number of them than the answers have tokens.
        """
        count = int(self.real.sum())
        if len(predicted) != count or len(gold) != count:
            raise StepwellError(
                f"{len(predicted)} predicted tokens and {len(gold)} draws are given for {count} tokens of answers",
                "give one of each for every token, in the order of the targets",
            )
        ids, kept = self.ids.to(predicted.device), torch.tensor(gold, device=predicted.device)
        real = self.real.to(predicted.device)
        return ids.masked_scatter(real, torch.where(kept, ids[real], predicted))


def _refuse(bad: Tensor, cause: str, way_out: str) -> None:
    if bad.any():
        row = int(bad.any(1).nonzero()[0])
        raise StepwellError(f"{cause} (row {row})", way_out)


def _bad_answer(place: int, fault: str) -> StepwellError:
    return StepwellError(f"answer {place} {fault}", "build answers with the prompt contract's `answer`")
