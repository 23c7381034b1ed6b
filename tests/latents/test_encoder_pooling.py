"""Pooling and attention against loops in float64, and against torch's own adaptive pooling."""

from __future__ import annotations

from math import erf, sqrt

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stepwell.decode import right_padded
from stepwell.latents.encoder_specs import Queries
from stepwell.latents.encoders.bytewise import sinusoids
from stepwell.latents.encoders.pooling import Attention, Layer, QueryPooling, seeded, stretch_means


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def slow_norm(norm: nn.LayerNorm, row: Tensor) -> Tensor:
    spread = torch.stack([(x - row.mean()) ** 2 for x in row]).sum() / len(row)
    return (row - row.mean()) / (spread + norm.eps).sqrt() * norm.weight + norm.bias


def slow_linear(linear: nn.Linear, row: Tensor) -> Tensor:
    return torch.stack([(weights * row).sum() + bias for weights, bias in zip(linear.weight, linear.bias, strict=True)])


def slow_attention(attention: Attention, columns: list[Tensor], states: list[Tensor], causal: bool) -> list[Tensor]:
    """One column, one head, one key at a time."""
    size = attention.query.out_features // attention.heads
    width = attention.query.out_features
    written = []
    for place, column in enumerate(columns):
        query, read = slow_linear(attention.query, column), []
        seen = states[: place + 1] if causal else states
        both = [slow_linear(attention.key_value, state) for state in seen]
        for head in range(attention.heads):
            part = slice(head * size, (head + 1) * size)
            scores = [float((query[part] * each[:width][part]).sum()) / sqrt(size) for each in both]
            odds = [2.718281828459045 ** (score - max(scores)) for score in scores]
            read.append(sum(odd / sum(odds) * each[width:][part] for odd, each in zip(odds, both, strict=True)))
        written.append(slow_linear(attention.out, torch.cat(read)))  # pyright: ignore[reportArgumentType]
    return written


def slow_mlp(mlp: nn.Sequential, row: Tensor) -> Tensor:
    norm, first, _, second = mlp
    assert isinstance(norm, nn.LayerNorm) and isinstance(first, nn.Linear) and isinstance(second, nn.Linear)
    inside = slow_linear(first, slow_norm(norm, row))
    return slow_linear(second, torch.stack([x * (1 + erf(float(x) / sqrt(2))) / 2 for x in inside]))


def slow_layer(layer: Layer, columns: list[Tensor]) -> list[Tensor]:
    normed = [slow_norm(layer.norm, column) for column in columns]
    columns = [a + b for a, b in zip(columns, slow_attention(layer.attention, normed, normed, False), strict=True)]
    return [column + slow_mlp(layer.mlp, column) for column in columns]


def slow_pooling(pooling: QueryPooling, states: list[Tensor], vectors: int) -> list[Tensor]:
    states = [slow_norm(pooling.states_norm, state) for state in states]
    queries = list(pooling.queries[:vectors])
    for layer in pooling.layers:
        normed = [slow_norm(layer.among_norm, query) for query in queries]  # pyright: ignore
        queries = [a + b for a, b in zip(queries, slow_attention(layer.among, normed, normed, True), strict=True)]  # pyright: ignore
        normed = [slow_norm(layer.to_norm, query) for query in queries]  # pyright: ignore
        queries = [a + b for a, b in zip(queries, slow_attention(layer.to_states, normed, states, False), strict=True)]  # pyright: ignore
        queries = [query + slow_mlp(layer.mlp, query) for query in queries]  # pyright: ignore
    return queries


