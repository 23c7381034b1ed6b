"""Readers: items as batches for a model, and what it wrote as answers.

A reader knows one set of items in one prompt. It lays out training batches (prompt, latents, remaining steps, answer,
EOS), gives the two options as continuations for the forced choice, and reads back what was decoded. Training and
evaluation use the same reader, so that their prompts cannot differ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any, Protocol

import torch
from torch import Tensor

from stepwell.errors import StepwellError
from stepwell.latents.thoughts import IGNORE, WITH_CURRICULUM, WITH_LATENTS, Arm, Batch
from stepwell.tasks.base import TaskItem
from stepwell.tasks.prosqa.graphs import GraphArrays
from stepwell.tasks.prosqa.symbols import ANSWER, EOS, SymbolFormat

StageOf = Callable[[torch.Generator], int]
MARKER = "### "


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a model wrote for one item.

    Attributes:
        text: the answer as text, empty where there is none.
        correct: whether it is the right one.
        steps: the ids before the answer's marker; the forced choice goes on from them.
        chain_valid: whether the written steps lead from root to target; None where none are, or nothing could say so.
    """

    text: str
    correct: bool
    steps: tuple[int, ...]
    chain_valid: bool | None


class Reader(Protocol):
    """One set of items in one prompt."""

    eos: int
    longest_tail: int
    """Tokens of the longest gold continuation: steps, marker, answer and EOS."""
    choice: bool
    """Whether each item has two options. Without, there is nothing to score a forced choice on."""
    lengths: Tensor
    """(n,) how long each item is, in whatever decides the width of its batch: tokens, or facts."""

    def __len__(self) -> int: ...
    def train_batch(self, rows: Tensor, arm: Arm, stage: StageOf, generator: torch.Generator) -> Batch: ...  # noqa: D102
    def ask(self, rows: Tensor, arm: Arm, stage: int, generator: torch.Generator) -> Batch: ...  # noqa: D102
    def options(self, batch: Batch, row: int) -> Sequence[Sequence[int]]: ...  # noqa: D102
    def answer(self, batch: Batch, row: int, ids: Sequence[int]) -> Answer: ...  # noqa: D102
    def identity(self, row: int) -> tuple[str, int, str]: ...  # noqa: D102


def tensors(graphs: GraphArrays) -> dict[str, Tensor]:
    """The arrays that `SymbolFormat.batch` reads, as int64 and bool tensors."""
    names = ("edges", "root", "target", "neg_target", "hops", "path")
    return {name: torch.from_numpy(getattr(graphs, name)).long() for name in names} | {
        "persons": torch.from_numpy(graphs.persons)
    }


