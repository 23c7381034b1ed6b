"""What the study will cost: FLOP, memory traffic and memory by arithmetic, before anything runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from stepwell.devices import Memory, Precision, Steps, Work
from stepwell.studies.qa.cost import BYTES, TRAINED, Reader, sized
from stepwell.studies.tune.params import GradeParams, MergeParams, MineParams, TuneTrainParams

PROBLEM, PROBLEM_OF_SET = 55, 160
"""Tokens of a generated problem with its template, and of one of GSM8K."""
SOLUTION, SOLUTION_OF_SET = 20, 110
LONGEST, LONGEST_OF_SET = 80, 320
"""Tokens of the longest problem, about."""
PROBLEMS_OF_SET, TESTED_OF_SET = 7_473, 1_319
"""GSM8K's, for plans that take all of them."""
FAILED = 0.4
"""Share of the training problems that are taken to be lost, before anything is known."""


def of_training(params: TuneTrainParams, axes: Mapping[str, Any], inputs: Mapping[str, Any]) -> Work | None:
    """For each token forward 2, backward 2 to the states, 6 for the adapter; the head where something is learnt."""
    known = _reader(inputs, SOLUTION, inputs["model"].precision)
    if known is None:
        return None
    problem, solution, _ = _tokens(inputs)
    n = inputs["data"].n_train or PROBLEMS_OF_SET
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
    known = _reader(inputs, SOLUTION, inputs["model"].precision)
    if known is None:
        return None
    largest = 4.0 * max(known.head, known.width * known.inner)
    return Work(flop=4.0 * 64 * known.layers, bytes=5.0 * known.weights, precision="fp32",
                memory=Memory(weights=2.5 * largest))  # fmt: skip


def of_grading(params: GradeParams, axes: Mapping[str, Any], inputs: Mapping[str, Any]) -> Work | None:
    """Reading prompts once and writing answers, as if each took as many tokens as it may."""
    data = inputs["data"]
    names = params.benchmarks or tuple(data.benchmarks)
    return _answering(len(names) * (data.n_test or TESTED_OF_SET), params, inputs)


def of_mining(params: MineParams, axes: Mapping[str, Any], inputs: Mapping[str, Any]) -> Work | None:
    """As grading, of the training problems."""
    n = inputs["data"].n_train or PROBLEMS_OF_SET
    return _answering(min(params.items, n) if params.items else n, params, inputs)


def _answering(items: int, params: GradeParams | MineParams, inputs: Mapping[str, Any]) -> Work | None:
    known = _reader(inputs, params.decoding.max_tokens, params.decoding.precision)
    if known is None:
        return None
    work = known.answering(items * params.decoding.samples, params.batch_size)
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


def _reader(inputs: Mapping[str, Any], answer: int, precision: Precision) -> Reader | None:
    """The model as it is asked; None where its size is not known."""
    problem, _, longest = _tokens(inputs)
    return sized(
        inputs["model"].name, prompt=problem, anchor=0, answer=answer, precision=precision, longest=longest
    )  # fmt: skip


def _tokens(inputs: Mapping[str, Any]) -> tuple[int, int, int]:
    """Of a problem, its solution and the longest problem."""
    if inputs["data"].source.kind == "word-problems":
        return PROBLEM, SOLUTION, LONGEST
    return PROBLEM_OF_SET, SOLUTION_OF_SET, LONGEST_OF_SET
