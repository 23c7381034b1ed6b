"""Items to look at: the question, its graph laid out, what each arm answered, and what each thought is nearest to."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from stepwell.errors import StepwellError
from stepwell.report.accuracy import first_set
from stepwell.report.cells import Browsed, Graph, Node, Section, plural
from stepwell.report.folder import Record, RunData
from stepwell.report.measures import grouped, has_graphs, is_clean

if TYPE_CHECKING:
    from stepwell.tasks.prosqa.items import Item
    from stepwell.tasks.written import Written

MOST_ITEMS = 500
WITHOUT_THOUGHTS = 100
"""Items shown where no thought was recorded, so that nothing says how many are wanted."""
NEAREST, LONGEST_ANSWER = 3, 60
COLUMN, LEVEL, EDGE = 74, 46, 24
"""Distance of neighbours on one level, of levels, and to the rim, in units of the drawing."""
NODE = re.compile(r"\bnode (\d+)\b")
RIGHT, WRONG = "\u2713", "\u2717"


def browser_section(data: RunData) -> Section:
    """The items of the first test set whose thoughts were recorded, or else its first ones."""
    key, title = "browser", "Items"
    name = first_set(data)
    answers = grouped((r for r in data.of_kind("item") if _belongs(r, name)), lambda r: str(r.get("id")))
    if not answers:
        return Section(key=key, title=title, missing="No evaluated items.")
    thoughts = grouped((r for r in data.of_kind("thought") if str(r.get("set")) == name), lambda r: str(r.get("id")))
    wanted = [item for item in answers if item in thoughts] or list(answers)[:WITHOUT_THOUGHTS]
    wanted = wanted[:MOST_ITEMS]
    questions = _questions(data, name)
    arms = data.arms()
    items = tuple(_browsed(item, answers[item], thoughts.get(item, ()), questions.get(item), arms) for item in wanted)
    graph = "the facts as a graph, from the persons down, with the way to the right answer marked; "
    line = f"{plural(len(items), 'item')} of set {name}: {graph if has_graphs(data) else ''}"
    line += "what each arm wrote, seed by seed"
    if thoughts:
        line += (
            f"; and the {NEAREST} tokens whose embeddings are nearest to each thought, by cosine. Nearest is not near"
        )
    lines = (f"{line}.", *(() if questions else ("The questions were not kept in this folder.",)))
    return Section(key=key, title=title, lines=lines, items=items)


def _belongs(record: Record, name: str) -> bool:
    return str(record.get("set")) == name and is_clean(record)


def _questions(data: RunData, name: str) -> Mapping[str, Item | Written]:
    """The set's items by id, as the data stage wrote them; empty where the file is gone or cannot be read."""
    from stepwell.tasks.prosqa.items import load_items
    from stepwell.tasks.written import load_written

    load = load_items if has_graphs(data) else load_written
    stages = [str(stage.get("name")) for stage in data.plan.get("stages") or () if stage.get("kind") == "prosqa.data"]
    for stage in stages:
        path = data.path / "artifacts" / stage / f"{name}.json"
        if path.is_file():
            try:
                return {item.id: item for item in load(path)}
            except StepwellError:
                return {}
    return {}


def _browsed(
    name: str, answers: Sequence[Record], thoughts: Sequence[Record], item: Item | Written | None, arms: Sequence[str]
) -> Browsed:
    from stepwell.tasks.prosqa.items import Item

    drawn = item if isinstance(item, Item) else None
    names = drawn.idx_to_symbol if drawn is not None else ()
    by_arm = grouped(answers, lambda record: str(record.get("arm")))
    about = " ".join(f"{arm} {''.join(map(_tick, by_arm[arm]))}" for arm in arms if arm in by_arm)
    hops, unit = answers[0].get("hops"), "hop" if item is None or drawn is not None else "step"
    return Browsed(
        id=name,
        about=f"{plural(hops, unit)} {about}" if isinstance(hops, int) else about,
        question=item.question if item is not None else "",
        answer=item.answer if item is not None else _named(str(answers[0].get("answer") or ""), names),
        graph=None if drawn is None else laid_out(drawn),
        answers=tuple((arm, "; ".join(_written(r, names) for r in by_arm[arm])) for arm in arms if arm in by_arm),
        thoughts=tuple(_nearest(thoughts, names)),
    )


