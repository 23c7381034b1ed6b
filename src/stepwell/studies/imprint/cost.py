"""What fitting will cost: FLOP by arithmetic, before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stepwell.devices import Chunks, Work
from stepwell.studies.imprint.params import (
    Arc,
    Arithmetic,
    BaselineParams,
    DataParams,
    FitParams,
    ModelParams,
    Sudoku,
    Text,
    Tier,
)

QUESTION, ANSWER = 15, 6
"""Tokens of a question and an answer of SQuAD, end tokens included, as SmolLM2 cuts them."""
KNOWN = {
    "smollm2-135m": (106_203_456, 576, 49_152),
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": (1_610_711_040, 2_048, 49_152),
    "gpt2": (85_056_000, 768, 50_257),
}
"""Parameters of the layers, width and vocabulary of models that need not be at hand to be planned with."""


def of_fit(params: FitParams, axes: Mapping[str, Any], inputs: Mapping[str, Any]) -> Work | None:
    """Forward, and backward to the inputs, of all restarts in all their steps; logits of the targets only.

    As if every restart took all its steps: one that is exact takes no more. With `until_exact` one restart is counted.
    """
    known = _known(inputs["model"], axes)
    tier = inputs["data"].tiers.get(axes.get("tier"))
    lengths = None if tier is None else tokens_of(tier)
    if known is None or tier is None or lengths is None:
        return None
    layers, width, vocabulary = known
    slots = int(axes.get("slots", params.slots))
    pairs = min(tier.n, params.items or tier.n)
    runs = pairs * params.recipe.steps * (1 if params.recipe.until_exact else params.recipe.restarts)
    columns = sum(slots + length for length in lengths)
    # The backward pass to c costs a forward pass: no weight has a gradient.
    flop = 2 * runs * 2.0 * (columns * layers + sum(lengths) * width * vocabulary)
    chunks = Chunks(items=pairs, size=params.chunk)
    return Work(flop=flop, tokens=runs * columns, precision=_precision(inputs["model"], axes), shared=chunks)


def of_baselines(params: BaselineParams, axes: Mapping[str, Any], inputs: Mapping[str, Any]) -> Work | None:
    """A forward pass of each beginning."""
    known = _known(inputs["model"], axes)
    data: DataParams = inputs["data"]
    tier = data.tiers.get(str(axes.get("tier")))
    lengths = None if tier is None else tokens_of(tier)
    if known is None or tier is None or lengths is None:
        return None
    layers, width, vocabulary = known
    columns = tier.n * sum((params.draws * params.slots + (params.draws + 4) * length) for length in lengths)
    head = tier.n * (params.draws + 4) * sum(lengths) * width * vocabulary
    return Work(flop=2.0 * (columns * layers + head), tokens=columns, precision=_precision(inputs["model"], axes))


def tokens_of(tier: Tier) -> tuple[int, ...] | None:
    """Tokens of each target of a pair, about; None where that depends on the data, or where a context stands before."""
    if isinstance(tier, Arc | Text) or tier.in_context:
        return None
    if isinstance(tier, Arithmetic):
        return (2 * tier.digits + 4, tier.digits + 2)
    if isinstance(tier, Sudoku):
        return (tier.side * (tier.side + 1), tier.side * (tier.side + 1))
    return (QUESTION, ANSWER)


def _known(model: ModelParams, axes: Mapping[str, Any]) -> tuple[int, int, int] | None:
    one = model.models.get(str(axes.get("model")))
    return None if one is None else KNOWN.get(one.name)


def _precision(model: ModelParams, axes: Mapping[str, Any]) -> Any:
    precision = model.models[str(axes["model"])].precision
    return precision if precision != "fp64" else "fp32"
