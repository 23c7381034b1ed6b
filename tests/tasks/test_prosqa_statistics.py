"""The generator against the official validation set: the same distributions, within tolerances stated here.

The official 300 items are a sample: means may differ by 3.5 standard errors (of both samples together), shares by the
same at their size. Every test states its tolerance.
"""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from stepwell.tasks.prosqa import RULES, Item, count_rules, families, generate_items, load_items
from stepwell.tasks.prosqa.growth import Recipe
from stepwell.tasks.prosqa.words import is_person

MINE = 4000


@pytest.fixture(scope="module")
def generated() -> list[Item]:
    return generate_items("id", MINE, seed=20)


@pytest.fixture
def official(shared_data) -> list[Item]:
    return load_items(shared_data("prosqa/valid.json"))


def in_degrees(item: Item) -> Counter[int]:
    return Counter(child for _, child in item.edges)


MEASURES = {
    "nodes": lambda item: len(item.idx_to_symbol),
    "edges": lambda item: len(item.edges),
    "hops": lambda item: item.hops,
    "words": lambda item: len(item.question.split()),
    "persons": lambda item: sum(map(is_person, item.idx_to_symbol)),
    "in-degree of the target": lambda item: in_degrees(item)[item.target],
    "in-degree of the negative": lambda item: in_degrees(item)[item.neg_target],
    "largest in-degree": lambda item: max(in_degrees(item).values()),
    "largest out-degree": lambda item: max(Counter(parent for parent, _ in item.edges).values()),
    "leaves": lambda item: len(item.idx_to_symbol) - len({parent for parent, _ in item.edges}),
}


def differs(measure: str, official: list[Item], generated: list[Item]) -> bool:
    """Means more than 3.5 standard errors apart, or standard deviations more than 20%."""
    theirs = np.array([MEASURES[measure](item) for item in official], float)
    mine = np.array([MEASURES[measure](item) for item in generated], float)
    error = math.sqrt(theirs.var() / len(theirs) + mine.var() / len(mine))
    return abs(theirs.mean() - mine.mean()) > 3.5 * error or abs(mine.std() / theirs.std() - 1) > 0.2


@pytest.mark.parametrize("measure", MEASURES)
def test_mean_and_spread_of_a_measure_are_the_official_ones(measure, official, generated):
    assert not differs(measure, official, generated)


@pytest.mark.parametrize(
    ("wrong", "seen_in"),
    [
        (Recipe(parents=1.7), "edges"),
        (Recipe(depth_weight=0), "hops"),
        (Recipe(nodes=26), "nodes"),
        (Recipe(from_zero=0.2, from_one=0.25), "leaves"),
    ],
)
def test_a_generator_of_other_numbers_would_be_noticed(wrong, seen_in, official, monkeypatch):
    monkeypatch.setattr(families, "OFFICIAL", wrong)
    assert differs(seen_in, official, generate_items("id", 2000, seed=20))


def shares(counts: Counter[int]) -> dict[int, float]:
    return {value: count / sum(counts.values()) for value, count in counts.items()}


def test_hops_are_distributed_as_in_the_official_set(official, generated):
    """Each share of 3, 4, 5 and 6 hops within 10 points (3.5 standard errors of .44 at n = 300)."""
    theirs, mine = (shares(Counter(item.hops for item in items)) for items in (official, generated))
    assert set(mine) == {3, 4, 5, 6}
    for hops in (3, 4, 5, 6):
        assert mine[hops] == pytest.approx(theirs[hops], abs=0.1)


def test_in_degrees_of_all_nodes_are_distributed_as_in_the_official_set(official, generated):
    """Each share of an in-degree within 2 points: the official set has 6,800 nodes."""
    theirs, mine = (
        shares(sum((Counter(in_degrees(item).values()) for item in items), Counter()))
        for items in (official, generated)
    )
    for degree in range(1, 8):
        assert mine[degree] == pytest.approx(theirs[degree], abs=0.02)


@pytest.mark.parametrize("rule", RULES)
def test_shortcut_rules_do_as_well_as_on_the_official_set(rule, official, generated):
    """Each rule's accuracy within 6 points; `first-named`, which is a coin, within 9."""
    theirs, mine = (
        next(count for count in count_rules(items) if count.rule == rule) for items in (official, generated)
    )
    assert mine.correct / mine.n == pytest.approx(
        theirs.correct / theirs.n, abs=0.09 if rule == "first-named" else 0.06
    )


def test_root_and_order_of_options_are_the_official_ones(official, generated):
    """The root is node 1 in 65% of the official items, node 0 otherwise: within 10 points; target first in half."""
    assert {item.root for item in generated} == {0, 1}
    root = [np.mean([item.root for item in items]) for items in (official, generated)]
    assert root[0] == pytest.approx(root[1], abs=0.1)
    assert np.mean([item.target_first for item in generated]) == pytest.approx(0.5, abs=0.03)


def test_ranges_stay_within_what_the_official_sets_show(generated):
    """Official test set: nodes 14 to 28, edges 16 to 54, words 81 to 265; one or two rare items may lie beyond."""
    nodes = np.array([len(item.idx_to_symbol) for item in generated])
    edges = np.array([len(item.edges) for item in generated])
    assert nodes.max() == 28 and np.mean(nodes < 14) < 0.002
    assert np.mean((edges < 16) | (edges > 54)) < 0.005
