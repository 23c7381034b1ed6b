"""What the study will cost: FLOP and memory traffic by arithmetic, before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stepwell.devices import Work
from stepwell.latents.encoder_specs import BytesSpec, LMSpec, Queries
from stepwell.studies.qa.cost import Reader, reader, tested
from stepwell.studies.wire.params import TAUGHT, AnswerParams, Arm, StageAParams, StageBParams, TrainingParams

BYTES_A_TOKEN = 4.5
"""Of English text."""
ANSWER = 5
"""Tokens of a gold answer with its end, about."""
CONTROLS = 3
"""Prefixes of zeros, of another item, and the mean one."""


def of_stage_a(params: StageAParams, axes: Mapping[str, Any], inputs: Mapping[str, Any]) -> Work | None:
    """Latents through the frozen model, forward and backward to the prefix; the encoder; teacher and held items."""
    known, arm = reader(inputs), params.arms.get(str(axes.get("arm")))
    if known is None or arm is None:
        return None
    return _training(params, known, arm, _vectors(arm, axes), inputs, latent=1.0)


def of_stage_b(params: StageBParams, axes: Mapping[str, Any], inputs: Mapping[str, Any]) -> Work | None:
    """As stage A, with the share of the examples that is read as text."""
    known, arm = reader(inputs), _arm(axes, inputs)
    if known is None or arm is None:
        return None
    total, per_epoch = _steps(params, inputs)
    epochs = total / per_epoch
    latent = sum(params.mixing.keep(step / per_epoch, epochs) for step in range(total)) / max(total, 1)
    return _training(params, known, arm, _vectors(arm, axes), inputs, latent=latent)


def of_answer(params: AnswerParams, axes: Mapping[str, Any], inputs: Mapping[str, Any]) -> Work | None:
    """All items once for each number of bits and each control, for each M."""
    known, arm = reader(inputs), _arm(axes, inputs)
    if known is None or arm is None:
        return None
    items, flop, moved, tokens = tested(inputs["data"], params.items), 0.0, 0.0, 0.0
    for vectors in _vectors(arm, axes):
        short = _short(known, vectors)
        one = short.answering(items, params.batch_size)
        passes = len(params.bits) + CONTROLS
        flop += passes * (one.flop + items * encoding(arm, known))
        moved += passes * (one.bytes or 0.0)
        tokens += passes * (one.tokens or 0)
    return Work(flop=flop, bytes=moved, tokens=int(tokens), precision=known.precision)


def encoding(arm: Arm, known: Reader) -> float:
    """FLOP of encoding one prompt, forward; of a sentence encoder only the pooling on top of it."""
    spec = arm.encoder
    columns, inner = float(known.prompt), 384
    flop = 0.0
    if isinstance(spec, BytesSpec):
        columns, inner = min(known.prompt * BYTES_A_TOKEN, spec.max_bytes) / spec.patch, spec.inner
        flop += spec.layers * (24.0 * columns * inner**2 + 4.0 * columns**2 * inner)
    elif isinstance(spec, LMSpec):
        inner = known.width
        flop += 2.0 * columns * known.layers
    if isinstance(spec.pooling, Queries):
        pooled = spec.pooling
        flop += pooled.layers * (4.0 * columns * inner * pooled.inner + 32.0 * spec.vectors[-1] * pooled.inner**2)
    hidden = known.width if arm.adapter is None or arm.adapter.inner is None else arm.adapter.inner
    adapted = spec.width * hidden + hidden**2 + hidden * known.width + spec.width * known.width
    return flop + 2.0 * spec.vectors[-1] * adapted


def _training(
    params: TrainingParams, known: Reader, arm: Arm, vectors: tuple[int, ...], inputs: Mapping[str, Any], *,
    latent: float,
) -> Work:  # fmt: skip
    steps, _ = _steps(params, inputs)
    items = steps * params.recipe.batch_size * params.recipe.accumulation
    columns = 1 + vectors[-1] + known.anchor + ANSWER
    # No weight of the frozen model has a gradient; its states have: forward 2, backward 2.
    a_latent = 4.0 * columns * known.layers + 6.0 * ANSWER * known.head + 3.0 * encoding(arm, known)
    a_text = 4.0 * (known.prompt + known.anchor + ANSWER) * known.layers + 6.0 * ANSWER * known.head
    taught = TAUGHT & params.losses.terms.keys()
    asked = min(items, params.items or inputs["data"].n_train) if taught else 0
    teacher = 2.0 * asked * (known.prompt + known.anchor + ANSWER) * known.layers
    held = params.held
    looked = min(held.items or inputs["data"].n_held, inputs["data"].n_held)
    look = looked * (2.0 * (columns - ANSWER) * known.layers + 2.0 * known.head + encoding(arm, known))
    answers = _short(known, vectors[-1]).answering(min(held.answered, looked) or 1, held.batch_size)
    times_answered = steps // held.answer_every + 1 if held.answered else 0
    flop = items * (latent * a_latent + (1 - latent) * a_text) + teacher
    flop += (steps // held.every) * look + times_answered * answers.flop
    return Work(flop=flop, tokens=int(items * (latent * columns + (1 - latent) * known.prompt)),
                precision=known.precision)  # fmt: skip


def _steps(params: TrainingParams, inputs: Mapping[str, Any]) -> tuple[int, int]:
    """Optimizer steps of the stage, and of an epoch."""
    items = min(params.items, inputs["data"].n_train) if params.items else inputs["data"].n_train
    per_epoch = max(1, items // (params.recipe.batch_size * params.recipe.accumulation))
    return params.recipe.total_steps(per_epoch), per_epoch


def _short(known: Reader, vectors: int) -> Reader:
    return Reader(
        layers=known.layers, width=known.width, vocabulary=known.vocabulary, prompt=1 + vectors, anchor=known.anchor,
        answer=known.answer, precision=known.precision,
    )  # fmt: skip


def _arm(axes: Mapping[str, Any], inputs: Mapping[str, Any]) -> Arm | None:
    """The job's arm, from whichever stage before it says what it is."""
    found = next((params for params in inputs.values() if isinstance(params, StageAParams)), None)
    return None if found is None else found.arms.get(str(axes.get("arm")))


def _vectors(arm: Arm, axes: Mapping[str, Any]) -> tuple[int, ...]:
    return (int(axes["vectors"]),) if "vectors" in axes else arm.encoder.vectors
