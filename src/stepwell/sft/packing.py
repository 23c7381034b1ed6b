"""Conversations in rows: as many as fit into one, none of which sees another.

In a row, positions restart at 0 with each example, which is how transformers knows that one ends; `prove_packing` tells
for a given model that its states are then those of each example alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from stepwell.backbone import HFBackbone
from stepwell.errors import StepwellError
from stepwell.objectives import IGNORE
from stepwell.sft.conversations import Conversation
from stepwell.sft.render import ChatFormat, Rendered

__all__ = ["PADDING", "Batch", "Corpus", "first_fit_decreasing", "prove_packing", "states"]

PADDING = -1
"""The example that a padded column belongs to."""


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Rendered conversations, one after the other.

    Attributes:
        names: their ids.
        ids: (all tokens,).
        supervised: (all tokens,).
        starts: (N + 1,): example i is [starts[i], starts[i + 1]).
        left_out: id -> why it is not trained on.
    """

    names: tuple[str, ...]
    ids: NDArray[np.int32]
    supervised: NDArray[np.bool_]
    starts: NDArray[np.int64]
    left_out: dict[str, str]

    @classmethod
    def of(cls, conversations: Iterable[Conversation], form: ChatFormat, max_tokens: int) -> Self:
        """Render conversations. One whose answer does not fit is left out: cut, it would teach never to stop.

        Raises:
            StepwellError: the template refuses a conversation; or none is left.
        """
        rendered: dict[str, Rendered] = {}
        left_out: dict[str, str] = {}
        for conversation in conversations:
            made = form.render(conversation, max_tokens)
            if made.truncated:
                left_out[conversation.id] = f"an answer does not fit into {max_tokens} tokens"
            elif not any(made.supervised[1:]):
                left_out[conversation.id] = "it has no answer to learn"
            else:
                rendered[conversation.id] = made
        if not rendered:
            raise StepwellError(
                f"none of {len(left_out)} conversations is left to train on",
                "raise `max_tokens`, and see `stepwell audit sft` for each one's fault",
            )
        return cls.joined(rendered, left_out)

    @classmethod
    def joined(cls, rendered: dict[str, Rendered], left_out: dict[str, str]) -> Self:
        """A corpus of examples that are rendered already."""
        made = tuple(rendered.values())
        supervised = [np.array(each.supervised, dtype=bool) for each in made]
        for flags in supervised:
            flags[:1] = False  # no token of its own example predicts the first one
        return cls(
            names=tuple(rendered),
            ids=np.concatenate([np.array(each.ids, dtype=np.int32) for each in made]),
            supervised=np.concatenate(supervised),
            starts=np.cumsum([0, *(len(each.ids) for each in made)], dtype=np.int64),
            left_out=left_out,
        )

    def __len__(self) -> int:
        return len(self.names)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each example."""
        return np.diff(self.starts).tolist()

    def batch(self, rows: Sequence[Sequence[int]], seed: int = 0) -> Batch:
        """Rows of examples, given by number, padded on the right to the longest."""
        lengths = self.lengths_of(rows)
        columns = max(sum(row) for row in lengths)
        shape = (len(rows), columns)
        ids, labels = np.zeros(shape, np.int64), np.full(shape, IGNORE, np.int64)
        # Padding is an example of its own kind: it counts its positions too, and nothing else sees it.
        positions, examples = np.zeros(shape, np.int64), np.full(shape, PADDING, np.int64)
        for place, row in enumerate(rows):
            begin = 0
            for number, length in zip(row, lengths[place], strict=True):
                own, here = slice(self.starts[number], self.starts[number + 1]), slice(begin, begin + length)
                ids[place, here] = self.ids[own]
                labels[place, here] = np.where(self.supervised[own], self.ids[own], IGNORE)
                positions[place, here] = np.arange(length)
                examples[place, here] = number
                begin += length
            positions[place, begin:] = np.arange(columns - begin)
        made = (torch.from_numpy(array) for array in (ids, labels, positions, examples))
        return Batch(**dict(zip(("ids", "labels", "positions", "examples"), made, strict=True)), seed=seed)

    def lengths_of(self, rows: Sequence[Sequence[int]]) -> list[list[int]]:
        """Tokens of each example of each row."""
        return [[int(self.starts[number + 1] - self.starts[number]) for number in row] for row in rows]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows as a model gets them, on the CPU.

    Attributes:
        ids: (B, T).
        labels: (B, T), each at its own column; `objectives.IGNORE` where nothing is learnt.
        positions: (B, T), from 0 in each example.
        examples: (B, T), numbers of the corpus; `PADDING` at padding.
        seed: of the dropout.
    """

    ids: Int[Tensor, "B T"]
    labels: Int[Tensor, "B T"]
    positions: Int[Tensor, "B T"]
    examples: Int[Tensor, "B T"]
    seed: int

    @property
    def supervised(self) -> int:
        """Tokens that are learnt."""
        return int((self.labels != IGNORE).sum())

    @property
    def tokens(self) -> int:
        """Columns, padding among them: what the device computes."""
        return self.ids.numel()

    @property
    def real_tokens(self) -> int:
        """Columns without padding."""
        return int((self.examples != PADDING).sum())

    def parts(self, rows: int) -> list[Batch]:
        """The batch in pieces of so many rows at most."""
        return [self.rows(slice(at, at + rows)) for at in range(0, len(self.ids), rows)]

    def rows(self, which: slice) -> Batch:
        """Some of the rows."""
        names = ("ids", "labels", "positions", "examples")
        return replace(self, **{name: getattr(self, name)[which] for name in names})


