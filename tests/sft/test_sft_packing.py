"""Packing: rows that are full and hold everything once, and states that are those of each example alone."""

from __future__ import annotations

import random

import pytest
import torch
from byte_chat import ByteChat

from fit_models import SHAPES, tiny
from stepwell.errors import StepwellError
from stepwell.objectives import IGNORE
from stepwell.sft import packing
from stepwell.sft.conversations import Conversation
from stepwell.sft.packing import PADDING, Corpus, first_fit_decreasing, prove_packing, states
from stepwell.sft.render import ChatFormat


def slow_first_fit(lengths: list[int], room: int) -> list[tuple[int, ...]]:
    rows: list[list[int]] = []
    for number in sorted(range(len(lengths)), key=lambda n: (-lengths[n], n)):
        for row in rows:
            if sum(lengths[n] for n in row) + lengths[number] <= room:
                row.append(number)
                break
        else:
            rows.append([number])
    return [tuple(row) for row in rows]


@pytest.mark.parametrize("seed", range(20))
def test_first_fit_decreasing_against_a_slow_one(seed: int):
    draw = random.Random(seed)
    lengths = [draw.randint(1, 20) for _ in range(draw.randint(0, 70))]
    assert first_fit_decreasing(lengths, 20) == slow_first_fit(lengths, 20)


def test_an_example_longer_than_a_row_is_refused():
    with pytest.raises(StepwellError, match="an example of 9 tokens in rows of 8"):
        first_fit_decreasing([3, 9], 8)


def talks(n: int) -> list[Conversation]:
    draw = random.Random(n)

    def say(role: str) -> dict[str, str]:
        return {"role": role, "content": "x" * draw.randint(1, 9) + str(draw.randint(0, 99))}

    return [Conversation(id=f"c{i}", messages=(say("user"), say("assistant"))) for i in range(n)]


def test_a_batch_holds_every_token_where_it_belongs():
    form = ChatFormat.of(ByteChat())
    conversations = talks(9)
    corpus = Corpus.of(conversations, form, 60)
    rows = first_fit_decreasing(corpus.lengths, 60)
    batch = corpus.batch(rows)
    seen = []
    for number, conversation in enumerate(conversations):
        rendered = form.render(conversation, 60)
        own = batch.examples == number
        assert tuple(batch.ids[own].tolist()) == rendered.ids
        assert tuple((batch.labels[own] != IGNORE).tolist()) == rendered.supervised
        assert batch.positions[own].tolist() == list(range(len(rendered.ids)))
        seen.append(int(own.sum()))
    padding = batch.examples == PADDING
    assert sum(seen) + int(padding.sum()) == batch.tokens
    assert (batch.labels[padding] == IGNORE).all()
    assert batch.supervised == sum(sum(form.render(c, 60).supervised) for c in conversations)
    pieces = batch.parts(1)
    assert torch.equal(torch.cat([piece.labels for piece in pieces]), batch.labels)


def test_what_does_not_fit_is_left_out_and_said():
    form = ChatFormat.of(ByteChat())
    conversations = [*talks(2), Conversation(id="long", messages=(
        {"role": "user", "content": "a"}, {"role": "assistant", "content": "b" * 90}))]  # fmt: skip
    corpus = Corpus.of(conversations, form, 50)
    assert corpus.names == ("c0", "c1")
    assert corpus.left_out == {"long": "an answer does not fit into 50 tokens"}
    with pytest.raises(StepwellError, match="none of 1 conversations is left to train on"):
        Corpus.of(conversations[2:], form, 50)


@pytest.mark.parametrize("name", SHAPES)
def test_packed_is_one_by_one(name: str):
    backbone = tiny(name)
    prove_packing(backbone)
    generator = torch.Generator().manual_seed(5)
    lengths = [6, 3, 1, 8, 2]
    examples = [torch.randint(2, 60, (1, length), generator=generator) for length in lengths]
    corpus = Corpus(
        names=tuple("abcde"), ids=torch.cat(examples, 1)[0].int().numpy(), left_out={},
        supervised=torch.ones(sum(lengths), dtype=torch.bool).numpy(),
        starts=torch.tensor([0, *lengths]).cumsum(0).numpy(),
    )  # fmt: skip
    batch = corpus.batch([(3, 2, 1), (0, 4)])
    with torch.no_grad():
        packed = states(backbone, batch.ids, batch.positions)
        for number, ids in enumerate(examples):
            mask, at = torch.ones_like(ids, dtype=torch.bool), torch.arange(ids.shape[1])[None]
            alone = backbone(backbone.embed(ids), positions=at, mask=mask)[0]
            torch.testing.assert_close(packed[batch.examples == number], alone, atol=1e-5, rtol=1e-4)


def test_a_model_whose_examples_see_one_another_is_refused(monkeypatch):
    backbone = tiny("llama")
    whole = packing.states

    def leaking(model, ids, positions):
        return whole(model, ids, torch.arange(ids.shape[1])[None].expand_as(ids))

    monkeypatch.setattr(packing, "states", leaking)
    with pytest.raises(StepwellError, match=r"does not keep the examples of a row apart.*\n.*switch packing off"):
        prove_packing(backbone)