def rough(module: nn.Module, seed: int = 5) -> nn.Module:
    """Weights large enough that every one of them matters."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.double().parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    return module


LENGTHS = (5, 1, 3)


def padded(width: int) -> tuple[Tensor, Tensor]:
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    return normal(len(LENGTHS), max(LENGTHS), width), mask


@torch.no_grad()
def test_a_layer_is_its_loops():
    layer = rough(Layer(6, 2))
    columns, mask = padded(6)
    found = layer(columns, mask)
    for row, length in enumerate(LENGTHS):
        wanted = torch.stack(slow_layer(layer, list(columns[row, :length])))  # pyright: ignore[reportArgumentType]
        torch.testing.assert_close(found[row, :length], wanted, rtol=1e-10, atol=1e-10)
    assert found.isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("vectors", [1, 3, 4])
def test_learned_queries_are_their_loops(vectors: int):
    pooling = rough(QueryPooling(Queries(inner=6, layers=2, heads=3), 8, 4))
    states, mask = padded(8)
    found = pooling(states, mask, vectors)
    assert found.shape == (3, vectors, 6)
    for row, length in enumerate(LENGTHS):
        wanted = torch.stack(slow_pooling(pooling, list(states[row, :length]), vectors))  # pyright: ignore
        torch.testing.assert_close(found[row], wanted, rtol=1e-9, atol=1e-9)


def test_gradients_are_finite_differences():
    pooling = rough(QueryPooling(Queries(inner=4, layers=1, heads=2), 3, 2))
    states, mask = padded(3)
    parameters = [each.detach().clone().requires_grad_() for each in pooling.parameters()]
    names = [name for name, _ in pooling.named_parameters()]

    def run(states: Tensor, *weights: Tensor) -> Tensor:
        return torch.func.functional_call(pooling, dict(zip(names, weights, strict=True)), (states, mask, 2))

    assert torch.autograd.gradcheck(run, (states.requires_grad_(), *parameters))


def test_padding_has_no_gradient_and_no_say():
    pooling = rough(QueryPooling(Queries(inner=6, layers=2, heads=3), 8, 4))
    states, mask = padded(8)
    states.requires_grad_()
    for found in (pooling(states, mask, 4), stretch_means(states, mask, 4)):
        (gradient,) = torch.autograd.grad(found.sum(), states)
        assert (gradient[~mask] == 0).all() and (gradient[mask] != 0).any(-1).all()
    spoilt = torch.where(mask[..., None], states, 1e6)
    torch.testing.assert_close(stretch_means(spoilt, mask, 4), stretch_means(states, mask, 4))
    assert stretch_means(torch.where(mask[..., None], states, torch.nan), mask, 4).isfinite().all()


@pytest.mark.parametrize("vectors", [1, 2, 3, 5, 7, 16])
@pytest.mark.parametrize("left", [False, True])
def test_stretches_are_adaptive_average_pooling(vectors: int, left: bool):
    lengths = (1, 2, 5, 7, 12, 13)
    rows = [normal(length, 3, seed=length) for length in lengths]
    states, mask = torch.full((6, 13, 3), 9.0, dtype=torch.float64), torch.zeros(6, 13, dtype=torch.bool)
    for place, row in enumerate(rows):
        where = slice(13 - len(row), 13) if left else slice(0, len(row))
        states[place, where], mask[place, where] = row, True
    found = stretch_means(states, mask, vectors)
    for row, got in zip(rows, found, strict=True):
        torch.testing.assert_close(got, F.adaptive_avg_pool1d(row.T[None], vectors)[0].T)


def test_sinusoids():
    table = sinusoids(7, 6)
    for place in range(7):
        for pair in range(3):
            angle = torch.tensor(place / 10_000 ** (2 * pair / 6))
            torch.testing.assert_close(table[place, 2 * pair], angle.sin())
            torch.testing.assert_close(table[place, 2 * pair + 1], angle.cos())
    assert sinusoids(4, 5).shape == (4, 5)


def test_right_padding():
    ids, mask = right_padded([[3], [1, 2]], device="cpu", filler=7)
    assert ids.tolist() == [[3, 7], [1, 2]] and mask.tolist() == [[True, False], [True, True]]


def test_seeds_leave_the_global_state_alone():
    before = torch.get_rng_state()
    with seeded(3):
        first = torch.randn(4)
    with seeded(3):
        assert torch.equal(first, torch.randn(4))
    with seeded(4):
        assert not torch.equal(first, torch.randn(4))
    assert torch.equal(before, torch.get_rng_state())
