"""Whether two ProsQA items are the same question up to the names of their nodes, and splits that share none."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
from numpy.typing import NDArray

from stepwell.errors import StepwellError
from stepwell.tasks.prosqa.graphs import GraphArrays, generate_graphs
from stepwell.tasks.prosqa.items import Item
from stepwell.tasks.prosqa.packing import pack_graphs

Keys = NDArray[np.uint64]

ROUNDS = 6
"""Rounds of colour refinement. Fewer rounds merge more graphs and separate none that are the same, so that splits by
key stay disjoint with any number; six look as far as the longest official chain."""

_MULTIPLIERS = tuple(np.uint64(odd) for odd in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def canonical(item: Item) -> int:
    """A 64-bit key that does not change when nodes are renamed or renumbered, or facts or options reordered.

    Equal questions up to renaming have equal keys. Different questions have different keys unless colour refinement
    (Weisfeiler and Leman) cannot tell them apart, which `same_up_to_renaming` then decides.
    """
    return int(canonical_keys(pack_graphs([item]))[0])


def canonical_keys(graphs: GraphArrays) -> Keys:
    """(n,) the key of each graph; see `canonical`."""
    colours = _refined(graphs)
    real = np.arange(graphs.persons.shape[1]) < graphs.n_nodes[:, None]
    total = np.where(real, _mix(colours), np.uint64(0)).sum(axis=1, dtype=np.uint64)
    return _mix(total + graphs.n_nodes.astype(np.uint64))


def _refined(graphs: GraphArrays) -> Keys:
    """(n, N) colours of nodes after refinement by the colours of their parents and children."""
    rows = np.arange(len(graphs))
    colours = graphs.persons.astype(np.uint64)
    for mark, role in enumerate((graphs.root, graphs.target, graphs.neg_target)):
        colours[rows, role] += np.uint64(2 << mark)
    colours = _mix(colours)
    slots = [np.flatnonzero(graphs.n_edges > slot) for slot in range(graphs.edges.shape[1])]
    for _ in range(ROUNDS):
        from_parents, from_children = np.zeros_like(colours), np.zeros_like(colours)
        up, down = _mix(colours * _MULTIPLIERS[0]), _mix(colours * _MULTIPLIERS[1])
        for slot, alive in enumerate(slots):
            parent, child = graphs.edges[alive, slot].T
            from_parents[alive, child] += up[alive, parent]
            from_children[alive, parent] += down[alive, child]
        colours = _mix(colours + _mix(from_parents + _MULTIPLIERS[1]) + _MULTIPLIERS[2] * _mix(from_children))
    return colours


def _mix(values: Keys) -> Keys:
    """The finaliser of splitmix64: a bijection of 64-bit integers that spreads every bit."""
    values = values + _MULTIPLIERS[0]
    values = (values ^ (values >> np.uint64(30))) * _MULTIPLIERS[1]
    values = (values ^ (values >> np.uint64(27))) * _MULTIPLIERS[2]
    return values ^ (values >> np.uint64(31))


def same_up_to_renaming(first: Item, second: Item) -> bool:
    """Whether some renaming of nodes turns one question into the other: exact, by search within colours."""
    pair = pack_graphs([first, second])
    if pair.n_nodes[0] != pair.n_nodes[1] or pair.n_edges[0] != pair.n_edges[1]:
        return False
    count = int(pair.n_nodes[0])
    colours = _refined(pair)[:, :count].tolist()
    if sorted(colours[0]) != sorted(colours[1]):
        return False
    linked = [set(item.edges) for item in (first, second)]
    order = sorted(range(count), key=lambda node: (colours[0].count(colours[0][node]), node))
    return _extend({}, order, colours, linked)


def _extend(
    chosen: dict[int, int], order: list[int], colours: list[list[int]], linked: list[set[tuple[int, int]]]
) -> bool:
    if len(chosen) == len(order):
        return True
    node, taken = order[len(chosen)], set(chosen.values())
    for image, colour in enumerate(colours[1]):
        if colour != colours[0][node] or image in taken:
            continue
        fits = all(
            ((node, other) in linked[0]) == ((image, twin) in linked[1])
            and ((other, node) in linked[0]) == ((twin, image) in linked[1])
            for other, twin in chosen.items()
        )
        if fits and _extend({**chosen, node: image}, order, colours, linked):
            return True
    return False


def disjoint_splits(
    family: str, sizes: Mapping[str, int], seed: int, *, distinct: Collection[str] = ()
) -> dict[str, GraphArrays]:
    """Graphs of a family in splits no two of which hold the same question up to the names of its nodes.

    The canonical key of a question decides to which split it belongs.

    Args:
        family: see `families.FAMILIES`.
        sizes: graphs wanted per split.
        seed: of the whole.
        distinct: splits that hold no question twice, either; in the others questions come again as they are drawn.

    Raises:
        StepwellError: unknown family, a negative size, or a family of too few different graphs for these sizes.
    """
    if any(size < 0 for size in sizes.values()):
        raise StepwellError(f"a split of negative size in {dict(sizes)}", "ask for 0 items or more")
    drawn = sum(sizes.values()) * 21 // 20 + 400
    for _ in range(8):
        graphs = generate_graphs(family, drawn, seed)
        keys = canonical_keys(graphs)
        first = np.zeros(drawn, bool)
        first[np.unique(keys, return_index=True)[1]] = True
        ends = _ends(sizes, distinct, int(first.sum()))
        split = np.searchsorted(ends, keys.astype(np.float64) / 2.0**64, side="right")
        rows = {
            name: np.flatnonzero((split == place) & (first if name in distinct else True))
            for place, name in enumerate(sizes)
        }
        if all(len(rows[name]) >= size for name, size in sizes.items()):
            return {name: graphs[rows[name][:size]] for name, size in sizes.items()}
        shortest = max(size / max(len(rows[name]), 1) for name, size in sizes.items())
        drawn = int(drawn * min(max(1.05 * shortest, 1.2), 4))
    raise StepwellError(
        f"the family {family!r} has too few different graphs for splits of {dict(sizes)}", "ask for smaller splits"
    )


def _ends(sizes: Mapping[str, int], distinct: Collection[str], different: int) -> NDArray[np.float64]:
    """Where each split's share of the keys ends: distinct splits need their size among the different questions."""
    apart = {name: min(1.15 * (size + 20) / max(different, 1), 0.5) for name, size in sizes.items() if name in distinct}
    left, others = max(1 - sum(apart.values()), 0), sum(size for name, size in sizes.items() if name not in distinct)
    return np.cumsum([apart[name] if name in distinct else left * sizes[name] / max(others, 1) for name in sizes])
