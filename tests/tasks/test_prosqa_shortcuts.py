"""Shortcut rules: by hand on small graphs, near the published figures on official data, blind out of distribution."""

from __future__ import annotations

import pytest

from stepwell.tasks.prosqa import FAMILIES, Item, count_rules, generate_items, judge, load_items

OUT_OF_DISTRIBUTION = ("7hop", "8hop", "dag", "dense", "no-shortcut")


def item(edges, root, target, negative, persons, first=True) -> Item:
    nodes = 1 + max(node for edge in edges for node in edge)
    symbols = tuple("PQRS"[node] if node in persons else f"c{node}" for node in range(nodes))
    pair = (target, negative) if first else (negative, target)
    return Item(
        id="x",
        question=f"Is {symbols[root]} a {symbols[pair[0]]} or {symbols[pair[1]]}?",
        answer=f"{symbols[root]} is a {symbols[target]}.",
        steps=(),
        idx_to_symbol=symbols,
        edges=tuple(edges),
        root=root,
        target=target,
        neg_target=negative,
    )


def test_another_person_above_the_negative_alone():
    verdicts = judge(item([(0, 2), (2, 3), (1, 4), (4, 5), (5, 6)], root=0, target=3, negative=6, persons={0, 1}))
    assert verdicts == {
        "another-person": "target",
        "another-person-within-2": "silent",
        "another-person-within-3": "target",
        "root-within-3": "target",
        "lower-in-degree": "silent",
        "farther-person": "negative",
        "first-named": "target",
    }


def test_another_person_above_both_and_nearer_the_target():
    edges = [(0, 2), (2, 3), (3, 4), (4, 5), (1, 5), (1, 6), (6, 7), (6, 8), (8, 7)]
    verdicts = judge(item(edges, root=0, target=5, negative=7, persons={0, 1}, first=False))
    assert verdicts == {
        "another-person": "silent",
        "another-person-within-2": "silent",
        "another-person-within-3": "silent",
        "root-within-3": "silent",
        "lower-in-degree": "silent",
        "farther-person": "negative",
        "first-named": "negative",
    }


def test_lower_in_degree_takes_the_option_with_fewer_facts():
    edges = [(0, 2), (2, 3), (1, 4), (1, 5), (4, 5)]
    assert judge(item(edges, root=0, target=3, negative=5, persons={0, 1}))["lower-in-degree"] == "target"
    assert judge(item(edges, root=1, target=5, negative=3, persons={0, 1}))["lower-in-degree"] == "negative"


def test_accuracies_on_the_official_validation_set(shared_data):
    scores = {
        count.rule: count.correct / count.n for count in count_rules(load_items(shared_data("prosqa/valid.json")))
    }
    assert scores["another-person"] == pytest.approx(0.957, abs=0.0005)
    assert scores["root-within-3"] == pytest.approx(0.702, abs=0.03)
    assert scores["lower-in-degree"] == pytest.approx(0.662, abs=0.03)


@pytest.mark.parametrize("family", OUT_OF_DISTRIBUTION)
def test_every_rule_is_near_a_coin_out_of_distribution(family):
    """Within 1 point of one half on 1,000 items: all but the order of options are silent, and that is balanced."""
    for count in count_rules(generate_items(family, 1000, seed=8)):
        assert count.n == 1000
        assert count.correct / count.n == pytest.approx(0.5, abs=0.01), count


def test_no_shortcut_items_leave_person_rules_wrong_or_silent():
    counts = {count.rule: count for count in count_rules(generate_items("no-shortcut", 1000, seed=9))}
    for rule in ("another-person", "another-person-within-2", "another-person-within-3", "farther-person"):
        assert counts[rule].right == 0


def test_mini_matches_what_two_persons_allow():
    """With two persons, "no other person above" and "the root above" are the same question; the rest is a coin."""
    counts = {count.rule: count for count in count_rules(generate_items("mini", 1000, seed=8))}
    for rule in ("lower-in-degree", "farther-person", "first-named"):
        assert counts[rule].correct / 1000 == pytest.approx(0.5, abs=0.01)
    assert counts["another-person"].right == counts["root-within-3"].right == 1000


def test_all_families_are_covered_by_the_tests_above():
    assert set(FAMILIES) == {*OUT_OF_DISTRIBUTION, "id", "mini"}
