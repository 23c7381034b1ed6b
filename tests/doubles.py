"""Models in float64 throughout, for tests that compare with arithmetic rather than with float32."""

from __future__ import annotations

import torch
from torch import nn


def norms_in_float64(model: nn.Module, width: int) -> None:
    """Llama's own norm computes in float32 whatever the precision of the model: put torch's in its place."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child).__name__.endswith("RMSNorm"):
                setattr(module, name, nn.RMSNorm(width, eps=1e-6, dtype=torch.float64))
