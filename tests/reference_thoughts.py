"""Thoughts the slow way, row by row, and tiny backbones in float64 to try both ways on.

Nothing here is shared with `stepwell.latents`: no padding, no cache, the sequence a Python list of vectors that is run
anew from its start for every thought.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from doubles import norms_in_float64
from stepwell.latents.thoughts import IGNORE, Batch, Thoughts
from stepwell.small import SmallConfig, SmallLM

SMALL = ("pairs", "facts", "facts-with-positions")
HUGGING_FACE = ("gpt2", "llama", "qwen2", "gpt_neox")
BACKBONES = (*SMALL, *HUGGING_FACE)
VOCABULARY = 69


def backbone_of(name: str, *, width: int = 16, **options: Any) -> Any:
    """A backbone in float64 with weights so large that attention and positions matter."""
    if name in SMALL:
        config = SmallConfig(
            vocabulary=VOCABULARY, width=width, layers=2, heads=4, facts=name != "pairs", embedding_std=0.7,
            max_positions=0 if name == "facts" else 160,
            head_bias=("previous", "alibi") if name == "pairs" else (),
        )  # fmt: skip
        return louder(SmallLM(config, seed=1).double().eval())
    from stepwell.backbone import HFBackbone
    from stepwell.shapes import Shape

    shape = Shape(
        architecture=name, vocabulary=VOCABULARY, width=width, layers=2, heads=4, max_positions=160,  # pyright: ignore[reportArgumentType]
        key_value_heads=2 if name in ("llama", "qwen2") else None, tied=name != "gpt_neox",
    )  # fmt: skip
    backbone = HFBackbone.from_shape(shape, precision="fp64", device="cpu", **options)
    norms_in_float64(backbone, width)
    return louder(backbone)


def louder(backbone: Any) -> Any:
    torch.manual_seed(1)
    for name, parameter in backbone.named_parameters():
        if parameter.dim() > 1 or name.endswith("bias"):
            nn.init.normal_(parameter, std=0.3)
    return backbone


def random_batch(
    name: str,
    *,
    latents: Sequence[int] = (3, 1, 2, 0),
    heads: Sequence[int] = (5, 3, 7, 1),
    tails: Sequence[int] = (4, 2, 3, 5),
    seed: int = 0,
) -> Batch:
    """Rows of which every part has a length of its own; where a graph comes first, `heads` may be 0."""
    generator = torch.Generator().manual_seed(seed)
    rows, first = len(latents), max(heads)
    columns = first + max(k + tail for k, tail in zip(latents, tails, strict=True))
    ids = torch.randint(VOCABULARY, (rows, columns), generator=generator)
    column = torch.arange(columns)[None]
    k, head, tail = (torch.tensor(lengths)[:, None] for lengths in (latents, heads, tails))
    mask = (column >= first - head) & (column < first + k + tail)
    latent = (column >= first) & (column < first + k)
    labels = torch.where((column >= first + k) & mask, ids, IGNORE)
    graph: dict[str, Tensor] = {}
    if name.startswith("facts"):
        facts = torch.tensor([4, 6, 5, 2])[:rows, None]
        graph = {
            "facts": torch.randint(VOCABULARY, (rows, 6, 2), generator=generator),
            "facts_mask": torch.arange(6)[None] >= 6 - facts,
            "options": torch.randint(VOCABULARY, (rows, 2), generator=generator),
            "root": torch.randint(VOCABULARY, (rows,), generator=generator),
        }
    return Batch(ids=ids, mask=mask, latent=latent, labels=labels, first=first, items=torch.arange(rows), **graph)


def run_slowly(backbone: Any, vectors: Sequence[Tensor], graph: int) -> Tensor:
    """Hidden states (n, D) of n input vectors, the first `graph` of them a graph."""
    embeds = torch.stack(list(vectors))[None]
    positions = torch.tensor([[0] * graph + list(range(len(vectors) - graph))])
    if isinstance(backbone, SmallLM):
        everything = torch.ones(1, len(vectors), dtype=torch.bool)
        return backbone(embeds, positions=positions, mask=everything, prefix=graph)[0]
    output = backbone.model(inputs_embeds=embeds, position_ids=positions, output_hidden_states=True, use_cache=False)
    return output.hidden_states[-1][0]


def graph_slowly(backbone: Any, batch: Batch, row: int) -> list[Tensor]:
    if batch.facts is None:
        return []
    assert batch.facts_mask is not None and batch.options is not None and batch.root is not None
    word = backbone.embedding.weight
    found = [
        backbone.source(word[source]) + backbone.target(word[target])
        for source, target in batch.facts[row][batch.facts_mask[row]]
    ]
    found.append(sum(backbone.option(word[option]) for option in batch.options[row]))
    return [*found, backbone.root(word[batch.root[row]])]


def think_slowly(
    backbone: Any, batch: Batch, row: int, *, vector: Tensor | None = None, given: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Hidden states of a row's real columns from the one before `first` on, and its thoughts (k, D).

    `vector` stands in every latent column, or `given` (k, D) in them one after another; else the hidden state before.
    """
    vectors = graph_slowly(backbone, batch, row)
    graph, before, thoughts = len(vectors), 0, []
    for column in range(batch.ids.shape[1]):
        if not batch.mask[row, column]:
            continue
        if batch.latent[row, column]:
            if vector is not None:
                thought = vector
            elif given is not None:
                thought = given[len(thoughts)]
            else:
                thought = run_slowly(backbone, vectors, graph)[-1]
            thoughts.append(thought)
            vectors.append(thought)
        else:
            vectors.append(backbone.embed(batch.ids[row : row + 1, column : column + 1])[0, 0])
        before += column < batch.first
    hidden = run_slowly(backbone, vectors, graph)
    return hidden[graph + before - 1 :], torch.stack(thoughts) if thoughts else hidden[:0]