class SymbolReader:
    """Graphs as symbols, renamed in every batch.

    Args:
        graphs: the items.
        layout: how a graph becomes columns.
        ids: the items' ids; by default their place in the set.

    Raises:
        StepwellError: an item has more persons or concepts than the layout has names for.
    """

    eos, choice = EOS, True

    def __init__(self, graphs: GraphArrays, layout: SymbolFormat, ids: Sequence[str] = ()) -> None:
        self.layout, self.graphs, self.ids = layout, tensors(graphs), ids
        self.longest_tail = int(self.graphs["hops"].max()) + 3 if len(graphs) else 0
        self.lengths = (self.graphs["edges"][..., 0] >= 0).sum(1)
        persons = graphs.persons.sum(1)
        for kind, most, names in (
            ("persons", persons.max(initial=0), layout.persons),
            ("concepts", (graphs.n_nodes - persons).max(initial=0), layout.concepts),
        ):
            if most > names:
                raise StepwellError(
                    f"an item has {most} {kind}, but the model has names for {names}: two nodes would share one",
                    f"raise `{kind}` of the model to {most} or more",
                )

    def __len__(self) -> int:
        return len(self.graphs["root"])

    def train_batch(self, rows: Tensor, arm: Arm, stage: StageOf, generator: torch.Generator) -> Batch:
        """Rows at one stage, drawn once for the batch: all its rows have the same number of latents."""
        return self.layout.batch(self.graphs, rows, arm, stage(generator), generator)

    def ask(self, rows: Tensor, arm: Arm, stage: int, generator: torch.Generator) -> Batch:
        """Prompts to decode from."""
        return self.layout.batch(self.graphs, rows, arm, stage, generator).prompt()

    def options(self, batch: Batch, row: int) -> tuple[Sequence[int], Sequence[int]]:
        """The marker and the right option, the marker and the wrong one."""
        right, wrong = (self._symbol(batch, row, field) for field in ("target", "neg_target"))
        return (ANSWER, right), (ANSWER, wrong)

    def answer(self, batch: Batch, row: int, ids: Sequence[int]) -> Answer:
        """What was decoded: symbols up to `###`, then the answer; whatever follows makes it another answer."""
        marker = ids.index(ANSWER) if ANSWER in ids else len(ids)
        steps, said = tuple(ids[:marker]), list(ids[marker + 1 :])
        right = self._symbol(batch, row, "target")
        text = " ".join(map(self.layout.name, said))
        return Answer(
            text=text,
            correct=said == [right],
            steps=steps,
            chain_valid=self._valid(batch, row, steps) if steps else None,
        )

    def identity(self, row: int) -> tuple[str, int, str]:
        """Id, hops, and the right answer as text (a node of the graph: names are drawn anew)."""
        name = self.ids[row] if self.ids else str(row)
        return name, int(self.graphs["hops"][row]), f"node {int(self.graphs['target'][row])}"

    def _symbol(self, batch: Batch, row: int, field: str) -> int:
        assert batch.names is not None
        return int(batch.names[row, self.graphs[field][batch.items[row]]])

    def _valid(self, batch: Batch, row: int, steps: Sequence[int]) -> bool:
        assert batch.names is not None
        edges = self.graphs["edges"][batch.items[row]]
        facts = {tuple(pair) for pair in batch.names[row][edges[edges[:, 0] >= 0]].tolist()}
        path = [self._symbol(batch, row, "root"), *steps]
        leads = all(pair in facts for pair in pairwise(path))
        return leads and path[-1] == self._symbol(batch, row, "target")


