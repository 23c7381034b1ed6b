"""A deep prefix in the cache is what the model would have had there itself; masks and positions follow from it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fit_models import SHAPES, tiny
from stepwell.backbone import HFBackbone
from stepwell.decode import greedy
from stepwell.errors import StepwellError
from stepwell.latents.deep_prefix import Begun, DeepPrefix, begin, key_value_rms, written
from stepwell.latents.encoder_specs import DeepPrefixSpec

BOS, VECTORS, ANCHOR = 2, 3, (7, 9)
TEXTS = [list(range(3, 15)), [5, 6, 40, 8]]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def run(backbone: HFBackbone, embeds: Tensor, cache: Any = None) -> Tensor:
    places = torch.arange(embeds.shape[1]).expand(len(embeds), -1)
    return backbone(embeds, positions=places, mask=torch.ones_like(places, dtype=torch.bool), cache=cache)


def parts(backbone: HFBackbone, rows: int, before: int) -> tuple[Tensor, Tensor, Tensor]:
    """`before` tokens, M vectors and an anchor, each as embeddings of some rows."""
    vectors = normal(rows, VECTORS, backbone.width) * 0.5
    tokens = [torch.tensor([ids] * rows).long() for ids in ([BOS] * before, ANCHOR)]
    return backbone.embed(tokens[0]), vectors, backbone.embed(tokens[1])


def own(backbone: HFBackbone, first: Tensor, vectors: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Keys and values that the model itself has for vectors behind some columns."""
    cache = backbone.new_cache()
    run(backbone, torch.cat((first, vectors), 1), cache)
    return [(key.tensor[:, :, first.shape[1] :], value.tensor[:, :, first.shape[1] :]) for key, value in cache.layers]


