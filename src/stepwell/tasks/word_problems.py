"""Generated school problems in the form of GSM8K: a few sentences, a written solution, `#### number`.

For whoever has no GSM8K file at hand, and for small models: sums of whole numbers below 100 in one or two steps. No
problem comes twice in a set.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from stepwell.errors import StepwellError
from stepwell.tasks.gsm8k import MathItem

MOST = 20_000
"""Problems of one seed: a small part of all there are, so that drawing a new one is quick."""

NAMES = ("Ada", "Ben", "Cora", "Dan", "Ella", "Finn", "Gus", "Hana", "Ivo", "Kai", "Lena", "Max", "Nora", "Otto",
         "Pia", "Rosa", "Sam", "Tess", "Uma", "Vic", "Wren")  # fmt: skip
THINGS = ("apples", "beads", "books", "buttons", "cards", "coins", "cups", "marbles", "nails", "nuts", "pencils",
          "plums", "shells", "stamps", "stones", "tickets")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Form:
    """One sort of problem.

    Attributes:
        category: its name, which begins the ids.
        says: wordings with {a}, {b}, {c}, {name}, {other} and {things}.
        solves: the solution's lines with the same, and {x} and {y} for what was found.
        works: x and y, the results of the first and the last step.
        fits: whether the numbers make a sensible problem.
    """

    category: str
    says: Sequence[str]
    solves: str
    works: Callable[[int, int, int], tuple[int, int]]
    fits: Callable[[int, int, int], bool] = lambda a, b, c: True


FORMS = (
    Form(
        category="add",
        says=("{name} has {a} {things} and finds {b} more. How many {things} does {name} have now?",
              "There are {a} {things} in a box, and {name} puts {b} more in. How many {things} are in the box?"),
        solves="{a} + {b} = {y}", works=lambda a, b, c: (a + b, a + b),
    ),
    Form(
        category="subtract",
        says=("{name} has {a} {things} and gives {b} to {other}. How many {things} does {name} have left?",
              "Of {a} {things} in a box {name} takes {b} out. How many {things} are still in the box?"),
        solves="{a} - {b} = {y}", works=lambda a, b, c: (a - b, a - b), fits=lambda a, b, c: b < a,
    ),
    Form(
        category="add-subtract",
        says=("{name} has {a} {things}, finds {b} and gives {c} to {other}. How many {things} does {name} have now?",
              "A box has {a} {things}. {name} puts {b} in, {other} takes {c} out. How many {things} are in the box?"),
        solves="{a} + {b} = {x}\n{x} - {c} = {y}", works=lambda a, b, c: (a + b, a + b - c),
        fits=lambda a, b, c: c < a + b,
    ),
    Form(
        category="more-than",
        says=("{name} has {a} {things}. {other} has {b} more than {name}. How many {things} do they have together?",
              "{other} has {b} {things} more than {name}, who has {a}. How many {things} do the two have in all?"),
        solves="{a} + {b} = {x}\n{a} + {x} = {y}", works=lambda a, b, c: (a + b, a + a + b),
    ),
)  # fmt: skip


def make_word_problems(
    n: int, seed: int, *, largest: int = 20, categories: Sequence[str] = ("add", "subtract", "add-subtract")
) -> list[MathItem]:
    """Problems of one set; the first of a larger n are those of a smaller one.

    Args:
        n: problems.
        seed: of all choices. Two seeds may have a problem in common: draw what must be apart as one set, and split it.
        largest: of the numbers in the text, each at least 2.
        categories: of the problems, in turn; the id of a problem begins with its category.

    Raises:
        StepwellError: a negative n or one above 20,000, a largest number out of range, an unknown category.
    """
    forms = {form.category: form for form in FORMS}
    if unknown := [name for name in categories if name not in forms]:
        raise StepwellError(f"no such category: {', '.join(unknown)}", f"name some of {', '.join(forms)}")
    if not categories or not 0 <= n <= MOST or not 10 <= largest <= 99:
        raise StepwellError(
            f"{n} problems with numbers up to {largest}, of {len(categories)} categories cannot be made",
            f"ask for 0 to {MOST} problems, numbers up to 10 to 99, and a category",
        )
    generator, found = random.Random(f"word-problems/{seed}/{largest}"), dict[str, MathItem]()
    for place in range(n):
        form = forms[categories[place % len(categories)]]
        while True:
            question, answer, solution = _drawn(form, generator, largest)
            if question not in found:
                break
        found[question] = MathItem(
            id=f"{form.category}-{seed}-{place:05d}", question=question, answers=(str(answer),), solution=solution
        )
    return list(found.values())


def category_of(item_id: str) -> str | None:
    """The category that the id of a generated problem begins with; None for an id of another set."""
    return next((form.category for form in sorted(FORMS, key=lambda form: -len(form.category))
                 if item_id.startswith(f"{form.category}-")), None)  # fmt: skip


def _drawn(form: Form, generator: random.Random, largest: int) -> tuple[str, int, str]:
    while True:
        a, b, c = (generator.randint(2, largest) for _ in range(3))
        if form.fits(a, b, c):
            break
    name, other = generator.sample(NAMES, 2)
    x, y = form.works(a, b, c)
    words = {"a": a, "b": b, "c": c, "x": x, "y": y, "name": name, "other": other, "things": generator.choice(THINGS)}
    return generator.choice(form.says).format(**words), y, f"{form.solves.format(**words)}\n#### {y}"
