"""Two equal chains, laid before a graph grows around them: root to target, and another person to the negative.

Both have the same length, and the same third person enters both at the same place. The growth then adds nodes and
parents that bring no node of a chain nearer to any person.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stepwell.tasks.prosqa.growth import MAX_PARENTS, Bools, Ints, Skeleton

PERSONS = 3
"""Nodes 0 and 1 are the ends of the two chains (one of them the root), node 2 is the person that enters both."""


@dataclass(frozen=True, kw_only=True)
class Chains:
    """What to lay.

    Attributes:
        hops: lengths of the chains with their probabilities.
        detours: inner places of each chain that get a second node beside them, with the same parent and child.
        branching: fewest and most children of every chain node that is not an option; None leaves it to the growth.
        room: the chains are laid within this first part of the order of growth.
    """

    hops: tuple[tuple[int, float], ...]
    detours: int = 0
    branching: tuple[int, int] | None = None
    room: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Laid:
    """The chains of B graphs of N nodes: the skeleton to grow on, and the question that it is for.

    root, target, neg_target, hops: (B,); on_chain: (B, N) the two persons and the inner nodes of their chains.
    """

    skeleton: Skeleton
    root: Ints
    target: Ints
    neg_target: Ints
    hops: Ints
    on_chain: Bools


def lay_chains(rng: np.random.Generator, graphs: int, nodes: int, chains: Chains) -> Laid:
    """Lay two chains in each of `graphs` graphs of `nodes` nodes, at random places in the order of growth."""
    lengths, chances = zip(*chains.hops, strict=True)
    rows, shape = np.arange(graphs), (graphs, nodes)
    hops = rng.choice(np.array(lengths), graphs, p=np.array(chances))
    on = np.arange(max(lengths)) < hops[:, None]
    beside = _detour_places(rng, hops, max(lengths), chains.detours)
    chain, detour = _positions(rng, on, beside, nodes, chains.room)
    root, join = rng.integers(0, 2, graphs), rng.integers(0, hops)
    above = np.concatenate([np.stack([root, 1 - root], axis=1)[:, :, None], chain[:, :, :-1]], axis=2)
    forced = _forced(shape, on, join, beside, chain, detour, above)
    bound = forced > 0
    target, neg_target = chain[rows, 0, hops - 1], chain[rows, 1, hops - 1]
    option, on_chain = np.zeros(shape, bool), bound.copy()
    option[rows, target] = option[rows, neg_target] = True
    on_chain[:, :2] = True
    on_chain &= ~option
    barren = option
    if chains.branching is not None:
        _branch(rng, forced, bound, on_chain, chains.branching)
        barren = option | on_chain
    more = np.minimum(rng.poisson(0.5, graphs), 3)[:, None]
    parents = np.where(option, np.bitwise_count(forced) + more, -1)
    person = np.broadcast_to(np.arange(nodes) < PERSONS, shape)
    skeleton = Skeleton(forced=forced, bound=bound, person=person, barren=barren, parents=parents)
    return Laid(skeleton=skeleton, root=root, target=target, neg_target=neg_target, hops=hops, on_chain=on_chain)


def _forced(
    shape: tuple[int, int], on: Bools, join: Ints, beside: Ints, chain: Ints, detour: Ints, above: Ints
) -> Ints:
    """(B, N) bit masks: each node of a chain below the one above it, the third person and detours where they enter."""
    forced = np.zeros(shape, np.int64)
    rows = np.arange(shape[0])
    for side in range(2):
        for place in range(on.shape[1]):
            parents = (1 << above[:, side, place]) | np.where(join == place, 1 << (PERSONS - 1), 0)
            forced[rows, chain[:, side, place]] |= np.where(on[:, place], parents, 0)
        for which in range(beside.shape[1]):
            place, node = beside[:, which], detour[:, side, which]
            forced[rows, node] |= 1 << above[rows, side, place]
            forced[rows, chain[rows, side, place + 1]] |= 1 << node
    return forced


def _detour_places(rng: np.random.Generator, hops: Ints, longest: int, detours: int) -> Ints:
    """(B, detours) distinct places of the chain, never its last, in ascending order."""
    score = rng.random((len(hops), longest))
    score[np.arange(longest) >= (hops - 1)[:, None]] = 2
    return np.sort(score.argsort(axis=1)[:, :detours], axis=1)


def _positions(rng: np.random.Generator, on: Bools, beside: Ints, nodes: int, room: float) -> tuple[Ints, Ints]:
    """Node indices (B, 2, longest) of the chains and (B, 2, detours) of their detours; free nodes fill the rest.

    Every node draws a moment, sorted along a chain and between its neighbours for a detour; indices follow moments.
    """
    graphs, longest = on.shape
    moment = np.where(on[:, None], rng.random((graphs, 2, longest)) * room, np.inf)
    moment.sort(axis=2)
    rows, sides = np.arange(graphs)[:, None, None], np.arange(2)[None, :, None]
    before = np.where((beside > 0)[:, None], moment[rows, sides, np.maximum(beside - 1, 0)[:, None]], 0.0)
    after = moment[rows, sides, (beside + 1)[:, None]]
    between = before + (after - before) * rng.random(before.shape)
    moment = np.where(np.isfinite(moment), moment, rng.random(moment.shape))
    laid = [moment.reshape(graphs, -1), between.reshape(graphs, -1)]
    free = nodes - PERSONS - sum(part.shape[1] for part in laid)
    moments = np.concatenate([*laid, rng.random((graphs, free))], axis=1)
    position = moments.argsort(axis=1).argsort(axis=1) + PERSONS
    chain, detour = position[:, : 2 * longest], position[:, 2 * longest : 2 * (longest + beside.shape[1])]
    return chain.reshape(graphs, 2, longest), detour.reshape(graphs, 2, beside.shape[1])


def _branch(rng: np.random.Generator, forced: Ints, bound: Bools, on_chain: Bools, branching: tuple[int, int]) -> None:
    """Give every chain node that is no option further children among the later free nodes, up to the number drawn."""
    nodes = forced.shape[1]
    have = sum(((forced[:, [child]] >> np.arange(nodes)) & 1) for child in range(nodes))
    wanted = np.where(on_chain, rng.integers(branching[0], branching[1] + 1, forced.shape) - have, 0)
    for node in range(nodes):
        room = ~bound & (np.arange(nodes) > max(node, PERSONS - 1)) & (np.bitwise_count(forced) < MAX_PARENTS)
        rank: NDArray[np.float64] = np.where(room, rng.random(forced.shape), 2.0)
        chosen = room & (rank.argsort(axis=1).argsort(axis=1) < wanted[:, [node]])
        forced |= np.where(chosen, 1 << node, 0)
