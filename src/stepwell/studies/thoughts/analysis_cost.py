"""What probing and tracing will cost: FLOP by arithmetic, before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stepwell.devices import Work
from stepwell.studies.thoughts.analysis_params import ProbeParams, TraceParams
from stepwell.studies.thoughts.cost import SYMBOL_ANSWER, TEXT_ANSWER, columns, flop_per_column, latents_of, sizes
from stepwell.studies.thoughts.params import ModelParams, SymbolModel, TextModel

KNOWN_SHAPES = {"gpt2": (12, 768), "smollm2-135m": (30, 576)}
"""Layers and width of models that need not be at hand to be planned with."""
MLP_EPOCHS, MLP_WIDTH = 60, 64
STRENGTHS, MLP_STRENGTHS = 3, 2
SUMS_PER_SECOND, MLP_FLOP_PER_SECOND, PASS_FLOP_PER_SECOND = 2e9, 3e10, 1e11
"""Of the fits on one CPU core, as measured; they do not run on a GPU."""


def of_probing(params: ProbeParams, axes: Mapping[str, Any], inputs: Mapping[str, Any]) -> Work | None:
    """One pass over the items, and the fits of every cell: nested folds, and all permutations."""
    model, data = inputs["model"], inputs["data"]
    per_column, shape = flop_per_column(model), _shape(model)
    if per_column is None or shape is None:
        return None
    layers, width = shape
    counts = sizes(params, data)
    tokens = sum(counts) * columns(model, data)
    steps, classes = (3, 8) if data.family == "mini" else (6, 38)
    steps, layers, latents = len(params.steps) or steps, len(params.layers) or layers + 1, latents_of(model, axes)
    cells = layers * steps * (3 + latents)
    fits = params.folds * (params.inner * STRENGTHS + STRENGTHS)
    ridge = sum(2.0 * n * n / params.folds for n in counts) * (params.permutations + 1) * ("ridge" in params.probes)
    mlp_cells = (len(params.mlp_layers) or layers) * (len(params.mlp_steps) or steps) * _mlp_positions(params, latents)
    # Every labelling is fitted anew, on the rows of each inner fold with each strength, and once on all but the scored.
    rows = sum(counts) * (params.folds - 1.0) * (MLP_STRENGTHS * (params.inner - 1) + 1)
    mlp = 6.0 * MLP_EPOCHS * MLP_WIDTH * (width + classes) * rows * (params.mlp_permutations + 1)
    fitted = cells * fits * ridge, mlp_cells * mlp * ("mlp" in params.probes)
    seconds = fitted[0] / SUMS_PER_SECOND + fitted[1] / MLP_FLOP_PER_SECOND
    flop = per_column * tokens
    # The fits take their time on any device; the pass, far less of it, at the speed of a few cores.
    return Work(flop=flop + sum(fitted), tokens=tokens, seconds=seconds + flop / PASS_FLOP_PER_SECOND)


def _mlp_positions(params: ProbeParams, latents: int) -> int:
    """How many positions of this arm the MLP is asked of: an arm may lack thoughts that a plan names."""
    if not params.mlp_positions:
        return 3 + latents
    return sum(not name.startswith("thought ") or int(name.split()[1]) <= latents for name in params.mlp_positions)


def of_tracing(params: TraceParams, axes: Mapping[str, Any], inputs: Mapping[str, Any]) -> Work | None:
    """Both runs, and one for each layer and place: the prompt anew for three, thoughts and an answer for the others."""
    model, data = inputs["model"], inputs["data"]
    per_column, shape = flop_per_column(model), _shape(model)
    if per_column is None or shape is None:
        return None
    layers, latents = len(params.layers) or shape[0] + 1, latents_of(model, axes)
    answer = (TEXT_ANSWER if isinstance(model.model, TextModel) else SYMBOL_ANSWER) * (2 if params.decode else 1)
    each = 3 * columns(model, data) + layers * (3 * columns(model, data) + (8 + latents) * (latents + answer))
    tokens = sum(sizes(params, data)) * each
    return Work(flop=float(per_column) * tokens, tokens=tokens)


def _shape(model: ModelParams) -> tuple[int, int] | None:
    spec = model.model
    if isinstance(spec, SymbolModel) or spec.name is None:
        return spec.layers, spec.width
    return KNOWN_SHAPES.get(spec.name)
