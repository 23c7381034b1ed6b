"""Every error a user can cause or meet: one sentence of cause, one way out, and the exit code that goes with it.

Exit codes of the command line: 0 go, 1 no-go (or findings), 2 inconclusive, 3 usage error, 4 a stage failed.
"""

from __future__ import annotations

from pathlib import Path


class StepwellError(Exception):
    """An error with its place, its cause and the way out.

    Args:
        cause: what is wrong, in one sentence, with what was found.
        way_out: what the user can do about it.
        stage: the stage or job in which it happened, where there is one.
        path: the file or folder concerned, where there is one.
    """

    exit_code = 3

    def __init__(self, cause: str, way_out: str, *, stage: str | None = None, path: Path | str | None = None) -> None:
        self.cause, self.way_out, self.stage, self.path = cause, way_out, stage, path
        super().__init__(self._message())

    def _message(self) -> str:
        place = ": ".join(str(part) for part in (self.stage and f"stage {self.stage}", self.path) if part)
        return (
            f"{place}: {self.cause}\n  Way out: {self.way_out}" if place else f"{self.cause}\n  Way out: {self.way_out}"
        )


class StageFailed(StepwellError):
    """A stage began its work and could not finish it; what was recorded before is kept."""

    exit_code = 4


class Interrupted(StepwellError):
    """The user or the system asked the run to stop; it stopped at a checkpoint."""

    exit_code = 4
