"""Sudoku of 4 x 4 and 9 x 9 cells, each with one solution: generated, or read and proved by an exact solver.

A puzzle is written one row a line, `.` for an empty cell; its answer is the full grid, written alike.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Iterator, Sequence
from functools import lru_cache
from math import isqrt
from pathlib import Path

from stepwell.errors import StepwellError
from stepwell.tasks.base import QA, Score
from stepwell.tasks.sources import Entry, Source, entries, hub_id, items_of, read_text

SIDES = (4, 9)
# The fewest givens asked of the generator. No puzzle of 9 x 9 has fewer than 17 (McGuire et al. 2012, arXiv
# 1201.0749), but emptying cells at random gets to 24 in one grid of two, and seldom further. With 4 x 4 it often gets
# down to 4, the fewest there is.
FEWEST_GIVENS = {4: 4, 9: 24}
TRIES = 2_000
"""Grids in a row that yield no new puzzle before the generator gives up."""
MOST_STEPS = 50_000
"""Of a search from one solution to the next. The hardest known puzzles take some thousand; without a bound, a few odd
grids that have no solution take hours."""
EMPTY = frozenset(".0_")
PUZZLE_FIELDS = ("puzzle", "quizzes", "quiz", "question")
SOLUTION_FIELDS = ("solution", "solutions", "answer")
FORMAT = (
    "puzzles of 16 or 81 cells, . or 0 for an empty one: one a line with or without a comma and its solution, or "
    "objects with puzzle and, if you like, solution"
)
Cells = tuple[int, ...]
"""Row by row; 0 is an empty cell."""


def make_sudoku(n: int, *, side: int = 9, givens: int = 36, seed: int = 0) -> list[QA]:
    """`n` different puzzles with one solution each and exactly `givens` cells filled.

    Full grids are drawn by a search with random digits, and cells emptied in random order as long as the solution
    stays the only one. Every grid can come up, though not all as often.

    Raises:
        StepwellError: side is not 4 or 9, n is below 1, givens is out of bounds, or n different puzzles are not found.
    """
    if side not in SIDES:
        raise StepwellError(f"a Sudoku of side {side}", "ask for side 4 or 9")
    if n < 1:
        raise StepwellError(f"{n} puzzles asked for", "ask for at least 1")
    if not FEWEST_GIVENS[side] <= givens < side * side:
        bounds = f"{FEWEST_GIVENS[side]} to {side * side - 1}"
        raise StepwellError(f"{givens} givens in a Sudoku of side {side}", f"ask for {bounds}")
    generator, made, failures = random.Random(seed), dict[str, QA](), 0
    while len(made) < n:
        full = next(solutions((0,) * side**2, generator))
        puzzle = _emptied(full, givens, generator)
        if puzzle is None or (item := _item_of(puzzle, full)).id in made:
            failures += 1
            if failures == TRIES:
                raise StepwellError(
                    f"{len(made)} different puzzles of side {side} with {givens} givens found, of {n} asked for",
                    "ask for fewer, or for more givens",
                )
            continue
        made[item.id], failures = item, 0
    return list(made.values())


def _emptied(full: Cells, givens: int, generator: random.Random) -> Cells | None:
    cells, left = list(full), len(full)
    for place in generator.sample(range(left), left):
        if left == givens:
            return tuple(cells)
        kept, cells[place] = cells[place], 0
        if only_solution(cells) is None:
            cells[place] = kept
        else:
            left -= 1
    return tuple(cells) if left == givens else None


def only_solution(cells: Sequence[int]) -> Cells | None:
    """The solution where there is exactly one, else None."""
    found = solutions(cells)
    first = next(found, None)
    return first if first is not None and next(found, None) is None else None


@lru_cache
def units(side: int) -> tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]]:
    """(cells of each row, column and box; for each cell the three units it is in). Rows, columns, boxes in order."""
    box = isqrt(side)
    groups: list[list[int]] = [[] for _ in range(3 * side)]
    for cell in range(side * side):
        row, column = divmod(cell, side)
        for unit in (row, side + column, 2 * side + row // box * box + column // box):
            groups[unit].append(cell)
    of_cell = tuple(tuple(unit for unit, group in enumerate(groups) if cell in group) for cell in range(side * side))
    return tuple(tuple(group) for group in groups), of_cell


def solutions(cells: Sequence[int], generator: random.Random | None = None) -> Iterator[Cells]:
    """All solutions of a grid, one after the other; in random order of digits where a generator is given.

    Depth first, by the cell with the fewest candidates; a digit that has one place left in a unit is put there. Nothing
    where two givens contradict each other.

    Raises:
        ValueError: the grid is of another size.
        StepwellError: the next solution, or that there is none, was not found in MOST_STEPS steps.
    """
    side = isqrt(len(cells))
    if side not in SIDES or side * side != len(cells):
        raise ValueError(f"{len(cells)} cells are no Sudoku")
    search = _Search(list(cells), side, generator)
    if search.consistent():
        yield from search.run()


class _Search:
    """The state of a search: the grid, and for each unit the digits it has as bits."""

    def __init__(self, cells: list[int], side: int, generator: random.Random | None) -> None:
        self.cells, self.side, self.generator = cells, side, generator
        self.groups, self.of_cell = units(side)
        self.every, self.used, self.steps = (1 << side) - 1, [0] * (3 * side), 0

    def consistent(self) -> bool:
        """Note the givens; False where two of a unit are the same."""
        for cell, digit in enumerate(self.cells):
            bit = 1 << digit >> 1
            if bit and any(self.used[unit] & bit for unit in self.of_cell[cell]):
                return False
            for unit in self.of_cell[cell]:
                self.used[unit] |= bit
        return True

    def run(self) -> Iterator[Cells]:
        """All ways to fill the empty cells."""
        self.steps += 1
        if self.steps > MOST_STEPS:
            raise StepwellError(
                f"a Sudoku was not decided in {MOST_STEPS} steps: {''.join(map(str, self.cells))}",
                "leave it out: puzzles with a solution take a few thousand at most",
            )
        choice = self._choice()
        if choice is None:
            yield tuple(self.cells)
            self.steps = 0
            return
        cell, candidates = choice
        digits = [digit for digit in range(1, self.side + 1) if candidates >> (digit - 1) & 1]
        if self.generator is not None:
            self.generator.shuffle(digits)
        for digit in digits:
            bit = 1 << (digit - 1)
            self.cells[cell] = digit
            for unit in self.of_cell[cell]:
                self.used[unit] |= bit
            yield from self.run()
            self.cells[cell] = 0
            for unit in self.of_cell[cell]:
                self.used[unit] &= ~bit

    def _choice(self) -> tuple[int, int] | None:
        """(empty cell, digits to try there as bits): no digits where there is a contradiction; None in a full grid."""
        candidates = [0] * len(self.cells)
        best, fewest = None, self.side + 1
        for cell, digit in enumerate(self.cells):
            if digit:
                continue
            row, column, box = self.of_cell[cell]
            free = candidates[cell] = self.every & ~(self.used[row] | self.used[column] | self.used[box])
            if free.bit_count() < fewest:
                best, fewest = cell, free.bit_count()
                if fewest == 0:
                    return cell, 0
        if best is None or fewest == 1:
            return None if best is None else (best, candidates[best])
        for unit, group in enumerate(self.groups):
            once = twice = 0
            for cell in group:
                twice |= once & candidates[cell]
                once |= candidates[cell]
            if once | self.used[unit] != self.every:
                return best, 0
            if single := once & ~twice:
                bit = single & -single
                return next((cell, bit) for cell in group if candidates[cell] & bit)
        return best, candidates[best]


def parse_grid(text: str) -> Cells | None:
    """The cells of a text of 16 or 81 signs, spaces and line ends apart; None for anything else."""
    signs = "".join(text.split())
    side = isqrt(len(signs))
    if side not in SIDES or side * side != len(signs):
        return None
    cells = [0 if sign in EMPTY else int(sign) if sign in "123456789" else -1 for sign in signs]
    return tuple(cells) if all(0 <= digit <= side for digit in cells) else None


def write_grid(cells: Sequence[int]) -> str:
    """One row a line, `.` for an empty cell; no line break at the end."""
    side = isqrt(len(cells))
    signs = ["." if digit == 0 else str(digit) for digit in cells]
    return "\n".join("".join(signs[start : start + side]) for start in range(0, len(signs), side))


def _item_of(puzzle: Cells, full: Cells) -> QA:
    name = "".join("." if digit == 0 else str(digit) for digit in puzzle)
    return QA(id=f"sudoku-{name}", question=write_grid(puzzle), answers=(write_grid(full),))


def score(item: QA, text: str) -> Score:
    """Whether a text is the full grid, spaces and line ends apart; `partial`: of the cells to be filled, those right.

    The solution is the only one, so that a grid that obeys all rules and keeps the givens is equal to it.
    """
    puzzle, gold, found = parse_grid(item.question), parse_grid(item.answers[0]), parse_grid(text)
    if puzzle is None or gold is None:
        raise ValueError(f"item {item.id!r} is no Sudoku")
    if found is None or len(found) != len(gold):
        return Score(exact=False, partial=None, why=f"not a grid of {len(gold)} cells")
    asked = [place for place, digit in enumerate(puzzle) if digit == 0]
    right = sum(found[place] == gold[place] for place in asked)
    changed = sum(found[place] != gold[place] for place, digit in enumerate(puzzle) if digit)
    return Score(
        exact=found == gold, partial=right / len(asked), why=f"{changed} givens are not kept" if changed else ""
    )


def load_sudoku(source: Source, *, split: str = "test", first: int | None = None) -> list[QA]:
    """The puzzles of a file or a hub set, each proved to have one solution.

    Args:
        source: a path (lines, CSV or JSON), or `owner/name` on the hub.
        split: of a hub set; `train[:1000]` reads its first thousand.
        first: read so many only: files of millions are about.

    Raises:
        StepwellError: the file is missing, empty, not JSON or in another format, the set cannot be had, a puzzle has
            no solution, several, or another one than the file says, or it comes twice.
    """
    if hub_id(source) or Path(source).suffix in (".json", ".jsonl"):
        found = entries(source, split, FORMAT)
    else:
        found = _rows(read_text(Path(source), FORMAT))
    return items_of(found[:first], source, FORMAT, lambda entry, name: _read(entry, name, source))


def _rows(text: str) -> list[Entry]:
    rows = [row for row in csv.reader(text.splitlines()) if row]
    # A first line without a grid is the header of a table.
    if parse_grid(rows[0][0]) is None and len(rows) > 1:
        return [dict(zip(rows[0], row, strict=False)) for row in rows[1:]]
    return [dict(zip(("puzzle", "solution"), row, strict=False)) for row in rows]


def _read(entry: Entry, name: str, source: Source) -> QA | None:
    puzzle, stated = (
        next((str(entry[field]) for field in fields if field in entry), "")
        for fields in (PUZZLE_FIELDS, SOLUTION_FIELDS)
    )
    cells = parse_grid(puzzle)
    if cells is None or 0 not in cells:
        return None
    found = solutions(cells)
    full, other = next(found, None), next(found, None)
    problem = "no solution" if full is None else "several solutions" if other is not None else None
    if problem is None and stated and parse_grid(stated) != full:
        problem = "another solution than the one stated"
    if problem or full is None:
        raise StepwellError(f"puzzle {name} has {problem}", "correct it, or leave it out", path=source)
    return _item_of(cells, full)
