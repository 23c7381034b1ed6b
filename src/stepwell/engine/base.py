"""The protocol of engines: jobs named by strings go in, outcomes come back. No object crosses: any scheduler fits."""

from __future__ import annotations

import io
import json
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, Self

State = Literal["done", "failed", "stopped", "died"]


@dataclass(frozen=True, kw_only=True)
class JobCall:
    """One job to run. Whoever runs it reads plan.yaml from the folder again.

    Args:
        folder: the run folder, absolute.
        job: the job's id.
        fingerprint: its identity, computed once by the runner.
        threads: CPU threads it may use, each of its processes.
        ranks: processes that train together.
    """

    folder: str
    job: str
    fingerprint: str
    threads: int
    ranks: int = 1

    def to_json(self) -> str:
        """The call as one line of JSON, e.g. for a command line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The call that `to_json` wrote."""
        return cls(**json.loads(text))


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a job ended.

    Args:
        state: `done` (its marker is written), `failed` (the stage raised), `stopped` (as asked), `died` (the worker is
            gone without a word: killed, or out of memory).
        cause: in one sentence; empty when done.
        way_out: what the user can do; empty when done.
        traceback: of the exception, where there was one.
    """

    state: State
    cause: str = ""
    way_out: str = ""
    traceback: str = ""

    def to_json(self) -> str:
        """The outcome as one line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """The outcome that `to_json` wrote. ValueError or TypeError for anything else."""
        fields: dict[str, Any] = json.loads(text)
        return cls(**fields)


class Handle(Protocol):
    """A submitted job."""

    call: JobCall
    outcome: Outcome | None
    """None until `wait` gave the handle back."""


class Engine(Protocol):
    """Runs jobs. The runner, one thread, is the only caller; `stop` may also be called from its signal handler."""

    slots: int
    """How many jobs it runs at a time."""

    def submit(self, call: JobCall) -> Handle:
        """Take a job on. Call it only while fewer than `slots` are under way."""
        ...

    def wait(self, handles: Collection[Handle], seconds: float) -> set[Handle]:
        """Those of the handles that ended, with outcome; returns as soon as one did, or after about `seconds`."""
        ...

    def stop(self, *, now: bool) -> None:
        """Ask all jobs under way to stop at their next checkpoint, or end them at once."""
        ...


def log_of(call: JobCall) -> Path:
    """Where what a job prints goes."""
    return Path(call.folder) / "logs" / f"{call.job}.log"


def opened_log(call: JobCall) -> io.FileIO:
    """The log, to be written on. Nothing is buffered, so closing it cannot fail when the disk is full."""
    path = log_of(call)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("ab", buffering=0)
