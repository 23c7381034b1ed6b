"""What the study will cost: FLOP and memory traffic by arithmetic, before anything runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from stepwell.devices import Work
from stepwell.studies.qa.cost import BYTES, KNOWN
from stepwell.studies.tune.params import GradeParams, MergeParams, MineParams, TuneTrainParams

PROBLEM, PROBLEM_OF_SET = 55, 160
"""Tokens of a generated problem with its template, and of one of GSM8K."""
SOLUTION, SOLUTION_OF_SET = 20, 110
PROBLEMS_OF_SET, TESTED_OF_SET = 7_473, 1_319
"""GSM8K's, for plans that take all of them."""
FAILED = 0.4
"""Share of the training problems that are taken to be lost, before anything is known."""


def of_training(params: TuneTrainParams, axes: Mapping[str, Any], inputs: Mapping[str, Any]) -> Work | None:
    """For each token forward 2, backward 2 to the states, 6 for the adapter; the head where something is learnt."""
    size = _size(inputs)
    if size is None:
        return None
    layers, width, vocabulary = size
    problem, solution = _tokens(inputs)
    data = inputs["data"]
    n = data.n_train or PROBLEMS_OF_SET
    if any(type(one) is MineParams for one in inputs.values()):
        n = math.ceil(n * FAILED / (1 - params.replay))
    tokens = (params.epochs or 1) * n * (problem + solution)
    if params.steps is not None:
        row = params.max_tokens if params.pack else problem + solution
        tokens = min(tokens, params.steps * params.batch_size * params.accumulation * row)
    learnt = tokens * solution / (problem + solution)
    # Matrices of a layer of width D have about 12 D^2 weights, and LoRA of rank r about 18 r D.
    adapter = layers * 1.5 * params.lora.rank / width
    flop = tokens * (4.0 * layers + 6.0 * adapter) + learnt * 4.0 * width * vocabulary
    if params.meta is not None:
        # A task's support is read once an inner step, and its query once.
        support = params.meta.support_rows(params.batch_size) / params.batch_size
        flop *= support * params.meta.inner_steps + 1 - support
    return Work(flop=flop, tokens=int(tokens), precision=inputs["model"].precision)


def of_merge(params: MergeParams, axes: Mapping[str, Any], inputs: Mapping[str, Any]) -> Work | None:
    """Every weight read twice (merged, and read back for the proof), and written once."""
    size = _size(inputs)
    if size is None:
        return None
    layers, width, vocabulary = size
    weights = layers + width * vocabulary
    return Work(flop=4.0 * 64 * layers, bytes=5.0 * 4 * weights, precision="fp32")


def of_grading(params: GradeParams, axes: Mapping[str, Any], inputs: Mapping[str, Any]) -> Work | None:
    """Reading prompts once and writing answers, as if each took as many tokens as it may."""
    data = inputs["data"]
    names = params.benchmarks or tuple(data.benchmarks)
    items = len(names) * (data.n_test or TESTED_OF_SET)
    return _answering(items, params, inputs)


def of_mining(params: MineParams, axes: Mapping[str, Any], inputs: Mapping[str, Any]) -> Work | None:
    """As grading, of the training problems."""
    n = inputs["data"].n_train or PROBLEMS_OF_SET
    return _answering(min(params.items, n) if params.items else n, params, inputs)


def _answering(items: int, params: GradeParams | MineParams, inputs: Mapping[str, Any]) -> Work | None:
    size = _size(inputs)
    if size is None:
        return None
    layers, width, vocabulary = size
    problem, _ = _tokens(inputs)
    answered, head = params.decoding.max_tokens, width * vocabulary
    answers = items * params.decoding.samples
    flop = 2.0 * answers * ((problem + answered) * layers + answered * head)
    # Every token that a batch writes takes all weights through memory once.
    moved = math.ceil(answers / params.batch_size) * (1 + answered) * (layers + head) * BYTES[params.decoding.precision]
    return Work(flop=flop, bytes=float(moved), tokens=answers * (problem + answered),
                precision=params.decoding.precision)  # fmt: skip


def _size(inputs: Mapping[str, Any]) -> tuple[int, int, int] | None:
    return KNOWN.get(inputs["model"].name)


def _tokens(inputs: Mapping[str, Any]) -> tuple[int, int]:
    generated = inputs["data"].source.kind == "word-problems"
    return (PROBLEM, SOLUTION) if generated else (PROBLEM_OF_SET, SOLUTION_OF_SET)
