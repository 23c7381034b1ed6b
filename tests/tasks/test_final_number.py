"""The final number of real answer texts, in all their forms, and what must not be taken for one."""

from __future__ import annotations

import json
import random
import time
from fractions import Fraction

import pytest

from stepwell.errors import StepwellError
from stepwell.tasks.base import QA
from stepwell.tasks.final_number import final_number, same_number, score

FORMS = {
    # the hash mark
    "#### 72": 72, "####72": 72, "#### 72 clips": 72, "#### 72.": 72, "#### 72.00": 72, "#### 1,234": 1234,
    "#### $1,234.50": Fraction(2469, 2), "#### \\$72": 72, "#### €72": 72, "#### $ 72": 72, "#### -7": -7,
    "#### -$7": -7, "#### $-7": -7, "#### \u22127": -7, "#### **72**": 72, "#### \\boxed{72}": 72, "#### 10%": 10,
    "#### \\( 72 \\)": 72, "#### $72$": 72, "#### $\\frac{3}{4}$": Fraction(3, 4), "#### 48 + 24 = 72": 72,
    "#### The final answer is 72.": 72, "#### **Answer: 72**": 72, "Natalia sold <<48/2=24>>24.\n#### 24": 24,
    "#### 72\n\nThat holds for 2 months.": 72, "#### 71\nNo, I forgot one.\n#### 72": 72,
    # the box
    "So it is $\\boxed{72}$.": 72, "\\boxed{\\$1{,}234.50}": Fraction(2469, 2), "\\boxed{1\\,234}": 1234,
    "\\boxed{\\text{72 clips}}": 72, "\\boxed{72 \\text{ clips in } 2 \\text{ months}}": 72, "\\boxed 5 of 7": 5,
    "\\boxed{\\frac{1}{2}}": Fraction(1, 2), "\\boxed{\\dfrac{1}{2}} of 10": Fraction(1, 2), "\\boxed{x = 72}": 72,
    "\\boxed{48} and then \\boxed{72}, in 2 months": 72, "\\boxed{-5}": -5, "\\boxed{72": 72, "\\fbox{72} or 3": 72,
    "\\boxed{72}\n#### 73": 73, "#### 73\n\\boxed{72}": 72, "\\boxed{\\$72} for 3": 72, "\\boxed{50\\%}": 50,
    # the last number
    "She sold 48 + 24 = 72 clips.": 72, "48+24=<<48+24=72>>72": 72, "The answer is **72**.": 72, "72": 72,
    "It costs $1,234.50": Fraction(2469, 2), "It costs 72\u20ac": 72, "It costs US$72.": 72, "Rs.72": 72, "72km": 72,
    "about 12,345,678 people": 12345678, "1\u202f234 people": 1234, "That is 50%.": 50, "= .5": Fraction(1, 2),
    "That is 3/4.": Fraction(3, 4), "3 1/2 hours": Fraction(7, 2), "3\u00bd hours": Fraction(7, 2),
    "144/2": 72, "minus: -5": -5, "from 10-5": 5, "10 - 5": 5, "- 5 apples": 5, "(72)": 72, "1.5e3": 1500,
    "$1.5 \\times 10^3$": 1500, "10^3": 1000, "\uff17\uff12": 72, "on 5/6/2023": 2023, "1, 2, 3,5": 5,
    "<think>5, or 6?</think>It is 72.": 72, "$-5$": -5, "72 and 0.": 0,
}  # fmt: skip
NONE = ("", "####", "no idea", "H2O and x_2", "<think>so far 72", "9" * 5000, "\\boxed{}", "seventy-two")


@pytest.mark.parametrize("text", FORMS)
def test_all_forms(text: str):
    found = final_number(text)
    assert found is not None and found.value == FORMS[text], found


@pytest.mark.parametrize("text", NONE)
def test_no_number(text: str):
    assert final_number(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "#### Step 1: halve 48\n24\n#### Step 2: add\nThe sum is 72",
        "#### 1. Halve 48\n24\n#### 2. Add 48 and 24\nThe sum is 72",
        "#### 1) Halve\n24\n\n##### 2) Add\n72",
        "### Answer\n72",
        "#### Final answer\n72",
    ],
)
def test_headings_are_no_answers(text: str):
    found = final_number(text)
    assert found is not None and (found.value, found.form) == (72, "last")


def test_random_numbers_in_every_dress():
    draw = random.Random(0)
    for _ in range(500):
        whole, cents = draw.randrange(10 ** draw.randint(1, 12)), draw.choice(["", f".{draw.randrange(100):02d}"])
        sign = draw.choice(["", "-"])
        wanted = Fraction(f"{sign}{whole}{cents}")
        body = draw.choice([f"{whole}{cents}", f"{whole:,}{cents}", f"${whole:,}{cents}"])
        dress = draw.choice(
            ["#### {}", "\\boxed{{{}}}", "It is {}.", "**{}** dollars", "48 + 3 = {}", "#### {} of them"]
        )
        text = f"First 17, then 4.\n{dress.format(sign + body)}"
        found = final_number(text)
        assert found is not None and found.value == wanted, text


def test_scores_of_an_item_say_what_was_read():
    item = QA(id="a", question="?", answers=("1,234",))
    assert score(item, "It is 1234.00").exact
    assert score(item, "It is 1234.00").why == "last: 1234.00"
    wrong = score(item, "1, 2, 3 and 4: \\boxed{1243}")
    assert not wrong.exact and wrong.partial is None and wrong.why == "boxed: 1243, not 1,234"
    assert score(item, "none").why == "no number"
    assert score(item, "<think>1234").why == "the thinking never ended"
    # The original compared all digits of the response with those of the answer.
    assert not score(item, "12 and 34").exact
    with pytest.raises(StepwellError, match="the answer of item 'b', 'none', has no number"):
        score(QA(id="b", question="?", answers=("none",)), "5")


def test_the_same_number():
    assert same_number("#### 72", "so 144/2") is True
    assert same_number("#### 72", "so 73") is False
    assert same_number("#### 72", "so") is None


def test_every_official_solution(shared_data):
    """Against the official rule, on all 7,473 solutions; and no solution is right for the next problem by chance."""
    rows = [json.loads(line) for line in shared_data("gsm8k/train.jsonl").read_text().splitlines()]
    for row in rows:
        found = final_number(row["answer"])
        assert found is not None and found.form == "hashes"
        assert found.value == int(row["answer"].split("#### ")[1].replace(",", ""))
    # Without the mark, the last number of the last line is the answer nearly always: the loose form works.
    same = 0
    for row in rows[:1000]:
        loose = final_number(row["answer"].split("####")[0])
        same += loose is not None and loose.value == final_number(row["answer"]).value  # pyright: ignore
    assert same > 930


@pytest.mark.parametrize(
    "text", ["1," * 10_000, "#" * 20_000, "#### " * 5_000, "\\boxed{" * 3_000, "1/" * 10_000, "#### " + "* " * 10_000]
)
def test_text_without_end_takes_no_time_without_end(text: str):
    begin = time.process_time()
    final_number(text + "x")
    assert time.process_time() - begin < 2
