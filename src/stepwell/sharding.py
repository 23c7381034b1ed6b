"""Models that the processes of one training hold in parts (FSDP2), each layer whole only while it computes.

Source: `torch.distributed.fsdp.fully_shard` (Zhao et al. 2023, arXiv 2304.11277, in its per-parameter form).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stepwell.errors import StepwellError
from stepwell.ranks import Ranks

__all__ = ["Trained", "is_part", "shard", "whole", "whole_state"]

LISTS = ("layers", "h", "blocks")
"""What architectures call their list of layers."""


def shard(backbone: nn.Module, ranks: Ranks, device: str, *, but: Iterable[Tensor] = ()) -> dict[str, int]:
    """Keep of each layer's weights this process's part; the others are gathered while the layer computes.

    Embedding, final norm and head stay whole in every process. From here on every process must run the layers equally
    often, forward and backward.

    Args:
        backbone: on the CPU, where no device holds it whole; is moved to the device in parts.
        ranks: the processes, connected.
        device: `cpu`, `cuda` or `mps`.
        but: parameters that stay whole in every process, such as an adapter's.

    Returns:
        The fields of an event `sharded`: processes, the weights that this one holds, and all weights of the model.

    Raises:
        StepwellError: there is one process, or the architecture has no list of layers.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    if ranks.size == 1:
        raise StepwellError("one process cannot hold a model in parts", "set `devices` to 2 at least")
    base = getattr(backbone, "base", backbone)
    layers = next((found for name in LISTS if isinstance(found := getattr(base, name, None), nn.ModuleList)), None)
    if layers is None:
        raise StepwellError(
            f"{type(getattr(backbone, 'model', backbone)).__name__} has no list of layers to be held in parts",
            "leave `shard` out",
        )
    weights, kept = sum(p.numel() for p in backbone.parameters()), set(map(id, but))
    mesh = init_device_mesh(device, (ranks.size,))
    for layer in layers:
        # Left to choose, it keeps a module that is in no other one whole until the backward pass, and after a look at
        # held-out items too; then the gradients of several passes are wrong, without a word.
        fully_shard(
            layer, mesh=mesh, reshard_after_forward=True,
            ignored_params={p for p in layer.parameters() if id(p) in kept},
        )  # fmt: skip
        assert isinstance(layer, FSDPModule)
        # Losses are divided by the tokens of the whole step beforehand, so gradients are added up, not averaged; by a
        # sum and a division, for gloo knows nothing else.
        layer.set_gradient_divide_factor(1.0)
        layer.set_force_sum_reduction_for_comms(True)
    backbone.to(device)
    held = sum(_local(p).numel() for p in backbone.parameters())
    return {"processes": ranks.size, "held": held, "weights": weights}


def is_part(tensor: Tensor) -> bool:
    """Whether a tensor is held in parts."""
    # Its import takes a second, which a training in one process need not spend.
    home = sys.modules.get("torch.distributed.tensor")
    return home is not None and isinstance(tensor, home.DTensor)


def whole(tensor: Tensor) -> Tensor:
    """A tensor with the parts of all processes, all of which must call it; one that is whole as it is."""
    part: Any = tensor
    return part.detach().full_tensor() if is_part(tensor) else tensor


def whole_state(module: nn.Module) -> dict[str, Any]:
    """The module's state dict; what is held in parts is gathered into this machine's own memory, one after another.

    All processes must call it.
    """
    state = module.state_dict()
    return {name: _kept(whole(value)) if isinstance(value, Tensor) and is_part(value) else value
            for name, value in state.items()}  # fmt: skip


class Trained:
    """What a loop trains, as this process holds it: its part of what is held in parts, and all of the rest.

    Args:
        module: what is trained.
        ranks: the processes that train it.
    """

    def __init__(self, module: nn.Module, ranks: Ranks) -> None:
        self.module, self.ranks = module, ranks
        self._own = [p for p in module.parameters() if p.requires_grad]
        # A plain tensor over the same memory: optimizers and norms take no mixture of both kinds.
        self.parameters = [nn.Parameter(_local(p)) if is_part(p) else p for p in self._own]
        self.in_parts = any(map(is_part, self._own))

    def add_up(self, numbers: Sequence[float]) -> list[float]:
        """Replace each gradient by its sum over the processes, and give the sums of some numbers."""
        found = self.ranks.add_up([p for p in self._own if not is_part(p)], numbers)
        for own, held in zip(self._own, self.parameters, strict=True):
            if held is not own:  # it was added up as it was dealt out, in the backward pass
                held.grad = None if own.grad is None else _local(own.grad)
        return found

    def clip(self, limit: float) -> float:
        """Scale all gradients by one factor, so that their norm together is at most `limit`; gives the norm before."""
        if not self.in_parts:
            return float(nn.utils.clip_grad_norm_(self.parameters, limit))
        both = list(zip(self._own, self.parameters, strict=True))
        of_whole = [held.grad for own, held in both if held is own and held.grad is not None]
        of_parts = [held.grad for own, held in both if held is not own and held.grad is not None]
        (squares,) = self.ranks.add_up((), [float(nn.utils.get_total_norm(of_parts)) ** 2])
        norm = math.hypot(float(nn.utils.get_total_norm(of_whole)), math.sqrt(squares))
        nn.utils.clip_grads_with_norm_(self.parameters, limit, torch.tensor(norm))
        return norm

    def state(self) -> dict[str, Any]:
        """The module's state, whole: another number of processes can go on with it."""
        return whole_state(self.module)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`."""
        if not self.in_parts:
            self.module.load_state_dict(state)
            return
        with torch.no_grad():
            for name, held in self.module.state_dict(keep_vars=True).items():
                _local(held).copy_(_part_of(state[name], held) if is_part(held) else state[name])

    def state_of(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """An optimizer's state, whole."""
        return self._mapped(optimizer, optimizer.state_dict(), _gathered)

    def restore_optimizer(self, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
        """Give an optimizer the state that `state_of` gave."""
        optimizer.load_state_dict(self._mapped(optimizer, state, _part_of))

    def _mapped(
        self, optimizer: torch.optim.Optimizer, state: Mapping[str, Any], change: Callable[[Tensor, Tensor], Tensor]
    ) -> dict[str, Any]:
        """The state, with `change(value, parameter)` in place of what is kept for each number of a part."""
        owners = {id(held): own for own, held in zip(self._own, self.parameters, strict=True)}
        order = [owners[id(held)] for group in optimizer.param_groups for held in group["params"]]
        changed = {
            number: {
                # AdamW's count of steps is a single number.
                key: change(value, order[number]) if is_part(order[number]) and value.ndim else value
                for key, value in kept.items()
            }
            for number, kept in state["state"].items()
        }
        return {**state, "state": changed}


def _local(tensor: Tensor) -> Tensor:
    part: Any = tensor
    return part.detach().to_local() if is_part(tensor) else tensor


def _kept(gathered: Tensor) -> Tensor:
    """In this machine's own memory, without the padding of uneven parts behind it, which no file would take."""
    return gathered.to("cpu", copy=True)


def _gathered(value: Tensor, like: Tensor) -> Tensor:
    """All processes' parts of what is kept beside a parameter, in this machine's own memory."""
    from torch.distributed.tensor import DTensor

    assert isinstance(like, DTensor)
    part = DTensor.from_local(value, like.device_mesh, like.placements, shape=like.shape, stride=like.stride())
    return _kept(part.full_tensor())


def _part_of(value: Tensor, like: Tensor) -> Tensor:
    """This process's part of a whole tensor, cut as the parameter is."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    # None: every process has the whole, so nothing is sent.
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None).to_local()
