"""The final number of a written answer, and whether it is the right one: exact, as a fraction, never "all digits".

Three forms, in this order: the last `#### number` or `\\boxed{number}` of the text, whichever comes later; without one,
the last number. What is no answer is not read as one: a heading (`#### Step 2: ...`), an index or exponent (`x_2`,
`10^3`), digits inside a word (`H2O`), the thinking before the answer. Currency, units, per cent and the commas of
thousands change nothing; 72, 72.00 and 144/2 are one number. A number in words is none.

Source: GSM8K's `extract_answer`, which takes what follows `####` (Cobbe et al. 2021, arXiv 2110.14168); the last box
that counts is the rule of MATH's `last_boxed_only_string` (Hendrycks et al. 2021, arXiv 2103.03874).
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from stepwell.chat import without_thinking
from stepwell.errors import StepwellError
from stepwell.tasks.base import QA, Score

Form = Literal["boxed", "hashes", "last"]

MOST_DIGITS = 400
"""A model that runs on writes digits without end, which Python refuses to turn into a number."""
# What may part thousands: a comma, or LaTeX's and typography's narrow spaces. A plain space parts two numbers.
COMMA = r"(?:,|\{,\}|\\,|\\!|[\u00a0\u2009\u202f])"
WHOLE = rf"(?:[0-9]{{1,3}}(?:{COMMA}[0-9]{{3}})+(?![0-9])|[0-9]+)"
CURRENCY = r"(?:\\?[$\u00a3\u20ac\u00a5\u20b9][ ]?)"
NUMBER = re.compile(
    # No digits of a word, of an index, or after the point of another number.
    r"(?<!\w)(?<![0-9]\.)(?<!\^)(?<!\^\{)"
    # A minus after a digit, a letter or a bracket is one between two terms.
    rf"(?:(?<![\w)\]}}%])(?P<sign>[-\u2212\u2013+]){CURRENCY}?)?"
    r"(?:(?:(?P<mixed>[0-9]{1,9})[ ]+)?(?<![0-9]/)(?P<over>[0-9]{1,9})[ ]?[/\u2044][ ]?"
    r"(?P<under>[0-9]{1,9})(?![0-9/]|\.[0-9])"
    rf"|(?P<digits>{WHOLE}(?:\.[0-9]+)?|\.[0-9]+)"
    r"(?:[eE](?P<e>[+-]?[0-9]{1,4})(?!\w)"
    r"|\s?(?:\\times|\\cdot|[x*\u00d7])\s?10\s?\^\s?\{?(?P<ten>-?[0-9]{1,4})\}?"
    r"|\s?\^\s?\{?(?P<power>[0-9]{1,2})\}?)?)"
)
LATEX_FRACTION = re.compile(r"\\[dtc]?frac\s*\{\s*([0-9]{1,9})\s*\}\s*\{\s*([0-9]{1,9})\s*\}")
BOX = re.compile(r"\\(?:boxed|fbox)\s*(?:\{|(?=[$\\]*[-+]?[0-9]))")
HASHES = re.compile(r"####(?!#)([^\n]*)")
# Between the mark and its number: signs of markup, a currency, "the final answer is". Other words make it a heading.
BEFORE = re.compile(
    r"(?:[*_`=(\[{: \t$\u00a3\u20ac\u00a5\u20b9]|\\[(\[ $,]|\\boxed\{|\\text(?:bf)?\{|(?:the|so|final|answer|is)\b)*",
    re.IGNORECASE,
)
# `#### 1. Work out ...` and `#### 2) ...` are numbered headings.
NUMBERED = re.compile(r"[0-9]{1,2}[.):][*_]*[ \t]+\S")
OPEN_THINKING = re.compile(r"\s*<think>(?!.*</think>)", re.DOTALL)
FULL_WIDTH = {0xFF10 + digit: str(digit) for digit in range(10)} | {0xFF0C: ",", 0xFF0E: ".", 0xFF0D: "-"}


@dataclass(frozen=True, kw_only=True)
class FinalNumber:
    """The number that a text ends in.

    Attributes:
        value: the number, exactly.
        form: how the text gives it.
        text: the characters it was read from.
    """

    value: Fraction
    form: Form
    text: str


def final_number(text: str) -> FinalNumber | None:
    """The final number of an answer; None where there is none, or where the thinking never ended."""
    if OPEN_THINKING.match(text):
        return None
    text = _plain(without_thinking(text))
    # The later mark counts; `#### \boxed{72}` is one answer, given twice over.
    marks = [(found, "boxed") for found in BOX.finditer(text)] + [(found, "hashes") for found in HASHES.finditer(text)]
    for mark, form in sorted(marks, key=lambda mark: mark[0].start(), reverse=True):
        found = _boxed(text, mark) if form == "boxed" else _after_hashes(mark[1])
        if found is not None:
            return FinalNumber(value=found[0], form="boxed" if form == "boxed" else "hashes", text=found[1])
    for found in reversed(list(NUMBER.finditer(text))):
        value = _value(found)
        if value is not None:
            return FinalNumber(value=value, form="last", text=found[0].strip())
    return None


def whole_number_of(text: str) -> Fraction | None:
    """The number that a text is, at most with a currency, a sign of per cent or a full stop; None for others."""
    bare = re.sub(rf"^{CURRENCY}", "", _plain(text).strip()).removesuffix(".").removesuffix("%").strip()
    found = NUMBER.fullmatch(bare)
    return None if found is None else _value(found)


def same_number(first: str, second: str) -> bool | None:
    """Whether two texts end in the same number; None where one has none."""
    one, other = final_number(first), final_number(second)
    return None if one is None or other is None else one.value == other.value


def score(item: QA, text: str) -> Score:
    """Whether the final number of a text is the item's; `partial` is undefined: nearly right is wrong.

    `why` tells the form it was read in where it is right, and what was read instead where it is wrong.

    Raises:
        StepwellError: the item's own answer has no number.
    """
    gold = final_number(item.answer or "")
    if gold is None:
        raise StepwellError(
            f"the answer of item {item.id!r}, {item.answer!r}, has no number",
            "score it as a text, or name a set whose answers are numbers",
        )
    found = final_number(text)
    if found is None:
        why = "the thinking never ended" if OPEN_THINKING.match(text) else "no number"
        return Score(exact=False, partial=None, why=why)
    if found.value == gold.value:
        return Score(exact=True, partial=None, why=f"{found.form}: {found.text}")
    return Score(exact=False, partial=None, why=f"{found.form}: {found.text}, not {gold.text}")


def _plain(text: str) -> str:
    text = text.translate(FULL_WIDTH)
    text = LATEX_FRACTION.sub(r" \1/\2", text)
    # A vulgar fraction as its digits, parted from a whole number before it.
    return re.sub("[\u00bc-\u00be\u2150-\u215e]", lambda found: " " + unicodedata.normalize("NFKC", found[0]), text)


def _boxed(text: str, mark: re.Match[str]) -> tuple[Fraction, str] | None:
    """The number in a box; one that is never closed holds the rest of its line."""
    inside = text[mark.end() : mark.end() + MOST_DIGITS].split("\n")[0]
    if mark[0].endswith("{") and NUMBER.search(inside):
        depth = 1
        for place, sign in enumerate(inside):
            depth += (sign == "{") - (sign == "}")
            if depth == 0:
                inside = inside[:place]
                break
    return _first(_right_side(inside))


def _after_hashes(line: str) -> tuple[Fraction, str] | None:
    before = BEFORE.match(line)
    begin = before.end() if before else 0
    if not NUMBER.match(line, begin) or NUMBERED.match(line, begin):
        return None
    return _first(_right_side(line))


def _right_side(text: str) -> str:
    """What stands after the last equals sign: `#### 48 + 24 = 72` gives 72."""
    right = re.split(r"=|\\approx|\u2248", text)[-1]
    return right if NUMBER.search(right) else text


def _first(text: str) -> tuple[Fraction, str] | None:
    for found in NUMBER.finditer(text):
        value = _value(found)
        if value is not None:
            return value, found[0].strip()
    return None


def _value(found: re.Match[str]) -> Fraction | None:
    sign = -1 if found["sign"] and found["sign"] != "+" else 1
    if found["over"] is not None:
        over, under = int(found["over"]), int(found["under"])
        return sign * (int(found["mixed"] or 0) + Fraction(over, under)) if under else None
    digits = re.sub(COMMA, "", found["digits"])
    exponent = int(found["e"] or found["ten"] or 0)
    if len(digits) > MOST_DIGITS or abs(exponent) > MOST_DIGITS:
        return None
    return sign * Fraction(digits) ** int(found["power"] or 1) * Fraction(10) ** exponent
