"""The other person: the one for whom the option that was wrong is the right one, with the same facts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from stepwell.tasks.prosqa import Item
from stepwell.tasks.prosqa.words import is_person


def others(
    edges: Iterable[tuple[int, int]], persons: Iterable[int], root: int, target: int, neg_target: int
) -> list[int]:
    """Other persons who are ancestors of the wrong option and not of the right one, in order."""
    parents: dict[int, list[int]] = {}
    for parent, child in edges:
        parents.setdefault(child, []).append(parent)

    def ancestors(node: int) -> set[int]:
        found, left = {node}, [node]
        while left:
            fresh = [p for p in parents.get(left.pop(), ()) if p not in found]
            found.update(fresh)
            left.extend(fresh)
        return found

    fits = ancestors(neg_target) - ancestors(target)
    return [person for person in sorted(persons) if person != root and person in fits]


def others_of(item: Item) -> Sequence[int]:
    """`others` of an item of text."""
    persons = [node for node, symbol in enumerate(item.idx_to_symbol) if is_person(symbol)]
    return others(item.edges, persons, item.root, item.target, item.neg_target)


def asked_about(item: Item, person: int) -> str:
    """The item's facts and options, asked about another person."""
    names = item.idx_to_symbol
    facts, _, query = item.question.rpartition("Is ")
    return f"{facts}Is {names[person]}{query.removeprefix(names[item.root])}"
