"""What fitting will cost: FLOP by arithmetic, before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stepwell.devices import Chunks, Memory, Work
from stepwell.fitting.recipe import CHUNK_LOGITS, GPU_COLUMNS
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
from stepwell.studies.qa.cost import FLOAT, Reader, sized

QUESTION, ANSWER = 15, 6
"""Tokens of a question and an answer of SQuAD, end tokens included, as SmolLM2 cuts them."""


def of_fit(params: FitParams, axes: Mapping[str, Any], inputs: Mapping[str, Any]) -> Work | None:
    """Forward, and backward to the inputs, of all restarts in all their steps; logits of the targets only.

    As if every restart took all its steps: one that is exact takes no more. With `until_exact` one restart is counted.
    """
    known = _known(inputs["model"], axes)
    tier = inputs["data"].tiers.get(axes.get("tier"))
    lengths = None if tier is None else tokens_of(tier)
    if known is None or tier is None or lengths is None:
        return None
    slots = int(axes.get("slots", params.slots))
    pairs = min(tier.n, params.items or tier.n)
    runs = pairs * params.recipe.steps * (1 if params.recipe.until_exact else params.recipe.restarts)
    columns = sum(slots + length for length in lengths)
    # The backward pass to c costs a forward pass: no weight has a gradient.
    flop = 2 * runs * 2.0 * (columns * known.layers + sum(lengths) * known.head)
    chunks = Chunks(items=pairs, size=params.chunk)
    restarts = 1 if params.recipe.until_exact else params.recipe.restarts
    at_once = min(float(params.columns or GPU_COLUMNS), float(min(pairs, params.chunk) * restarts * columns))
    return Work(
        flop=flop, tokens=runs * columns, precision=known.precision, memory=passing(known, at_once), shared=chunks
    )


def passing(known: Reader, columns: float) -> Memory:
    """What a forward and backward pass of so many columns holds; logits come and go, some positions at a time."""
    logits = 4.0 * FLOAT * min(columns * known.vocabulary, CHUNK_LOGITS)
    # Beside the layers: what goes in, and what the last norm reads.
    activations = columns * (known.kept() + 2 * FLOAT * known.width)
    return Memory(weights=known.weights, activations=activations, logits=logits)


def of_baselines(params: BaselineParams, axes: Mapping[str, Any], inputs: Mapping[str, Any]) -> Work | None:
    """A forward pass of each beginning."""
    known = _known(inputs["model"], axes)
    data: DataParams = inputs["data"]
    tier = data.tiers.get(str(axes.get("tier")))
    lengths = None if tier is None else tokens_of(tier)
    if known is None or tier is None or lengths is None:
        return None
    columns = tier.n * sum((params.draws * params.slots + (params.draws + 4) * length) for length in lengths)
    head = tier.n * (params.draws + 4) * sum(lengths) * known.head
    return Work(
        flop=2.0 * (columns * known.layers + head), tokens=columns, precision=known.precision,
        memory=passing(known, min(columns, GPU_COLUMNS)),
    )  # fmt: skip


def tokens_of(tier: Tier) -> tuple[int, ...] | None:
    """Tokens of each target of a pair, about; None where that depends on the data, or where a context stands before."""
    if isinstance(tier, Arc | Text) or tier.in_context:
        return None
    if isinstance(tier, Arithmetic):
        return (2 * tier.digits + 4, tier.digits + 2)
    if isinstance(tier, Sudoku):
        return (tier.side * (tier.side + 1), tier.side * (tier.side + 1))
    return (QUESTION, ANSWER)


def _known(model: ModelParams, axes: Mapping[str, Any]) -> Reader | None:
    """The model of a job; None where its size is not known."""
    one = model.models.get(str(axes.get("model")))
    if one is None:
        return None
    return sized(one.name, prompt=0, longest=0, answer=0, precision="bf16" if one.precision == "bf16" else "fp32")
