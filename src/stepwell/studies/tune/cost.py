"""What the study will cost: FLOP, memory traffic and memory by arithmetic, before anything runs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from stepwell.devices import Memory, Precision, Steps, Work
from stepwell.studies.qa.cost import BYTES, TRAINED, Reader, sized
from stepwell.studies.tune.params import GradeParams, MergeParams, MineParams, TuneDataParams, TuneTrainParams

TOKENS = {
    "word-problems": (55, 20, 80), "gsm8k": (160, 110, 320), "mbpp": (120, 60, 300), "humaneval": (190, 60, 500),
    "squad": (250, 10, 900),
}  # fmt: skip
"""About, of a problem with its template, its solution, and the longest problem; of other kinds as GSM8K's."""
TRAINED_OF, TESTED_OF = {"gsm8k": 7_473, "mbpp": 374}, {"humaneval": 164, "mbpp": 500, "squad": 10_570}
"""Items, for plans that take all of them; of other kinds as many as GSM8K has."""
PROBLEMS, TESTED = 7_473, 1_319
FAILED = 0.4
"""Share of the training problems that are taken to be lost, before anything is known."""


def of_training(params: TuneTrainParams, axes: Mapping[str, Any], inputs: Mapping[str, Any]) -> Work | None:
    """For each token forward 2, backward 2 to the states, 6 for the adapter; the head where something is learnt."""
    counts = _trained_on(inputs)
    known = _reader(inputs, counts, TOKENS["word-problems"][1], inputs["model"].precision)
    if known is None:
        return None
    n, (problem, solution, _) = sum(counts.values()), _tokens(counts)
    if any(type(one) is MineParams for one in inputs.values()):
        n = math.ceil(n * FAILED / (1 - params.replay))
    tokens = (params.epochs or 1) * n * (problem + solution)
    row = params.max_tokens if params.pack else problem + solution
    a_step = params.batch_size * params.accumulation * row
    if params.steps is not None:
        tokens = min(tokens, params.steps * a_step)
    share = solution / (problem + solution)
    again = 2.0 if inputs["model"].gradient_checkpointing else 0.0
    adapters = known.adapters(params.lora)
    flop = tokens * ((4.0 + again) * known.layers + 6.0 * adapters) + share * tokens * 6.0 * known.head
    if params.meta is not None:
        # A task's support is read once an inner step, and its query once.
        support = params.meta.support_rows(params.batch_size) / params.batch_size
        flop *= support * params.meta.inner_steps + 1 - support
    shared = Steps(
        n=math.ceil(tokens / a_step), batches=params.accumulation, rows=params.batch_size, trained=adapters
    )  # fmt: skip
    return Work(flop=flop, tokens=int(tokens), precision=known.precision, shared=shared,
                memory=_trained(params, known, inputs, share, adapters))  # fmt: skip


def of_merge(params: MergeParams, axes: Mapping[str, Any], inputs: Mapping[str, Any]) -> Work | None:
    """Every weight read twice (merged, and read back for the proof), and written once; one tensor held at a time."""
    known = _reader(inputs, _trained_on(inputs), 1, inputs["model"].precision)
    if known is None:
        return None
    largest = 4.0 * max(known.head, known.width * known.inner)
    return Work(flop=4.0 * 64 * known.layers, bytes=5.0 * known.weights, precision="fp32",
                memory=Memory(weights=2.5 * largest))  # fmt: skip


def of_grading(params: GradeParams, axes: Mapping[str, Any], inputs: Mapping[str, Any]) -> Work | None:
    """Reading prompts once and writing answers, as if each took as many tokens as it may."""
    data: TuneDataParams = inputs["data"]
    counts: Counter[str] = Counter()
    graded = [name for name in params.benchmarks or data.benchmarks if name in data.benchmarks]
    if not graded:
        return None  # the stage says that there is no such benchmark
    for kind in (data.benchmarks[name].kind for name in graded):
        most = data.n_test if kind == "word-problems" else TESTED_OF.get(kind, TESTED)
        counts[kind] += min(data.n_test or most, most)
    return _answering(counts, params, inputs)


def of_mining(params: MineParams, axes: Mapping[str, Any], inputs: Mapping[str, Any]) -> Work | None:
    """As grading, of the training problems."""
    counts = {kind: min(params.items, n) if params.items else n for kind, n in _trained_on(inputs).items()}
    return _answering(counts, params, inputs)


def _answering(counts: Mapping[str, int], params: GradeParams | MineParams, inputs: Mapping[str, Any]) -> Work | None:
    known = _reader(inputs, counts, params.decoding.max_tokens, params.decoding.precision)
    if known is None:
        return None
    work = known.answering(sum(counts.values()) * params.decoding.samples, params.batch_size)
    # No gold answer is read here: logits are those of one column a row.
    logits = known.judged(params.batch_size, taught=False)
    return replace(work, memory=replace(known.asked(params.batch_size), logits=logits))


def _trained(
    params: TuneTrainParams, known: Reader, inputs: Mapping[str, Any], share: float, adapters: float
) -> Memory:
    """A micro-batch of full rows: what one column leaves for the backward pass, or one layer's and what enters each."""
    row = params.max_tokens if params.pack else known.longest + known.answer
    columns, kept = params.batch_size * row, known.kept(1.0)
    if inputs["model"].gradient_checkpointing:
        kept = kept / known.blocks + known.blocks * known.width * BYTES[known.precision]
    return Memory(weights=known.weights, training=TRAINED * adapters, activations=columns * kept,
                  logits=known.judged(share * columns, taught=False))  # fmt: skip


def _reader(inputs: Mapping[str, Any], counts: Mapping[str, int], answer: int, precision: Precision) -> Reader | None:
    """The model as it is asked such problems; None where its size is not known."""
    problem, _, longest = _tokens(counts)
    return sized(
        inputs["model"].name, prompt=problem, anchor=0, answer=answer, precision=precision, longest=longest
    )  # fmt: skip


def _trained_on(inputs: Mapping[str, Any]) -> Mapping[str, int]:
    """Conversations by the kind of their source, in the shares that the sources have."""
    data: TuneDataParams = inputs["data"]
    counts: Counter[str] = Counter()
    for source in data.sources:
        counts[source.kind] += TRAINED_OF.get(source.kind, PROBLEMS)
    whole = sum(counts.values())
    return {kind: math.ceil(n / whole * data.n_train) if data.n_train else n for kind, n in counts.items()}


def _tokens(counts: Mapping[str, int]) -> tuple[int, int, int]:
    """Of a problem and its solution, the mean over all; and the longest problem."""
    sizes = {kind: TOKENS.get(kind, TOKENS["gsm8k"]) for kind in counts}
    problem, solution = (
        round(sum(n * sizes[kind][part] for kind, n in counts.items()) / sum(counts.values())) for part in (0, 1)
    )
    return problem, solution, max(size[2] for size in sizes.values())
