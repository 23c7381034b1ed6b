"""What is executed, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["passed", "failed", "timeout", "memory", "output", "sandbox-error"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A program that somebody wrote and the tests that decide about it.

    Attributes:
        id: what its outcome is known by.
        code: the text of a Python module; nobody vouches for it.
        tests: Python statements that raise where the program is wrong. They run in a sandbox of their own, in which
            the names of `code` stand for the program's functions, classes and values; the program sees the arguments
            of the calls, and nothing else of them.
        entry_point: the function that the tests are about, where it has the name of a builtin: all other builtins keep
            their meaning in the tests, whatever the program defines.
    """

    id: str
    code: str
    tests: str
    entry_point: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of one program.

    Attributes:
        id: of the program.
        status: `passed` or `failed`; or why nothing can be said: `timeout`, `memory`, `output` (more printed, written
            or returned than is allowed), `sandbox-error`.
        detail: the cause in one line; "" where it passed.
        output: what the program printed, its end where that was long.
        seconds: wall-clock time from the moment at which it could begin.
    """

    id: str
    status: Status
    detail: str
    output: str
    seconds: float

    @property
    def right(self) -> bool | None:
        """Whether the program is right; None where a limit or the sandbox ended it, which is no wrong answer."""
        return {"passed": True, "failed": False}.get(self.status)
