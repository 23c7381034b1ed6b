"""The one label shift, by brute force; a shift planted twice, and labels left out, are caught by the audits."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from stepwell.audit.training import learns_its_labels, supervised_tokens, unanswered
from stepwell.backbone import HFBackbone
from stepwell.latents.thoughts import IGNORE, Arm, Batch, Thoughts
from stepwell.objectives import cross_entropy, supervised
from stepwell.shapes import Shape
from stepwell.small import SmallConfig, SmallLM
from stepwell.tasks.prosqa import WordTokenizer, generate_graphs, generate_items
from stepwell.tasks.prosqa.reading import Reader, SymbolReader, TextReader
from stepwell.tasks.prosqa.symbols import SymbolFormat

MODELS = ("small-pairs", "small-facts", "gpt2")


@pytest.mark.parametrize("first", [0, 1, 4, 8])
def test_the_state_of_a_column_predicts_the_label_of_the_next(first: int):
    generator = torch.Generator().manual_seed(first)
    rows, columns = 5, 9
    labels = torch.randint(100, (rows, columns), generator=generator)
    labels[torch.rand(rows, columns, generator=generator) < 0.4] = IGNORE
    labels[:, :first] = IGNORE
    mask, targets = supervised(labels, first)
    assert mask.shape == (rows, columns - first + 1)
    wanted = []
    for row in range(rows):
        for state, column in enumerate(range(first - 1, columns)):
            following = int(labels[row, column + 1]) if column + 1 < columns else IGNORE
            assert bool(mask[row, state]) == (following != IGNORE)
            wanted += [following] if following != IGNORE else []
    assert targets.tolist() == wanted
    assert len(wanted) == int((labels != IGNORE).sum()), "every label is predicted, by one state each"


def test_targets_are_in_the_order_of_the_masked_states():
    labels = torch.tensor([[IGNORE, IGNORE, 5, 6], [IGNORE, 7, IGNORE, 8]])
    mask, targets = supervised(labels, 1)
    columns = torch.arange(4).expand(2, 4)  # state j is that of column j here, as first - 1 = 0
    assert columns[mask].tolist() == [1, 2, 0, 2]
    assert targets.tolist() == [5, 6, 7, 8]


def test_cross_entropy_is_a_sum_and_a_count():
    logits = torch.randn(7, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([3, 0, 10, 3, 3, 1, 7])
    nats, count = cross_entropy(logits, targets)
    wanted = sum(-torch.log(row.exp()[t] / row.exp().sum()) for row, t in zip(logits, targets.tolist(), strict=True))
    assert count == 7
    torch.testing.assert_close(float(nats), float(wanted), rtol=1e-6, atol=0)
    halves = [cross_entropy(logits[part], targets[part]) for part in (slice(3), slice(3, 7))]
    assert sum(n for _, n in halves) == 7
    torch.testing.assert_close(float(sum(total for total, _ in halves)), float(nats), rtol=1e-6, atol=0)


class Toy:
    """A model as the self-test sees it, whose labels are shifted `extra` times more than they should be."""

    def __init__(self, module: Thoughts, extra: int = 0) -> None:
        self.module, self.extra = module, extra

    def objective(self, batch: Batch) -> tuple[Tensor, int]:
        labels = F.pad(batch.labels, (-self.extra, self.extra), value=IGNORE)
        labels[:, : batch.first] = IGNORE
        mask, targets = supervised(labels, batch.first)
        return cross_entropy(self.module.backbone.logits(self.module(batch)[mask]), targets)


@cache
def reader_of(name: str) -> Reader:
    if name == "gpt2":
        vocabulary = WordTokenizer().get_vocab()
        markers = [vocabulary[token] for token in ("<|start-latent|>", "<|latent|>", "<|end-latent|>")]
        items = generate_items("mini", 3, 0)
        return TextReader(items, WordTokenizer(), markers, thoughts_per_step=1, pad_to_max=True)
    layout = SymbolFormat(prompt="facts" if name == "small-facts" else "pairs", persons=2, concepts=8)
    return SymbolReader(generate_graphs("mini", 3, 0), layout)


def toy(name: str, arm: Arm, extra: int = 0) -> Toy:
    if name == "gpt2":
        shape = Shape(vocabulary=len(WordTokenizer()), width=32, layers=1, heads=2, max_positions=160)
        backbone: Any = HFBackbone.from_shape(shape, device="cpu")
    else:
        config = SmallConfig(
            vocabulary=17, width=32, layers=1, heads=2, max_positions=64, facts=name == "small-facts",
            embedding_std=0.2,
        )  # fmt: skip
        backbone = SmallLM(config)
    vector = torch.ones(32) * 0.1
    return Toy(Thoughts(backbone, arm, vector=vector if arm == "shared" else None), extra)


def batch_of(name: str, arm: Arm) -> Batch:
    return reader_of(name).train_batch(torch.arange(3), arm, lambda _: 1, torch.Generator().manual_seed(0))


def self_test(name: str, arm: Arm, batch: Batch, extra: int = 0) -> tuple[bool, str]:
    return learns_its_labels(toy(name, arm, extra), batch, reader_of(name).eos, steps=120, lr=1e-2)


@pytest.mark.parametrize("arm", ["cot", "continuous", "shared", "removal", "direct"])
@pytest.mark.parametrize("name", MODELS)
def test_clean_labels_raise_no_alarm(name: str, arm: Arm):
    batch = batch_of(name, arm)
    passed, detail = self_test(name, arm, batch)
    assert passed, detail
    assert detail.startswith("3 of 3 toy items decode exactly after ")
    assert unanswered(batch, reader_of(name)) == []


@pytest.mark.parametrize("extra", [1, -1], ids=["twice", "never"])
@pytest.mark.parametrize("arm", ["cot", "continuous"])
@pytest.mark.parametrize("name", MODELS)
def test_a_shift_made_twice_or_never_is_caught(name: str, arm: Arm, extra: int):
    """The loss falls as nicely as with the right labels; what is decoded does not."""
    passed, detail = self_test(name, arm, batch_of(name, arm), extra)
    assert not passed
    assert "does not: a hidden state does not predict the token it is asked for" in detail
    assert float(detail.split("loss ")[1].split(" ")[0]) < 0.1, "the model did learn what it was (wrongly) taught"


def without(batch: Batch, from_the_end: int) -> Batch:
    """The batch with one label of each row left out, counted from the row's last."""
    labels = batch.labels.clone()
    for row in labels:
        row[(row != IGNORE).nonzero()[-from_the_end]] = IGNORE
    return replace(batch, labels=labels)


