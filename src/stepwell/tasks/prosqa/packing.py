"""ProsQA items back to arrays, for models that read graphs and for whatever looks at many items at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from stepwell.errors import StepwellError
from stepwell.tasks.prosqa.graphs import GraphArrays
from stepwell.tasks.prosqa.items import Item
from stepwell.tasks.prosqa.text import read_fact
from stepwell.tasks.prosqa.words import is_person


def pack(items: Sequence[Item]) -> GraphArrays:
    """The graphs of items, padded to the largest of them; `path` is the chain that the steps write.

    Raises:
        StepwellError: a step names what is no node of its item.
    """
    path = np.full((len(items), max((item.hops for item in items), default=0) + 1), -1, np.int16)
    for row, item in enumerate(items):
        chain = _chain(item)
        path[row, : len(chain)] = chain
    return replace(pack_graphs(items), path=path)


def pack_graphs(items: Sequence[Item]) -> GraphArrays:
    """As `pack`, whatever the steps say: `path` holds the root alone."""
    edges = np.full((len(items), max((len(item.edges) for item in items), default=0), 2), -1, np.int16)
    persons = np.zeros((len(items), max((len(item.idx_to_symbol) for item in items), default=0)), bool)
    for row, item in enumerate(items):
        edges[row, : len(item.edges)] = np.reshape(item.edges, (-1, 2))
        persons[row, : len(item.idx_to_symbol)] = [is_person(symbol) for symbol in item.idx_to_symbol]

    def column(values: list[int]) -> NDArray[np.int16]:
        return np.array(values, np.int16)

    return GraphArrays(
        edges=edges,
        n_edges=column([len(item.edges) for item in items]),
        n_nodes=column([len(item.idx_to_symbol) for item in items]),
        root=column([item.root for item in items]),
        target=column([item.target for item in items]),
        neg_target=column([item.neg_target for item in items]),
        hops=column([item.hops for item in items]),
        persons=persons,
        path=column([item.root for item in items])[:, None],
        target_first=np.array([item.target_first for item in items], bool),
    )


def _chain(item: Item) -> list[int]:
    index = {symbol: node for node, symbol in enumerate(item.idx_to_symbol)}
    facts = [read_fact(step) for step in item.steps]
    unknown = [step for step, fact in zip(item.steps, facts, strict=True) if fact is None or fact[1] not in index]
    if unknown:
        raise StepwellError(
            f"item {item.id}: the step {unknown[0]!r} names no node of the question",
            "audit the file with `stepwell audit data`",
        )
    return [item.root, *(index[fact[1]] for fact in facts if fact is not None)]
