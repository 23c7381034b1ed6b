"""What the stages of `thoughts` will cost: FLOP by arithmetic, before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stepwell.devices import Steps, Work
from stepwell.latents.conditions import interventions
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
WITH_LATENTS = ("continuous", "frozen", "shared")
KNOWN_BLOCK_PARAMETERS = {"gpt2": 85_056_000, "smollm2-135m": 106_203_456}
"""Parameters of the layers, embeddings left out, of models that need not be at hand to be planned with."""
KNOWN_EMBEDDINGS = {"gpt2": 39_383_808, "smollm2-135m": 28_311_552}
"""Parameters of the embeddings of the same models; of models from scratch they are few."""


def of_training(params: TrainParams, axes: Mapping[str, Any], inputs: Mapping[str, Any]) -> Work | None:
    """Forward and backward of every item: 3 x 2 FLOP a parameter and column (Kaplan et al. 2020, arXiv 2001.08361)."""
    model: ModelParams = inputs["model"]
    data: DataParams = inputs["data"]
    per_column = flop_per_column(model)
    if per_column is None:
        return None
    steps = params.total_steps(max(1, data.n_train // (params.batch_size * params.accumulation)))
    tokens = steps * params.batch_size * params.accumulation * columns(model, data)
    embeddings = KNOWN_EMBEDDINGS.get(model.model.name or "", 0) if isinstance(model.model, TextModel) else 0
    shared = Steps(
        n=steps, batches=params.accumulation, rows=params.batch_size, trained=per_column / 2 + embeddings
    )  # fmt: skip
    return Work(flop=3.0 * per_column * tokens, tokens=tokens, precision=params.precision, shared=shared)


def of_evaluation(params: EvaluateParams, axes: Mapping[str, Any], inputs: Mapping[str, Any]) -> Work | None:
    """One forward of every item; decoding adds a column a token, within the count."""
    model: ModelParams = inputs["model"]
    data: DataParams = inputs["data"]
    per_column = flop_per_column(model)
    if per_column is None:
        return None
    tokens = sum(sizes(params, data)) * columns(model, data)
    return Work(flop=float(per_column) * tokens, tokens=tokens)


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
    return Work(flop=float(per_column) * tokens, tokens=tokens)


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
    known = KNOWN_BLOCK_PARAMETERS.get(spec.name)
    return None if known is None else 2.0 * known
