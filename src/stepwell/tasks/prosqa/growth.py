"""Growing many ProsQA graphs at once: an incremental DAG, vectorised over graphs, looped over nodes.

Source: Hao et al., "Training large language models to reason in a continuous latent space" (arXiv 2412.06769,
appendix A); what the paper leaves open was inferred from the official data, and the tests compare. Node 0 and node 1
are persons. Every further node takes Poisson(1.5) parents among the nodes before it, drawn without replacement with a
weight that grows with their depth; often only nodes that descend from node 0 alone, or from node 1 alone, may be
parents. A node without parents becomes a further person, and is dropped if it never has a child.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FAR = 64
"""Distance of what cannot be reached; larger than any path, and small enough to add to in int8."""

MAX_PARENTS = 8

Ints = NDArray[np.int64]
Small = NDArray[np.int8]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The numbers behind the growth of one family of graphs.

    Attributes:
        nodes: nodes grown per graph, before childless persons are dropped; at most 60.
        parents: mean of the Poisson number of parents.
        depth_weight: a node at depth d is drawn as a parent with weight 1 + depth_weight x d.
        from_zero: chance that all parents must descend from node 0 and not from node 1.
        from_one: chance of the reverse; otherwise any node may be a parent.
        fewest_parents: a node takes that many parents at least (where it can).
    """

    nodes: int = 28
    parents: float = 1.5
    depth_weight: float = 1.5
    from_zero: float = 0.35
    from_one: float = 0.455
    fewest_parents: int = 0


@dataclass(frozen=True, kw_only=True)
class Skeleton:
    """Nodes whose parents are laid down before the growth, and which nothing grown may bring nearer to a person.

    Attributes:
        forced: (B, N) bit mask of the parents that a node must have.
        bound: (B, N) nodes that no further parent may bring nearer to a person.
        person: (B, N) nodes that have no parents, by decree.
        barren: (B, N) nodes that may not become parents in the growth.
        parents: (B, N) number of parents wanted, forced ones included; -1 leaves it to the Poisson.
    """

    forced: Ints
    bound: Bools
    person: Bools
    barren: Bools
    parents: Ints


@dataclass(frozen=True, kw_only=True)
class Growth:
    """B grown graphs of N nodes each, childless persons still included. The arrays are filled in place by `grow`.

    Attributes:
        parents: (B, N, MAX_PARENTS) parents in the order in which they were drawn, -1 beyond their number.
        taken: (B, N) number of parents.
        children: (B, N) number of children.
        depth: (B, N) distance from the nearest node without parents.
        distance: (B, N, 2) shortest distance from node 0 and from node 1, FAR where there is no path.
    """

    parents: Small
    taken: Small
    children: Small
    depth: Small
    distance: Small

    def link(self, rows: Ints, parent: Ints, node: int) -> None:
        """Make `parent[i]` a parent of `node` in graph `rows[i]`; rows are distinct."""
        slot = self.taken[rows, node]
        self.parents[rows, node, slot] = parent
        below = self.depth[rows, parent] + 1
        self.depth[rows, node] = np.where(slot == 0, below, np.minimum(self.depth[rows, node], below))
        through = np.minimum(self.distance[rows, parent] + 1, FAR)
        self.distance[rows, node] = np.minimum(self.distance[rows, node], through)
        self.children[rows, parent] += 1
        self.taken[rows, node] += 1


