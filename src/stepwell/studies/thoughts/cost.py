"""What the stages of `thoughts` will cost: FLOP and memory by arithmetic, before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stepwell.devices import Memory, Steps, Work
from stepwell.latents.conditions import interventions
from stepwell.studies.qa.cost import FLOAT, KNOWN, LAYOUTS, OF_LOGITS, TRAINED
from stepwell.studies.thoughts.params import (
    AskParams,
    DataParams,
    EvaluateParams,
    InterveneParams,
    ModelParams,
    SymbolModel,
    TextModel,
    TrainParams,
)

TEXT_TOKENS = 410
"""A training sequence as text: 359 GPT-2 tokens of question on the official test set, latents, steps and answer."""
GRAPH_COLUMNS = 40
"""A training sequence as symbols: about as many for `mini` in pairs as for the official graphs as facts."""
PAIR_COLUMNS = 90
"""An official graph in pairs: 36 facts on average, the query, latents and answer."""
TEXT_ANSWER, SYMBOL_ANSWER = 40, 8
"""Columns of an answer as it is decoded, and of both options."""
SYMBOLS, WORDS = 64, 512
"""Entries of the vocabulary of a model from scratch, about."""
KEPT, KEPT_GATED = 17, 28
"""Arrays of its width that a trained layer leaves for the backward pass; with an MLP that has a gate, as Llama's."""
KEPT_DROPOUT = 4
"""Arrays of the size of all attention weights that dropout on them leaves, with as much again of masks and inputs."""
WITH_LATENTS = ("continuous", "frozen", "shared")
KNOWN_EMBEDDINGS = {"gpt2": 39_383_808, "smollm2-135m": 28_311_552}
"""Parameters of the embeddings of models that this study is planned with; of models from scratch they are few."""


