"""Deferred weight gradients are plain autograd's, whatever is frozen, nested, repeated or cut short."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from reference_thoughts import HUGGING_FACE, backbone_of, random_batch, weighted
from stepwell.latents import thoughts as module_of_thoughts
from stepwell.latents.deferred import FEW_ROWS, DeferredWeightGradients, _DeferredLinear, _product, _Rows
from stepwell.latents.thoughts import Thoughts


class Chain(nn.Module):
    """Passes that feed on each other, through a Linear with and one without bias and a Conv1D."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down, self.conv = nn.Linear(5, 7), nn.Linear(7, 5, bias=False), Conv1D(5, 5)
        self.double()

    def forward(self, x: Tensor, passes: int = 4) -> Tensor:
        states = []
        for _ in range(passes):
            x = x + self.conv(self.down(torch.tanh(self.up(x))))
            states.append(x)
        return torch.cat(states, 1)


def gradients(module: nn.Module) -> dict[str, Tensor | None]:
    found = {name: None if p.grad is None else p.grad.clone() for name, p in module.named_parameters()}
    module.zero_grad()
    return found


def agree(found: dict[str, Tensor | None], wanted: dict[str, Tensor | None], tolerance: float = 1e-12) -> None:
    assert found.keys() == wanted.keys()
    for name, grad in wanted.items():
        mine = found[name]
        assert (mine is None) == (grad is None), name
        if grad is not None and mine is not None:
            assert mine.dtype == grad.dtype
            scale = max(1.0, float(grad.abs().max()))
            torch.testing.assert_close(mine, grad, rtol=0, atol=tolerance * scale, msg=lambda m, n=name: f"{n}: {m}")


@pytest.fixture
def chain() -> Chain:
    return Chain()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def plain(chain: Chain, x: Tensor) -> dict[str, Tensor | None]:
    chain(x).square().sum().backward()
    return gradients(chain)


def products_of_weights(run: Callable[[], Any], shapes: set[tuple[int, ...]]) -> int:
    """How many matrix products of these shapes a function makes."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Counting(TorchDispatchMode):
        made = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            if func is torch.ops.aten.mm.default and tuple(out.shape) in shapes:
                Counting.made += 1
            return out

    with Counting():
        run()
    return Counting.made


def test_the_same_gradients_from_one_product_a_weight(chain: Chain, x: Tensor, plain: dict[str, Tensor | None]):
    shapes = {(5, 7), (7, 5), (5, 5)}
    assert products_of_weights(chain(x).square().sum().backward, shapes) == 12
    chain.zero_grad()
    with DeferredWeightGradients():
        out = chain(x)
    assert products_of_weights(out.square().sum().backward, shapes) == 3
    agree(gradients(chain), plain)


def test_the_input_gets_its_gradient(chain: Chain, x: Tensor):
    x.requires_grad_()
    (wanted,) = torch.autograd.grad(chain(x).square().sum(), x)
    with DeferredWeightGradients():
        out = chain(x)
    torch.testing.assert_close(torch.autograd.grad(out.square().sum(), x)[0], wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["pairs", "facts", *HUGGING_FACE])
@pytest.mark.parametrize("latents", [(3, 1, 2, 0), (0, 0, 0, 0)], ids=["thoughts", "no-thoughts"])
def test_models_in_chains_of_thoughts(name: str, latents: tuple[int, ...], monkeypatch: pytest.MonkeyPatch):
    """Linear and Conv1D models. Without thoughts the chain is prompt and tail, tied in earlier layers only."""
    batch, model = random_batch(name, latents=latents), Thoughts(backbone_of(name), "continuous")
    found = []
    for width in (10**9, 1):
        monkeypatch.setattr(module_of_thoughts, "DEFER_FROM_WIDTH", width)
        hidden = model(batch)
        # Twice over one graph, the second time as in the study: not from the prompt's own last state.
        weighted(hidden, batch).backward(retain_graph=True)
        model.backbone.logits(hidden[:, 2:]).square().mean().backward()
        found.append(gradients(model))
    agree(found[1], found[0], 1e-10)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_recomputed_layers_are_not_deferred(name: str, monkeypatch: pytest.MonkeyPatch):
    """Gradient checkpointing runs layers again in backward, outside of the context: then plain autograd is used."""
    batch, found = random_batch(name), []
    for recomputing in (False, True):
        backbone = backbone_of(name, gradient_checkpointing=recomputing)
        model = Thoughts(backbone, "continuous").train()
        monkeypatch.setattr(module_of_thoughts, "DEFER_FROM_WIDTH", 1 if recomputing else 10**9)
        weighted(model(batch), batch).backward()
        found.append(gradients(model))
    agree(found[1], found[0], 1e-10)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_mixed_precision(name: str, monkeypatch: pytest.MonkeyPatch):
    """Under autocast the same types and, within bf16's rounding, the same gradients as without."""
    batch, found, types = random_batch(name), [], []
    model = Thoughts(backbone_of(name).float(), "continuous")
    for width in (10**9, 1):
        monkeypatch.setattr(module_of_thoughts, "DEFER_FROM_WIDTH", width)
        with torch.autocast("cpu", torch.bfloat16):
            hidden = model(batch)
        weighted(hidden.float(), batch).backward()
        types.append(hidden.dtype)
        found.append(gradients(model))
    assert types[0] == types[1]
    for key, grad in found[0].items():
        mine = found[1][key]
        assert grad is not None and mine is not None and mine.dtype == grad.dtype == torch.float32
        assert float((mine - grad).norm()) <= 0.05 * float(grad.norm()) + 1e-6, key


