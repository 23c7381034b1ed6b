"""The families of ProsQA graphs: how each is grown and which of its graphs are kept.

`id` follows the official data: the root is the person with the deepest leaf that descends from no other of the first
two persons, that leaf is the target, and the negative is any leaf that descends from the other person alone.

The out-of-distribution families (`7hop`, `8hop`, `dag`, `dense`, `no-shortcut`) grow around two equal chains: one from
the root to the target, one from another person to the negative. A third person enters both chains at the same place,
so that no rule about persons, depth or in-degree tells the options apart: exchanging the two persons in the question
exchanges the answers. `mini` is `id` at the size of a demonstration, with options matched in depth and in in-degree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from stepwell.errors import StepwellError
from stepwell.tasks.prosqa.chains import Chains, lay_chains
from stepwell.tasks.prosqa.growth import FAR, Bools, Growth, Ints, Recipe, Small, grow


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """Grown graphs with a question each; `kept` (B,) says which of them belong to the family.

    root, target and neg_target are (B,) node indices, meaningless where `kept` is False.
    """

    grown: Growth
    kept: Bools
    root: Ints
    target: Ints
    neg_target: Ints


@dataclass(frozen=True, kw_only=True)
class Family:
    """A family: what it is in one line, its limits, and how its candidates are drawn.

    `candidates(rng, graphs)` draws that many graphs with their questions.
    """

    about: str
    most_edges: int
    fewest_hops: int
    most_hops: int
    candidates: Callable[[np.random.Generator, int], Candidates]


def family_named(name: str, n: int = 0) -> Family:
    """The family of that name.

    Raises:
        StepwellError: there is no such family, or n is negative.
    """
    if name not in FAMILIES:
        raise StepwellError(f"there is no ProsQA family {name!r}", f"choose one of {', '.join(FAMILIES)}")
    if n < 0:
        raise StepwellError(f"{n} items were asked for", "ask for 0 items or more")
    return FAMILIES[name]


def _leaves(grown: Growth) -> tuple[Bools, Bools]:
    """(B, N) leaves that descend from node 0 and not node 1, and the reverse."""
    leaf = (grown.children == 0) & (grown.taken > 0)
    from_zero, from_one = grown.distance[:, :, 0] < FAR, grown.distance[:, :, 1] < FAR
    return leaf & from_zero & ~from_one, leaf & from_one & ~from_zero


def _pick(rng: np.random.Generator, allowed: Bools) -> tuple[Ints, Bools]:
    """(B,) one allowed column per row, uniformly, and whether there was one."""
    score = rng.random(allowed.shape, np.float32) + allowed
    column = score.argmax(axis=1)
    return column, allowed[np.arange(len(allowed)), column]


def _official(rng: np.random.Generator, graphs: int) -> Candidates:
    grown = grow(rng, graphs, OFFICIAL)
    leaves = np.stack(_leaves(grown))
    depths = np.stack([np.where(leaves[person], grown.distance[:, :, person], 0) for person in (0, 1)])
    deepest = depths.max(axis=2) + rng.random((2, graphs)) * 0.5
    root = deepest.argmax(axis=0)
    rows = np.arange(graphs)
    target, _ = _pick(rng, depths[root, rows] == depths.max(axis=2)[root, rows][:, None])
    neg_target, has_negative = _pick(rng, leaves[1 - root, rows])
    hops = depths[root, rows, target]
    kept = has_negative & (hops >= 3) & (hops <= 6)
    return Candidates(grown=grown, kept=kept, root=root, target=target, neg_target=neg_target)


def _mini(rng: np.random.Generator, graphs: int) -> Candidates:
    grown = grow(rng, graphs, MINI)
    rows = np.arange(graphs)
    root = rng.integers(0, 2, graphs)
    leaves = np.stack(_leaves(grown))
    at_three = (leaves[root, rows] & (grown.distance[rows, :, root] == 3)).any(axis=1)
    at_three &= (leaves[1 - root, rows] & (grown.distance[rows, :, 1 - root] == 3)).any(axis=1)
    hops = np.where(at_three, 3, 2)
    wanted = at_three | (rng.random(graphs) < MINI_TWO_HOPS_KEPT)
    fitting = [leaves[person, rows] & (grown.distance[rows, :, person] == hops[:, None]) for person in (root, 1 - root)]
    target, has_target = _pick(rng, fitting[0])
    same_degree = grown.taken == grown.taken[rows, target][:, None]
    neg_target, has_negative = _pick(rng, fitting[1] & same_degree)
    edges = grown.taken.sum(axis=1)
    kept = wanted & has_target & has_negative & (edges >= 9) & (edges <= 12)
    return Candidates(grown=grown, kept=kept, root=root, target=target, neg_target=neg_target)


def _chained(chains: Chains, recipe: Recipe) -> Callable[[np.random.Generator, int], Candidates]:
    def candidates(rng: np.random.Generator, graphs: int) -> Candidates:
        laid = lay_chains(rng, graphs, recipe.nodes, chains)
        grown = grow(rng, graphs, recipe, laid.skeleton)
        rows = np.arange(graphs)
        degrees = grown.taken[rows, laid.target], grown.taken[rows, laid.neg_target]
        kept = (degrees[0] == degrees[1]) & _sound(grown, laid.root, laid.target, laid.neg_target, laid.hops)
        if chains.branching is not None:
            kept &= _branches(grown, laid.on_chain, *chains.branching)
        return Candidates(grown=grown, kept=kept, root=laid.root, target=laid.target, neg_target=laid.neg_target)

    return candidates


def _sound(grown: Growth, root: Ints, target: Ints, neg_target: Ints, hops: Ints) -> Bools:
    """(B,) the target is `hops` from the root, the negative as far from the other person, and neither from both."""
    rows = np.arange(len(root))
    near = (grown.distance[rows, target, root] == hops) & (grown.distance[rows, neg_target, 1 - root] == hops)
    far = (grown.distance[rows, target, 1 - root] == FAR) & (grown.distance[rows, neg_target, root] == FAR)
    leaves = (grown.children[rows, target] == 0) & (grown.children[rows, neg_target] == 0)
    return near & far & leaves & (grown.depth[rows, target] == grown.depth[rows, neg_target])


def _branches(grown: Growth, on_chain: Bools, fewest: int, most: int) -> Bools:
    """(B,) every node of the chains that is not an option has `fewest` to `most` children."""
    children: Small = grown.children
    return np.asarray((~on_chain | ((children >= fewest) & (children <= most))).all(axis=1))


OFFICIAL = Recipe()
MINI = Recipe(nodes=10, parents=1.3, depth_weight=5, from_zero=0.42, from_one=0.42, fewest_parents=1)
MINI_TWO_HOPS_KEPT = 0.35
"""Of the graphs that only have options at 2 hops this part is kept, so that half of the items take 3 hops."""
DENSE = Recipe(nodes=34)
_LIKE_ID = ((4, 0.74), (5, 0.22), (6, 0.04))

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "id": Family(
            about="as the official sets: 3 to 6 hops", most_edges=56, fewest_hops=3, most_hops=6, candidates=_official
        ),
        "no-shortcut": Family(
            about="4 to 6 hops, options that no shortcut rule tells apart",
            most_edges=56,
            fewest_hops=4,
            most_hops=6,
            candidates=_chained(Chains(hops=_LIKE_ID), OFFICIAL),
        ),
        "7hop": Family(
            about="exactly 7 hops",
            most_edges=56,
            fewest_hops=7,
            most_hops=7,
            candidates=_chained(Chains(hops=((7, 1.0),)), OFFICIAL),
        ),
        "8hop": Family(
            about="exactly 8 hops",
            most_edges=56,
            fewest_hops=8,
            most_hops=8,
            candidates=_chained(Chains(hops=((8, 1.0),)), OFFICIAL),
        ),
        "dag": Family(
            about="4 to 6 hops, several shortest paths that converge",
            most_edges=56,
            fewest_hops=4,
            most_hops=6,
            candidates=_chained(Chains(hops=((4, 0.5), (5, 0.35), (6, 0.15)), detours=2), OFFICIAL),
        ),
        "dense": Family(
            about="4 or 5 hops, 5 to 8 children for every node on the way",
            most_edges=96,
            fewest_hops=4,
            most_hops=5,
            candidates=_chained(Chains(hops=((4, 0.7), (5, 0.3)), branching=(5, 8), room=0.55), DENSE),
        ),
        "mini": Family(
            about="8 concepts, 2 persons, 2 or 3 hops", most_edges=12, fewest_hops=2, most_hops=3, candidates=_mini
        ),
    }
)