def of_training(params: TrainParams, axes: Mapping[str, Any], inputs: Mapping[str, Any]) -> Work | None:
    """Forward and backward of every item: 3 x 2 FLOP a parameter and column (Kaplan et al. 2020, arXiv 2001.08361)."""
    model: ModelParams = inputs["model"]
    data: DataParams = inputs["data"]
    per_column = flop_per_column(model)
    if per_column is None:
        return None
    if params.given is not None:
        return Work()  # a checkpoint is taken as it is
    steps = params.total_steps(max(1, data.n_train // (params.batch_size * params.accumulation)))
    tokens = steps * params.batch_size * params.accumulation * columns(model, data)
    embeddings = KNOWN_EMBEDDINGS.get(model.model.name or "", 0) if isinstance(model.model, TextModel) else 0
    shared = Steps(
        n=steps, batches=params.accumulation, rows=params.batch_size, trained=per_column / 2 + embeddings
    )  # fmt: skip
    memory = held(model, axes, params.batch_size * columns(model, data), params.batch_size, trained=True)
    return Work(flop=3.0 * per_column * tokens, tokens=tokens, precision=params.precision, memory=memory, shared=shared)


def of_evaluation(params: EvaluateParams, axes: Mapping[str, Any], inputs: Mapping[str, Any]) -> Work | None:
    """One forward of every item; decoding adds a column a token, within the count."""
    model: ModelParams = inputs["model"]
    data: DataParams = inputs["data"]
    per_column = flop_per_column(model)
    if per_column is None:
        return None
    tokens = sum(sizes(params, data)) * columns(model, data)
    memory = held(model, axes, params.batch_size * columns(model, data), params.batch_size, trained=False)
    return Work(flop=float(per_column) * tokens, tokens=tokens, memory=memory)


def of_interventions(params: InterveneParams, axes: Mapping[str, Any], inputs: Mapping[str, Any]) -> Work | None:
    """The question twice (for the chain, for all interventions); for each intervention its thoughts and an answer."""
    model: ModelParams = inputs["model"]
    data: DataParams = inputs["data"]
    per_column = flop_per_column(model)
    if per_column is None:
        return None
    latents = latents_of(model, axes)
    what = interventions(
        latents, families=params.families, scales=params.scales, propagates=params.propagates, counts=params.thoughts
    )
    answer = TEXT_ANSWER if isinstance(model.model, TextModel) else SYMBOL_ANSWER
    each = 2 * columns(model, data) + len(what) * (latents + answer) if latents else 0
    tokens = sum(sizes(params, data)) * each
    # Interventions are asked one after another.
    memory = held(model, axes, params.batch_size * columns(model, data), params.batch_size, trained=False)
    return Work(flop=float(per_column) * tokens, tokens=tokens, memory=memory)


def held(model: ModelParams, axes: Mapping[str, Any], cells: float, rows: int, *, trained: bool) -> Memory | None:
    """What a micro-batch of so many columns (`cells`) in all its rows holds, in fp32; None for an unknown model.

    Every pass of the chain of `continuous` leaves the keys and values of all columns before it: growing a cache makes a
    new one where gradients flow through it.
    """
    shape = shape_of(model)
    if shape is None:
        return None
    layers, width, vocabulary, in_layers, parameters = shape
    spec = model.model
    answer = TEXT_ANSWER if isinstance(spec, TextModel) else SYMBOL_ANSWER
    passes = latents_of(model, axes) if axes.get("arm") == "continuous" else 0
    gated = isinstance(spec, TextModel) and (spec.name == "smollm2-135m" or spec.architecture in ("llama", "qwen2"))
    layer = float(KEPT_GATED if gated else KEPT)
    if isinstance(spec, TextModel) and (spec.name == "gpt2" or (spec.name is None and spec.dropout)):
        heads = 12 if spec.name else spec.heads
        layer += KEPT_DROPOUT * heads * cells / rows / width
    kept = 2.0 * layers + layer if isinstance(spec, TextModel) and spec.gradient_checkpointing else layers * layer
    arrays = kept + 2 * layers * passes if trained else 2 * layers + KEPT
    return Memory(
        weights=0.0 if trained else FLOAT * parameters, training=TRAINED * parameters if trained else 0.0,
        layers=TRAINED * in_layers if trained else 0.0,
        activations=FLOAT * cells * width * arrays, logits=OF_LOGITS * FLOAT * rows * answer * float(vocabulary),
    )  # fmt: skip


def shape_of(model: ModelParams) -> tuple[int, int, int, float, float] | None:
    """Layers, width, vocabulary, parameters of the layers and of the model; None for one whose size is not known."""
    spec, per_column = model.model, flop_per_column(model)
    if per_column is None:
        return None
    if isinstance(spec, SymbolModel):
        return spec.layers, spec.width, SYMBOLS, per_column / 2, per_column / 2
    if spec.name is None:
        return spec.layers, spec.width, WORDS, per_column / 2, per_column / 2 + WORDS * spec.width
    blocks, *_ = LAYOUTS[spec.name]
    _, width, vocabulary = KNOWN[spec.name]
    return blocks, width, vocabulary, per_column / 2, per_column / 2 + KNOWN_EMBEDDINGS[spec.name]


def latents_of(model: ModelParams, axes: Mapping[str, Any]) -> int:
    """Thoughts of the last stage; 0 for an arm without them."""
    return model.curriculum.stages * model.curriculum.thoughts_per_step if axes.get("arm") in WITH_LATENTS else 0


def sizes(params: AskParams, data: DataParams) -> list[int]:
    """How many items of each set are asked."""
    made = {"official" if data.valid else "valid": data.n_valid, "test": data.n_test, **data.families}
    made |= {f"{name}-swapped": made.get(name, 0) for name in data.swapped}
    return [min(n, params.items or n) for name, n in made.items() if n and (not params.sets or name in params.sets)]


def columns(model: ModelParams, data: DataParams) -> int:
    """Columns of a training sequence, about."""
    if isinstance(model.model, TextModel):
        return TEXT_TOKENS
    return PAIR_COLUMNS if model.model.prompt == "pairs" and data.family != "mini" else GRAPH_COLUMNS


def flop_per_column(model: ModelParams) -> float | None:
    """Forward FLOP of one column: 2 a parameter of the layers. None for a model whose size is not known here."""
    spec = model.model
    if isinstance(spec, SymbolModel):
        return 2.0 * spec.layers * spec.width**2 * (4 + 2 * spec.mlp_ratio)
    if spec.name is None:
        return 2.0 * spec.layers * spec.width**2 * 12
    return 2.0 * KNOWN[spec.name][0] if spec.name in KNOWN_EMBEDDINGS else None
