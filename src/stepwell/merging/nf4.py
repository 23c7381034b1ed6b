"""What 4 bits leave of a weight: NF4 and back, as a base is loaded for QLoRA.

Source: Dettmers et al. 2023, arXiv 2305.14314, section 3 and appendix E: blocks of 64 weights, each divided by its
largest absolute value and rounded to the nearest of 16 quantiles of a normal distribution. The second quantisation, of
the blocks' scales to 8 bits, is left out: it moves a weight by some 0.3% of its block's scale.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 64

LEVELS = torch.tensor(
    [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
     -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
     0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0]
)  # fmt: skip
_BETWEEN = (LEVELS[1:] + LEVELS[:-1]) / 2


def through_nf4(weights: Tensor) -> Tensor:
    """Weights (R, C) in fp32 as they come back from NF4; blocks run along the rows and on into the next.

    Rows are to be given so that no block is cut: R * C a multiple of 64, unless these are the tensor's last.
    """
    flat = weights.reshape(-1)
    padded = torch.nn.functional.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)
    scale = padded.abs().amax(1, keepdim=True)
    codes = torch.bucketize(padded / scale.where(scale > 0, 1.0), _BETWEEN)
    return (LEVELS[codes] * scale).view(-1)[: len(flat)].view_as(weights)