@torch.no_grad()
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("before", [0, 1, 2])
def test_written_is_the_same_as_run(name: str, before: int):
    backbone = tiny(name, "fp64")
    first, vectors, anchor = parts(backbone, 2, before)
    wanted = run(backbone, torch.cat((first, vectors, anchor), 1))[:, -len(ANCHOR) :]
    begun = begin(backbone, own(backbone, first, vectors), first)
    assert begun.mask.shape == (2, before + VECTORS) and begun.positions.tolist() == [before + VECTORS] * 2
    found, after = begun.read(backbone, anchor)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    assert begun.cache.length == before + VECTORS and after.positions.tolist() == [before + VECTORS + 2] * 2
    # One column after the other is the same again, and `begun` was not used up.
    one, middle = begun.read(backbone, anchor[:, :1])
    two, _ = middle.read(backbone, anchor[:, 1:])
    torch.testing.assert_close(torch.cat((one, two), 1), wanted, rtol=1e-9, atol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize("name", SHAPES)
def test_a_wrong_position_or_a_hidden_prefix_is_seen(name: str):
    backbone = tiny(name, "fp64")
    first, vectors, anchor = parts(backbone, 2, 1)
    begun = begin(backbone, own(backbone, first, vectors), first)
    wanted, _ = begun.read(backbone, anchor)
    places = torch.arange(2).expand(2, -1)
    whole = torch.ones(2, 1 + VECTORS + 2, dtype=torch.bool)
    shifted = backbone(anchor, positions=places + 1, mask=whole, cache=begun.cache.clone())
    hole = whole.clone()
    hole[:, 1 : 1 + VECTORS] = False
    hidden = backbone(anchor, positions=places + 1 + VECTORS, mask=hole, cache=begun.cache.clone())
    for wrong in (shifted, hidden):
        assert (wrong - wanted).abs().max() > 1e-3


@torch.no_grad()
def test_rows_of_other_lengths_may_follow():
    backbone = tiny("llama", "fp64")
    first, vectors, _ = parts(backbone, 2, 1)
    answers = [[7, 8, 9, 10], [11, 12]]
    begun = begin(backbone, own(backbone, first, vectors), first)
    mask = torch.tensor([[True] * 4, [True] * 2 + [False] * 2])
    padded = backbone.embed(torch.tensor([answers[0], [*answers[1], 0, 0]]))
    found, after = begun.read(backbone, padded, mask)
    assert after.positions.tolist() == [8, 6]
    more, _ = after.read(backbone, backbone.embed(torch.tensor([[13], [13]])))
    for row, answer in enumerate(answers):
        alone = torch.cat((first[:1], vectors[row : row + 1], backbone.embed(torch.tensor([[*answer, 13]]))), 1)
        wanted = run(backbone, alone)[0, 1 + VECTORS :]
        torch.testing.assert_close(found[row, : len(answer)], wanted[:-1], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(more[row, 0], wanted[-1], rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_decoding_goes_on_from_it():
    backbone = tiny("qwen2", "fp64")
    first, vectors, anchor = parts(backbone, 2, 1)
    hidden, begun = begin(backbone, own(backbone, first, vectors), first).read(backbone, anchor)
    found = greedy(backbone, hidden[:, -1], cache=begun.cache, mask=begun.mask, positions=begun.positions, stop=(1,),
                   limit=6)  # fmt: skip
    for row, decoded in enumerate(found):
        embeds, ids = torch.cat((first, vectors, anchor), 1)[row : row + 1], []
        while len(ids) < 6 and 1 not in ids:
            ids.append(int(backbone.logits(run(backbone, embeds)[0, -1]).argmax()))
            embeds = torch.cat((embeds, backbone.embed(torch.tensor([[ids[-1]]]))), 1)
        assert list(decoded.ids) == [token for token in ids if token != 1]


def deep(backbone: HFBackbone, **options: Any) -> DeepPrefix:
    return DeepPrefix(DeepPrefixSpec(inner=6), 4, backbone, TEXTS, **options)


@pytest.mark.parametrize("name", SHAPES)
def test_keys_and_values_have_the_models_shapes_and_sizes(name: str):
    backbone = tiny(name)
    made = deep(backbone)(normal(2, VECTORS, 4).float())
    shapes, rms = key_value_rms(backbone, TEXTS)
    heads = 2 if name != "gpt2" else 4
    assert len(made) == 2 and shapes == ((heads, 32 // (2 if name == "pythia" else 4)),) * 2
    for layer, pair in enumerate(made):
        for side, each in enumerate(pair):
            assert each.shape == (2, heads, VECTORS, shapes[layer][1])
            sizes = each.double().flatten(1).square().mean(1).sqrt()
            torch.testing.assert_close(sizes, rms[layer, side].double().expand(2), rtol=1e-4, atol=0)


@torch.no_grad()
def test_the_models_own_sizes_leave_out_padding_and_first_columns():
    backbone = tiny("llama", "fp64")
    _, found = key_value_rms(backbone, [*TEXTS, [4]])
    numbers: list[list[list[Tensor]]] = [[[], []], [[], []]]
    for text in TEXTS:
        cache = backbone.new_cache()
        run(backbone, backbone.embed(torch.tensor([text])), cache)
        for layer, pair in enumerate(cache.layers):
            for side, columns in enumerate(pair):
                numbers[layer][side].append(columns.tensor[:, :, 1:].flatten())
    wanted = torch.tensor([[float(torch.cat(side).square().mean().sqrt()) for side in layer] for layer in numbers])
    torch.testing.assert_close(found, wanted)
    with pytest.raises(StepwellError, match="no text has two tokens"):
        key_value_rms(backbone, [[4], []])


def test_a_row_is_the_same_alone_and_the_first_vectors_are_what_they_are():
    made, latents = deep(tiny()), normal(3, VECTORS, 4).float()
    for together, alone in zip(made(latents), made(latents[1:2]), strict=True):
        for a, b in zip(together, alone, strict=True):
            torch.testing.assert_close(a[1:2], b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_reach_the_latents_through_a_frozen_model(dtype: torch.dtype):
    backbone = tiny("llama", "bf16" if dtype == torch.bfloat16 else "fp32").requires_grad_(False)
    made, latents = deep(backbone).to(dtype), normal(2, VECTORS, 4).float().requires_grad_()
    first, _, anchor = parts(backbone, 2, 1)
    hidden, _ = begin(backbone, made(latents), first).read(backbone, anchor)
    (hidden * normal(*hidden.shape).to(hidden.dtype)).sum().backward()
    for tensor in (latents, *made.parameters()):
        assert tensor.grad is not None and tensor.grad.isfinite().all() and (tensor.grad != 0).any()
    assert all(parameter.grad is None for parameter in backbone.parameters())


def test_gradients_are_finite_differences():
    backbone = tiny("gpt2", "fp64").requires_grad_(False)
    made, first = deep(backbone).double(), backbone.embed(torch.tensor([[BOS]]))
    anchor = backbone.embed(torch.tensor([[7]]))

    def loss(latents: Tensor) -> Tensor:
        return begin(backbone, made(latents), first).read(backbone, anchor)[0][..., :4]

    assert torch.autograd.gradcheck(loss, (normal(1, 2, 4).requires_grad_(),))


def test_the_same_seed_is_the_same_and_its_sizes_are_saved():
    backbone, latents = tiny(), normal(1, 2, 4).float()
    first, same, other = (deep(backbone, seed=seed)(latents)[1][0] for seed in (0, 0, 1))
    assert torch.equal(first, same) and not torch.allclose(first, other)
    saved = {name for name in deep(backbone).state_dict() if not name.startswith("mlp.")}
    assert saved == {"scale", "rms"}


def test_keys_of_another_model_are_refused():
    backbone = tiny()
    first, vectors, _ = parts(tiny("gpt2", "fp64"), 2, 1)
    made = own(tiny("gpt2", "fp64"), first, vectors)
    for wrong in (made[:1], [(key[:1], value[:1]) for key, value in made]):
        with pytest.raises(StepwellError, match=r"there are keys and values of \d layers, and \d rows in the first"):
            begin(backbone, wrong, first)


def test_writing_leaves_the_cache_as_it_was():
    backbone = tiny("gpt2", "fp64")
    first, vectors, _ = parts(backbone, 2, 1)
    made, cache = own(backbone, first, vectors), backbone.new_cache()
    for context in (torch.no_grad(), torch.enable_grad()):
        with context:
            run(backbone, first, cache := backbone.new_cache())
            longer = written(cache, made)
            twice = written(cache, [(key * 2, value * 2) for key, value in made])
        assert cache.length == 1 and longer.length == twice.length == 1 + VECTORS
        torch.testing.assert_close(longer.layers[1][0].tensor[:, :, 1:] * 2, twice.layers[1][0].tensor[:, :, 1:])
    assert isinstance(begin(backbone, made, first), Begun)
