"""Thoughts over an appended cache are what the slow recomputation gives; one pass is what K + 1 passes give."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from reference_thoughts import BACKBONES, backbone_of, random_batch, think_slowly, weighted
from stepwell.latents import thoughts as module_of_thoughts
from stepwell.latents.thoughts import ARMS, IGNORE, Arm, Batch, Thoughts


@pytest.fixture(params=BACKBONES, scope="module")
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def backbone(name: str) -> Any:
    return backbone_of(name)


@pytest.fixture(scope="module")
def batch(name: str) -> Batch:
    return random_batch(name)


def thinking(backbone: Any, arm: Arm, **options: Any) -> Thoughts:
    vector = torch.linspace(-1, 1, backbone.width, dtype=torch.float64)
    return Thoughts(backbone, arm, vector=vector if arm in ("shared", "frozen") else None, **options)


def gradients(loss: Tensor, model: Thoughts) -> dict[str, Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    return dict(zip(names, found, strict=True))


def agree(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    assert max(float(grad.abs().max()) for grad in wanted.values()) > 1e-3
    for name, grad in wanted.items():
        scale = max(1.0, float(grad.abs().max()))
        torch.testing.assert_close(found[name], grad, rtol=0, atol=1e-10 * scale, msg=lambda m, n=name: f"{n}: {m}")


def slowly(model: Thoughts, batch: Batch, **options: Any) -> tuple[list[Tensor], list[Tensor]]:
    rows = [think_slowly(model.backbone, batch, row, **options) for row in range(len(batch.ids))]
    return [hidden for hidden, _ in rows], [thoughts for _, thoughts in rows]


def as_rows(hidden: Tensor, batch: Batch) -> list[Tensor]:
    counts = batch.mask[:, batch.first :].sum(1) + 1
    return [row[:count] for row, count in zip(hidden, counts.tolist(), strict=True)]


def padded(rows: list[Tensor], columns: int) -> Tensor:
    return torch.stack([torch.nn.functional.pad(row, (0, 0, 0, columns - len(row))) for row in rows])


@pytest.mark.parametrize("arm", ["shared", "frozen"])
def test_one_pass_is_many_passes(backbone: Any, batch: Batch, arm: Arm):
    """Decision 0003: the same function up to the rounding of float64, and so the same gradients."""
    one, many = thinking(backbone, arm), thinking(backbone, arm, multipass=True)
    found, wanted = one(batch), many(batch)
    assert found.shape == (4, batch.ids.shape[1] - batch.first + 1, backbone.width)
    for a, b in zip(as_rows(found, batch), as_rows(wanted, batch), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-14)
    agree(gradients(weighted(found, batch), one), gradients(weighted(wanted, batch), many))
    assert ("vector" in dict(one.named_parameters())) == (arm == "shared")


@pytest.mark.parametrize("deferred", [False, True], ids=["plain", "deferred"])
@pytest.mark.parametrize("arm", ["continuous", "shared", "cot"])
def test_it_is_the_slow_recomputation(
    backbone: Any, batch: Batch, arm: Arm, deferred: bool, monkeypatch: pytest.MonkeyPatch
):
    """Rows of all lengths, batched over a cache, against one row at a time without one: states and gradients."""
    monkeypatch.setattr(module_of_thoughts, "DEFER_FROM_WIDTH", 1 if deferred else 10**9)
    if arm == "cot":
        batch = random_batch("facts" if batch.facts is not None else "pairs", latents=(0, 0, 0, 0))
    model = thinking(backbone, arm)
    wanted, thoughts = slowly(model, batch, vector=getattr(model, "vector", None))
    found = model(batch)
    for a, b in zip(as_rows(found, batch), wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    if arm == "continuous":
        for row, (mine, theirs) in enumerate(zip(model.columns(batch)[1], thoughts, strict=True)):
            torch.testing.assert_close(mine[: len(theirs)], theirs, rtol=0, atol=1e-12, msg=f"thoughts of row {row}")
    slow_loss = weighted(padded(wanted, found.shape[1]), batch)
    agree(gradients(weighted(found, batch), model), gradients(slow_loss, model))


def test_a_graph_may_be_the_whole_prompt():
    """`facts` without markers: no column stands between the root and the first latent."""
    backbone = backbone_of("facts")
    batch = random_batch("facts", heads=(0, 0, 0, 0), latents=(2, 2, 2, 2))
    model = thinking(backbone, "continuous")
    wanted, _ = slowly(model, batch)
    for a, b in zip(as_rows(model(batch), batch), wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["facts-with-positions", "pairs", "gpt2"])
@pytest.mark.parametrize("arm", ["cot", "continuous"])
def test_decoding_goes_on_at_the_right_position(name: str, arm: Arm):
    """What follows a prompt over its cache is what follows it in training, also after a graph alone."""
    heads = (0, 0, 0) if name.startswith("facts") else (4, 2, 1)
    latents = (0, 0, 0) if arm == "cot" else (2, 2, 2)
    batch = random_batch(name, heads=heads, latents=latents, tails=(3, 3, 3))
    model = thinking(backbone_of(name), arm)
    prompt, cache = batch.prompt(), model.backbone.new_cache()
    start = prompt.ids.shape[1]
    last = model(prompt, cache=cache)[:, -1:]
    mask, positions = model.placed(prompt)
    assert cache.length == mask.shape[1]
    after = model.backbone(
        model.backbone.embed(batch.ids[:, start:]), positions=positions[:, None] + torch.arange(3),
        mask=torch.nn.functional.pad(mask, (0, 3), value=True), cache=cache,
    )  # fmt: skip
    whole = model(batch)[:, start - batch.first :]
    torch.testing.assert_close(torch.cat((last, after), 1), whole, rtol=0, atol=1e-12)


def test_more_padding_changes_nothing(backbone: Any, batch: Batch):
    grown = {
        key: torch.nn.functional.pad(getattr(batch, key), (4, 3), value=value)
        for key, value in {"ids": 7, "mask": False, "latent": False, "labels": IGNORE}.items()
    }
    model = thinking(backbone, "continuous")
    found = model(replace(batch, first=batch.first + 4, **grown))
    for a, b in zip(as_rows(found, batch), as_rows(model(batch), batch), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_the_column_that_predicts_nothing_may_be_left_out(backbone: Any, batch: Batch):
    model = thinking(backbone, "continuous")
    torch.testing.assert_close(model(batch.inputs()), model(batch)[:, :-1], rtol=0, atol=1e-12)


def test_a_chain_is_resumed_anywhere_without_reading_the_prompt_again(backbone: Any):
    """With its own thoughts, with others put in afterwards, with edits on the way, with more and with fewer."""
    name = "facts" if hasattr(backbone, "root") else "pairs"
    batch = random_batch(name, latents=(3, 3, 3, 3), tails=(2, 2, 2, 2))
    model = thinking(backbone, "continuous")
    chain = model.chain(batch.with_thoughts(5))
    _, own = model.columns(batch)
    torch.testing.assert_close(chain.thoughts[:, :3], own, rtol=0, atol=1e-13)
    prompt = batch.first + (0 if batch.facts is None else batch.facts.shape[1] + 2)
    others = torch.randn(own.shape, dtype=own.dtype, generator=torch.Generator().manual_seed(2))
    for start in range(4):
        hidden, cache, kept = model.resume(batch, chain, start=start)
        torch.testing.assert_close(kept, own, rtol=0, atol=1e-12)
        given = torch.cat((own[:, :start], others[:, start:]), 1)
        replaced, _, put_in = model.resume(batch, chain, start=start, put_in=others)
        torch.testing.assert_close(put_in, given, rtol=0, atol=1e-12)
        assert cache.length == prompt + 5 and [c.length for c in chain.caches] == [prompt + k for k in range(6)]
        for row in range(4):
            torch.testing.assert_close(hidden[row], think_slowly(backbone, batch, row)[0][-1], rtol=0, atol=1e-12)
            wanted, _ = think_slowly(backbone, batch, row, given=given[row])
            torch.testing.assert_close(replaced[row], wanted[-1], rtol=0, atol=1e-12)
    for count in (0, 2, 5):
        other = batch.with_thoughts(count)
        hidden, _, thoughts = model.resume(other, chain, start=count)
        torch.testing.assert_close(thoughts, chain.thoughts[:, :count], rtol=0, atol=0)
        for row in range(4):
            torch.testing.assert_close(hidden[row], think_slowly(backbone, other, row)[0][-1], rtol=0, atol=1e-12)
    # Nothing was written into the chain, and what is run is thoughts and the tail alone.
    columns: list[int] = []
    with backbone.register_forward_pre_hook(lambda _, given: columns.append(given[0].shape[1])):
        last, _, _ = model.resume(batch, chain, start=1)
        afterwards, _, _ = model.resume(batch, chain, start=1, put_in=own)
    assert columns == [1, 1, 2, 4]
    for found in (last, afterwards):
        torch.testing.assert_close(found, model(batch)[:, -1], rtol=0, atol=1e-12)


def test_other_numbers_of_thoughts_leave_every_other_column_as_it_was():
    batch = random_batch("pairs", latents=(2, 2, 2, 2))
    for count in (0, 1, 2, 5):
        other = batch.with_thoughts(count)
        assert other.thoughts == count and other.first == batch.first
        assert bool((other.latent.sum(1) == count).all()) and bool((other.latent <= other.mask).all())
        for field in ("ids", "mask", "labels"):
            mine, theirs = getattr(batch, field), getattr(other, field)
            torch.testing.assert_close(theirs[:, : batch.first], mine[:, : batch.first], rtol=0, atol=0)
            torch.testing.assert_close(theirs[:, batch.first + count :], mine[:, batch.first + 2 :], rtol=0, atol=0)
        assert bool((other.labels[other.latent] == IGNORE).all())
    with pytest.raises(ValueError, match="the rows have different numbers of latents"):
        random_batch("pairs").with_thoughts(2)


def test_an_edit_in_the_chain_propagates_and_one_afterwards_does_not(backbone: Any):
    name = "facts" if hasattr(backbone, "root") else "pairs"
    batch = random_batch(name, latents=(3, 3, 3, 3), tails=(2, 2, 2, 2))
    model = thinking(backbone, "continuous")
    hidden, own = model.columns(batch)
    asked = []

    def zero_the_first(k: int, thought: Tensor) -> Tensor:
        asked.append(k)
        return torch.zeros_like(thought) if k == 0 else thought

    edited, put_in = model.columns(batch, edit=zero_the_first)
    assert asked == [0, 1, 2]
    torch.testing.assert_close(model(batch, edit=zero_the_first), edited, rtol=0, atol=0)
    assert put_in[:, 0].abs().max() == 0
    for k in (1, 2):
        assert (put_in[:, k] - own[:, k]).abs().amax(1).min() > 1e-4, f"thought {k} did not hear of the edit"
    chain = model.chain(batch)
    resumed, _, thoughts = model.resume(batch, chain, start=0, edit=zero_the_first)
    torch.testing.assert_close(resumed, edited[:, -1], rtol=0, atol=1e-12)
    torch.testing.assert_close(thoughts, put_in, rtol=0, atol=1e-12)
    # Put in afterwards, thoughts 1 and 2 stand as they were: the state differs from that of the edited chain.
    zeroed = torch.cat((torch.zeros_like(own[:, :1]), own[:, 1:]), 1)
    afterwards, _, stood = model.resume(batch, chain, start=0, put_in=zeroed)
    torch.testing.assert_close(stood, zeroed, rtol=0, atol=0)
    assert (afterwards - edited[:, -1]).abs().max() > 1e-4
    assert (afterwards - hidden[:, -1]).abs().max() > 1e-4
    # The edited chain's own thoughts, put in afterwards, are the edited chain.
    again, _, _ = model.resume(batch, chain, start=0, put_in=put_in)
    torch.testing.assert_close(again, edited[:, -1], rtol=0, atol=1e-10)


@pytest.mark.parametrize("arm", ["shared", "frozen"])
def test_an_edit_of_a_vector_arm(arm: Arm):
    """`edit` runs the columns one by one; an edit that changes nothing gives the one pass."""
    batch, model = random_batch("pairs"), thinking(backbone_of("pairs"), arm)
    same = model(batch, edit=lambda k, thought: thought)
    for a, b in zip(as_rows(same, batch), as_rows(model(batch), batch), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-13)
    other = model(batch, edit=lambda k, thought: thought * 0)
    wanted, _ = slowly(model, batch, vector=torch.zeros(16, dtype=torch.float64))
    for a, b in zip(as_rows(other, batch), wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_without_latents_all_arms_are_one_function():
    batch, backbone = random_batch("pairs", latents=(0, 0, 0, 0)), backbone_of("pairs")
    assert batch.thoughts == 0
    wanted = thinking(backbone, "cot")(batch)
    for arm in ARMS:
        found = thinking(backbone, arm)(batch)
        for a, b in zip(as_rows(found, batch), as_rows(wanted, batch), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-13)


def test_what_stands_in_the_ids_of_a_latent_is_not_read():
    batch, model = random_batch("gpt2"), thinking(backbone_of("gpt2"), "continuous")
    other = replace(batch, ids=torch.where(batch.latent | ~batch.mask, (batch.ids + 1) % 69, batch.ids))
    for a, b in zip(as_rows(model(other), batch), as_rows(model(batch), batch), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_a_vector_arm_needs_its_vector():
    with pytest.raises(ValueError, match="arm shared needs the vector that it holds"):
        Thoughts(backbone_of("pairs"), "shared")


def test_the_vector_is_a_copy():
    backbone = backbone_of("pairs")
    for arm in ("shared", "frozen"):
        model = Thoughts(backbone, arm, vector=backbone.embedding.weight[3])
        with torch.no_grad():
            model.vector.add_(1)
        torch.testing.assert_close(model.vector.detach() - 1, backbone.embedding.weight[3].detach())


def test_a_prompt_ends_before_the_first_label():
    batch = random_batch("pairs", latents=(2, 2, 2, 2))
    prompt = batch.prompt()
    assert prompt.ids.shape[1] == batch.first + 2
    assert prompt.mask.shape == prompt.latent.shape == prompt.labels.shape == prompt.ids.shape
    assert bool((prompt.labels == IGNORE).all()) and prompt.thoughts == 2


def test_a_prompt_whose_latents_tell_the_hops_is_refused():
    """Rows with a number of latents of their own cannot be asked: the number would tell the item's hops."""
    with pytest.raises(ValueError, match="the rows' tails start in different columns: decode with the same number of"):
        random_batch("pairs", latents=(2, 3, 2, 2)).prompt()


def test_the_batch_moves_whole():
    moved = random_batch("facts").to("meta")
    tensors = [value for value in vars(moved).values() if isinstance(value, Tensor)]
    assert len(tensors) == 9 and all(value.device.type == "meta" for value in tensors)
