"""The sandbox: seconds for 164 programs with their tests (aim: under 30 on two cores), each in sandboxes of its own.

The programs are HumanEval's reference solutions where its file is given (--humaneval), else generated ones of like
size. Compared: every right program passes, and every one that was made wrong fails.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

import common
from stepwell.sandbox import Program, execute
from stepwell.tasks.code import load_humaneval, references

PROBLEMS = 164


def main(arguments: Sequence[str] | None = None) -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--humaneval", type=Path, help="HumanEval.jsonl.gz; generated programs without it")
    given = parser.parse_args(arguments)
    common.header("bench_sandbox", given, arguments)
    programs = references(load_humaneval(given.humaneval)) if given.humaneval else generated()
    programs = programs[:2] if given.quick else programs
    repeats = given.pairs or (1 if given.quick else 3)
    wrong = [replace(program, code=f"{program.code}\ndel {program.entry_point}\n") for program in programs[:4]]
    found = [outcome.status for outcome in execute(wrong, workers=given.threads)]
    common.same("programs without their function", found == ["failed"] * len(wrong), f"{len(wrong)} fail")
    statuses: list[str] = []
    seconds = [
        common.timed(
            lambda: statuses.extend(outcome.status for outcome in execute(programs, workers=given.threads)), given.clock
        )
        for _ in range(repeats)
    ]
    common.same("right programs", set(statuses) == {"passed"}, f"{len(statuses)} pass")
    what = "HumanEval's references" if given.humaneval else "generated programs"
    spread = f"{min(seconds):.2f} to {max(seconds):.2f}, {repeats} times"
    print(f"  {len(programs)} {what}, {given.threads} at a time: median {median(seconds):.2f} s, {spread}")
    common.aim("seconds", median(seconds), "<=", 30, meant=not given.quick)


def generated() -> list[Program]:
    """Sorting functions, each with a few calls that decide."""
    code = "def task(values):\n    return sorted(values)[:{n}]\n"
    tests = "for size in range(10):\n    assert task(list(range(size, 0, -1))) == list(range(1, size + 1))[:{n}]\n"
    return [
        Program(id=str(n), code=code.format(n=n), tests=tests.format(n=n), entry_point="task") for n in range(PROBLEMS)
    ]


if __name__ == "__main__":
    main()
