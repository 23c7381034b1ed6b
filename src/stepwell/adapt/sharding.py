"""A frozen model held in parts by the processes that train an adapter on it (FSDP2), each whole only for a moment."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from stepwell.errors import StepwellError
from stepwell.ranks import Ranks

if TYPE_CHECKING:
    from stepwell.backbone import HFBackbone

__all__ = ["shard_frozen"]


def shard_frozen(backbone: HFBackbone, ranks: Ranks, device: str) -> tuple[int, int]:
    """Keep of each layer's frozen weights one part of `ranks.size`; the others are gathered while the layer computes.

    What is trained (an adapter) stays whole in every process, as do embedding, norm and head: so gradients are added
    up as without sharding, and a checkpoint is the same. From here on every process must run the layers equally often.
    Source: `torch.distributed.fsdp.fully_shard` (Zhao et al. 2023, arXiv 2304.11277, in its per-parameter form).

    Args:
        backbone: loaded on the CPU where no device holds it whole; is moved to the device in parts.
        ranks: the processes, connected.
        device: `cpu`, `cuda` or `mps`.

    Returns:
        Weights that this process holds, and those of the whole model.

    Raises:
        StepwellError: there is one process, or the architecture has no list of layers.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    if ranks.size == 1:
        raise StepwellError("one process cannot hold a model in parts", "set `devices` to 2 at least")
    layers = getattr(backbone.base, "layers", None) or getattr(backbone.base, "h", None)
    if not isinstance(layers, torch.nn.ModuleList):
        raise StepwellError(
            f"{type(backbone.model).__name__} has no list of layers to be held in parts", "leave `shard` out"
        )
    mesh = init_device_mesh(device, (ranks.size,))
    for layer in layers:
        fully_shard(layer, mesh=mesh, ignored_params={p for p in layer.parameters() if p.requires_grad})
    backbone.to(device)
    held = sum((p.to_local() if isinstance(p, DTensor) else p).numel() for p in backbone.parameters())
    return held, sum(p.numel() for p in backbone.parameters())
