"""Generated school problems: their solutions are right, no problem comes twice, bad questions are refused."""

from __future__ import annotations

import re

import pytest

from stepwell.errors import StepwellError
from stepwell.tasks.gsm8k import score
from stepwell.tasks.word_problems import FORMS, category_of, make_word_problems

ALL = tuple(form.category for form in FORMS)
LINE = re.compile(r"(\d+) ([+-]) (\d+) = (\d+)")


@pytest.mark.parametrize("largest", [10, 99])
def test_every_line_of_a_solution_is_right_and_its_end_is_the_answer(largest: int) -> None:
    for item in make_word_problems(400, 3, largest=largest, categories=ALL):
        lines = item.solution.split("\n")
        for line in lines[:-1]:
            found = LINE.fullmatch(line)
            assert found, line
            one, sign, other, result = found.groups()
            assert int(one) + (int(other) if sign == "+" else -int(other)) == int(result)
        assert lines[-1] == f"#### {item.answers[0]}"
        assert lines[-2].endswith(f"= {item.answers[0]}")
        assert int(item.answers[0]) > 0
        assert score(item, item.solution).exact
        # What the solution begins with stands in the text.
        assert {int(number) for number in LINE.fullmatch(lines[0]).groups()[::2]} <= {  # type: ignore[union-attr]
            int(number) for number in re.findall(r"\d+", item.question)
        }


def test_no_problem_and_no_id_comes_twice_and_a_larger_set_begins_with_a_smaller_one() -> None:
    items = make_word_problems(2000, 1)
    assert len({item.question for item in items}) == len({item.id for item in items}) == 2000
    assert make_word_problems(50, 1) == items[:50]
    assert make_word_problems(50, 2) != items[:50]


def test_the_id_tells_the_category() -> None:
    assert [category_of(item.id) for item in make_word_problems(4, 0, categories=ALL)] == list(ALL)
    assert category_of("train-000001") is None


@pytest.mark.parametrize(
    ("given", "told"),
    [({"n": -1}, "-1 problems"), ({"n": 20_001}, "20001 problems"), ({"largest": 9}, "up to 9"),
     ({"categories": ("divide",)}, "no such category: divide"), ({"categories": ()}, "of 0 categories")],
)  # fmt: skip
def test_what_cannot_be_made_is_refused(given: dict, told: str) -> None:
    with pytest.raises(StepwellError, match=told):
        make_word_problems(**{"n": 3, "seed": 0} | given)
