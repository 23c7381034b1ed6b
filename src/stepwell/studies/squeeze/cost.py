"""What squeezing will cost: FLOP and memory traffic by arithmetic, before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stepwell.devices import Memory, Work
from stepwell.latents.restorer_specs import RestorerParams, RestoringRecipe
from stepwell.studies.qa.cost import FLOAT, TRAINED, Reader, reader, tested, times
from stepwell.studies.squeeze.params import AnswerParams, RefineParams, RestoreParams

AT_ONCE = 512
"""Positions whose logits exist at a time: `stepwell.latents.restoring.STATES`, which needs torch."""
EIGH = 9
"""An eigendecomposition takes about so many D^3 (Golub & Van Loan 2013, 8.3)."""


def of_restore(params: RestoreParams, axes: Mapping[str, Any], inputs: Mapping[str, Any]) -> Work | None:
    """The corpus's covariance and its eigenvectors, training on token vectors, and one pass over held and test.

    As if every token of the corpus were another one: the covariance takes one row for each distinct token.
    """
    known, arm = reader(inputs), params.arms.get(str(axes.get("arm")))
    if known is None or arm is None:
        return None
    data, dims = inputs["data"], int(axes.get("dims", params.dims))
    rows = min(known.vocabulary, data.n_train * known.prompt)
    fitting = 2.0 * rows * known.width**2 + EIGH * float(known.width) ** 3
    passed, taught = restoring(arm.restorer, dims, known.width)
    measured = (data.n_held + data.n_test) * known.prompt
    trained = 0
    if arm.recipe is not None:
        trained = arm.recipe.steps * arm.recipe.batch_size * arm.recipe.accumulation
    flop = fitting + trained * (passed + taught) + measured * passed + _looks(known, params, arm.recipe, inputs)
    # The restorer is float32 whatever the model is.
    batch = 1 if arm.recipe is None else arm.recipe.batch_size
    return Work(flop=flop, tokens=trained + measured, precision="fp32", memory=_fitting(known, passed, taught, batch))


def of_refine(params: RefineParams, axes: Mapping[str, Any], inputs: Mapping[str, Any]) -> Work | None:
    """Prompts read through the restorer: forward, and backward to the embeddings; the logits, which are made twice."""
    known = reader(inputs)
    arm = inputs["restore"].arms.get(str(axes.get("arm")))
    if known is None or arm is None:
        return None
    recipe, dims = params.recipe, int(axes.get("dims", inputs["restore"].dims))
    tokens = recipe.steps * recipe.batch_size * recipe.accumulation
    passed, taught = restoring(arm.restorer, dims, known.width)
    if recipe.objective != "reading":
        memory = _fitting(known, passed, taught, recipe.batch_size)
        flop = tokens * (passed + taught) + _looks(known, params, recipe, inputs)
        return Work(flop=flop, tokens=tokens, precision="fp32", memory=memory)
    tokens *= known.prompt
    columns = float(recipe.batch_size * known.longest)
    memory = Memory(
        weights=known.weights, training=TRAINED * taught / 4,
        logits=known.judged(min(columns, AT_ONCE), taught=False),
        activations=columns * (known.kept() + _restored(known.width)),
    )  # fmt: skip
    flop = tokens * a_read_token(known, passed, taught) + _looks(known, params, recipe, inputs)
    return Work(flop=flop, tokens=tokens, precision=known.precision, memory=memory)


def _looks(
    known: Reader,
    params: RestoreParams | RefineParams,
    recipe: RestoringRecipe | None,
    inputs: Mapping[str, Any],
) -> float:
    """FLOP of answering held-out items at each checkpoint."""
    if recipe is None or not params.answered:
        return 0.0
    looks = -(-recipe.steps // params.checkpoint_every)
    return looks * known.answering(min(params.answered, inputs["data"].n_held), params.answered).flop


def of_answer(params: AnswerParams, axes: Mapping[str, Any], inputs: Mapping[str, Any]) -> Work | None:
    """All items once for each number of bits."""
    known = reader(inputs)
    if known is None:
        return None
    once = known.answering(tested(inputs["data"], params.items), params.batch_size)
    return times(once, len(params.bits))


def _fitting(known: Reader, passed: float, taught: float, batch_size: int) -> Memory:
    """Token vectors alone: the table, covariance and eigenvectors in fp64, and a batch of restored vectors."""
    table = known.head * FLOAT + 4 * 8.0 * known.width**2
    return Memory(
        weights=known.weights, training=TRAINED * taught / 4 + passed / 2 * FLOAT,
        activations=table + batch_size * _restored(known.width),
    )  # fmt: skip


def _restored(width: int) -> float:
    """Bytes that a token leaves in restorer and losses for their backward pass: about ten arrays of the width."""
    return 10.0 * width * FLOAT


def a_read_token(known: Reader, passed: float, taught: float) -> float:
    """FLOP of one token in phase 2: no weight of the model has a gradient; its states have."""
    return 4.0 * known.layers + 6.0 * known.head + passed + taught


def restoring(params: RestorerParams, dims: int, width: int) -> tuple[float, float]:
    """FLOP of one token through the bottleneck of c = `dims` numbers, and what training adds; biases left out."""
    hidden = params.hidden or width
    layers = {
        "pca": 0,
        "linear": dims * width,
        "mlp": dims * hidden + hidden * hidden + hidden * width,
    }
    trained = layers["mlp" if params.adapter == "residual" else params.adapter]
    inverse = dims * width if params.adapter in ("pca", "residual") else 0
    return 2.0 * (dims * width + inverse + trained), 4.0 * trained
