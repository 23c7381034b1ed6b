"""Weight gradients of a chain of passes, computed once instead of once a pass.

A chain of K + 1 passes over the same weights costs, in backward, K + 1 products for every weight: each writes a whole
weight's gradient and adds it to the last, though a pass over one column has only B rows to give. In a chain every
pass depends on the one before it, and autograd runs what was recorded last first, so backward reaches the FIRST pass
last. Here the later passes leave their rows (inputs and output gradients) behind, and the first pass adds one product
over all of them to its own: the same sum. For GPT-2 at batch 8 with 6 thoughts it saves six writes and additions of
340 MB a step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

FEW_ROWS = 64
"""Up to so many rows a product on a CPU is limited by reading the weight."""


class _Rows:
    """The rows that later passes left for one weight, during one backward."""

    def __init__(self) -> None:
        self.inputs: list[Tensor] = []
        self.gradients: list[Tensor] = []
        self.passes = 0
        self.backward: int | None = None
        self.cast: Tensor | None = None

    def leave(self, x: Tensor, grad: Tensor) -> None:
        """Add the rows of one pass; x (..., in), grad (..., out)."""
        self._forget_other_backwards()
        self.inputs.append(x.flatten(0, -2))
        self.gradients.append(grad.flatten(0, -2))

    def added_to(self, grad_weight: Tensor) -> Tensor:
        """The first pass's gradient (in, out), in place, with that of all rows that were left; they are forgotten."""
        self._forget_other_backwards()
        if self.inputs:
            grad_weight.addmm_(torch.cat(self.inputs).T, torch.cat(self.gradients))
        self._clear()
        return grad_weight

    def _forget_other_backwards(self) -> None:
        # A backward that ended early (an error, or only part of the graph was asked for) left rows that are not ours.
        backward = torch._C._current_graph_task_id()
        if backward != self.backward:
            self._clear()
            self.backward = backward

    def _clear(self) -> None:
        self.inputs.clear()
        self.gradients.clear()


class _DeferredLinear(torch.autograd.Function):
    """y = x W (W as (in, out)) whose weight gradient is returned by the first pass of a chain only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, rows: _Rows) -> Tensor:
        ctx.rows, ctx.is_first = rows, rows.passes == 0
        rows.passes += 1
        ctx.save_for_backward(x, weight)
        return _product(x, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (grad,) = grads
        x, weight = ctx.saved_tensors
        rows: _Rows = ctx.rows
        grad_x = _product(grad, weight.T) if ctx.needs_input_grad[0] else None
        if not ctx.is_first:
            rows.leave(x, grad)
            return grad_x, None, None
        # The first pass has most of the rows: they are not copied together with the others.
        grad_weight = x.flatten(0, -2).T @ grad.flatten(0, -2)
        return grad_x, rows.added_to(grad_weight), None


class DeferredWeightGradients(TorchFunctionMode):
    """Within this context, linear maps by a trainable weight share their weight-gradient products.

    Only for a chain, in which whatever depends on a later pass depends on the first pass too (thoughts fed back): a
    loss that did not would leave the rows of the later passes unused. Not with layers that are recomputed in backward,
    which happens outside of this context. Each `with` is a chain of its own, nested ones too.
    """

    def __init__(self) -> None:
        super().__init__()
        self._chains: list[dict[int, _Rows]] = []

    def __enter__(self) -> DeferredWeightGradients:
        self._chains.append({})
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._chains.pop()

    def _linear(self, x: Tensor, weight: Tensor, view: Tensor) -> Tensor:
        rows = self._chains[-1].setdefault(id(weight), _Rows())
        if torch.is_autocast_enabled(x.device.type):
            # Autocast does not reach into backward, so both are cast here, the weight once for the whole chain.
            dtype = torch.get_autocast_dtype(x.device.type)
            rows.cast = view.to(dtype) if rows.cast is None else rows.cast
            x, view = x.to(dtype), rows.cast
        return _DeferredLinear.apply(x, view, rows)  # pyright: ignore[reportReturnType]

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is F.linear and not kwargs and _trainable(args[1]):
            out = self._linear(args[0], args[1], args[1].T)
            return out if len(args) < 3 or args[2] is None else out.add_(args[2].to(out.dtype))
        if func is torch.addmm and not kwargs and len(args) == 3 and _trainable(args[2]):
            out = self._linear(args[1], args[2], args[2])
            return out.add_(args[0].to(out.dtype))
        return func(*args, **kwargs)


def _product(x: Tensor, weight: Tensor) -> Tensor:
    """x (..., in) times W (in, out); few rows on a CPU as one product for each thread, over its share of the columns.

    The CPU's matrix product runs on a single thread where there are few rows, and reading W is then all the time it
    takes; a batch of products is shared out.
    """
    threads, rows = torch.get_num_threads(), x.numel() // x.shape[-1]
    if x.device.type != "cpu" or rows > FEW_ROWS or threads == 1 or weight.shape[1] % threads:
        return x @ weight
    shares = weight.unflatten(1, (threads, -1)).movedim(1, 0)  # (threads, in, out / threads)
    # bmm by name: `@` may copy the shares into one matrix again.
    products = torch.bmm(x.flatten(0, -2).expand(threads, -1, -1), shares)
    return products.movedim(0, 1).reshape(*x.shape[:-1], -1)


def _trainable(weight: Any) -> bool:
    return isinstance(weight, nn.Parameter) and weight.requires_grad and torch.is_grad_enabled()
