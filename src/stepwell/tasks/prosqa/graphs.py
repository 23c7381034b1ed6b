"""ProsQA graphs as arrays: thousands a second for training from scratch, and the source of every generated text item.

`generate_graphs` is the only generator: text items are rendered from its arrays (`generator.py`).
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from stepwell.tasks.prosqa.families import Candidates, family_named
from stepwell.tasks.prosqa.growth import FAR, Bools, Growth, Ints

CHUNK = 4096
"""Graphs grown per draw of random numbers: chunk c depends on (family, seed, c) only, so that a longer set of graphs
begins with the shorter one."""


@dataclass(frozen=True, kw_only=True)
class GraphArrays:
    """n ProsQA graphs; edges go from a lower to a higher index.

    Attributes:
        edges: (n, E, 2) int16, parent and child, ordered by child, padded with -1; E is the family's limit.
        n_edges, n_nodes: (n,) number of edges and of nodes.
        root, target, neg_target: (n,) the person asked about, the right option, the wrong one.
        hops: (n,) shortest path from root to target.
        persons: (n, N) bool, node is a person; False beyond n_nodes.
        path: (n, P) int16, the nodes of one shortest path from root to target, both included, padded with -1.
        target_first: (n,) bool, the right option is named first in the question.
    """

    edges: NDArray[np.int16]
    n_edges: NDArray[np.int16]
    n_nodes: NDArray[np.int16]
    root: NDArray[np.int16]
    target: NDArray[np.int16]
    neg_target: NDArray[np.int16]
    hops: NDArray[np.int16]
    persons: Bools
    path: NDArray[np.int16]
    target_first: Bools

    def __len__(self) -> int:
        return len(self.root)

    def __getitem__(self, rows: slice | Ints | Bools) -> GraphArrays:
        """The graphs chosen by a slice, an index array or a mask."""
        return GraphArrays(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})


def generate_graphs(family: str, n: int, seed: int) -> GraphArrays:
    """Draw n graphs of a family; the same (family, seed) gives the same graphs, and a smaller n a prefix of them.

    Raises:
        StepwellError: unknown family or negative n.
    """
    recipe = family_named(family, n)
    chunks: list[GraphArrays] = []
    found = 0
    while found < n or not chunks:
        rng = np.random.default_rng((seed & 0xFFFF_FFFF_FFFF_FFFF, zlib.crc32(family.encode()), len(chunks)))
        chunks.append(_chunk(rng, recipe.candidates(rng, CHUNK), recipe.most_edges, recipe.most_hops))
        found += len(chunks[-1])
    return GraphArrays(
        **{f.name: np.concatenate([getattr(chunk, f.name) for chunk in chunks])[:n] for f in fields(GraphArrays)}
    )


def _chunk(rng: np.random.Generator, drawn: Candidates, most_edges: int, most_hops: int) -> GraphArrays:
    grown, rows = drawn.grown, np.flatnonzero(drawn.kept)
    kept = (grown.children[rows] > 0) | (grown.taken[rows] > 0)
    index = np.cumsum(kept, axis=1) - 1
    n_edges = grown.taken[rows].sum(axis=1)
    fits = n_edges <= most_edges
    rows, kept, index, n_edges = rows[fits], kept[fits], index[fits], n_edges[fits]
    root, target, other = drawn.root[rows], drawn.target[rows], drawn.neg_target[rows]
    here = np.arange(len(rows))
    path = _path(grown, rows, root, target, most_hops)
    return GraphArrays(
        edges=_edges(grown, rows, index, most_edges),
        n_edges=n_edges.astype(np.int16),
        n_nodes=kept.sum(axis=1).astype(np.int16),
        root=index[here, root].astype(np.int16),
        target=index[here, target].astype(np.int16),
        neg_target=index[here, other].astype(np.int16),
        hops=grown.distance[rows, target, root].astype(np.int16),
        persons=_renumbered(kept & (grown.taken[rows] == 0), kept),
        path=np.where(path >= 0, index[here[:, None], path], -1).astype(np.int16),
        target_first=_balanced(rng, len(rows)),
    )


def _balanced(rng: np.random.Generator, count: int) -> Bools:
    """(count,) coins that fall once on each side in every two, so that the order of options tells nothing at any n."""
    coins = rng.random((count + 1) // 2) < 0.5
    return np.stack([coins, ~coins], axis=1).reshape(-1)[:count]


def _renumbered(flags: Bools, kept: Bools) -> Bools:
    """(n, N) flags of the kept nodes, moved to their new indices."""
    graph, node = np.nonzero(kept)
    moved = np.zeros_like(flags)
    moved[graph, (np.cumsum(kept, axis=1) - 1)[graph, node]] = flags[graph, node]
    return moved


def _edges(grown: Growth, rows: Ints, index: Ints, most_edges: int) -> NDArray[np.int16]:
    parents = grown.parents[rows]
    graph, child, slot = np.nonzero(parents >= 0)
    starts = np.searchsorted(graph, np.arange(len(rows)))
    place = np.arange(len(graph)) - starts[graph]
    edges = np.full((len(rows), most_edges, 2), -1, np.int16)
    edges[graph, place, 0] = index[graph, parents[graph, child, slot]]
    edges[graph, place, 1] = index[graph, child]
    return edges


def _path(grown: Growth, rows: Ints, root: Ints, target: Ints, most_hops: int) -> Ints:
    """(n, most_hops + 1) a shortest path, walked back from the target by the first parent that is one hop nearer."""
    hops = grown.distance[rows, target, root]
    path = np.full((len(rows), most_hops + 1), -1, np.int64)
    here = np.arange(len(rows))
    node = target
    path[here, hops] = node
    for back in range(1, most_hops + 1):
        going = back <= hops
        parents = grown.parents[rows, node]
        distance = np.where(parents >= 0, grown.distance[rows[:, None], parents, root[:, None]], FAR)
        step = parents[here, (distance == (hops - back)[:, None]).argmax(axis=1)]
        node = np.where(going, step, node)
        path[here[going], (hops - back)[going]] = node[going]
    return path
