"""What one running job writes: the recorder behind a stage's context in a run folder."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from typing import Any

from stepwell.errors import StepwellError
from stepwell.plan import Job
from stepwell.store.checkpoints import load_checkpoint, save_checkpoint
from stepwell.store.events import append_event
from stepwell.store.files import remove_all_torn, remove_torn, write_atomically
from stepwell.store.folder import RunFolder
from stepwell.store.records import RecordWriter, begins_with


class JobStore:
    """Records, events and checkpoint of one job. The caller holds the job's lock.

    Args:
        run: the folder.
        job: the job.
        fingerprint: its identity; a checkpoint with another one is never loaded.
    """

    def __init__(self, run: RunFolder, job: Job, fingerprint: str) -> None:
        self.run, self.job, self.fingerprint = run, job, fingerprint
        self._identity = {"run": run.run_id(), "job": job.id, "fingerprint": fingerprint}
        self._checkpoint = run.checkpoint(job.id)
        self._owner = run.checkpoints(job.id) / "job.json"
        self._writer: RecordWriter | None = None
        self._began = time.monotonic()

    def begin(self) -> None:
        """Prepare to start or to go on: what an earlier version of the job left is cleared."""
        self.run.marker_path(self.job.id).unlink(missing_ok=True)
        owner = self._read_owner()
        if owner not in (None, self.fingerprint):
            self.event("checkpoint-discarded", {"reason": "the stage, its parameters or its inputs were changed"})
            shutil.rmtree(self._owner.parent)
        if not self._checkpoint.exists():
            self._clear()
        remove_torn(self.run.marker_path(self.job.id))
        for folder in (self._owner.parent, self.run.artifacts(self.job.id)):
            remove_all_torn(folder)  # checkpoints take gigabytes, and of artifacts it would be taken for one
        self.run.artifacts(self.job.id).mkdir(parents=True, exist_ok=True)
        if owner != self.fingerprint:
            write_atomically(self._owner, json.dumps({"fingerprint": self.fingerprint}))

    def write(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Append one record. Without `restored` before it, the job's records start anew."""
        if self._writer is None:
            self._writer = self._open(0)
        self._writer.write(kind, fields)

    def event(self, event: str, fields: Mapping[str, Any]) -> None:
        """Append one event of this job."""
        append_event(self.run.events_path, event, **{"job": self.job.id, **fields})

    def save(self, state: dict[str, Any]) -> None:
        """Replace the checkpoint; it holds where the records stood, and these reach the disk before it."""
        if self._writer is None:
            self._writer = self._open(0)
        self._writer.sync()
        header = {**self._identity, "records_bytes": self._writer.bytes, "records_sha256": self._writer.sha256}
        save_checkpoint(self._checkpoint, header, state)

    def restored(self) -> dict[str, Any] | None:
        """The last state, records cut off behind it; None, and no records, where there is none."""
        if self._writer is not None:
            raise RuntimeError(f"{self.job.id}: restored() comes before the first record")
        if not self._checkpoint.exists():
            self._writer = self._open(0)
            return None
        header, state = load_checkpoint(self._checkpoint)
        self._refuse_foreign(header)
        if not begins_with(self.run.records(self.job.id), header["records_bytes"], header["records_sha256"]):
            self.event("checkpoint-discarded", {"reason": "the records before it were changed or cut off"})
            self._checkpoint.unlink()
            self._clear()
            self.run.artifacts(self.job.id).mkdir(parents=True)
            self._writer = self._open(0)
            return None
        self._writer = self._open(header["records_bytes"])
        self.event("job-restored", {"records_bytes": header["records_bytes"]})
        return state

    def finish(self) -> None:
        """Flush everything, declare the job done, and drop its checkpoint."""
        if self._writer is None:
            self._writer = self._open(0)
        self._writer.sync()
        writer = self._writer
        facts = {"sha256": writer.sha256, "bytes": writer.bytes, "lines": writer.lines}
        self.run.write_marker(self.job, self.fingerprint, facts, seconds=time.monotonic() - self._began)
        self.run.drop_checkpoint(self.job.id)

    def close(self) -> None:
        """Close the records; they stay as they are."""
        if self._writer is not None:
            self._writer.close()

    def _open(self, offset: int) -> RecordWriter:
        return RecordWriter(self.run.records(self.job.id), self.job.axes, offset=offset)

    def _clear(self) -> None:
        self.run.records(self.job.id).unlink(missing_ok=True)
        shutil.rmtree(self.run.artifacts(self.job.id), ignore_errors=True)

    def _read_owner(self) -> str | None:
        try:
            return str(json.loads(self._owner.read_text(encoding="utf-8"))["fingerprint"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _refuse_foreign(self, header: Mapping[str, Any]) -> None:
        for key, what in (("job", "job"), ("run", "run"), ("fingerprint", "version of this job, with fingerprint")):
            if header.get(key) != self._identity[key]:
                raise StepwellError(
                    f"the checkpoint belongs to another {what} {header.get(key)!r}, not to {self._identity[key]!r}",
                    "Delete this file: the job then starts from its beginning.",
                    stage=self.job.id,
                    path=self._checkpoint,
                )
