"""Rules that answer ProsQA without following a path from the root, and do well on the official sets all the same.

Each rule looks at both options and chooses one or keeps silent; a silent rule is worth a coin, half a right answer.
On the official test set: reject the option with another person as ancestor 94.6%, root within 3 hops 70.2%, lower
in-degree 66.2%. Every table of accuracies shows these rules beside the models.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from stepwell.tasks.prosqa.items import Item
from stepwell.tasks.prosqa.words import is_person

Verdict = Literal["target", "negative", "silent"]
"""Which option a rule chooses: the right one, the wrong one, or none."""

NEVER = 10**6
"""Distance of what is no ancestor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OptionView:
    """What the rules know of one option, in an item with persons, facts and a root.

    Attributes:
        from_root: hops from the root, NEVER if there is no path.
        from_other: hops from the nearest person who is not the root, NEVER if there is none among the ancestors.
        in_degree: facts that end in the option.
    """

    from_root: int
    from_other: int
    in_degree: int

    @property
    def from_anyone(self) -> int:
        """Hops from the nearest person, the root included."""
        return min(self.from_root, self.from_other)


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What the rules know of an item."""

    target: OptionView
    negative: OptionView
    target_first: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleCount:
    """How a rule fared on n items; `correct` counts a silent rule as half a right answer."""

    rule: str
    right: int
    wrong: int
    silent: int

    @property
    def n(self) -> int:
        """Number of items."""
        return self.right + self.wrong + self.silent

    @property
    def correct(self) -> float:
        """Right answers, silent ones counted as half."""
        return self.right + self.silent / 2


def view_of(item: Item) -> View:
    """What the rules know of an item: two searches against the edges, no path from the root followed."""
    parents: dict[int, list[int]] = {}
    for parent, child in item.edges:
        parents.setdefault(child, []).append(parent)
    persons = {node for node, symbol in enumerate(item.idx_to_symbol) if is_person(symbol)}
    return View(
        target=_option(item.target, item.root, persons, parents),
        negative=_option(item.neg_target, item.root, persons, parents),
        target_first=item.target_first,
    )


def _option(option: int, root: int, persons: set[int], parents: Mapping[int, Sequence[int]]) -> OptionView:
    distance = {option: 0}
    queue = deque([option])
    while queue:
        node = queue.popleft()
        for parent in parents.get(node, ()):
            if parent not in distance:
                distance[parent] = distance[node] + 1
                queue.append(parent)
    others = (distance[person] for person in persons if person != root and person in distance)
    return OptionView(
        from_root=distance.get(root, NEVER),
        from_other=min(others, default=NEVER),
        in_degree=len(parents.get(option, ())),
    )


def _prefer(for_target: float, for_negative: float) -> Verdict:
    """The option of which more speaks in favour."""
    if for_target == for_negative:
        return "silent"
    return "target" if for_target > for_negative else "negative"


def _no_other_person(within: int) -> Callable[[View], Verdict]:
    return lambda view: _prefer(view.target.from_other > within, view.negative.from_other > within)


RULES: Mapping[str, Callable[[View], Verdict]] = MappingProxyType(
    {
        "another-person": _no_other_person(NEVER - 1),
        "another-person-within-2": _no_other_person(2),
        "another-person-within-3": _no_other_person(3),
        "root-within-3": lambda view: _prefer(view.target.from_root <= 3, view.negative.from_root <= 3),
        "lower-in-degree": lambda view: _prefer(-view.target.in_degree, -view.negative.in_degree),
        "farther-person": lambda view: _prefer(view.target.from_anyone, view.negative.from_anyone),
        "first-named": lambda view: "target" if view.target_first else "negative",
    }
)
"""The rules by name. The first three reject the option that has another person than the root as ancestor (at all, or
within 2 or 3 hops); `root-within-3` takes the option that the root reaches in 3 hops; `farther-person` takes the one
whose nearest person is farther; `first-named` is no rule but the order of the options."""


def judge(item: Item) -> dict[str, Verdict]:
    """What each rule says of an item."""
    view = view_of(item)
    return {name: rule(view) for name, rule in RULES.items()}


def count_rules(items: Iterable[Item]) -> tuple[RuleCount, ...]:
    """How each rule fares on some items."""
    counts = {name: {"target": 0, "negative": 0, "silent": 0} for name in RULES}
    for item in items:
        for name, verdict in judge(item).items():
            counts[name][verdict] += 1
    return tuple(
        RuleCount(rule=name, right=count["target"], wrong=count["negative"], silent=count["silent"])
        for name, count in counts.items()
    )
