"""The single checks of `stepwell audit data`: what can be wrong with one ProsQA entry, read from its text."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from stepwell.tasks.prosqa.families import FAMILIES
from stepwell.tasks.prosqa.items import (
    GRAPH_FIELDS,
    Item,
    graph_of,
    graph_problem,
    missing_fields,
    right_option,
)
from stepwell.tasks.prosqa.text import Fact, Reading, read_fact, read_question, steps_lead
from stepwell.tasks.prosqa.words import CONCEPTS, PERSONS, is_person

CODES: Mapping[str, str] = MappingProxyType(
    {
        "missing-field": "question, answer or steps missing or of another type, or only some of the graph fields",
        "template-differs": 'the question is worded otherwise: a sentence that states no fact, or "or a X"',
        "unknown-name": "a person or a concept of the text is not in the official vocabulary",
        "graph-differs-from-text": "the graph fields make no graph, or another one than the text",
        "answer-not-an-option": "the answer is neither of the two options, said of the person asked about",
        "root-without-facts": "no fact says anything of the person asked about",
        "target-unreachable": "no path leads from the root to the right option",
        "negative-reachable": "a path leads from the root to the wrong option",
        "cyclic": "the facts have a cycle",
        "option-not-leaf": "a fact says something of an option",
        "hops-mismatch": "the number of steps is not the shortest path's, or not the one that the file's name promises",
        "hops-out-of-range": "the path is not of 3 to 6 hops, nor does the file's name or the family ask for another",
        "step-not-a-fact": "a step is not among the facts",
        "chain-invalid": "the steps do not lead, one from the next, from the root to the right option",
        "duplicate-item": "an earlier item of the file has the same facts, person and options",
        "split-overlap": "another file has the same question, word for word or up to the names of its nodes",
    }
)
"""What each finding means, in the order of the report."""

SWAPPED = "swapped"
"""In a set's name: its questions are about the other person, whose path may have any number of hops."""

_PERSONS, _CONCEPTS = frozenset(PERSONS), frozenset(CONCEPTS)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One entry of a file after its checks.

    Attributes:
        id: `<file stem>-<place>`.
        findings: code -> what was found, in one line.
        reading: what the question says; None where it cannot be read.
        item: the item, for rules and comparisons; None where question and answer do not make one.
    """

    id: str
    findings: Mapping[str, str]
    reading: Reading | None
    item: Item | None


def promised_hops(stem: str) -> int | None:
    """The hops that a file's name promises: 7 for `ood_7hop`, None for most."""
    match = re.search(r"(?:^|[^0-9])([0-9]{1,2})[-_]?hops?(?![a-z])", stem)
    return int(match.group(1)) if match else None


@dataclass(frozen=True, kw_only=True)
class Hops:
    """The hops that items of a file may have.

    Attributes:
        promised: exactly so many, where the file's name gives a number.
        fewest, most: between these, where it does not; None = however many.
    """

    promised: int | None = None
    fewest: int = FAMILIES["id"].fewest_hops
    most: int | None = FAMILIES["id"].most_hops

    def allows(self, hops: int) -> bool:
        """Whether a path of so many hops is in the range."""
        return self.fewest <= hops and (self.most is None or hops <= self.most)

    @property
    def told(self) -> str:
        """The range in words."""
        return f"{self.fewest} to {self.most}" if self.most is not None else f"{self.fewest} or more"


def hops_asked(stem: str) -> Hops:
    """What a file's name asks for: 7 hops for `ood_7hop`, those of the family for `mini-b`, else the official ones."""
    words = re.split(r"[-_. ]", stem)
    if SWAPPED in words:
        return Hops(fewest=1, most=None)
    family = next((FAMILIES[word] for word in words if word in FAMILIES), FAMILIES["id"])
    return Hops(promised=promised_hops(stem), fewest=family.fewest_hops, most=family.most_hops)


def check_entry(entry: dict[str, Any], name: str, asked: Hops | None = None) -> Entry:
    """Check one entry by itself; `asked` is what its file's name says of hops, the official range where not given.

    Everything is judged by the text; graph fields are compared with it. An entry that cannot be read has the findings
    that say why, and no others.
    """
    missing = missing_fields(entry)
    textual = [field for field in missing if field not in GRAPH_FIELDS]
    findings = {"missing-field": ", ".join(missing)} if missing else {}
    reading = None if textual else read_question(entry["question"])
    if reading is None:
        if not textual:
            findings["template-differs"] = f"...{entry['question'][-60:]}"
        return Entry(id=name, findings=findings, reading=None, item=None)
    if reading.strays or reading.second_article:
        findings["template-differs"] = reading.strays[0] if reading.strays else f"...{entry['question'][-60:]}"
    strangers = _strangers(reading)
    if strangers:
        findings["unknown-name"] = ", ".join(strangers)
    if not any(subject == reading.root for subject, _ in reading.facts):
        findings["root-without-facts"] = reading.root
    right = right_option(reading, entry["answer"])
    item = None
    if right is None:
        findings["answer-not-an-option"] = entry["answer"]
    else:
        item = _item(entry, name, reading, right)
        distance = distances(item)
        _check_graph(item, distance, findings)
        _check_steps(item, reading, distance.get(item.target), asked or Hops(), findings)
    ordered = item is not None and all(parent < child for parent, child in item.edges)
    loop = None if ordered else _cycle(reading.facts)
    if loop is not None:
        findings["cyclic"] = loop
    if not missing and "edges" in entry:
        _compare(entry, reading, right, findings)
    return Entry(id=name, findings=findings, reading=reading, item=item)


