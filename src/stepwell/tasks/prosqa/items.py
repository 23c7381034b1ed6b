"""ProsQA items and their file format: that of the official files, the graph fields optional."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepwell.errors import StepwellError
from stepwell.tasks.prosqa.text import Fact, Reading, read_question, sentences, steps_lead

TEXT_FIELDS = ("question", "answer", "steps")
GRAPH_FIELDS = ("idx_to_symbol", "edges", "root", "target", "neg_target")
FORMAT = "a JSON list of objects with question, answer and steps (and idx_to_symbol, edges, root, target, neg_target)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One ProsQA question with its graph.

    Attributes:
        id: unique within a file; `<file stem>-<place>` where the file gives none.
        question: shuffled facts, then "Is <person> a <concept> or <concept>?".
        answer: "<person> is a <concept>.".
        steps: a shortest path from root to target, one sentence a hop.
        idx_to_symbol: the name of each node.
        edges: (parent, child) node indices.
        root, target, neg_target: node indices of the person asked about, the right option and the wrong one.
    """

    id: str
    question: str
    answer: str
    steps: tuple[str, ...]
    idx_to_symbol: tuple[str, ...]
    edges: tuple[tuple[int, int], ...]
    root: int
    target: int
    neg_target: int

    @property
    def hops(self) -> int:
        """The number of written steps, in sound data the length of the shortest path."""
        return len(self.steps)

    @property
    def facts(self) -> frozenset[Fact]:
        """The edges by name."""
        return frozenset((self.idx_to_symbol[parent], self.idx_to_symbol[child]) for parent, child in self.edges)

    @property
    def target_first(self) -> bool:
        """Whether the question names the right option first."""
        return f" a {self.idx_to_symbol[self.target]} or " in self.question

    def options(self) -> tuple[str, str]:
        """The right answer's sentence and the wrong one's."""
        root, right, wrong = (self.idx_to_symbol[node] for node in (self.root, self.target, self.neg_target))
        return f"{root} is a {right}.", f"{root} is a {wrong}."

    def is_right(self, said: str) -> bool:
        """Whether a text is the answer, word for word."""
        return said.strip() == self.answer

    def chain_is_valid(self, lines: Sequence[str]) -> bool:
        """As the function `chain_is_valid`."""
        return chain_is_valid(self, lines)

    def to_json(self) -> dict[str, Any]:
        """The item as the official files hold it: without its id."""
        return {
            "question": self.question,
            "answer": self.answer,
            "steps": list(self.steps),
            "idx_to_symbol": list(self.idx_to_symbol),
            "edges": [list(edge) for edge in self.edges],
            "root": self.root,
            "target": self.target,
            "neg_target": self.neg_target,
        }


def chain_is_valid(item: Item, steps: str | Sequence[str]) -> bool:
    """Whether every step is a fact of the item and the steps lead, one from the next, from its root to its target.

    Any path counts, not the gold one alone: the shortest path is unique in 303 of the 500 official test items.
    """
    listed = sentences(steps) if isinstance(steps, str) else [step.strip() for step in steps]
    return steps_lead(item.facts, item.idx_to_symbol[item.root], item.idx_to_symbol[item.target], listed)