def test_autocast_keeps_the_types_of_a_linear_map():
    layer = nn.Linear(5, 7)
    with torch.autocast("cpu", torch.bfloat16), DeferredWeightGradients():
        assert layer(torch.randn(2, 5)).dtype == torch.bfloat16


@pytest.mark.parametrize("frozen", ["up.weight", "down.weight", "conv.weight", "conv.bias", "up.bias"])
def test_frozen_weights(chain: Chain, x: Tensor, frozen: str):
    chain.get_parameter(frozen).requires_grad_(False)
    chain(x).square().sum().backward()
    wanted = gradients(chain)
    with DeferredWeightGradients():
        out = chain(x)
    out.square().sum().backward()
    agree(gradients(chain), wanted)
    assert wanted[frozen] is None


def test_backward_over_two_graphs_in_either_order(chain: Chain, x: Tensor, plain: dict[str, Tensor | None]):
    deferred = DeferredWeightGradients()
    with deferred:
        first = chain(x).square().sum()
    with deferred:
        second = (2 * chain(x)).square().sum()
    second.backward()
    agree(gradients(chain), {name: None if grad is None else 4 * grad for name, grad in plain.items()})
    first.backward()
    agree(gradients(chain), plain)


def test_accumulation_and_a_second_backward_over_one_graph(chain: Chain, x: Tensor, plain: dict[str, Tensor | None]):
    with DeferredWeightGradients():
        loss = chain(x).square().sum()
    loss.backward(retain_graph=True)
    loss.backward()
    agree(gradients(chain), {name: None if grad is None else 2 * grad for name, grad in plain.items()})


def test_nested_contexts_are_chains_of_their_own(chain: Chain, x: Tensor):
    """The same object or another one; the outer chain goes on after the inner one, and either may be asked alone."""
    chain(chain(x, 2)[:, -2:], 2).square().sum().backward()
    wanted_outer = gradients(chain)
    chain(x.flip(0), 2).square().sum().backward()
    wanted_inner = gradients(chain)
    outside = DeferredWeightGradients()
    for inside in (outside, DeferredWeightGradients()):
        with outside:
            start = chain(x, 2)
            with inside:
                inner = chain(x.flip(0), 2).square().sum()
            outer = chain(start[:, -2:], 2).square().sum()
        inner.backward()
        agree(gradients(chain), wanted_inner)
        outer.backward()
        agree(gradients(chain), wanted_outer)


