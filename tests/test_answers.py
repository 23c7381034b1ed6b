"""Questions asked from tokens and from embeddings: one layout, batched as single, and nothing known of the answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from contract_models import ITEMS, close, contract_of, letters
from fit_models import SHAPES
from stepwell import answers
from stepwell.answers import (
    AnswerRecord,
    Asked,
    answer_items,
    error_mode,
    is_repetition,
    majority_first_token,
    nll_alarm,
)
from stepwell.backbone import HFBackbone
from stepwell.decode import Decoded
from stepwell.errors import StepwellError
from stepwell.latents.contract import Contract
from stepwell.objectives import cross_entropy, supervised
from stepwell.shapes import Shape
from stepwell.tasks.base import QA

EOS = 1
BARE = [replace(item, answers=()) for item in ITEMS]


@pytest.fixture(params=SHAPES)
def backbone(request: pytest.FixtureRequest) -> HFBackbone:
    return letters(request.param)


def vectors(items: Sequence[QA], count: int = 3) -> Tensor:
    """A prefix for each item that depends on its question only."""
    made = [
        torch.randn(count, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(len(item.question)))
        for item in items
    ]
    return torch.stack(made)


def slow_nats(backbone: HFBackbone, embeds: Tensor, answer: Sequence[int]) -> list[float]:
    """Nats of each token after the embeddings (T, D): by the model of transformers, from the start for every token."""
    found, row = [], embeds[None]
    with torch.no_grad():
        for token in answer:
            found.append(-float(backbone.model(inputs_embeds=row).logits[0, -1].log_softmax(-1)[token]))
            row = torch.cat((row, backbone.embed(torch.tensor([[token]]))), 1)
    return found


def slow_answer(backbone: HFBackbone, contract: Contract, embeds: Tensor) -> tuple[list[int], bool]:
    """What `generate` of transformers writes after embeddings (T, D), alone, with its mask and without a cache."""
    ids = backbone.model.generate(
        inputs_embeds=embeds[None], attention_mask=torch.ones(1, len(embeds), dtype=torch.long), do_sample=False,
        max_new_tokens=contract.params.max_answer_tokens, use_cache=False, eos_token_id=sorted(contract.stops),
        pad_token_id=EOS,
    )[0].tolist()  # fmt: skip
    return (ids[:-1], True) if ids[-1] in contract.stops else (ids, False)


def same(found: Sequence[AnswerRecord], wanted: Sequence[AnswerRecord]) -> None:
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert one.nll_per_token == pytest.approx(other.nll_per_token, rel=1e-9)
        assert replace(one, nll_per_token=0.0) == replace(other, nll_per_token=0.0)


def starts(backbone: HFBackbone, contract: Contract) -> list[Tensor]:
    with torch.no_grad():
        return [backbone.embed(torch.tensor([contract.text(item)]))[0] for item in ITEMS]


# The layout.


def test_batched_is_single(backbone: HFBackbone):
    contract = contract_of(backbone)
    rows = [contract.text(item) for item in ITEMS]
    assert len(set(map(len, rows))) == len(rows)
    with torch.no_grad():
        asked = Asked.of_ids(backbone, rows)
        together = asked.read(backbone)
        assert asked.mask.sum(1).tolist() == list(map(len, rows))
        for at, row in enumerate(rows):
            alone = Asked.of_ids(backbone, [row])
            assert bool(alone.mask.all()) and alone.positions.tolist() == [list(range(len(row)))]
            close(together.hidden[at], alone.read(backbone).hidden[0])
            assert int(together.positions[at]) == len(row)


def test_embeddings_are_laid_out_as_tokens_are(backbone: HFBackbone):
    contract = contract_of(backbone)
    with torch.no_grad():
        of_ids = Asked.of_ids(backbone, [contract.text(item) for item in ITEMS])
        of_embeds = Asked.of_embeds(starts(backbone, contract))
    assert torch.equal(of_ids.embeds, of_embeds.embeds)
    assert torch.equal(of_ids.mask, of_embeds.mask) and torch.equal(of_ids.positions, of_embeds.positions)
    assert not of_ids.embeds[~of_ids.mask].any(), "padding holds nothing"


def test_states_predict_what_a_slow_reference_says(backbone: HFBackbone):
    # Faults 01 and 04: one shift; EOS is among the targets; padding is not, whatever it is padded with.
    contract = contract_of(backbone)
    targets = [contract.target(item) for item in ITEMS]
    with torch.no_grad():
        taught = Asked.of_ids(backbone, [contract.text(item) for item in ITEMS]).taught(backbone, targets)
        nats = -backbone.logits(taught.hidden(backbone)).log_softmax(-1)
    nats = nats.gather(1, taught.targets[:, None])[:, 0]
    slow = [slow_nats(backbone, row, target) for row, target in zip(starts(backbone, contract), targets, strict=True)]
    close(nats, torch.tensor([value for row in slow for value in row], dtype=torch.float64))
    assert taught.targets.tolist() == [token for target in targets for token in target]
    assert taught.rows.tolist() == [row for row, target in enumerate(targets) for _ in target]
    assert taught.places.tolist() == [place for target in targets for place in range(len(target))]
    assert taught.targets.tolist().count(EOS) == len(ITEMS)


def test_what_stands_at_padding_changes_nothing(backbone: HFBackbone):
    contract = contract_of(backbone)
    asked = Asked.of_ids(backbone, [contract.text(item) for item in ITEMS])
    with torch.no_grad():
        taught = asked.taught(backbone, [contract.target(item) for item in ITEMS])
        noise = torch.randn(taught.embeds.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        other = replace(taught, embeds=taught.embeds.where(taught.mask[..., None], noise))
        close(taught.hidden(backbone), other.hidden(backbone))


def test_gradients_reach_the_prefix_and_nothing_else(backbone: HFBackbone):
    contract, prefix = contract_of(backbone), vectors(ITEMS).requires_grad_()
    wanted = [parameter.requires_grad_(False) for parameter in backbone.parameters() if parameter.requires_grad]
    taught = Asked.of_prefix(contract, prefix).taught(backbone, [contract.target(item) for item in ITEMS])
    loss, count = cross_entropy(backbone.logits(taught.hidden(backbone)), taught.targets)
    (loss / count).backward()
    for parameter in wanted:
        assert parameter.grad is None
        parameter.requires_grad_(True)
    assert prefix.grad is not None and bool((prefix.grad.abs().amax(-1) > 0).all())


def test_a_cache_may_come_before(backbone: HFBackbone):
    contract, cut = contract_of(backbone), 7
    whole = starts(backbone, contract)

    def halved(items: Sequence[QA]) -> Asked:
        """Their texts, the first columns already in a cache: what a deep prefix looks like."""
        rows = [whole[BARE.index(item)] for item in items]
        first = Asked.of_embeds([row[:cut] for row in rows])
        cache = backbone.new_cache()
        backbone(first.embeds, positions=first.positions, mask=first.mask, cache=cache)
        rest = Asked.of_embeds([row[cut:] for row in rows])
        return Asked(
            embeds=rest.embeds, mask=torch.cat((first.mask, rest.mask), 1), positions=rest.positions + cut, cache=cache
        )  # fmt: skip

    same(list(answer_items(backbone, contract, ITEMS, halved, 2)), list(answer_items(backbone, contract, ITEMS)))
    with torch.no_grad():
        targets = [contract.target(item) for item in ITEMS]
        cached, plain = halved(BARE), Asked.of_embeds(whole)
        close(cached.taught(backbone, targets).hidden(backbone), plain.taught(backbone, targets).hidden(backbone))
        close(cached.read(backbone).hidden, plain.read(backbone).hidden)
        assert cached.cache.length == cut, "reading and teaching leave it as it was"


def test_answers_that_are_none_are_told(backbone: HFBackbone):
    asked = Asked.of_ids(backbone, [[0, 5], [0]])
    with pytest.raises(
        StepwellError, match="there are 2 answers for 2 rows, 1 empty\n  Way out: give each row its ans"
    ):
        asked.taught(backbone, [[EOS], []])
    with pytest.raises(StepwellError, match="there are 1 answers for 2 rows"):
        asked.taught(backbone, [[EOS]])


# Answering.


@pytest.mark.parametrize("arm", ["text", "prefix"])
def test_answers_are_those_of_generate_one_at_a_time(backbone: HFBackbone, arm: str):
    # Fault 09: embeddings give new tokens only, and have a mask.
    contract = contract_of(backbone, template="plain", max_answer_tokens=8)
    prefix_of = None if arm == "text" else vectors
    with torch.no_grad():
        rows = starts(backbone, contract) if arm == "text" else list(contract.around(vectors(BARE)))
    found = list(answer_items(backbone, contract, ITEMS, prefix_of, batch_size=3))
    assert [one.id for one in found] == [item.id for item in ITEMS]
    for item, one, row in zip(ITEMS, found, rows, strict=True):
        ids, stopped = slow_answer(backbone, contract, row)
        nats = slow_nats(backbone, row, contract.target(item))
        assert (one.prediction, one.stopped) == contract.said(ids, stopped)
        assert (one.tokens, one.distinct, one.columns) == (len(ids), len(set(ids[:10])), len(row))
        assert one.nll_per_token == pytest.approx(sum(nats) / len(nats), rel=1e-9) and one.nll_tokens == len(nats)
        with torch.no_grad():
            order = backbone.model(inputs_embeds=row[None]).logits[0, -1].argsort(descending=True).tolist()
        firsts = contract.first_tokens(item)
        assert one.first_token == order[0] == [*ids, EOS][0]
        assert (one.first_top1, one.first_top5) == (order[0] in firsts, bool(firsts & set(order[:5])))
    assert any(one.tokens for one in found)


def test_slicing_by_the_prompts_length_would_give_nothing():
    # The fault itself: `generate(inputs_embeds=...)` returns new tokens, so that the slice is empty.
    backbone = letters()
    contract = contract_of(backbone)
    row = starts(backbone, contract)[0]
    ids, _ = slow_answer(backbone, contract, row)
    assert ids and not ids[len(row) :]


@pytest.mark.parametrize("prefix_of", [None, vectors], ids=["text", "prefix"])
def test_the_batch_changes_nothing(backbone: HFBackbone, prefix_of: Any):
    contract = contract_of(backbone)
    wanted = list(answer_items(backbone, contract, ITEMS, prefix_of, batch_size=1))
    for batch_size in (2, 3, 64):
        same(list(answer_items(backbone, contract, ITEMS, prefix_of, batch_size)), wanted)


def test_the_ceiling_is_the_text_through_embeddings(backbone: HFBackbone):
    # Fault 08: the same template, uncompressed embeddings; an arm that changed them not at all would have this score.
    contract = contract_of(backbone)

    def uncompressed(items: Sequence[QA]) -> Asked:
        prompts = [torch.tensor([contract.prompt(item)[len(contract.bos) :]]) for item in items]
        return Asked.of_embeds([contract.around(backbone.embed(prompt))[0] for prompt in prompts])

    same(list(answer_items(backbone, contract, ITEMS, uncompressed, 3)), list(answer_items(backbone, contract, ITEMS)))


def test_controls_are_asked_by_their_own_text():
    backbone = letters()
    contract = contract_of(backbone)
    found = list(answer_items(backbone, contract, ITEMS, text_of=lambda item: contract.cut(item, tokens=20).ids))
    bare = [QA(id=item.id, question=item.question, answers=item.answers) for item in ITEMS]
    assert found[1] == list(answer_items(backbone, contract, bare))[1]
    assert [one.columns for one in found] == [len(contract.cut(item, tokens=20).ids) for item in ITEMS]


# Fault 06: nothing of the gold answers reaches the decoder.


@pytest.mark.parametrize("arm", ["text", "prefix"])
def test_gold_answers_do_not_reach_the_prompt_or_its_limit(arm: str):
    backbone = letters()
    contract, seen = contract_of(backbone, max_answer_tokens=6), []

    def prefix_of(items: Sequence[QA]) -> Tensor:
        seen.extend(items)
        return vectors(items)

    def text_of(item: QA) -> tuple[int, ...]:
        seen.append(item)
        return contract.text(item)

    given: dict[str, Any] = {"text_of": text_of} if arm == "text" else {"prefix_of": prefix_of}
    found = list(answer_items(backbone, contract, ITEMS, **given))
    assert seen == BARE
    longer = [replace(item, answers=(f"{item.question} and so on", "b")) for item in ITEMS]
    others = list(answer_items(backbone, contract, longer, **given))
    for one, other in zip(found, others, strict=True):
        assert (one.prediction, one.tokens, one.stopped) == (other.prediction, other.tokens, other.stopped)
    assert max(one.tokens for one in found) == 6


# Fault 01: the tell-tale.


@pytest.fixture(scope="module")
def learnt() -> Contract:
    """The contract of a small model that was taught to answer the items from their texts."""
    shape = Shape(architecture="llama", vocabulary=264, width=48, layers=1, heads=4, max_positions=400)
    backbone = HFBackbone.from_shape(shape, device="cpu")
    backbone.tokenizer = letters().tokenizer
    contract = contract_of(backbone, template="plain", instruction="")
    texts, targets = [contract.text(item) for item in ITEMS], [contract.target(item) for item in ITEMS]
    optimizer = torch.optim.AdamW(backbone.parameters(), lr=1e-2)
    for _ in range(80):
        taught = Asked.of_ids(backbone, texts).taught(backbone, targets)
        loss, count = cross_entropy(backbone.logits(taught.hidden(backbone)), taught.targets)
        optimizer.zero_grad()
        (loss / count).backward()
        optimizer.step()
    return contract


def test_a_model_that_was_taught_answers_and_stops(learnt: Contract):
    found = list(answer_items(learnt.backbone, learnt, ITEMS))
    assert [one.prediction for one in found] == [item.answers[0] if item.answers else "" for item in ITEMS]
    assert all(one.em and one.f1 == 1 and one.stopped and one.first_top1 and not one.error_mode for one in found)
    assert nll_alarm(found, learnt.backbone.vocabulary) == ""
    assert nll_alarm([one.to_record() for one in found], learnt.backbone.vocabulary) == ""


def test_a_second_shift_is_an_alarm(learnt: Contract, monkeypatch: pytest.MonkeyPatch):
    def shifted_again(labels: Tensor, first: int) -> tuple[Tensor, Tensor]:
        return supervised(torch.cat((labels[:, 1:], labels[:, -1:]), 1).where(labels != -100, -100), first)

    monkeypatch.setattr(answers, "supervised", shifted_again)
    items = [item for item in ITEMS if item.answers and len(item.answers[0]) > 1]
    found = list(answer_items(learnt.backbone, learnt, items))
    assert all(one.em for one in found), "what is written does not tell"
    assert sum(one.nll_per_token for one in found) / len(found) > math.log(264)
    assert (
        "nats a token for the gold answers, more than a uniform guess over 264 tokens (5.58): labels are shifted"
        in (nll_alarm(found, 264))
    )


def test_the_alarm_weighs_tokens():
    def nats(value: float, tokens: int) -> dict[str, float]:
        return {"nll_per_token": value, "nll_tokens": tokens}

    assert nll_alarm([], 10) == nll_alarm([nats(12.7, 1), nats(2.0, 99)], 10) == ""
    assert nll_alarm([nats(math.log(10), 3)], 10) == ""
    assert nll_alarm([nats(12.7, 9), nats(2.0, 1)], 10).startswith("the text baseline needs 11.63 nats a token")


# Scores and error modes: fault 12.


def scripted(text: str, stopped: bool, item: QA) -> AnswerRecord:
    """The record of an item to which a model answers a text."""
    contract = contract_of(letters(), template="chat", no_answer="none")
    ids = tuple(letters().tokenizer.encode(text, add_special_tokens=False))
    written = [Decoded(ids=ids, stopped=stopped)]
    (record,) = answer_items(contract.backbone, contract, [item], go_on=lambda *_, **__: written)
    return record


@pytest.mark.parametrize(
    ("text", "stopped", "em", "f1", "mode"),
    [
        ("The Rollo!", True, True, 1.0, ""),
        ("king rollo", True, True, 1.0, ""),
        ("", True, False, 0.0, "empty"),
        ("None.", True, False, 0.0, "empty"),
        ("the the the the", False, False, 0.0, "repetition"),
        ("thethethe", False, False, 0.0, "repetition"),
        ("It was Rollo", True, False, 0.5, "too long"),
        ("a Viking who", False, False, 0.0, "too long"),
        ("a Viking", True, False, 0.0, "wrong"),
        # A multiset: "king" counts once, so that precision is 1 of 2, where a set would say 1.
        ("King King", True, False, 0.5, "wrong"),
        ("Rollo Rollo", True, False, 2 / 3, "too long"),
    ],
)
def test_scores_and_error_modes(text: str, stopped: bool, em: bool, f1: float, mode: str):
    record = scripted(text, stopped, ITEMS[0])
    assert (record.em, record.f1, record.error_mode) == (em, pytest.approx(f1), mode)
    assert record.tokens == len(text) and record.stopped == stopped


def test_every_gold_answer_counts():
    item = QA(id="x", question="Who?", answers=("someone else", "Rollo"), context="It was Rollo.")
    assert scripted("Rollo", True, item).em
    assert not scripted("Rollo", True, replace(item, answers=item.answers[:1])).em


def test_no_answer_is_right_where_there_is_none():
    assert scripted("None", True, ITEMS[2]).em
    assert scripted("", True, ITEMS[2]).em
    assert scripted("Because", True, ITEMS[2]).error_mode == "wrong"


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("thethethe", True),
        ("the the the", True),
        ("so the the the the", True),
        ("New York, New York, New York, New York", True),
        ("!!!!!!!!!!", True),
        ("he said, he said,\nhe said,", True),
        ("", False),
        ("the the", False),
        ("1,000,000,000", False),
        ("10000000000000", False),
        ("Boutros Boutros-Ghali", False),
        ("Mississippi", False),
        ("ha ha", False),
        ("a long and quite ordinary sentence that says ha ha ha once", False),
        ("the king and the queen and the court", False),
    ],
)
def test_repetition(text: str, is_one: bool):
    assert is_repetition(text) == is_one


def test_the_error_mode_of_a_right_answer_is_none():
    item = QA(id="x", question="What?", answers=("ha ha ha ha",))
    assert error_mode(item, "ha ha ha ha", exact=True, stopped=False) == ""


# The baseline of first tokens.


def test_the_commonest_first_token(learnt: Contract):
    train = [QA(id=str(i), question="?", answers=(gold,)) for i, gold in enumerate(["the a", "the b", "a c"])]
    token, right = majority_first_token(learnt, train, ITEMS)
    assert learnt.backbone.tokenizer.decode([token]) == "t"
    assert right == [False, False, False, True, False]  # "three" is a gold answer too
    with pytest.raises(StepwellError, match="there are no items to count first tokens of"):
        majority_first_token(learnt, [], ITEMS)


# What goes wrong.


def test_bad_prefixes_are_told():
    backbone = letters()
    contract = contract_of(backbone)

    def broken(items: Sequence[QA]) -> Tensor:
        made = vectors(items)
        made[[item.id == "d" for item in items]] = float("nan")
        return made

    with pytest.raises(StepwellError, match="item 'd': what stands in place of its text makes the model's logits not"):
        list(answer_items(backbone, contract, ITEMS, broken))
    with pytest.raises(StepwellError, match="there are 4 prefixes for 5 items"):
        list(answer_items(backbone, contract, ITEMS, lambda items: vectors(items)[1:]))
    with pytest.raises(StepwellError, match="give `prefix_of` or `text_of`, not both"):
        list(answer_items(backbone, contract, ITEMS, vectors, text_of=contract.text))
    with pytest.raises(StepwellError, match=r"the prefix has the shape \(5, 3, 16\)"):
        list(answer_items(backbone, contract, ITEMS, lambda items: vectors(items)[..., :16]))


def test_the_models_mode_and_gradients_are_left_alone():
    shape = Shape(vocabulary=264, width=32, layers=1, heads=2, max_positions=400, dropout=0.5)
    backbone = HFBackbone.from_shape(shape, device="cpu").train()
    backbone.tokenizer = letters().tokenizer
    contract = contract_of(backbone)
    first, second = (list(answer_items(backbone, contract, ITEMS)) for _ in range(2))
    assert first == second, "dropout was at work"
    assert backbone.training and all(parameter.requires_grad for parameter in backbone.parameters())
    for _ in answer_items(backbone, contract, ITEMS, batch_size=1):
        assert torch.is_grad_enabled() and backbone.training


def test_no_items_no_work():
    assert list(answer_items(letters(), contract_of(letters()), [])) == []


def test_a_record_is_of_literals():
    backbone = letters()
    (record,) = answer_items(backbone, contract_of(backbone), ITEMS[:1])
    assert record.to_record() == asdict(record)
    assert {type(value) for value in record.to_record().values()} == {str, bool, float, int}
