"""States gathered in one pass are those of a slow pass that keeps all; a patch is what a hand-written pass does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from slow_states import final_norm, slowly
from torch.nn import functional as F

from reference_thoughts import backbone_of, random_batch
from stepwell.analysis.features import (
    Features,
    Labels,
    blocks,
    columns_of,
    gathered,
    patched,
    rows_of,
    witnesses,
)
from stepwell.errors import StepwellError
from stepwell.latents.thoughts import Thoughts

NAMES = ("pairs", "facts", "facts-with-positions", "gpt2", "llama")


def real_columns(model: Thoughts, batch: Any, row: int) -> list[int]:
    return model.placed(batch)[0][row].nonzero()[:, 0].tolist()


@pytest.mark.parametrize("name", ["pairs", "facts", "facts-with-positions", "gpt2"])
@torch.no_grad()
def test_gathered_states_are_those_of_the_slow_pass(name: str) -> None:
    backbone, batch = backbone_of(name), random_batch(name)
    model = Thoughts(backbone, "continuous")
    total = model.placed(batch)[0].shape[1]
    with gathered(backbone, columns_of(range(total), len(batch.ids))) as found:
        hidden = model(batch)
    assert found.tensor.shape == (4, 3, total, 16)
    torch.testing.assert_close(hidden, model(batch), rtol=1e-12, atol=1e-12, msg="gathering changes nothing")
    for row in range(4):
        columns = real_columns(model, batch, row)
        wanted = torch.stack(slowly(backbone, name, batch, row, {}))
        torch.testing.assert_close(found.tensor[row][:, columns], wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_chosen_columns_are_those_of_a_pass_that_keeps_all(name: str) -> None:
    """Columns may differ by row, and -1 is none; one pass or K + 1, what is gathered is the same."""
    backbone, batch = backbone_of(name), random_batch(name, latents=(3, 3, 3, 3))
    vector = torch.linspace(-1, 1, 16, dtype=torch.float64)
    model = Thoughts(backbone, "shared", vector=vector)
    total, rows = model.placed(batch)[0].shape[1], len(batch.ids)
    chosen = torch.tensor([[total - 1, 2, -1], [-1, -1, 8], [8, 3, 2], [4, -1, 0]])
    found = []
    for multipass in (False, True):
        model.multipass = multipass
        with gathered(backbone, columns_of(range(total), rows)) as all_:
            model(batch)
        with gathered(backbone, chosen) as some:
            model(batch)
        picked = all_.tensor.gather(2, chosen.clamp(min=0)[:, None, :, None].expand(-1, 3, -1, 16))
        real = (chosen >= 0) & model.placed(batch)[0].gather(1, chosen.clamp(min=0))
        torch.testing.assert_close(some.tensor.transpose(1, 2)[real], picked.transpose(1, 2)[real])
        assert bool((some.tensor.transpose(1, 2)[chosen < 0] == 0).all())
        found.append(some.tensor.transpose(1, 2)[real])
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_states_of_transformers_are_what_transformers_says(name: str = "llama") -> None:
    backbone = backbone_of(name)
    ids = torch.randint(69, (2, 9), generator=torch.Generator().manual_seed(3))
    output = backbone.model(input_ids=ids, output_hidden_states=True, use_cache=False)
    with gathered(backbone, columns_of(range(9), 2)) as found:
        backbone(backbone.embed(ids), positions=torch.arange(9).expand(2, 9), mask=torch.ones(2, 9, dtype=torch.bool))
    for layer in range(2):
        torch.testing.assert_close(found.tensor[:, layer], output.hidden_states[layer])
    # transformers' last is after the final norm, ours before it.
    torch.testing.assert_close(backbone.model.model.norm(found.tensor[:, 2]), output.hidden_states[2])


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("name", ["pairs", "facts", "gpt2"])
@torch.no_grad()
def test_a_patch_is_what_a_hand_written_pass_with_it_computes(name: str, layer: int) -> None:
    """In the prompt, in a thought and in both at once; later thoughts are computed from the patched states."""
    backbone, batch = backbone_of(name), random_batch(name, latents=(3, 3, 3, 3), heads=(5, 3, 7, 2))
    model = Thoughts(backbone, "continuous")
    graph = model.placed(batch)[0].shape[1] - batch.ids.shape[1]
    first = graph + batch.first
    where = columns_of([first - 1, first + 1], 4)
    states = torch.randn(4, 2, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    with patched(backbone, layer, where, states):
        hidden = model(batch)
    plain = model(batch)
    assert not torch.allclose(hidden, plain)
    for row in range(4):
        columns = real_columns(model, batch, row)
        patch = {(layer, columns.index(int(c))): states[row, i] for i, c in enumerate(where[row])}
        wanted = final_norm(backbone, name)(slowly(backbone, name, batch, row, patch)[-1])
        begin = columns.index(first - 1)
        torch.testing.assert_close(hidden[row, : len(columns) - begin], wanted[begin:], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["pairs", "gpt2"])
@torch.no_grad()
def test_hooks_are_gone_afterwards_even_after_an_error(name: str) -> None:
    backbone, batch = backbone_of(name), random_batch(name)
    model = Thoughts(backbone, "continuous")
    before = model(batch)
    with (
        pytest.raises(RuntimeError, match="on purpose"),
        patched(backbone, 1, columns_of([5], 4), torch.ones(4, 1, 16)),
    ):
        raise RuntimeError("on purpose")
    for module in (backbone, *blocks(backbone)):
        assert not module._forward_hooks and not module._forward_pre_hooks
    assert torch.equal(model(batch), before)


def test_states_before_any_pass_are_refused() -> None:
    backbone = backbone_of("pairs")
    with gathered(backbone, columns_of([0], 1)) as found, pytest.raises(ValueError, match="no pass has run"):
        _ = found.tensor


# ---- rows are joined by item id


def features(**changes: Any) -> Features:
    states = torch.arange(4.0)[:, None, None, None]
    given = {"ids": ("a", "b", "c", "d"), "witness": (1, 2, 3, 4), "states": states} | changes
    return Features(**given)


LABELS = Labels(witness={"d": 4, "c": 3, "b": 2, "a": 1}, values={"d": "x", "c": None, "b": "y", "a": "z"})


def test_rows_are_joined_by_id_whatever_their_order() -> None:
    rows, values = rows_of(features(), LABELS)
    assert rows.tolist() == [0, 1, 3] and values == ["z", "y", "x"]
    order = [2, 0, 3, 1]
    turned = features(
        ids=tuple("abcd"[i] for i in order), witness=tuple(i + 1 for i in order), states=features().states[order]
    )
    rows, values = rows_of(turned, LABELS)
    assert dict(zip(turned.states[rows].flatten().tolist(), values, strict=True)) == {0.0: "z", 1.0: "y", 3.0: "x"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        # The planted fault: ids are given to the rows one place off.
        ({"ids": ("b", "c", "d", "a")}, "4 of 4 rows are of another question than their label, first b"),
        ({"ids": ("b", "a", "c", "d")}, "2 of 4 rows are of another question than their label, first b"),
        ({"ids": ("a", "b", "c", "c")}, "1 ids stand for more than one row, first c"),
        ({"ids": ("a", "b", "c", "e")}, "2 ids are on one side only, first d"),
        ({"ids": ("a", "b", "c"), "witness": (1, 2, 3)}, "3 ids for 4 rows"),
    ],
)
def test_misaligned_rows_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(StepwellError, match=f"misaligned-rows: {said}") as caught:
        rows_of(features(**changes), LABELS)
    assert "keep each under its item's id" in caught.value.way_out


def test_a_witness_knows_the_question_and_not_its_padding() -> None:
    padded = random_batch("pairs")
    assert len(set(witnesses(padded))) == 4
    ids, mask = F.pad(padded.ids, (3, 2), value=9), F.pad(padded.mask, (3, 2))
    assert witnesses(replace(padded, ids=ids, mask=mask)) == witnesses(padded)
    changed = padded.ids.clone()
    changed[1, padded.first - 1] += 1
    assert [a == b for a, b in zip(witnesses(replace(padded, ids=changed)), witnesses(padded), strict=True)] == [
        True, False, True, True,
    ]  # fmt: skip