def _strangers(reading: Reading) -> list[str]:
    """Names that the official sets do not have, or not in this place: a person is no concept."""
    told = [(reading.root, True), *((option, False) for option in reading.options)]
    for subject, concept in reading.facts:
        told += [(subject, is_person(subject)), (concept, False)]
    return list(dict.fromkeys(name for name, person in told if name not in (_PERSONS if person else _CONCEPTS)))


def _item(entry: dict[str, Any], name: str, reading: Reading, right: int) -> Item:
    graph = graph_of(reading, right)
    return Item(
        id=name,
        question=entry["question"],
        answer=entry["answer"],
        steps=tuple(entry["steps"]),
        idx_to_symbol=tuple(graph["idx_to_symbol"]),
        edges=tuple((parent, child) for parent, child in graph["edges"]),
        root=graph["root"],
        target=graph["target"],
        neg_target=graph["neg_target"],
    )


def _check_graph(item: Item, distance: Mapping[int, int], findings: dict[str, str]) -> None:
    symbols = item.idx_to_symbol
    if item.target not in distance:
        findings["target-unreachable"] = f"{symbols[item.root]} to {symbols[item.target]}"
    if item.neg_target in distance:
        findings["negative-reachable"] = f"{symbols[item.root]} to {symbols[item.neg_target]}"
    beyond = [edge for edge in item.edges if edge[0] in (item.target, item.neg_target)]
    if beyond:
        findings["option-not-leaf"] = " -> ".join(symbols[node] for node in beyond[0])


def _check_steps(item: Item, reading: Reading, shortest: int | None, asked: Hops, findings: dict[str, str]) -> None:
    if shortest is not None and shortest != item.hops:
        findings["hops-mismatch"] = f"{item.hops} steps, shortest path {shortest}"
    elif asked.promised is not None and asked.promised != item.hops:
        findings["hops-mismatch"] = f"{item.hops} steps, the file's name promises {asked.promised}"
    # By the path, not by the steps: these may be wrong, which is another finding.
    if asked.promised is None and shortest is not None and not asked.allows(shortest):
        findings["hops-out-of-range"] = f"{shortest} hops, {asked.told} expected"
    facts = frozenset(reading.facts)
    untold = [step for step in item.steps if read_fact(step) not in facts]
    if untold:
        findings["step-not-a-fact"] = untold[0]
    if not steps_lead(None, reading.root, item.idx_to_symbol[item.target], item.steps):
        findings["chain-invalid"] = " ".join(item.steps)


def distances(item: Item) -> dict[int, int]:
    """Hops from the root to every node that can be reached."""
    children: dict[int, list[int]] = {}
    for parent, child in item.edges:
        children.setdefault(parent, []).append(child)
    distance, queue = {item.root: 0}, deque([item.root])
    while queue:
        node = queue.popleft()
        for child in children.get(node, ()):
            if child not in distance:
                distance[child] = distance[node] + 1
                queue.append(child)
    return distance


def _cycle(facts: Iterable[Fact]) -> str | None:
    """The nodes that are left when sources are taken away again and again, if any."""
    waiting: dict[str, int] = {}
    children: dict[str, list[str]] = {}
    for parent, child in set(facts):
        waiting[child] = waiting.get(child, 0) + 1
        waiting.setdefault(parent, 0)
        children.setdefault(parent, []).append(child)
    free = [name for name, count in waiting.items() if count == 0]
    for name in free:
        for child in children.get(name, ()):
            waiting[child] -= 1
            if waiting[child] == 0:
                free.append(child)
    left = sorted(set(waiting) - set(free))
    return f"among {', '.join(left)}" if left else None


def _compare(entry: dict[str, Any], reading: Reading, right: int | None, findings: dict[str, str]) -> None:
    problem = graph_problem(entry)
    if problem is None:
        symbols: list[str] = entry["idx_to_symbol"]
        stated = {(symbols[parent], symbols[child]) for parent, child in entry["edges"]}
        told = set(reading.facts)
        names = [symbols[entry[role]] for role in ("root", "target", "neg_target")]
        if stated != told:
            parent, child = sorted(stated ^ told)[0]
            where = "the edges" if (parent, child) in stated else "the text"
            problem = f"{parent} -> {child} in {where} only"
        elif names[0] != reading.root or set(names[1:]) != set(reading.options):
            problem = f"root and options are {', '.join(names)} in the graph fields"
        elif right is not None and names[1] != reading.options[right]:
            problem = f"target is {names[1]} in the graph fields, the answer {reading.options[right]}"
    if problem is not None:
        findings["graph-differs-from-text"] = problem
