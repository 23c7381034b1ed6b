"""Keys up to renaming, against all permutations of tiny graphs; splits that share no question."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest

from stepwell.errors import StepwellError
from stepwell.tasks.prosqa import (
    Item,
    canonical,
    canonical_keys,
    disjoint_splits,
    generate_graphs,
    generate_items,
    same_up_to_renaming,
)

PERSONS = 2


def tiny(edges: frozenset[tuple[int, int]], nodes: int) -> Item:
    """Two persons, then concepts; the root is 0, the options are the last two nodes."""
    names = tuple(["Tom", "Sam", *(f"c{node}" for node in range(nodes - PERSONS))])
    return Item(
        id="",
        question=f"Is Tom a {names[-1]} or {names[-2]}?",
        answer=f"Tom is a {names[-1]}.",
        steps=(),
        idx_to_symbol=names,
        edges=tuple(sorted(edges)),
        root=0,
        target=nodes - 1,
        neg_target=nodes - 2,
    )


def renamings(nodes: int):
    """All permutations that keep the root, the other person and the options (the free concepts move)."""
    free = range(PERSONS, nodes - 2)
    for image in permutations(free):
        yield dict(zip(free, image, strict=True))


def brute_key(edges: frozenset[tuple[int, int]], nodes: int):
    return min(tuple(sorted((moved.get(a, a), moved.get(b, b)) for a, b in edges)) for moved in renamings(nodes))


def test_keys_are_equal_exactly_where_a_permutation_says_so():
    """400 random graphs on 7 nodes of few edges, so that many are equal up to renaming; all pairs compared."""
    rng = np.random.default_rng(5)
    possible = [(a, b) for b in range(2, 7) for a in range(b)]
    graphs = [
        frozenset(possible[i] for i in rng.choice(len(possible), rng.integers(3, 6), replace=False)) for _ in range(400)
    ]
    brute = [brute_key(edges, 7) for edges in graphs]
    items = [tiny(edges, 7) for edges in graphs]
    keys = [canonical(item) for item in items]
    assert len(set(brute)) < 390
    for i in range(len(graphs)):
        for j in range(i):
            assert (keys[i] == keys[j]) == (brute[i] == brute[j])
    pairs = rng.integers(0, 400, (500, 2)).tolist() + [[i, i] for i in range(20)]
    for i, j in pairs:
        assert same_up_to_renaming(items[i], items[j]) == (brute[i] == brute[j])


def shuffled(item: Item, rng: np.random.Generator) -> Item:
    """The same question with nodes renumbered, renamed, and facts in another order."""
    place = rng.permutation(len(item.idx_to_symbol))
    names = [""] * len(place)
    for node, symbol in enumerate(item.idx_to_symbol):
        names[place[node]] = ("P" if symbol[0].isupper() else "c") + str(place[node])
    edges = [(int(place[a]), int(place[b])) for a, b in item.edges]
    rng.shuffle(edges)
    root, target, negative = (int(place[node]) for node in (item.root, item.target, item.neg_target))
    return Item(
        id=item.id,
        question=f"Is {names[root]} a {names[negative]} or {names[target]}?",
        answer="",
        steps=(),
        idx_to_symbol=tuple(names),
        edges=tuple((parent, child) for parent, child in edges),
        root=root,
        target=target,
        neg_target=negative,
    )


@pytest.mark.parametrize("family", ["id", "dense", "8hop", "mini"])
def test_renaming_keeps_the_key_and_any_change_alters_it(family):
    rng = np.random.default_rng(6)
    for item in generate_items(family, 8, seed=7):
        other = shuffled(item, rng)
        assert canonical(other) == canonical(item)
        assert same_up_to_renaming(item, other)
        lost = int(rng.integers(len(other.edges)))
        edges = other.edges[:lost] + other.edges[lost + 1 :]
        changed = replace(other, edges=edges)
        assert canonical(changed) != canonical(item)
        assert not same_up_to_renaming(item, changed)


def test_two_questions_that_colours_confuse_are_told_apart():
    """Two cycles of 3 beside the question, against one cycle of 6: the same colours, and not the same graph."""
    question = [(0, 1), (2, 3)]
    threes = [(4, 5), (5, 6), (6, 4), (7, 8), (8, 9), (9, 7)]
    six = [(4, 5), (5, 6), (6, 7), (7, 8), (8, 9), (9, 4)]
    names = ("Tom", "c1", "Sam", "c3", *(f"c{node}" for node in range(4, 10)))
    first, second = (
        Item(
            id="",
            question="Is Tom a c1 or c3?",
            answer="",
            steps=(),
            idx_to_symbol=names,
            edges=tuple(question + rest),
            root=0,
            target=1,
            neg_target=3,
        )
        for rest in (threes, six)
    )
    assert canonical(first) == canonical(second)
    assert not same_up_to_renaming(first, second)
    assert same_up_to_renaming(first, first)


def test_splits_share_no_question_and_are_of_the_size_wanted():
    sizes = {"train": 4000, "steer": 100, "test": 200}
    splits = disjoint_splits("mini", sizes, seed=0, distinct=("test",))
    keys = {name: set(canonical_keys(graphs).tolist()) for name, graphs in splits.items()}
    assert {name: len(graphs) for name, graphs in splits.items()} == sizes
    assert not keys["train"] & keys["steer"] and not keys["train"] & keys["test"] and not keys["steer"] & keys["test"]
    assert len(keys["test"]) == 200 > len(keys["steer"]) - 100 + 199
    naive = [set(canonical_keys(generate_graphs("mini", 1000, seed=seed)).tolist()) for seed in (0, 1)]
    assert naive[0] & naive[1], "two seeds alone are no disjoint splits"


def test_splits_are_the_same_every_time():
    first, second = (disjoint_splits("id", {"a": 50, "b": 20}, seed=3) for _ in range(2))
    assert all(np.array_equal(first[name].edges, second[name].edges) for name in ("a", "b"))


def test_negative_sizes_are_refused():
    with pytest.raises(StepwellError, match="a split of negative size"):
        disjoint_splits("mini", {"train": -1}, seed=0)
