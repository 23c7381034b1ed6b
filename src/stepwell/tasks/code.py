"""HumanEval and MBPP: functions to be written, decided by hidden tests that run in a sandbox.

Chen et al. 2021 (arXiv 2107.03374) and Austin et al. 2021 (arXiv 2108.07732). Read from the official files
(`HumanEval.jsonl.gz`, `mbpp.jsonl`) or from the hub: `openai/openai_humaneval`, `google-research-datasets/mbpp`.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from stepwell.errors import StepwellError
from stepwell.sandbox.programs import Program
from stepwell.tasks.code_answers import extract_code, parsed
from stepwell.tasks.sources import Entry, Source, entries, hub_id

HUMANEVAL_FORMAT = "objects with task_id, prompt, entry_point, canonical_solution and test"
MBPP_FORMAT = "objects with task_id, text, code and test_list"

Split = Literal["prompt", "test", "validation", "train"]
MBPP_SPLITS: dict[Split, range] = {
    "prompt": range(1, 11),
    "test": range(11, 511),
    "validation": range(511, 601),
    "train": range(601, 975),
}
"""Which task_ids each split holds, in the one file that the paper came with (section 2.1)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeProblem:
    """A function to be written.

    Attributes:
        id: unique within its set.
        question: what the model is shown.
        entry_point: the function's name.
        tests: the hidden tests: statements that raise where the function is wrong.
        reference: a right answer, as a model could have given it.
        starter: code that the answer goes on with, or repeats: imports, helpers, the function's head; "" where none.
    """

    id: str
    question: str
    entry_point: str
    tests: str
    reference: str
    starter: str = ""


def program(problem: CodeProblem, completion: str, *, id: str | None = None) -> Program:
    """What is to be executed for an answer: the code in it, and the hidden tests.

    Args:
        problem: what was asked.
        completion: the model's text: a function's body, a function, or an answer with code in it.
        id: what the outcome is known by, where a problem has several answers; the problem's where None.
    """
    code = extract_code(completion, problem.entry_point, problem.starter)
    return Program(id=id or problem.id, code=code, tests=problem.tests, entry_point=problem.entry_point)


def references(problems: Iterable[CodeProblem]) -> list[Program]:
    """The problems' own solutions, which have to pass: the positive control of a sandbox."""
    return [program(problem, problem.reference) for problem in problems]


def load_humaneval(source: Source) -> list[CodeProblem]:
    """The problems of a file or a hub set, in its order.

    Raises:
        StepwellError: the file is missing, empty, not JSON or in another format, the set cannot be had, or two
            problems have one id.
    """
    return _problems(entries(source, "test", HUMANEVAL_FORMAT), source, HUMANEVAL_FORMAT, _humaneval)


def load_mbpp(source: Source, *, split: Split | None = "test", shown_tests: int = 1) -> list[CodeProblem]:
    """The problems of a file or a hub set, in its order.

    Args:
        source: a path, or `owner/name` on the hub.
        split: of the set; None for all four.
        shown_tests: how many of the tests the question shows. One tells the function's name; the paper shows all
            three, and then they are no longer hidden.

    Raises:
        StepwellError: as `load_humaneval`, or no problem of the split is there.
    """
    splits = (split,) if split else tuple(MBPP_SPLITS)
    if hub_id(source):
        found = [entry for name in splits for entry in entries(source, name, MBPP_FORMAT)]
    else:
        wanted = {number for name in splits for number in MBPP_SPLITS[name]}
        found = [entry for entry in entries(source, "", MBPP_FORMAT) if entry.get("task_id", 1) in wanted]
    if not found:
        raise StepwellError(
            f"no problem of the split {split!r} is in the file",
            "its problems are told by task_id: " + ", ".join(f"{k} {v[0]} to {v[-1]}" for k, v in MBPP_SPLITS.items()),
            path=source,
        )
    return _problems(found, source, MBPP_FORMAT, lambda entry: _mbpp(entry, shown_tests))


def _problems(
    found: Sequence[Entry], source: Source, expected: str, make: Callable[[Entry], CodeProblem]
) -> list[CodeProblem]:
    made: dict[str, CodeProblem] = {}
    for place, entry in enumerate(found, start=1):
        try:
            problem = make(entry)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            cause = f"another format: entry {place}: {type(error).__name__}: {error}"
            raise StepwellError(cause, f"expected {expected}", path=source) from None
        if problem.id in made:
            raise StepwellError(f"two problems have the id {problem.id!r}", "give each its own id", path=source)
        made[problem.id] = problem
    return list(made.values())


def _humaneval(entry: Entry) -> CodeProblem:
    name = entry["entry_point"]
    return CodeProblem(
        id=str(entry["task_id"]),
        question=entry["prompt"],
        entry_point=name,
        tests=f"{entry['test'].strip()}\n\ncheck({name})\n",
        reference=entry["canonical_solution"],
        starter=entry["prompt"],
    )


def _mbpp(entry: Entry, shown_tests: int) -> CodeProblem:
    tests: list[str] = [test.strip() for test in entry["test_list"]]
    # The hub's set has the setup under this name, its sanitised edition a list of imports.
    setup = [entry.get("test_setup_code", ""), *entry.get("test_imports", ())]
    text = entry["text"] if "text" in entry else entry["prompt"]
    shown = "\n".join(tests[:shown_tests])
    return CodeProblem(
        id=f"MBPP/{entry['task_id']}",
        question=f"{text.strip()}\nYour code should pass:\n\n{shown}\n" if shown else f"{text.strip()}\n",
        entry_point=_tested(entry["code"], tests),
        tests="\n".join([*(line.strip().replace("\r", "") for line in setup if line.strip()), *tests]) + "\n",
        # The published file ends its lines as Windows does, which a training would learn.
        reference=entry["code"].replace("\r", ""),
    )


def _tested(code: str, tests: Sequence[str]) -> str:
    """The function of the reference that the tests call."""
    tree = parsed(code)
    defined = {one.name for one in tree.body if isinstance(one, ast.FunctionDef)} if tree else set[str]()
    for test in tests:
        for node in ast.walk(ast.parse(test)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in defined:
                return node.func.id
    raise ValueError("the tests call no function of the reference")
