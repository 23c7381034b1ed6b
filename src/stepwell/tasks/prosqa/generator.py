"""ProsQA items as text, rendered from the graphs of `graphs.py`: official template, official vocabulary."""

from __future__ import annotations

import zlib
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from stepwell.tasks.prosqa.graphs import GraphArrays, generate_graphs
from stepwell.tasks.prosqa.items import Item
from stepwell.tasks.prosqa.text import fact_sentence
from stepwell.tasks.prosqa.words import CONCEPTS, PERSONS

_BLOCK = 512
"""Items rendered per draw of names and orders, so that a larger set begins with the smaller one."""


def generate_items(family: str, n: int, seed: int) -> list[Item]:
    """Draw n items of a family; the same (family, seed) gives the same items, and a smaller n the first of them.

    Raises:
        StepwellError: unknown family or negative n.
    """
    return render(generate_graphs(family, n, seed), family, seed)


def render(graphs: GraphArrays, family: str, seed: int) -> list[Item]:
    """Name the nodes of graphs and write them as sentences: names and the order of the facts are drawn anew for each.

    Ids are `<family>-s<seed>-<place>`.
    """
    items: list[Item] = []
    for block, first in enumerate(range(0, len(graphs), _BLOCK)):
        rng = np.random.default_rng((seed & 0xFFFF_FFFF_FFFF_FFFF, zlib.crc32(f"text of {family}".encode()), block))
        persons = rng.random((_BLOCK, len(PERSONS))).argsort(axis=1)
        concepts = rng.random((_BLOCK, len(CONCEPTS))).argsort(axis=1)
        order = rng.random((_BLOCK, graphs.edges.shape[1])).argsort(axis=1)
        for row in range(min(_BLOCK, len(graphs) - first)):
            symbols = _symbols(graphs, first + row, persons[row], concepts[row])
            items.append(_render(graphs, first + row, symbols, order[row], f"{family}-s{seed}-{first + row:05d}"))
    return items


def _symbols(
    graphs: GraphArrays, place: int, persons: NDArray[np.int64], concepts: NDArray[np.int64]
) -> tuple[str, ...]:
    person, concept = iter(persons.tolist()), iter(concepts.tolist())
    flags = graphs.persons[place, : graphs.n_nodes[place]].tolist()
    return tuple(PERSONS[next(person)] if flag else CONCEPTS[next(concept)] for flag in flags)


def _render(graphs: GraphArrays, place: int, symbols: tuple[str, ...], order: NDArray[np.int64], name: str) -> Item:
    count = int(graphs.n_edges[place])
    edges = [(parent, child) for parent, child in graphs.edges[place, :count].tolist()]
    told = [edges[slot] for slot in order.tolist() if slot < count]
    root, target, negative = (int(graph[place]) for graph in (graphs.root, graphs.target, graphs.neg_target))
    path = graphs.path[place, : graphs.hops[place] + 1].tolist()
    pair = (target, negative) if graphs.target_first[place] else (negative, target)
    facts = " ".join(fact_sentence(symbols[parent], symbols[child]) for parent, child in told)
    return Item(
        id=name,
        question=f"{facts} Is {symbols[root]} a {symbols[pair[0]]} or {symbols[pair[1]]}?",
        answer=f"{symbols[root]} is a {symbols[target]}.",
        steps=tuple(fact_sentence(symbols[a], symbols[b]) for a, b in pairwise(path)),
        idx_to_symbol=symbols,
        edges=tuple(edges),
        root=root,
        target=target,
        neg_target=negative,
    )
