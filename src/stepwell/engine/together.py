"""What the processes of one job write and read: the first is the job, the others go along with it."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepwell.plan import Job
from stepwell.ranks import Ranks
from stepwell.stage import Recorder
from stepwell.store import JobStore, RunFolder, load_checkpoint


@dataclass(frozen=True)
class _First:
    """The store of a job, for the first of several processes."""

    store: JobStore
    ranks: Ranks

    def write(self, kind: str, fields: Mapping[str, Any]) -> None:
        self.store.write(kind, fields)

    def event(self, event: str, fields: Mapping[str, Any]) -> None:
        self.store.event(event, fields)

    def save(self, state: dict[str, Any]) -> None:
        self.store.save(state)

    def restored(self) -> dict[str, Any] | None:
        state = self.store.restored()
        # It may have been found damaged, and deleted: only now may the others look. The next one comes after them.
        self.ranks.meet()
        self.ranks.meet()
        return state


@dataclass(frozen=True)
class _Other:
    """What another process than the first records: nothing. It begins at the same checkpoint."""

    checkpoint: Path
    ranks: Ranks

    def write(self, kind: str, fields: Mapping[str, Any]) -> None:
        del kind, fields

    def event(self, event: str, fields: Mapping[str, Any]) -> None:
        del event, fields

    def save(self, state: dict[str, Any]) -> None:
        del state

    def restored(self) -> dict[str, Any] | None:
        self.ranks.meet()
        state = load_checkpoint(self.checkpoint)[1] if self.checkpoint.exists() else None
        self.ranks.meet()
        return state


@contextlib.contextmanager
def recording(run: RunFolder, job: Job, fingerprint: str, ranks: Ranks) -> Iterator[tuple[Recorder, Path]]:
    """The recorder and the folder of this process while the stage runs; then the job is declared done.

    A process beside the first has a folder of its own, a copy of the job's that is thrown away: stages read back what
    they have saved, and only one may write it.
    """
    if ranks.rank:
        ranks.meet()
        with tempfile.TemporaryDirectory(prefix="stepwell-") as folder:
            copy = Path(folder) / job.id
            shutil.copytree(run.artifacts(job.id), copy)
            ranks.meet()
            yield _Other(run.checkpoint(job.id), ranks), copy
        return
    with run.job_lock(job.id):
        store = JobStore(run, job, fingerprint)
        try:
            store.begin()
            if ranks.size > 1:
                store.event("job-joined", {"processes": ranks.size})
            ranks.meet()  # the folder is there, without what an earlier version of the job left
            ranks.meet()  # and the others have copied it
            yield store if ranks.size == 1 else _First(store, ranks), run.artifacts(job.id)
            store.finish()
        finally:
            store.close()