def first_fit_decreasing(lengths: Sequence[int], room: int) -> list[tuple[int, ...]]:
    """Rows of at most `room` tokens: the longest example first, each into the first row that has room for it.

    Needs at most 11/9 of the fewest rows, and 6/9 of one more (Dósa 2007). n log n, by a tree of the room that is left.

    Raises:
        StepwellError: an example is longer than a row.
    """
    if lengths and max(lengths) > room:
        raise StepwellError(f"an example of {max(lengths)} tokens in rows of {room}", "raise `max_tokens`")
    leaves = 1 << max(0, len(lengths) - 1).bit_length()
    # left[i] is the most room in any row below node i; rows are opened by being used.
    left = [room] * (2 * leaves)
    rows: list[list[int]] = []
    for number in sorted(range(len(lengths)), key=lambda number: (-lengths[number], number)):
        node = 1
        while node < leaves:
            node = 2 * node if left[2 * node] >= lengths[number] else 2 * node + 1
        if node - leaves == len(rows):
            rows.append([])
        rows[node - leaves].append(number)
        left[node] -= lengths[number]
        while node := node // 2:
            left[node] = max(left[2 * node], left[2 * node + 1])
    return [tuple(row) for row in rows]


def states(backbone: HFBackbone, ids: Int[Tensor, "B T"], positions: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
    """Hidden states after the final norm; attention is causal, and within each run of positions that go up by one."""
    # Without a mask and a cache, transformers reads from the positions where one sequence ends and another begins.
    output = backbone.base(
        inputs_embeds=backbone.embed(ids), attention_mask=None, position_ids=positions, use_cache=False
    )
    return output.last_hidden_state


def prove_packing(backbone: HFBackbone) -> None:
    """Check on rows of several examples that each has the states that it has alone.

    Raises:
        StepwellError: it has not, so examples of this architecture see one another.
    """
    lengths = (5, 1, 7, 4)
    generator = torch.Generator().manual_seed(0)
    examples = [torch.randint(backbone.vocabulary, (1, length), generator=generator) for length in lengths]
    places = [torch.arange(length)[None] for length in lengths]
    was_training = backbone.training
    backbone.eval()
    try:
        with torch.no_grad():
            alone = [
                states(backbone, ids.to(backbone.device), at.to(backbone.device))
                for ids, at in zip(examples, places, strict=True)
            ]
            packed = states(
                backbone, torch.cat(examples, 1).to(backbone.device), torch.cat(places, 1).to(backbone.device)
            )
    finally:
        backbone.train(was_training)
    wanted = torch.cat(alone, 1).float()
    error = float((packed.float() - wanted).abs().max() / wanted.abs().max())
    if not error <= (0.1 if packed.element_size() < 4 else 1e-4):
        raise StepwellError(
            f"{type(backbone.model).__name__} does not keep the examples of a row apart: their states differ by "
            f"{error:.2g} of the largest from those of each alone",
            "switch packing off for this model",
        )
