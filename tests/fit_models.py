"""Tiny models of every backbone's shape, and problems for them, for the tests of fitting."""

from __future__ import annotations

import torch
from torch import nn

from doubles import norms_in_float64
from stepwell.backbone import HFBackbone
from stepwell.fitting import Problem, Target
from stepwell.shapes import Precision, Shape

SHAPES = {
    "gpt2": Shape(architecture="gpt2", vocabulary=61, width=32, layers=2, heads=4, max_positions=40),
    "llama": Shape(
        architecture="llama", vocabulary=61, width=32, layers=2, heads=4, key_value_heads=2, inner=40, max_positions=40
    ),
    "qwen2": Shape(
        architecture="qwen2", vocabulary=61, width=32, layers=2, heads=4, key_value_heads=2, inner=40, max_positions=40
    ),
    "pythia": Shape(
        architecture="gpt_neox", vocabulary=61, width=32, layers=2, heads=2, inner=40, max_positions=40, tied=False
    ),
}
EOS = 1
MODES = {"ask": 50, "say": 51}


def tiny(name: str = "gpt2", precision: Precision = "fp32") -> HFBackbone:
    """A model of random weights, large enough that positions and attention matter; in float64 throughout if asked."""
    backbone = HFBackbone.from_shape(SHAPES[name], precision=precision, device="cpu")
    generator = torch.Generator().manual_seed(1)
    for parameter in backbone.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.25, generator=generator)
    if precision == "fp64":
        norms_in_float64(backbone, backbone.width)
    return backbone


def pairs(count: int, *, longest: int = 5, seed: int = 0) -> list[Problem]:
    """Problems with a target of 1 to `longest` tokens, and one of 1 to 3, before the end token."""
    generator = torch.Generator().manual_seed(seed)

    def ids(most: int) -> tuple[int, ...]:
        length = int(torch.randint(1, most + 1, (), generator=generator))
        return (*torch.randint(2, 50, (length,), generator=generator).tolist(), EOS)

    return [
        Problem(id=f"p{i}", targets=(Target(ids=ids(longest), mode="ask"), Target(ids=ids(3), mode="say")))
        for i in range(count)
    ]