def grow(rng: np.random.Generator, graphs: int, recipe: Recipe, skeleton: Skeleton | None = None) -> Growth:
    """Grow `graphs` graphs of `recipe.nodes` nodes; edges always go from a lower to a higher index."""
    shape = (graphs, recipe.nodes)
    grown = Growth(
        parents=np.full((*shape, MAX_PARENTS), -1, np.int8),
        taken=np.zeros(shape, np.int8),
        children=np.zeros(shape, np.int8),
        depth=np.zeros(shape, np.int8),
        distance=np.full((*shape, 2), FAR, np.int8),
    )
    grown.distance[:, 0, 0] = grown.distance[:, 1, 1] = 0
    weight = np.ones(shape, np.float32)
    wanted = _parents_wanted(rng, graphs, recipe, skeleton)
    for node in range(2, recipe.nodes):
        allowed = _allowed(rng, grown.distance[:, :node], recipe)
        if skeleton is not None:
            _take_forced(grown, skeleton, node)
            bound = skeleton.bound[:, node]
            allowed[bound] = _harmless(grown, node, bound)
            allowed &= ~(skeleton.barren[:, :node] | _bits(skeleton.forced[:, node], node))
        _draw(rng, grown, node, wanted[:, node], weight, allowed)
        weight[:, node] = _weights(grown, node, recipe)
    return grown


def _parents_wanted(rng: np.random.Generator, graphs: int, recipe: Recipe, skeleton: Skeleton | None) -> Ints:
    wanted = np.clip(rng.poisson(recipe.parents, (graphs, recipe.nodes)), recipe.fewest_parents, MAX_PARENTS - 1)
    if skeleton is not None:
        wanted = np.where(skeleton.parents >= 0, skeleton.parents, wanted)
        wanted[skeleton.person] = 0
    return wanted


def _weights(grown: Growth, node: int, recipe: Recipe) -> NDArray[np.float32]:
    """(B,) nodes that descend from both of the first persons, or from neither, count as if they had no depth.

    That is not in the paper: in the official data such nodes have far fewer children than their depth would give them.
    """
    from_zero, from_one = (grown.distance[:, node] < FAR).T
    return np.where(from_zero ^ from_one, 1 + recipe.depth_weight * grown.depth[:, node], 1).astype(np.float32)


def _allowed(rng: np.random.Generator, distance: Small, recipe: Recipe) -> Bools:
    """(B, node) who may be a parent of the next node, by the descent that is demanded of its parents."""
    draw = rng.random(len(distance), np.float32)[:, None]
    only_zero = draw < recipe.from_zero
    only_one = ~only_zero & (draw < recipe.from_zero + recipe.from_one)
    from_zero, from_one = distance[:, :, 0] < FAR, distance[:, :, 1] < FAR
    return ~(only_zero & (from_one | ~from_zero) | only_one & (from_zero | ~from_one))


def _bits(mask: Ints, count: int) -> Bools:
    """(B, count) the lowest bits of each mask."""
    return ((mask[:, None] >> np.arange(count)) & 1).astype(bool)


def _harmless(grown: Growth, node: int, rows: Bools) -> Bools:
    """(rows, node) parents that bring a bound node no nearer to any person."""
    far_enough = (grown.distance[rows, :node] + 1 >= grown.distance[rows, node][:, None]).all(axis=2)
    return far_enough & (grown.depth[rows, :node] + 1 >= grown.depth[rows, node][:, None])


def _take_forced(grown: Growth, skeleton: Skeleton, node: int) -> None:
    rows, parent = np.nonzero(_bits(skeleton.forced[:, node], node))
    while len(rows):
        first = np.concatenate([[True], rows[1:] != rows[:-1]])
        grown.link(rows[first], parent[first], node)
        rows, parent = rows[~first], parent[~first]


def _draw(
    rng: np.random.Generator, grown: Growth, node: int, wanted: Ints, weight: NDArray[np.float32], allowed: Bools
) -> None:
    """Draw parents without replacement: of exponential waiting times the smallest win, in their order."""
    waiting = rng.standard_exponential((len(wanted), node), np.float32)
    rows = np.flatnonzero(grown.taken[:, node] < wanted)
    waiting = waiting[rows] / weight[rows, :node]
    waiting[~allowed[rows]] = np.inf
    while len(rows):
        parent = waiting.argmin(axis=1)
        here = np.arange(len(rows))
        found = waiting[here, parent] < np.inf
        grown.link(rows[found], parent[found], node)
        waiting[here, parent] = np.inf
        more = found & (grown.taken[rows, node] < wanted[rows])
        rows, waiting = rows[more], waiting[more]