def read_json_list(path: Path | str, form: str = FORMAT) -> list[dict[str, Any]]:
    """The objects of a JSON list; `form` says what was expected.

    Raises:
        StepwellError: the file is missing, empty, not JSON, or not a list of objects.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        cause = "there is no such file" if isinstance(error, FileNotFoundError) else f"cannot be read: {error}"
        raise StepwellError(cause, "name a readable JSON file of items", path=path) from None
    if not text.strip():
        raise StepwellError("the file is empty", f"expected {form}", path=path)
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise StepwellError(
            f"not JSON: line {error.lineno}, column {error.colno}: {error.msg}", f"expected {form}", path=path
        ) from None
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        what = "a list with other things than objects" if isinstance(found, list) else f"one {type(found).__name__}"
        raise StepwellError(f"another format: {what}", f"expected {form}", path=path)
    if not found:
        raise StepwellError("the list holds no items", f"expected {form}", path=path)
    return found


def load_items(path: Path | str) -> list[Item]:
    """Items of a file in the official format; graph fields that are missing are recovered from the text.

    Raises:
        StepwellError: as `read_json_list`, or an item lacks a field, is worded otherwise, names an answer that is not
            among its options, or has graph fields that make no graph.
    """
    path = Path(path)
    return [_item(entry, f"{path.stem}-{place:05d}", place, path) for place, entry in enumerate(read_json_list(path))]


def write_items(path: Path | str, items: Sequence[Item]) -> None:
    """Write items as the official files are written.

    Raises:
        StepwellError: the file cannot be written.
    """
    path = Path(path)
    try:
        path.write_text(json.dumps([item.to_json() for item in items]) + "\n", encoding="utf-8")
    except OSError as error:
        raise StepwellError(
            f"cannot be written: {error.strerror}", "name a file in a folder that you may write to", path=path
        ) from None


def _item(entry: dict[str, Any], name: str, place: int, path: Path) -> Item:
    def refuse(cause: str, way_out: str = f"expected {FORMAT}") -> StepwellError:
        return StepwellError(f"item {place}: {cause}", way_out, path=path)

    missing = missing_fields(entry)
    if missing:
        raise refuse(f"{', '.join(missing)} missing or of another type")
    reading = read_question(entry["question"])
    if reading is None:
        raise refuse(
            f"the question does not end in a choice: {entry['question'][-60:]!r}",
            'expected "... Is <person> a <concept> or <concept>?"',
        )
    right = right_option(reading, entry["answer"])
    if right is None:
        raise refuse(
            f"the answer {entry['answer']!r} is not among the options {' and '.join(map(repr, reading.options))}",
            f'expected "{reading.root} is a {reading.options[0]}." or "{reading.root} is a {reading.options[1]}."',
        )
    graph = {key: entry[key] for key in GRAPH_FIELDS} if "edges" in entry else graph_of(reading, right)
    problem = graph_problem(graph)
    if problem is None:
        symbols = graph["idx_to_symbol"]
        stated = {symbols[graph["target"]], symbols[graph["neg_target"]]}
        if stated != set(reading.options) or symbols[graph["target"]] != reading.options[right]:
            problem = f"target {symbols[graph['target']]!r} and neg_target {symbols[graph['neg_target']]!r} are not "
            problem += f"the right and the wrong one of the options {' and '.join(map(repr, reading.options))}"
    if problem is not None:
        raise refuse(problem, "correct the item, or leave all five graph fields out: they follow from the text")
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


def missing_fields(entry: dict[str, Any]) -> list[str]:
    """Fields that an entry lacks or has in another type; the graph fields may be missing together, not singly."""
    missing = [name for name in ("question", "answer") if not isinstance(entry.get(name), str) or not entry[name]]
    steps = entry.get("steps")
    if not isinstance(steps, list) or not all(isinstance(step, str) for step in steps):
        missing.append("steps")
    stated = [name for name in GRAPH_FIELDS if name in entry]
    return missing + [name for name in GRAPH_FIELDS if stated and name not in entry]


def right_option(reading: Reading, answer: str) -> int | None:
    """Which of the two options an answer names, or None."""
    for place, option in enumerate(reading.options):
        if answer.strip() == f"{reading.root} is a {option}.":
            return place
    return None


def graph_of(reading: Reading, right: int) -> dict[str, Any]:
    """The graph fields of a text: nodes numbered so that edges go from lower to higher indices where they can.

    Facts of a cycle keep the order in which the text names their nodes.
    """
    named = dict.fromkeys(
        name for pair in ((reading.root, reading.options[0]), reading.options, *reading.facts) for name in pair
    )
    order = _topological(list(named), reading.facts)
    index = {name: place for place, name in enumerate(order)}
    edges = sorted(((index[a], index[b]) for a, b in dict.fromkeys(reading.facts)), key=lambda edge: edge[1])
    target, negative = reading.options[right], reading.options[1 - right]
    return {
        "idx_to_symbol": order,
        "edges": [list(edge) for edge in edges],
        "root": index[reading.root],
        "target": index[target],
        "neg_target": index[negative],
    }


def _topological(names: list[str], facts: Sequence[Fact]) -> list[str]:
    waiting = dict.fromkeys(names, 0)
    children: dict[str, list[str]] = {name: [] for name in names}
    for parent, child in set(facts):
        children[parent].append(child)
        waiting[child] += 1
    order = [name for name in names if waiting[name] == 0]
    for name in order:
        for child in sorted(children[name]):
            waiting[child] -= 1
            if waiting[child] == 0:
                order.append(child)
    placed = set(order)
    return order + [name for name in names if name not in placed]


def graph_problem(graph: dict[str, Any]) -> str | None:
    """Why the graph fields of an entry make no graph, or None."""
    symbols, edges = graph["idx_to_symbol"], graph["edges"]
    if not isinstance(symbols, list) or not all(isinstance(name, str) for name in symbols):
        return "idx_to_symbol is not a list of names"
    if not isinstance(edges, list) or not all(isinstance(edge, list) and len(edge) == 2 for edge in edges):
        return "edges is not a list of pairs"
    stated = [node for edge in edges for node in edge] + [graph[name] for name in ("root", "target", "neg_target")]
    outside = [node for node in stated if type(node) is not int or not 0 <= node < len(symbols)]
    return f"{outside[0]!r} is not the index of one of the {len(symbols)} nodes" if outside else None
