"""What the study will cost: FLOP, memory traffic and memory by arithmetic, before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from stepwell.adapt.params import LoraParams
from stepwell.devices import Memory, Steps, Work
from stepwell.latents.encoder_specs import BytesSpec, LMSpec, Queries
from stepwell.studies.qa.cost import BYTES, FLOAT, TRAINED, Reader, reader, share_of, tested
from stepwell.studies.wire.params import (
    TAUGHT,
    AnswerParams,
    Arm,
    EncoderParams,
    StageAParams,
    StageBParams,
    TrainingParams,
    WireRecipe,
)

BYTES_A_TOKEN = 4.5
"""Of English text."""
ANSWER = 5
"""Tokens of a gold answer with its end, about."""
CONTROLS = 3
"""Prefixes of zeros, of another item, and the mean one."""
SENTENCE = 384
"""Width of a sentence encoder."""
KEPT = 16
"""Arrays of its width that a trained transformer layer leaves for the backward pass."""


def of_encoder(params: EncoderParams, axes: Mapping[str, Any], inputs: Mapping[str, Any]) -> Work | None:
    """Auto-encoding: latents through the frozen model, then the prompt's words; nothing where the arm has none."""
    known, arm = reader(inputs), params.arms.get(str(axes.get("arm")))
    if known is None or arm is None:
        return None
    auto, vectors = arm.auto_encoding, _vectors(arm, axes)[-1]
    if auto is None:
        memory = Memory(weights=known.weights, training=FLOAT * trained(arm, known, vectors))
        return Work(precision=known.precision, memory=memory)
    steps, _ = _steps(auto.recipe, auto.items, inputs)
    items = steps * auto.recipe.batch_size * auto.recipe.accumulation
    columns = 1 + vectors + known.anchor + auto.tokens
    forward = 2.0 * columns * known.layers + 2.0 * auto.tokens * known.head + encoding(arm, known)
    held = inputs["data"].n_held
    looks = (steps // auto.every + 1) * 2 * min(auto.held or held, held)
    backward = 2.0 * columns * known.layers + 4.0 * auto.tokens * known.head + 2.0 * encoding(arm, known)
    memory = _held(known, arm, vectors, auto.recipe.batch_size, columns, auto.tokens, taught=False)
    shared = Steps(
        n=steps, batches=auto.recipe.accumulation, rows=auto.recipe.batch_size,
        trained=trained(arm, known, vectors), repeated=looks * forward,
    )  # fmt: skip
    return Work(
        flop=items * (forward + backward) + looks * forward, tokens=items * columns, precision=known.precision,
        memory=memory, shared=shared,
    )  # fmt: skip


def of_stage_a(params: StageAParams, axes: Mapping[str, Any], inputs: Mapping[str, Any]) -> Work | None:
    """Latents through the frozen model, forward and backward to the prefix; the encoder; teacher and held items."""
    known, arm = reader(inputs), _arm(axes, inputs)
    if known is None or arm is None:
        return None
    return _training(params, known, arm, _vectors(arm, axes), inputs, latent=1.0)


def of_stage_b(params: StageBParams, axes: Mapping[str, Any], inputs: Mapping[str, Any]) -> Work | None:
    """As stage A, with the share of the examples that is read as text."""
    known, arm = reader(inputs), _arm(axes, inputs)
    if known is None or arm is None:
        return None
    total, per_epoch = _steps(params.recipe, params.items, inputs)
    epochs = total / per_epoch
    latent = sum(params.mixing.keep(step / per_epoch, epochs) for step in range(total)) / max(total, 1)
    return _training(params, known, arm, _vectors(arm, axes), inputs, latent=latent)


def of_answer(params: AnswerParams, axes: Mapping[str, Any], inputs: Mapping[str, Any]) -> Work | None:
    """All items once for each number of bits and each control, for each M."""
    known, arm = reader(inputs), _arm(axes, inputs)
    if known is None or arm is None:
        return None
    items, flop, moved, tokens = tested(inputs["data"], params.items), 0.0, 0.0, 0.0
    served = _vectors(arm, axes)
    for vectors in served:
        short = _short(known, vectors)
        one = short.answering(items, params.batch_size)
        # Where the axis says which M is judged, the smaller ones are answered once.
        passes = len(params.bits) + CONTROLS if "vectors" not in axes or vectors == served[-1] else 1
        flop += passes * (one.flop + items * encoding(arm, known))
        moved += passes * (one.bytes or 0.0)
        tokens += passes * (one.tokens or 0)
    held = _short(known, served[-1]).asked(params.batch_size)
    # The encoder's forward pass takes no more than what a training would keep of it.
    extra = params.batch_size * encoded(arm, known) / (1 if arm.reader is None else known.blocks)
    memory = replace(held, activations=held.activations + extra)
    return Work(flop=flop, bytes=moved, tokens=int(tokens), precision=known.precision, memory=memory)


def encoding(arm: Arm, known: Reader) -> float:
    """FLOP of encoding one prompt, forward; of a sentence encoder only the pooling on top of it."""
    spec = arm.encoder
    columns, inner = _read(arm, known, float(known.prompt))
    flop = 0.0
    if isinstance(spec, BytesSpec):
        flop += spec.layers * (24.0 * columns * inner**2 + 4.0 * columns**2 * inner)
    elif isinstance(spec, LMSpec):
        flop += 2.0 * columns * known.layers
    if isinstance(spec.pooling, Queries):
        pooled = spec.pooling
        flop += pooled.layers * (4.0 * columns * inner * pooled.inner + 32.0 * spec.vectors[-1] * pooled.inner**2)
    return flop + 2.0 * spec.vectors[-1] * _adapted(arm, known)


def trained(arm: Arm, known: Reader, vectors: int, lora: LoraParams | None = None) -> float:
    """Parameters that are trained around the model, about: matrices only, LoRA as if on square maps."""
    spec, found = arm.encoder, float(_adapted(arm, known))
    _, inner = _read(arm, known, 0.0)
    if isinstance(spec, BytesSpec):
        found += spec.layers * 12.0 * inner**2 + 256.0 * inner + spec.patch * float(inner**2)
    if isinstance(spec.pooling, Queries):
        pooled = spec.pooling
        # Attention among the queries, attention to the states, and an MLP.
        found += pooled.layers * (14.0 * pooled.inner**2 + 2.0 * inner * pooled.inner) + vectors * pooled.inner
    return found + sum(known.adapters(one) for one in (arm.reader, lora) if one is not None)


def encoded(arm: Arm, known: Reader) -> float:
    """Bytes that the longest prompt leaves in the encoder for its backward pass."""
    spec = arm.encoder
    columns, inner = _read(arm, known, float(known.longest))
    found = 0.0
    if isinstance(spec, BytesSpec):
        found += spec.layers * columns * KEPT * inner * FLOAT
    elif arm.reader is not None:
        found += columns * known.kept(share_of(arm.reader))
    if isinstance(spec.pooling, Queries):
        pooled = spec.pooling
        found += pooled.layers * (2 * columns + 2 * KEPT * spec.vectors[-1]) * pooled.inner * FLOAT
    return found + columns * inner * FLOAT


def _training(
    params: TrainingParams, known: Reader, arm: Arm, vectors: tuple[int, ...], inputs: Mapping[str, Any], *,
    latent: float,
) -> Work:  # fmt: skip
    recipe = params.recipe
    steps, _ = _steps(recipe, params.items, inputs)
    items = steps * recipe.batch_size * recipe.accumulation
    columns = 1 + vectors[-1] + known.anchor + ANSWER
    # No weight of the frozen model has a gradient; its states have: forward 2, backward 2.
    a_latent = 4.0 * columns * known.layers + 6.0 * ANSWER * known.head + 3.0 * encoding(arm, known)
    a_text = 4.0 * (known.prompt + known.anchor + ANSWER) * known.layers + 6.0 * ANSWER * known.head
    taught = bool(TAUGHT & params.losses.terms.keys())
    asked = min(items, params.items or inputs["data"].n_train) if taught else 0
    teacher = 2.0 * asked * (known.prompt + known.anchor + ANSWER) * known.layers
    held = params.held
    looked = min(held.items or inputs["data"].n_held, inputs["data"].n_held)
    look = looked * (2.0 * (columns - ANSWER) * known.layers + 2.0 * known.head + encoding(arm, known))
    answers = _short(known, vectors[-1]).answering(min(held.answered, looked) or 1, held.batch_size)
    times_answered = steps // held.answer_every + 1 if held.answered else 0
    flop = items * (latent * a_latent + (1 - latent) * a_text)
    repeated = (steps // held.every) * look + times_answered * answers.flop + teacher
    lora = params.lora if isinstance(params, StageBParams) else None
    longest = (1 + vectors[-1] if lora is None else known.longest) + known.anchor + known.answer
    memory = _held(known, arm, vectors[-1], recipe.batch_size, longest, known.answer, taught=taught, lora=lora)
    host = asked * ANSWER * known.width * BYTES[known.precision]
    shared = Steps(
        n=steps, batches=recipe.accumulation, rows=recipe.batch_size,
        trained=trained(arm, known, vectors[-1], lora), repeated=repeated,
    )  # fmt: skip
    return Work(flop=flop + repeated, tokens=int(items * (latent * columns + (1 - latent) * known.prompt)),
                precision=known.precision, memory=replace(memory, host=float(host)), shared=shared)  # fmt: skip


def _held(
    known: Reader, arm: Arm, vectors: int, batch_size: int, columns: int, answer: int, *, taught: bool,
    lora: LoraParams | None = None,
) -> Memory:  # fmt: skip
    """A micro-batch of rows as long as they may be; in stage B all of them text, or all of them latents."""
    share = 0.0 if lora is None else share_of(lora)
    shortest = min(columns, 1 + vectors + known.anchor + answer)
    as_latents = shortest * known.kept(share) + encoded(arm, known)
    rows = max(as_latents, columns * known.kept(share))
    return Memory(
        weights=known.weights, training=TRAINED * trained(arm, known, vectors, lora), activations=batch_size * rows,
        logits=known.judged(batch_size * answer, taught=taught),
    )  # fmt: skip


def _read(arm: Arm, known: Reader, tokens: float) -> tuple[float, int]:
    """Columns that an encoder makes of a text of so many tokens, and their width."""
    spec = arm.encoder
    if isinstance(spec, BytesSpec):
        return min(tokens * BYTES_A_TOKEN, spec.max_bytes) / spec.patch, spec.inner
    return (min(tokens, spec.max_tokens), known.width) if isinstance(spec, LMSpec) else (tokens, SENTENCE)


def _adapted(arm: Arm, known: Reader) -> int:
    """Parameters between latents and prefix."""
    width = arm.encoder.width
    if arm.deep is not None:
        return width * arm.deep.inner + arm.deep.inner**2 + arm.deep.inner * 2 * known.blocks * known.keys
    hidden = known.width if arm.adapter is None or arm.adapter.inner is None else arm.adapter.inner
    return width * hidden + hidden**2 + hidden * known.width + width * known.width


def _steps(recipe: WireRecipe, items: int, inputs: Mapping[str, Any]) -> tuple[int, int]:
    """Optimizer steps of the stage, and of an epoch."""
    n_train = inputs["data"].n_train
    per_epoch = max(1, (min(items, n_train) if items else n_train) // (recipe.batch_size * recipe.accumulation))
    return recipe.total_steps(per_epoch), per_epoch


def _short(known: Reader, vectors: int) -> Reader:
    return replace(known, prompt=1 + vectors, longest=1 + vectors)


def _arm(axes: Mapping[str, Any], inputs: Mapping[str, Any]) -> Arm | None:
    """The job's arm, from the stage that says what it is."""
    found = next((params for params in inputs.values() if isinstance(params, EncoderParams)), None)
    return None if found is None else found.arms.get(str(axes.get("arm")))


def _vectors(arm: Arm, axes: Mapping[str, Any]) -> tuple[int, ...]:
    return arm.served(int(axes["vectors"]) if "vectors" in axes else None)