class TextReader:
    """Items as text, tokenised once: question, newline, latents, remaining steps (one a line), `### answer`, EOS.

    Args:
        items: the items.
        tokenizer: `encode` and `decode`; transformers' or `WordTokenizer`.
        markers: ids of `<|start-latent|>`, `<|latent|>`, `<|end-latent|>`.
        thoughts_per_step: latents for a removed step.
        pad_to_max: give items with fewer steps than the stage the stage's number of latents all the same.
    """

    def __init__(
        self, items: Sequence[TaskItem], tokenizer: Any, markers: Sequence[int], *, thoughts_per_step: int,
        pad_to_max: bool,
    ) -> None:  # fmt: skip
        self.items, self.tokenizer, self.markers = items, tokenizer, tuple(markers)
        self.thoughts_per_step, self.pad_to_max = thoughts_per_step, pad_to_max
        self.eos: int = tokenizer.eos_token_id
        self.questions = [self._first(item.question + "\n") for item in items]
        self.steps = [[self._more(step + "\n") for step in item.steps] for item in items]
        self.answers = [[self._more(MARKER + option) for option in item.options()] for item in items]
        self.choice = all(len(options) == 2 for options in self.answers)
        self.longest_tail = max(
            (sum(map(len, s)) + len(a[0]) + 1 for s, a in zip(self.steps, self.answers, strict=True)), default=0
        )
        self.lengths = torch.tensor(
            [len(q) + sum(map(len, s)) for q, s in zip(self.questions, self.steps, strict=True)]
        )

    def _first(self, text: str) -> list[int]:
        """With what the tokenizer puts before a text (BOS), as training and evaluation both do."""
        return list(self.tokenizer.encode(text))

    def _more(self, text: str) -> list[int]:
        transformers_like = hasattr(self.tokenizer, "convert_tokens_to_ids")
        return list(self.tokenizer.encode(text, add_special_tokens=False) if transformers_like else self._first(text))

    def __len__(self) -> int:
        return len(self.items)

    def train_batch(self, rows: Tensor, arm: Arm, stage: StageOf, generator: torch.Generator) -> Batch:
        """Rows, each at a stage of its own where the curriculum mixes stages."""
        return self._batch(rows, arm, [stage(generator) for _ in rows], self.pad_to_max)

    def ask(self, rows: Tensor, arm: Arm, stage: int, generator: torch.Generator) -> Batch:
        """Prompts to decode from. The number of latents is the stage's, never the item's: that would tell its hops."""
        return self._batch(rows, arm, [stage] * len(rows), True).prompt()

    def _batch(self, rows: Tensor, arm: Arm, stages: Sequence[int], pad_to_max: bool) -> Batch:
        heads, latents, tails = [], [], []
        start, latent, end = self.markers
        for row, stage in zip(rows.tolist(), stages, strict=True):
            steps = self.steps[row]
            removed = stage if arm in WITH_CURRICULUM else (0 if arm == "cot" else len(steps))
            count = (removed if pad_to_max else min(removed, len(steps))) * self.thoughts_per_step
            heads.append([*self.questions[row], start] if arm in WITH_LATENTS else self.questions[row])
            latents.append([latent] * count + [end] if arm in WITH_LATENTS else [])
            tails.append([*chain.from_iterable(steps[removed:]), *self.answers[row][0], self.eos])
        return _laid_out(rows, heads, latents, tails, latent)

    def options(self, batch: Batch, row: int) -> Sequence[Sequence[int]]:
        """`### answer` for the right option and, where there is one, the wrong one."""
        return self.answers[int(batch.items[row])]

    def answer(self, batch: Batch, row: int, ids: Sequence[int]) -> Answer:
        """What was decoded: lines of steps up to the marker, then the answer."""
        item = self.items[int(batch.items[row])]
        marker = self._more(MARKER.strip())
        at = next((i for i in range(len(ids)) if list(ids[i : i + len(marker)]) == marker), None)
        text = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        written, _, said = text.partition(MARKER.strip())
        lines = [line.strip() for line in written.splitlines() if line.strip()]
        return Answer(
            text=said.strip(),
            correct=item.is_right(said),
            steps=tuple(ids if at is None else ids[:at]),
            chain_valid=item.chain_is_valid(lines) if lines else None,
        )

    def longest_row(self, arm: Arm, stages: int) -> tuple[int, int]:
        """The row whose training sequence is the longest in any of the stages, and its number of tokens."""
        widths = [self._width(row, arm, stages) for row in range(len(self))]
        return max(enumerate(widths), key=lambda found: found[1])

    def _width(self, row: int, arm: Arm, stages: int) -> int:
        steps = list(map(len, self.steps[row]))
        fixed = len(self.questions[row]) + len(self.answers[row][0]) + 1 + 2 * (arm in WITH_LATENTS)
        if arm not in WITH_CURRICULUM:
            return fixed + (sum(steps) if arm == "cot" else 0)
        each = self.thoughts_per_step if arm in WITH_LATENTS else 0
        counts = ((k if self.pad_to_max else min(k, len(steps)), k) for k in range(stages + 1))
        return fixed + max(count * each + sum(steps[k:]) for count, k in counts)

    def identity(self, row: int) -> tuple[str, int, str]:
        """Id, hops and the right answer."""
        item = self.items[row]
        return item.id, item.hops, item.answer


def _laid_out(
    rows: Tensor, heads: list[list[int]], latents: list[list[int]], tails: list[list[int]], latent: int
) -> Batch:
    """Left-pad to align the first latent, right-pad the rest; each row is filled by slices, never token by token."""
    first = max(len(head) for head in heads)
    columns = first + max(len(middle) + len(tail) for middle, tail in zip(latents, tails, strict=True))
    ids = torch.zeros(len(heads), columns, dtype=torch.long)
    mask = torch.zeros(len(heads), columns, dtype=torch.bool)
    is_latent = torch.zeros_like(mask)
    labels = torch.full_like(ids, IGNORE)
    for i, (head, middle, tail) in enumerate(zip(heads, latents, tails, strict=True)):
        begin, end = first - len(head), first + len(middle) + len(tail)
        ids[i, begin:end] = torch.tensor([*head, *middle, *tail])
        mask[i, begin:end] = True
        is_latent[i, first : first + middle.count(latent)] = True
        labels[i, first + len(middle) : end] = ids[i, first + len(middle) : end]
    return Batch(ids=ids, mask=mask, latent=is_latent, labels=labels, first=first, items=rows)
