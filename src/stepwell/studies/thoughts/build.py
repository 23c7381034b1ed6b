"""From a plan's parameters to a model and its readers: the one place where an arm is put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from stepwell.errors import StepwellError
from stepwell.latents.thoughts import Arm, Thoughts
from stepwell.recipe import Curriculum
from stepwell.small import SmallConfig, SmallLM
from stepwell.studies.thoughts.data import load_graphs
from stepwell.studies.thoughts.params import ModelParams, SymbolModel, TextModel
from stepwell.tasks.base import TaskItem
from stepwell.tasks.prosqa import GraphArrays, WordTokenizer, load_items
from stepwell.tasks.prosqa.reading import Reader, SymbolReader, TextReader
from stepwell.tasks.prosqa.symbols import START, SymbolFormat
from stepwell.tasks.written import load_written

MARKERS = ("<|start-latent|>", "<|end-latent|>", "<|latent|>")
"""In the order in which Meta's code adds them: the rows of its checkpoints have no names."""


@dataclass(frozen=True, kw_only=True)
class Built:
    """An arm's model and how its sets are read.

    Attributes:
        thoughts: the model.
        start: (D,) what the vector of `shared` and `frozen` started from.
        tokenizer: of a text model; None for symbols.
    """

    thoughts: Thoughts
    params: ModelParams
    start: torch.Tensor
    tokenizer: Any
    markers: Sequence[int]

    def reader(self, data: Path, name: str) -> Reader:
        """A set of the data stage as this model reads it."""
        if isinstance(self.params.model, SymbolModel):
            ids = [item.id for item in load_items(data / f"{name}.json")] if name not in ("train", "steer") else ()
            return self.symbols(load_graphs(data, name), ids)
        path = data / f"{name}.json"
        # Of items with graphs, the data stage leaves these beside the text.
        return self.text(load_items(path) if path.with_suffix(".safetensors").exists() else load_written(path))

    def symbols(self, graphs: GraphArrays, ids: Sequence[str] = ()) -> SymbolReader:
        """Graphs for a model that reads symbols."""
        assert isinstance(self.params.model, SymbolModel)
        return SymbolReader(graphs, symbol_format(self.params.model, self.params.curriculum), ids)

    def text(self, items: Sequence[TaskItem]) -> TextReader:
        """Items for a model that reads text."""
        curriculum = self.params.curriculum
        return TextReader(
            items, self.tokenizer, self.markers,
            thoughts_per_step=curriculum.thoughts_per_step, pad_to_max=curriculum.pad_to_max,
        )  # fmt: skip


def symbol_format(model: SymbolModel, curriculum: Curriculum) -> SymbolFormat:
    """How graphs become columns for a small model."""
    return SymbolFormat(
        prompt=model.prompt, persons=model.persons, concepts=model.concepts, markers=model.markers,
        thoughts_per_step=curriculum.thoughts_per_step,
    )  # fmt: skip


def small_config(model: SymbolModel, curriculum: Curriculum) -> SmallConfig:
    """The shape of a small model."""
    return SmallConfig(
        vocabulary=symbol_format(model, curriculum).vocabulary, width=model.width, layers=model.layers,
        heads=model.heads, mlp_ratio=model.mlp_ratio, max_positions=model.max_positions, head_bias=model.head_bias,
        activation=model.activation, facts=model.prompt == "facts", embedding_std=model.embedding_std,
    )  # fmt: skip


def build(params: ModelParams, arm: Arm, *, seed: int, device: str, multipass: bool = False) -> Built:
    """An arm's model with fresh (or pretrained) weights; arms of one seed start from the same ones."""
    model = params.model
    if isinstance(model, SymbolModel):
        backbone: Any = SmallLM(small_config(model, params.curriculum), seed=seed).to(device)
        start, tokenizer, markers = backbone.embedding.weight[START], None, ()
    else:
        backbone, tokenizer, markers = _text_backbone(model, seed, device)
        copied = torch.tensor([[backbone.copy_source() if model.name else markers[0]]], device=device)
        start = backbone.embed(copied)[0, 0]
    start = start.detach().clone()
    thoughts = Thoughts(backbone, arm, vector=start, multipass=multipass).to(device)
    return Built(thoughts=thoughts, params=params, start=start, tokenizer=tokenizer, markers=markers)


def _text_backbone(model: TextModel, seed: int, device: str) -> tuple[Any, Any, Sequence[int]]:
    from stepwell.backbone import HFBackbone
    from stepwell.checkpoints import load_coconut_checkpoint
    from stepwell.shapes import Shape

    if model.name is None:
        tokenizer: Any = WordTokenizer()
        shape = Shape(
            architecture=model.architecture, vocabulary=len(tokenizer), width=model.width, layers=model.layers,
            heads=model.heads, max_positions=model.max_positions, dropout=model.dropout,
        )  # fmt: skip
        backbone = HFBackbone.from_shape(
            shape, seed=seed, device=device, gradient_checkpointing=model.gradient_checkpointing
        )
        vocabulary = tokenizer.get_vocab()
        known = [vocabulary[name] for name in MARKERS]
        if model.checkpoint is not None:
            load_coconut_checkpoint(model.checkpoint, backbone)
    else:
        backbone = HFBackbone.load(model.name, device=device, gradient_checkpointing=model.gradient_checkpointing)
        if model.checkpoint is not None:
            known = load_coconut_checkpoint(model.checkpoint, backbone, MARKERS)
        else:
            known = backbone.add_tokens(MARKERS)
        tokenizer = backbone.tokenizer
        if getattr(tokenizer, "eos_token_id", None) is None:
            raise StepwellError(
                "the model has no tokenizer" if tokenizer is None else "the model's tokenizer has no EOS token",
                "put the tokenizer that the model was trained with into the folder, with an EOS token",
                path=model.name,
            )
    start, end, latent = known
    return backbone, tokenizer, (start, latent, end)