def _tick(record: Record) -> str:
    return RIGHT if record.get("correct") else WRONG


def _written(record: Record, names: Sequence[str]) -> str:
    text = " ".join(_named(str(record.get("prediction") or "nothing"), names).split())
    return f"{_tick(record)} {text if len(text) <= LONGEST_ANSWER else text[: LONGEST_ANSWER - 1] + '…'}"


def _named(text: str, names: Sequence[str]) -> str:
    """Models of symbols answer with the place of a node in the graph; a reader wants its name."""
    return NODE.sub(lambda found: names[int(found[1])] if int(found[1]) < len(names) else found[0], text)


def _nearest(thoughts: Sequence[Record], names: Sequence[str]) -> Iterable[tuple[str, str]]:
    """One line an arm and position, of the first seed there is."""
    for arm, rows in grouped(thoughts, lambda record: str(record.get("arm"))).items():
        first = rows[0].get("seed")
        for row in rows:
            if row.get("seed") == first:
                near = [_token(pair, names) for pair in (row.get("nearest") or ())[:NEAREST]]
                yield f"{arm} {row.get('position')}", ", ".join(near)


def _token(pair: Any, names: Sequence[str]) -> str:
    token, cosine = pair
    return f"{_named(str(token), names).strip() or repr(token)} {cosine:.2f}"


def laid_out(item: Item) -> Graph:
    """The graph in levels: a node lies below all its parents, and near them. Edges point downwards."""
    children: dict[int, list[int]] = {}
    parents: dict[int, list[int]] = {}
    for parent, child in item.edges:
        children.setdefault(parent, []).append(child)
        parents.setdefault(child, []).append(parent)
    level = _levels(len(item.idx_to_symbol), item.edges)
    rows: list[list[int]] = [[] for _ in range(max(level, default=0) + 1)]
    for node, depth in enumerate(level):
        rows[depth].append(node)
    place = {node: float(x) for row in rows for x, node in enumerate(row)}
    for downwards in (True, False, True):
        near = parents if downwards else children
        for row in rows if downwards else reversed(rows):
            middle = {node: _middle([place[other] for other in near.get(node, ())], place[node]) for node in row}
            row.sort(key=lambda node: (middle[node], node))
            place.update({node: x - (len(row) - 1) / 2 for x, node in enumerate(row)})
    widest = max(map(len, rows))
    path = _path(item)
    on_path = {node for pair in path for node in pair}
    roles = {item.root: "root", item.target: "target", item.neg_target: "wrong"}
    nodes = tuple(
        Node(
            name=symbol,
            x=round(EDGE + COLUMN * (place[node] + widest / 2)),
            y=EDGE + LEVEL * level[node],
            role=roles.get(node, "path" if node in on_path else ""),
        )
        for node, symbol in enumerate(item.idx_to_symbol)
    )
    width, height = 2 * EDGE + COLUMN * widest, 2 * EDGE + LEVEL * (len(rows) - 1)
    return Graph(nodes=nodes, edges=tuple(item.edges), path=path, width=width, height=height)


def _levels(nodes: int, edges: Iterable[tuple[int, int]]) -> list[int]:
    """The longest way to each node. In a graph with a cycle, which an audit names, it stops at the number of nodes."""
    level, edges = [0] * nodes, list(edges)
    for _ in range(nodes):
        before = list(level)
        for parent, child in edges:
            level[child] = min(max(level[child], level[parent] + 1), nodes - 1)
        if level == before:
            break
    return level


def _middle(places: Sequence[float], otherwise: float) -> float:
    return sum(places) / len(places) if places else otherwise


def _path(item: Item) -> tuple[tuple[int, int], ...]:
    """The edges of the written steps, where these are facts of the item."""
    from stepwell.tasks.prosqa.text import read_fact

    index = {symbol: node for node, symbol in enumerate(item.idx_to_symbol)}
    facts = [read_fact(step) for step in item.steps]
    nodes = [item.root, *(index[fact[1]] for fact in facts if fact is not None and fact[1] in index)]
    known = set(item.edges)
    return tuple(pair for pair in pairwise(nodes) if pair in known)
