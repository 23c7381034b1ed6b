"""What a stage function gets: its job, its inputs, and the few calls by which it records, saves, resumes and stops.

A stage is `def train(params: TrainParams, ctx: StageContext) -> None`. It never sees a path of the run folder but its
own `ctx.folder`. Where records and checkpoints go is behind `Recorder`: the store of a run folder in a run, `Memory`
for trying a stage by itself.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from stepwell.errors import Interrupted
from stepwell.ranks import Ranks

LONGEST_SECONDS_BETWEEN_PROGRESS = 30.0


class JobLike(Protocol):
    """What a stage may know of its job: see stepwell.plan.Job."""

    @property
    def id(self) -> str: ...  # noqa: D102
    @property
    def stage(self) -> str: ...  # noqa: D102
    @property
    def kind(self) -> str: ...  # noqa: D102
    @property
    def axes(self) -> Mapping[str, Any]: ...  # noqa: D102
    @property
    def params(self) -> Mapping[str, Any]: ...  # noqa: D102
    @property
    def needs(self) -> tuple[str, ...]: ...  # noqa: D102


class Recorder(Protocol):
    """Where a stage's records, events and checkpoints go."""

    def write(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Append one record."""
        ...

    def event(self, event: str, fields: Mapping[str, Any]) -> None:
        """Append one line to the log of wall-clock facts."""
        ...

    def save(self, state: dict[str, Any]) -> None:
        """Replace the checkpoint."""
        ...

    def restored(self) -> dict[str, Any] | None:
        """The state of the last checkpoint; the records stand as they stood when it was saved."""
        ...


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a file in order. A torn last line, of a killed writer, is no record; a missing file has none."""
    if not path.exists():
        return
    with path.open(encoding="utf-8", newline="\n") as lines:
        for line in lines:
            if line.endswith("\n"):
                yield json.loads(line)


@dataclass(frozen=True, kw_only=True)
class Input:
    """What a needed job left.

    Args:
        job: that job, with its axes and parameters.
        folder: its artifacts.
        records_path: its records, one JSON object a line.
    """

    job: JobLike
    folder: Path
    records_path: Path

    def records(self, kind: str | None = None) -> Iterator[dict[str, Any]]:
        """Its records in the order of writing; of one kind where one is named."""
        return (record for record in read_records(self.records_path) if kind is None or record["kind"] == kind)


@dataclass(kw_only=True)
class StageContext:
    """The one argument, besides its parameters, of every stage function.

    Args:
        job: the stage at one point of its axes.
        folder: where artifacts go; it exists. What lies there when the stage ends is hashed into the done marker.
        inputs: by name of the needed stage, its jobs that agree with this one on shared axes.
        threads: CPU threads this job may use; already set for torch where the stage's module imports it.
        seed: depends on the plan's seed, the stage's name and the axis `seed` only: arms under comparison share it.
        asked_device: `auto`, `cpu`, `cuda` or `mps`, as the plan says.
        recorder: where records, events and checkpoints go.
        stop_asked: whether the run was asked to stop.
        ranks: which of how many processes of one training this is. All of them run the stage; what the first one
            writes, saves and leaves in its folder is the job's.
        shard: whether these processes are to hold a frozen model in parts.
        pool: `module:function` of the work on one chunk of the job's items -> workers for it beside this process, as
            of stepwell.engine.pool; None where this process does all.
    """

    job: JobLike
    folder: Path
    inputs: Mapping[str, tuple[Input, ...]]
    threads: int
    seed: int
    asked_device: str = "auto"
    recorder: Recorder
    stop_asked: Callable[[], bool] = lambda: False
    ranks: Ranks = field(default_factory=Ranks)
    shard: bool = False
    pool: Callable[[str], Any] | None = None
    _began: float = field(default_factory=time.monotonic, repr=False)
    _told: float = field(default=float("-inf"), repr=False)

    @cached_property
    def device(self) -> str:
        """`cpu`, `cuda` or `mps`; `auto` takes the fastest at hand. Imports torch to find out."""
        if self.asked_device != "auto":
            return self.asked_device
        import torch

        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"

    def made_by(self, *kinds: str) -> list[Input]:
        """The needed jobs of some kinds of stage, in the order in which the stage names them."""
        return [made for inputs in self.inputs.values() for made in inputs if made.job.kind in kinds]

    def write(self, kind: str, /, **fields: Any) -> None:
        """Append one record: a flat JSON object. The job's axes are added.

        Numbers that are not finite become null: undefined is not a number. No wall-clock value may be a field: records
        are the same, byte for byte, with and without an interruption; times belong into `event`.
        """
        self.recorder.write(kind, fields)

    def event(self, event: str, /, **fields: Any) -> None:
        """Append a line to events.jsonl, with time and job added. Safe from several processes at a time."""
        self.recorder.event(event, fields)

    def save(self, state: dict[str, Any]) -> None:
        """Replace the checkpoint by a nested dict of tensors, numbers, texts, lists and dicts, at once or not at all.

        Everything the rest of the stage depends on must be in it: weights, optimizer, scheduler, position in the data,
        and `stepwell.randomness.random_state()`. What cannot be loaded without unpickling code raises TypeError.
        """
        self.recorder.save(state)

    def restored(self) -> dict[str, Any] | None:
        """The last checkpoint of this job, tensors on the CPU, or None. Call it before the first record is written.

        Records beyond the checkpoint are cut off. Raises StepwellError for a checkpoint of another run or job.
        """
        return self.recorder.restored()

    def keep_artifacts(self) -> None:
        """From here on what lies in `folder` survives a kill, for stages whose work is many files of their own.

        Without a checkpoint it is cleared when the job begins anew. Called, as `restored`, before the first record.
        """
        if self.restored() is None:
            self.save({"begun": True})

    def progress(self, done: int, total: int, **fields: Any) -> None:
        """Tell the live table how far the stage is; call it as often as you like.

        An event is written at most each second, later at most each hundredth of the time passed, up to 30 s: a run of
        days does not fill its log.
        """
        now = time.monotonic()
        pause = min(LONGEST_SECONDS_BETWEEN_PROGRESS, max(1.0, (now - self._began) / 100))
        if now - self._told < pause and done < total:
            return
        self._told = now
        seconds = round(now - self._began, 3)
        self.recorder.event("progress", {"done": done, "total": total, "seconds": seconds, **fields})

    def stop_if_asked(self) -> None:
        """Raise Interrupted when the user or the system asked the run to stop. Call it right after `save`."""
        if self.ranks.any(self.stop_asked()):
            raise Interrupted(
                "stopped, as asked", "Run the same command again: it goes on from here.", stage=self.job.id
            )


@dataclass(kw_only=True)
class Memory:
    """A recorder that keeps everything in memory, for trying a stage without a run folder.

    Args:
        axes: of the job, added to each record.
        state: the checkpoint that `restored` gives; `save` replaces it.
    """

    axes: Mapping[str, Any] = field(default_factory=dict)
    state: dict[str, Any] | None = None
    records: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    _kept: int = 0

    def write(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Append one record."""
        self.records.append({"kind": kind, **self.axes, **fields})

    def event(self, event: str, fields: Mapping[str, Any]) -> None:
        """Append one event, without a time."""
        self.events.append({"event": event, **fields})

    def save(self, state: dict[str, Any]) -> None:
        """Keep a copy of the state."""
        self.state, self._kept = copy.deepcopy(state), len(self.records)

    def restored(self) -> dict[str, Any] | None:
        """A copy of the state kept, records beyond it cut off."""
        del self.records[self._kept :]
        return copy.deepcopy(self.state)
