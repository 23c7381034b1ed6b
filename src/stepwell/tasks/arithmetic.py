"""Sums to be held: `2+3=?` and its result. Generated: every problem of a family is as likely, and none comes twice."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass

from stepwell.errors import StepwellError
from stepwell.tasks.base import QA, Score

WHOLE_NUMBER = re.compile(r"[+-]?[0-9]+")


@dataclass(frozen=True, kw_only=True)
class Operation:
    """How two whole numbers, neither negative, make a third."""

    sign: str
    result: Callable[[int, int], int]


OPERATIONS = {
    "add": Operation(sign="+", result=lambda a, b: a + b),
    "subtract": Operation(sign="-", result=lambda a, b: a - b),
    "multiply": Operation(sign="*", result=lambda a, b: a * b),
}


def make_arithmetic(n: int, *, operations: tuple[str, ...] = ("add",), digits: int = 1, seed: int = 0) -> list[QA]:
    """`n` different problems whose operands have at most `digits` digits, `12-47=?` with the answer `-35`.

    The ids tell the problem, so that the same problem has the same id in every set.

    Raises:
        StepwellError: an operation is unknown, digits is not 1 to 18, n is below 1, or there are fewer problems.
    """
    unknown = [name for name in operations if name not in OPERATIONS]
    if unknown or not operations:
        raise StepwellError(f"no such operation: {unknown}", f"name some of {', '.join(OPERATIONS)}")
    if not 1 <= digits <= 18:
        raise StepwellError(f"operands of {digits} digits", "ask for 1 to 18 digits")
    kinds, size = tuple(dict.fromkeys(operations)), 10**digits
    # A problem is a number: which operation, which first and which second operand.
    most = len(kinds) * size * size
    if not 1 <= n <= most:
        raise StepwellError(
            f"{n} problems asked for; there are {most}", f"ask for 1 to {most}, or for more digits or operations"
        )
    generator = random.Random(seed)
    drawn: dict[int, None] = {}
    # Among few problems the last would be waited for long: these are shuffled whole.
    if 2 * n >= most:
        drawn = dict.fromkeys(generator.sample(range(most), n))
    while len(drawn) < n:
        drawn[generator.randrange(most)] = None
    return [_problem(number, kinds, size) for number in drawn]


def _problem(number: int, kinds: tuple[str, ...], size: int) -> QA:
    kind, operands = divmod(number, size * size)
    first, second = divmod(operands, size)
    operation = OPERATIONS[kinds[kind]]
    asked = f"{first}{operation.sign}{second}"
    return QA(id=f"arithmetic-{asked}", question=f"{asked}=?", answers=(str(operation.result(first, second)),))


def score(item: QA, text: str) -> Score:
    """Whether a text is the number asked for, and nothing else: spaces around it, `+` and leading zeros are let pass.

    `partial` is undefined: a number that is nearly right is wrong.
    """
    stripped = text.strip()
    if not WHOLE_NUMBER.fullmatch(stripped):
        return Score(exact=False, partial=None, why="not a whole number")
    # Compared as texts: int() refuses what a model that runs on may write, more than 4,300 digits.
    right = _plain(stripped) == _plain(item.answers[0])
    return Score(exact=right, partial=None, why="a number is right or wrong")


def _plain(text: str) -> str:
    digits = text.lstrip("+-").lstrip("0") or "0"
    return "-" + digits if text.startswith("-") and digits != "0" else digits
