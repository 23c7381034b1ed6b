"""What is done to the thoughts of an item: edits of chains (B, K, D) as pure functions, one for each spec.

An edit is put in either while the chain is computed, so that later thoughts hear of it (it propagates), or afterwards,
so that all others stand as they were. Everything random is drawn once for a set of items and a seed, item by item: the
same item gets the same noise whatever the batch, the family and k, so conditions can be compared item by item.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stepwell.latents.conditions import DONATED, NOISE, Intervention

NOBODY = -1
"""Where an item has no donor."""


@dataclass(frozen=True, kw_only=True)
class Material:
    """What the edits of n items are made of.

    Attributes:
        thoughts: (n, K, D), as the items' own chains have them.
        std: (K,), of the thoughts at each position, over items and width.
        noise: (n, K, D), standard normal.
        order: (n, K), a permutation of each item's thoughts that is not the identity (where K > 1).
        donors: family -> (n,), whose chain an item gets; `NOBODY` where there is none. Never the item itself.
    """

    thoughts: Tensor
    std: Tensor
    noise: Tensor
    order: Tensor
    donors: Mapping[str, Tensor]


def material(thoughts: Tensor, hops: Sequence[int], *, seed: int) -> Material:
    """Draw what the edits need, once for all items.

    Args:
        thoughts: (n, K, D) of all items.
        hops: of each item; donors are chosen by them, never the number of thoughts.
        seed: the same gives the same.
    """
    generator = torch.Generator().manual_seed(seed)
    n, latents, _ = thoughts.shape
    exact = thoughts.double()
    std = exact.std((0, 2), correction=0) if exact.numel() else exact.new_zeros(latents)
    noise = torch.randn(thoughts.shape, generator=generator)
    order = torch.rand(n, latents, generator=generator).argsort(1)
    kept = (order == torch.arange(latents)).all(1, keepdim=True)
    donors = {
        "between": _given_round([list(range(n))], n, generator),
        "transplant-matched": _given_round(_by_hops(hops), n, generator),
        "transplant-unmatched": _of_other_hops(hops, generator),
    }
    return Material(
        thoughts=thoughts, std=std, noise=noise, order=torch.where(kept, order.roll(1, 1), order), donors=donors
    )


def applies(what: Intervention, given: Material, rows: Tensor) -> list[bool]:
    """For which of these rows there is something to put in: all, but for items without a donor."""
    if what.family not in DONATED:
        return [True] * len(rows)
    return (given.donors[what.family][rows] != NOBODY).tolist()


def put_in(what: Intervention, given: Material, rows: Tensor) -> Tensor:
    """The thoughts (B, K, D) that stand in the columns of these rows AFTER the chain was computed; nothing is written.

    Rows without a donor keep their own.
    """
    own = given.thoughts[rows]
    touched = list(what.touched(own.shape[1]))
    if what.family == "averaged":
        return given.thoughts.double().mean(0).to(own).expand_as(own)
    if what.family == "order":
        return own.gather(1, given.order[rows][..., None].expand_as(own))
    if what.family in DONATED:
        donor = given.donors[what.family][rows]
        return given.thoughts[torch.where(donor == NOBODY, rows, donor)]
    changed = own.clone()
    if what.family in ("zeroed", "last-zeroed"):
        changed[:, touched] = 0
    elif what.family == "swap":
        changed[:, touched] = own[:, touched[::-1]]
    elif what.family in NOISE:
        changed[:, touched] += _scaled(what, given, rows, own)[:, touched]
    return changed


def edit(what: Intervention, given: Material, rows: Tensor) -> Callable[[int, Tensor], Tensor]:
    """`edit(k, thoughts (B, D))` for `Thoughts.forward` and `.resume`: noise put in WHILE the chain is computed.

    Raises:
        ValueError: a family of which there is no such form.
    """
    if what.family not in NOISE:
        raise ValueError(f"{what.family} is put in after the thoughts were computed, never before")
    touched = what.touched(given.thoughts.shape[1])
    moved: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def changed(k: int, thought: Tensor) -> Tensor:
        if k not in touched:
            return thought
        place = (thought.device, thought.dtype)
        if place not in moved:
            moved[place] = _scaled(what, given, rows, thought)
        return thought + moved[place][:, k]

    return changed


def unchanged(thoughts: Tensor, own: Tensor) -> Tensor:
    """(B,): whether an edit left a chain (B, K, D) as it was, up to rounding."""
    if not own.shape[1]:
        return torch.ones(len(own), dtype=torch.bool, device=own.device)
    bound = 1e-6 * own.abs().amax((1, 2))
    return (thoughts.to(own) - own).abs().amax((1, 2)) <= bound


def _scaled(what: Intervention, given: Material, rows: Tensor, like: Tensor) -> Tensor:
    """Noise (B, K, D) in units of the thoughts' own standard deviation at each position."""
    assert what.scale is not None
    return (what.scale * given.std[None, :, None] * given.noise[rows].double()).to(like)


def _by_hops(hops: Sequence[int]) -> list[list[int]]:
    return [[i for i, mine in enumerate(hops) if mine == wanted] for wanted in sorted(set(hops))]


def _given_round(groups: Sequence[Sequence[int]], n: int, generator: torch.Generator) -> Tensor:
    """In each group everybody gets another's, and every chain is given once: a shift along a random order."""
    donor = torch.full((n,), NOBODY)
    for group in groups:
        order = torch.tensor(group)[torch.randperm(len(group), generator=generator)]
        if len(group) > 1:
            donor[order] = order.roll(1)
    return donor


def _of_other_hops(hops: Sequence[int], generator: torch.Generator) -> Tensor:
    """For each item one of those with another number of hops, all of them equally likely."""
    donor = torch.full((len(hops),), NOBODY)
    for group in _by_hops(hops):
        others = torch.tensor([i for i in range(len(hops)) if hops[i] != hops[group[0]]], dtype=torch.long)
        if len(others):
            donor[group] = others[torch.randint(len(others), (len(group),), generator=generator)]
    return donor
