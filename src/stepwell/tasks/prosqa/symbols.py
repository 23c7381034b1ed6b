"""ProsQA for models that read symbols instead of sentences: batches built from graph arrays, renamed every time.

Two prompts:

- `pairs`: two tokens a fact (source, target), then `?`, both options and the root: about 40 tokens for `mini`;
- `facts`: one column a fact and no order among them (`SmallLM.embed_graph`): another task than reading text, and the
  report says so.

Nodes get new names in every batch (persons among persons, concepts among concepts), facts a new order, options too, so
that no name can be learned by heart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from stepwell.latents.thoughts import IGNORE, WITH_CURRICULUM, WITH_LATENTS, Arm, Batch

PAD, EOS, START, LATENT, END, ANSWER, QUERY = range(7)
SPECIAL_NAMES = ("<pad>", "<eos>", "<|start-latent|>", "<|latent|>", "<|end-latent|>", "###", "?")


@dataclass(frozen=True, kw_only=True)
class SymbolFormat:
    """How a graph becomes columns.

    Attributes:
        prompt: `pairs` or `facts`.
        persons, concepts: how many names there are of each; an item must not have more nodes of a kind.
        markers: whether latents stand between `<|start-latent|>` and `<|end-latent|>`.
        thoughts_per_step: latents for each step removed (c_thought).
    """

    prompt: Literal["pairs", "facts"]
    persons: int
    concepts: int
    markers: bool = True
    thoughts_per_step: int = 1

    @property
    def vocabulary(self) -> int:
        """Special tokens, then persons, then concepts."""
        return len(SPECIAL_NAMES) + self.persons + self.concepts

    def name(self, token: int) -> str:
        """A token as text: a special token's name, P0... for persons, c0... for concepts."""
        if token < len(SPECIAL_NAMES):
            return SPECIAL_NAMES[token]
        token -= len(SPECIAL_NAMES)
        return f"P{token}" if token < self.persons else f"c{token - self.persons}"

    def rename(self, graphs: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
        """Fresh symbols of every node: (B, N); no two nodes of an item share one (padding may)."""
        person = graphs["persons"]
        rank = torch.where(person, person.cumsum(1), (~person).cumsum(1)) - 1
        size = len(person)
        persons = torch.rand(size, self.persons, generator=generator).argsort(1)
        concepts = torch.rand(size, self.concepts, generator=generator).argsort(1) + self.persons
        names = torch.where(
            person,
            persons.gather(1, rank.clamp(0, self.persons - 1)),
            concepts.gather(1, rank.clamp(0, self.concepts - 1)),
        )
        return names + len(SPECIAL_NAMES)

    def batch(
        self, graphs: Mapping[str, Tensor], rows: Tensor, arm: Arm, stage: int, generator: torch.Generator
    ) -> Batch:
        """Sequences of an arm at a curriculum stage.

        Args:
            graphs: edges (n, E, 2) padded with -1, persons (n, N), root, target, neg_target, hops (n,), path (n, P)
                with the root first.
            rows: (B,) which graphs.
            arm: see `stepwell.latents.thoughts`.
            stage: how many steps are removed, for arms with a curriculum.
            generator: of names and orders; the same state gives the same batch.
        """
        g = {name: value[rows] for name, value in graphs.items()}
        symbols = self.rename(g, generator)
        order = torch.rand(g["edges"].shape[:2], generator=generator)
        swap = torch.rand(len(rows), generator=generator) < 0.5
        edges, real = _ordered(g["edges"], order)
        facts = torch.where(real[..., None], symbols.gather(1, edges.clamp(min=0).flatten(1)).view_as(edges), PAD)
        root, target, negative = (symbols.gather(1, g[k][:, None])[:, 0] for k in ("root", "target", "neg_target"))
        options = torch.stack((torch.where(swap, negative, target), torch.where(swap, target, negative)), 1)
        removed = stage if arm in WITH_CURRICULUM else (0 if arm == "cot" else g["path"].shape[1])
        tail, tail_labels = self._tail(symbols, g, target, removed)
        head, latent, first = self._latents(len(rows), arm, stage)
        ids, mask = torch.cat((head, tail), 1), torch.cat((torch.ones_like(head, dtype=torch.bool), tail != PAD), 1)
        labels = torch.cat((torch.full_like(head, IGNORE), tail_labels), 1)
        latent = torch.nn.functional.pad(latent, (0, tail.shape[1]))
        common = {"labels": labels, "latent": latent, "items": rows, "names": symbols}
        if self.prompt == "facts":
            graph: dict[str, Any] = {"facts": facts, "facts_mask": real, "options": options, "root": root}
            return Batch(ids=ids, mask=mask, first=first, **common, **graph)
        query = torch.stack((torch.full_like(root, QUERY), options[:, 0], options[:, 1], root), 1)
        prompt = torch.cat((facts.flatten(1), query), 1)
        width = prompt.shape[1]
        return Batch(
            ids=torch.cat((prompt, ids), 1),
            mask=torch.cat((real.repeat_interleave(2, 1), torch.ones_like(query, dtype=torch.bool), mask), 1),
            latent=torch.nn.functional.pad(latent, (width, 0)),
            labels=torch.nn.functional.pad(labels, (width, 0), value=IGNORE),
            first=first + width,
            items=rows,
            names=symbols,
        )

    def _latents(self, size: int, arm: Arm, stage: int) -> tuple[Tensor, Tensor, int]:
        """Markers and latents (B, M), where the latents are, and the column of the first."""
        if arm not in WITH_LATENTS:
            return torch.empty(size, 0, dtype=torch.long), torch.empty(size, 0, dtype=torch.bool), 0
        thoughts = [LATENT] * (stage * self.thoughts_per_step)
        head = torch.tensor([START, *thoughts, END] if self.markers else thoughts, dtype=torch.long).expand(size, -1)
        return head, head == LATENT, int(self.markers)

    def _tail(self, symbols: Tensor, g: Mapping[str, Tensor], target: Tensor, removed: int) -> tuple[Tensor, Tensor]:
        """The steps that remain, the answer and EOS: ids and labels (B, R)."""
        left = (g["hops"] - removed).clamp(min=0)[:, None]
        column = torch.arange(int(left.max()) + 3)[None]
        path = g["path"].clamp(min=0)
        step = symbols.gather(
            1, path.gather(1, (removed + 1 + column).clamp(max=path.shape[1] - 1).expand(len(path), -1))
        )
        tail = torch.where(column < left, step, torch.full_like(step, PAD))
        tail = torch.where(column == left, torch.full_like(tail, ANSWER), tail)
        tail = torch.where(column == left + 1, target[:, None], tail)
        tail = torch.where(column == left + 2, torch.full_like(tail, EOS), tail)
        return tail, torch.where(tail == PAD, torch.full_like(tail, IGNORE), tail)


def _ordered(edges: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    """Edges in random order with the padding in front (left padding), and which are real."""
    real = edges[..., 0] >= 0
    index = torch.where(real, order, order - 1).argsort(1)
    edges = edges.gather(1, index[..., None].expand_as(edges))
    real = real.gather(1, index)
    most = int(real.sum(1).max())
    return edges[:, -most:], real[:, -most:]