@pytest.mark.parametrize("name", MODELS)
def test_eos_without_supervision_is_caught_twice(name: str):
    batch = without(batch_of(name, "cot"), 1)
    passed, detail = self_test(name, "cot", batch)
    assert not passed and detail.startswith("0 of 3")
    assert unanswered(batch, reader_of(name)) == [0, 1, 2]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("arm", ["cot", "continuous"])
def test_an_answer_without_supervision_is_caught(name: str, arm: Arm):
    place = 3 if name == "gpt2" else 2  # the name of the concept comes before a full stop in a text
    assert unanswered(without(batch_of(name, arm), place), reader_of(name)) == [0, 1, 2]


@pytest.mark.parametrize("name", MODELS)
def test_a_wrong_answer_under_supervision_is_caught(name: str):
    batch, reader = batch_of(name, "cot"), reader_of(name)
    for row in range(3):
        right, wrong = reader.options(batch, row)
        at = int((batch.labels[row] != IGNORE).nonzero()[-1 if name != "gpt2" else -2]) - 1
        assert int(batch.labels[row, at]) == right[-1 if name != "gpt2" else -2]
        batch.labels[row, at] = wrong[-1 if name != "gpt2" else -2]
    assert unanswered(batch, reader) == [0, 1, 2]


def test_the_supervised_tokens_are_the_labels_in_order():
    batch = batch_of("small-pairs", "cot")
    reader = reader_of("small-pairs")
    assert isinstance(reader, SymbolReader)
    shown = [[reader.layout.name(token) for token in row] for row in supervised_tokens(batch)]
    for row, hops in zip(shown, (2, 2, 3), strict=True):
        assert row[hops] == "###" and row[-1] == "<eos>" and row[hops - 1] == row[hops + 1] and len(row) == hops + 3
