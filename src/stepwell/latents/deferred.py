"""Weight gradients of a chain of passes, computed once instead of once a pass.

A chain of K + 1 passes over the same weights costs, in backward, K + 1 products for every weight: each writes a whole
weight's gradient and adds it to the last, though a pass over one column has only B rows to give. In a chain every
pass depends on the one before it, so backward reaches the FIRST pass last. Here the later passes leave their rows
(inputs and output gradients) behind, and the first pass computes one product over all rows: the same sum, in one
matrix product. For GPT-2 at batch 8 with 6 thoughts it saves six writes and additions of 340 MB a step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class _Rows:
    """The rows that later passes left for one weight."""

    def __init__(self) -> None:
        self.inputs: list[Tensor] = []
        self.gradients: list[Tensor] = []
        self.passes = 0


class _DeferredLinear(torch.autograd.Function):
    """y = x W (W as (in, out)) whose weight gradient is returned by the first pass of a chain only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, rows: _Rows) -> Tensor:
        ctx.rows, ctx.is_first = rows, rows.passes == 0
        rows.passes += 1
        ctx.save_for_backward(x, weight)
        return x @ weight

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (grad,) = grads
        x, weight = ctx.saved_tensors
        rows: _Rows = ctx.rows
        grad_x = grad @ weight.T if ctx.needs_input_grad[0] else None
        rows.inputs.append(x.flatten(0, -2))
        rows.gradients.append(grad.flatten(0, -2))
        if not ctx.is_first:
            return grad_x, None, None
        grad_weight = torch.cat(rows.inputs).T @ torch.cat(rows.gradients)
        rows.inputs.clear()
        rows.gradients.clear()
        return grad_x, grad_weight, None


class DeferredWeightGradients(TorchFunctionMode):
    """Within this context, linear maps by a trainable weight share one weight-gradient product per weight.

    Only for a chain in which every later pass depends on the first (thoughts fed back): backward must reach the first
    pass last. It is a property of the graph, not of timing: a row left behind without its first pass is never reached
    by autograd either.
    """

    def __enter__(self) -> DeferredWeightGradients:
        self._rows: dict[int, _Rows] = {}
        super().__enter__()
        return self

    def _linear(self, x: Tensor, weight: Tensor, view: Tensor) -> Tensor:
        return _DeferredLinear.apply(x, view, self._rows.setdefault(id(weight), _Rows()))  # pyright: ignore[reportReturnType]

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is F.linear and not kwargs and _trainable(args[1]):
            out = self._linear(args[0], args[1], args[1].T)
            return out if len(args) < 3 or args[2] is None else out + args[2]
        if func is torch.addmm and not kwargs and len(args) == 3 and _trainable(args[2]):
            return self._linear(args[1], args[2], args[2]) + args[0]
        return func(*args, **kwargs)


def _trainable(weight: Any) -> bool:
    return isinstance(weight, nn.Parameter) and weight.requires_grad and torch.is_grad_enabled()