def test_rows_of_a_backward_that_was_cut_short_are_forgotten(chain: Chain, x: Tensor, plain: dict[str, Tensor | None]):
    """Part of the graph is asked for, or a hook raises: the later passes' rows must not be counted in the next one."""
    with DeferredWeightGradients():
        first = chain(x, 1)
        rest = chain(first, 3)
        loss = first.square().sum() + rest.square().sum()
    torch.autograd.grad(loss, first, retain_graph=True)

    def fail(_: Tensor) -> None:
        raise ArithmeticError("in a hook")

    handle = first.register_hook(fail)
    with pytest.raises(ArithmeticError, match="in a hook"):
        loss.backward(retain_graph=True)
    handle.remove()
    chain.zero_grad()
    loss.backward()
    agree(gradients(chain), plain)


def test_an_error_inside_leaves_it_usable(chain: Chain, x: Tensor, plain: dict[str, Tensor | None]):
    deferred = DeferredWeightGradients()
    with pytest.raises(RuntimeError, match="mat1 and mat2"), deferred:
        chain(x)
        chain(x[..., :3])
    assert not is_deferred(chain.up(x)), "the context is still on"
    with deferred:
        loss = chain(x).square().sum()
    loss.backward()
    agree(gradients(chain), plain)


def is_deferred(out: Tensor) -> bool:
    names, todo = set(), [out.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None:
            names.add(type(node).__name__)
            todo.extend(following for following, _ in node.next_functions)
    return "_DeferredLinearBackward" in names


def test_what_is_deferred(chain: Chain, x: Tensor):
    with DeferredWeightGradients():
        assert is_deferred(chain.up(x)) and is_deferred(chain.conv(x))
        assert not is_deferred(nn.functional.linear(x, chain.up.weight * 2)), "a weight that is computed"
        assert not is_deferred(nn.functional.linear(x, weight=chain.up.weight))
        with torch.no_grad():
            assert chain.up(x).grad_fn is None
    assert not is_deferred(chain.up(x))


def test_nothing_is_kept_after_the_context(chain: Chain, x: Tensor):
    deferred = DeferredWeightGradients()
    with deferred:
        chain(x)
    assert deferred._chains == []


def test_no_rows_are_kept_after_backward():
    rows, weight = _Rows(), torch.ones(2, 2, requires_grad=True)
    out: Any = _DeferredLinear.apply(torch.ones(3, 2), weight, rows)
    out.sum().backward()
    assert rows.inputs == rows.gradients == []


def test_finite_differences():
    """The custom function, twice in a chain and once beside it, against finite differences."""
    generator = torch.Generator().manual_seed(3)
    x, weight = (torch.randn(*s, dtype=torch.float64, generator=generator) for s in ((2, 3, 4), (4, 4)))
    x.requires_grad_()
    weight.requires_grad_()

    def chain(x: Tensor, weight: Tensor) -> Tensor:
        rows = _Rows()
        first: Any = _DeferredLinear.apply(x, weight, rows)
        second: Any = _DeferredLinear.apply(torch.tanh(first), weight, rows)
        return torch.cat((first, second), 1)

    assert torch.autograd.gradcheck(chain, (x, weight))
    assert torch.autograd.gradcheck(lambda weight: chain(x.detach(), weight), (weight,))


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("rows", [1, FEW_ROWS, FEW_ROWS + 1])
@pytest.mark.parametrize("columns", [12, 13])
def test_few_rows_are_shared_out_among_threads_and_the_product_is_the_same(threads: int, rows: int, columns: int):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 1, 7, dtype=torch.float64, generator=generator)
    weight = torch.randn(7, columns, dtype=torch.float64, generator=generator).requires_grad_()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for w in (weight, weight.detach().T.contiguous().T):
            torch.testing.assert_close(_product(x, w), x @ w, rtol=0, atol=1e-12)
    finally:
        torch.set_num_threads(before)