def weighted(hidden: Tensor, batch: Batch, seed: int = 5) -> Tensor:
    """A number that depends on every real hidden state (B, T - first + 1, D), each in its own way."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(hidden.shape, dtype=torch.float64, generator=generator)
    real = nn.functional.pad(batch.mask[:, batch.first :], (1, 0), value=True)
    return (hidden * weights.to(hidden.dtype))[real].sum()


class Slow:
    """One item at a time, without padding, without a cache: decoding and log-probabilities."""

    def __init__(
        self, model: Thoughts, batch: Batch, row: int, given: Tensor | None = None, *,
        added: Mapping[int, Tensor] | None = None, count: int | None = None,
    ) -> None:  # fmt: skip
        """With thoughts `given` (K, D), or computed, with `added[k]` put on thought k before the next one is."""
        self.backbone: Any = model.backbone
        self.vectors = graph_slowly(self.backbone, batch, row)
        self.graph, self.thoughts = len(self.vectors), []
        real = batch.mask[row].nonzero()[:, 0].tolist()
        tokens = [column for column in real if not batch.latent[row, column]]
        self.vectors += [self.embedded(int(batch.ids[row, column])) for column in tokens if column < batch.first]
        for k in range(len(real) - len(tokens) if count is None else count):
            thought = run_slowly(self.backbone, self.vectors, self.graph)[-1] if model.arm == "continuous" else None
            thought = model.vector.detach() if thought is None else thought
            thought = given[k] if given is not None else thought + (added or {}).get(k, 0)
            self.thoughts.append(thought)
            self.vectors.append(thought)
        self.vectors += [self.embedded(int(batch.ids[row, column])) for column in tokens if column >= batch.first]

    def embedded(self, token: int) -> Tensor:
        return self.backbone.embed(torch.tensor([[token]]))[0, 0]

    def log_probabilities(self, ids: Sequence[int]) -> Tensor:
        vectors = self.vectors + [self.embedded(token) for token in ids]
        hidden = run_slowly(self.backbone, vectors, self.graph)
        return self.backbone.logits(hidden).log_softmax(-1)

    def decode(self, stop: int, limit: int) -> list[int]:
        ids: list[int] = []
        while len(ids) < limit:
            token = int(self.log_probabilities(ids)[-1].argmax())
            if token == stop:
                break
            ids.append(token)
        return ids

    def nats(self, steps: Sequence[int], option: Sequence[int]) -> float:
        """Log-probability of an option after the steps."""
        table = self.log_probabilities([*steps, *option])
        start = len(self.vectors) + len(steps) - 1
        return sum(float(table[start + i, token]) for i, token in enumerate(option))
