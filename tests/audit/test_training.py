"""The audits before a training find each planted fault, and pass every arm as it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stepwell.audit.training import account, learns_its_labels, supervised_tokens, unanswered
from stepwell.latents.thoughts import ARMS, IGNORE, Arm, Batch
from stepwell.recipe import Curriculum
from stepwell.studies.thoughts.build import Built, build
from stepwell.studies.thoughts.params import ModelParams, SymbolModel, TextModel
from stepwell.studies.thoughts.training import ThoughtModel
from stepwell.tasks.prosqa import generate_graphs, render
from stepwell.tasks.prosqa.reading import Reader

CURRICULUM = Curriculum(stages=2)
SYMBOLS = ModelParams(model=SymbolModel(width=32, layers=2, heads=2), curriculum=CURRICULUM)
TEXT = ModelParams(model=TextModel(width=32, layers=2, heads=2, max_positions=200), curriculum=CURRICULUM)
GRAPHS = generate_graphs("mini", 4, 5)
ITEMS = render(GRAPHS, "mini", 5)


def made(arm: Arm, params: ModelParams = SYMBOLS) -> tuple[Built, Reader]:
    built = build(params, arm, seed=1, device="cpu")
    return built, built.symbols(GRAPHS) if params is SYMBOLS else built.text(ITEMS)


def batch_of(reader: Reader, arm: Arm, stage: int = 1) -> Batch:
    return reader.train_batch(torch.arange(len(reader)), arm, lambda _: stage, torch.Generator().manual_seed(0))


# ---- the account


@pytest.mark.parametrize("params", [SYMBOLS, TEXT], ids=["symbols", "text"])
def test_the_account_of_each_arm(params: ModelParams) -> None:
    found = {arm: account(made(arm, params)[0].thoughts) for arm in ARMS}
    width = params.model.width
    plain = found["cot"]
    assert plain.trainable == plain.total and plain.frozen_buffers == 0
    assert {found[arm] == plain for arm in ("direct", "continuous", "removal")} == {True}
    assert found["shared"].trainable == plain.trainable + width and found["shared"].frozen_buffers == 0
    assert found["frozen"].trainable == plain.trainable and found["frozen"].frozen_buffers == width


def test_shared_parameters_count_once_and_frozen_ones_are_no_longer_trainable() -> None:
    head, embedding = nn.Linear(3, 7, bias=False), nn.Embedding(7, 3)
    head.weight = embedding.weight
    module = nn.Sequential(embedding, head, nn.Linear(7, 2))
    assert account(module).total == 21 + 16
    embedding.weight.requires_grad_(False)
    assert (account(module).trainable, account(module).total) == (16, 37)


# ---- what is supervised


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_the_remaining_steps_the_answer_and_the_end_are_supervised_and_nothing_else(stage: int) -> None:
    for arm in ARMS:
        built, reader = made(arm, TEXT)
        lines = supervised_tokens(batch_of(reader, arm, stage))
        for item, tokens in zip(ITEMS, lines, strict=True):
            removed = {"cot": 0, "direct": len(item.steps)}.get(arm, stage)
            wanted = "".join(f"{step}\n" for step in item.steps[removed:]) + f"### {item.answer}"
            assert tokens[-1] == reader.eos
            assert built.tokenizer.decode(tokens[:-1]) == wanted


def test_the_same_for_symbols() -> None:
    for arm in ARMS:
        _, reader = made(arm)
        batch = batch_of(reader, arm)
        assert batch.names is not None
        for row, tokens in enumerate(supervised_tokens(batch)):
            path = [node for node in GRAPHS.path[row].tolist() if node >= 0]
            removed = {"cot": 0, "direct": 99}.get(arm, 1)
            steps = [int(batch.names[row, node]) for node in path[1 + removed :]]
            target = int(batch.names[row, int(GRAPHS.target[row])])
            assert tokens == [*steps, 5, target, 1], "the steps left, ###, the answer, EOS"


@pytest.mark.parametrize("params", [SYMBOLS, TEXT], ids=["symbols", "text"])
def test_an_answer_or_an_end_without_supervision_is_found(params: ModelParams) -> None:
    for arm in ARMS:
        _, reader = made(arm, params)
        batch = batch_of(reader, arm)
        assert unanswered(batch, reader) == []
        ends = (batch.labels == reader.eos).int().argmax(1)
        # In text the answer ends with a full stop: the species is the word before it.
        for back in (0, 1) if params is SYMBOLS else (0, 2):
            labels = batch.labels.clone()
            labels[2, ends[2] - back] = IGNORE
            assert unanswered(replace(batch, labels=labels), reader) == [2]


def test_the_wrong_option_as_the_answer_is_found() -> None:
    _, reader = made("cot")
    batch = batch_of(reader, "cot")
    labels = batch.labels.clone()
    right, wrong = reader.options(batch, 1)
    labels[1, int((labels[1] == reader.eos).int().argmax()) - 1] = wrong[-1]
    assert right != wrong and unanswered(replace(batch, labels=labels), reader) == [1]


# ---- the label self-test


def selftest(
    arm: Arm, params: ModelParams = SYMBOLS, model: Callable[[Any], Any] = lambda inner: inner, steps: int = 150
) -> tuple[bool, str]:
    built, reader = made(arm, params)
    trained = model(ThoughtModel(built=built, steer=reader, seed=0))
    return learns_its_labels(trained, batch_of(reader, arm), reader.eos, steps=steps, lr=5e-3)


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("params", [SYMBOLS, TEXT], ids=["symbols", "text"])
def test_every_arm_learns_its_labels(arm: Arm, params: ModelParams) -> None:
    passed, detail = selftest(arm, params)
    assert passed, detail
    assert detail.startswith("4 of 4 toy items decode exactly after ")


class Shifted:
    """An objective in which the state of a column is asked for the label `by` columns on; 1 is right."""

    def __init__(self, inner: ThoughtModel, by: int) -> None:
        self.module, self.by = inner.module, by

    def objective(self, batch: Batch) -> tuple[Tensor, int]:
        hidden = self.module(batch)  # of columns first - 1 ... T - 1
        labels = F.pad(batch.labels[:, batch.first - 1 + self.by :], (0, self.by), value=IGNORE)
        labels = labels[:, : hidden.shape[1]]
        mask = labels != IGNORE
        nats = F.cross_entropy(self.module.backbone.logits(hidden[mask]), labels[mask], reduction="sum")
        return nats, int(mask.sum())


@pytest.mark.parametrize("arm", ["cot", "direct", "continuous", "shared"])
@pytest.mark.parametrize("by", [0, 2])
def test_labels_that_are_not_shifted_or_shifted_twice_cannot_pass(arm: Arm, by: int) -> None:
    passed, detail = selftest(arm, model=lambda inner: Shifted(inner, by))
    assert not passed
    assert "item 0 does not: a hidden state does not predict the token it is asked for" in detail
    loss = float(detail.split("loss ")[1].split(" nats")[0])
    assert loss < 0.05, "it is learned all the same: the loss alone would not tell"


def test_the_planted_objective_is_right_when_it_is_not_shifted() -> None:
    assert selftest("continuous", model=lambda inner: Shifted(inner, 1))[0]


def test_a_loss_on_other_tokens_than_the_labels_cannot_pass() -> None:
    class Deaf(Shifted):
        def objective(self, batch: Batch) -> tuple[Tensor, int]:
            return super().objective(replace(batch, labels=torch.where(batch.labels == 5, 4, batch.labels)))

    passed, detail = selftest("direct", model=lambda inner: Deaf(inner, 1))
    assert not passed and detail.startswith("0 of 4")


def test_what_was_not_learned_in_time_is_told_with_its_loss() -> None:
    passed, detail = selftest("cot", steps=2)
    assert not passed and "after 2 steps, loss " in detail


def test_a_part_that_gets_no_gradient_cannot_pass() -> None:
    """Thoughts cut off from the graph and a backbone that is not trained: nothing is learned."""

    def frozen(inner: ThoughtModel) -> ThoughtModel:
        for parameter in inner.module.backbone.parameters():
            parameter.requires_grad_(False)
        return inner

    assert not selftest("shared", model=frozen)[0]
