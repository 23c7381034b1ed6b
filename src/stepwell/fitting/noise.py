"""Random numbers that belong to one restart of one problem: a function of its seed, whatever else is in the batch.

Counter-based: the n-th number of a seed is a hash of the two (splitmix64: Steele, Lea & Flood 2014, doi
10.1145/2660193.2660195), so rows come and go without a generator to carry along, on any device, without a wait for it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stepwell.fingerprint import fingerprint


def _signed(number: int) -> int:
    return number - (1 << 64) if number >= 1 << 63 else number


GAMMA, FIRST, SECOND = map(_signed, (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def seed_of(run: int, problem: str, restart: int) -> int:
    """The seed (63 bits) of one restart of one problem in one run."""
    return int(fingerprint([run, problem, restart])[:16], 16) >> 1


def mixed(number: Tensor) -> Tensor:
    """The finaliser of splitmix64 on int64, elementwise."""
    number = (number ^ _shifted(number, 30)) * FIRST
    number = (number ^ _shifted(number, 27)) * SECOND
    return number ^ _shifted(number, 31)


def _shifted(number: Tensor, bits: int) -> Tensor:
    # A right shift of int64 copies the sign; the algorithm shifts zeros in.
    return (number >> bits) & ((1 << (64 - bits)) - 1)


def normal(seeds: Tensor, draw: Tensor | int, shape: tuple[int, ...]) -> Tensor:
    """Standard normal numbers (R, *shape) in float32.

    Args:
        seeds: (R,) int64.
        draw: (R,) int64 or one number: which draw of the seed; draws do not overlap.
        shape: of one row.
    """
    count = math.prod(shape)
    key = mixed(seeds + GAMMA * (torch.as_tensor(draw, device=seeds.device) + 1))
    index = torch.arange(1, count + 1, device=seeds.device)
    # One hash gives both uniform numbers of the Box-Muller transform, 24 bits (all a float32 holds) each.
    bits = mixed(key[:, None] + GAMMA * index)
    radius, angle = (((bits >> at) & 0xFFFFFF).float() for at in (8, 40))
    found = (-2 * ((radius + 1) / (1 << 24)).log()).sqrt() * (angle * (2 * math.pi / (1 << 24))).cos()
    return found.view(len(seeds), *shape)
