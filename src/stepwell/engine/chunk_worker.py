"""A worker beside a job: `python -m stepwell.engine.chunk_worker` loads the job's work once, then takes chunks.

It reads one chunk a line, `[start, stop]`, and answers each with one line, in that order, each a
`stepwell.engine.pool.Answer` as JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Mapping
from typing import Any, NoReturn

from stepwell import kinds
from stepwell.engine.base import JobCall
from stepwell.engine.pool import Answer, Work, answer_of, attempt, cause_of
from stepwell.engine.worker import Asked, answering, die_with, prepare
from stepwell.errors import StepwellError
from stepwell.store import RunFolder, append_event, is_disk_full


class Bystander:
    """The recorder of a worker beside a job: the records are the job's, and it has no checkpoint of its own."""

    def __init__(self, run: RunFolder, job: str) -> None:
        self.run, self.job = run, job

    def event(self, event: str, fields: Mapping[str, Any]) -> None:
        """Append one event of the job."""
        append_event(self.run.events_path, event, **{"job": self.job, **fields})

    def write(self, kind: str, fields: Mapping[str, Any]) -> NoReturn:
        """No worker writes records: their order would depend on the workers."""
        raise RuntimeError(f"{self.job}: a worker beside the job writes a record of kind {kind} with {sorted(fields)}")

    def save(self, state: dict[str, Any]) -> NoReturn:
        """No worker has a checkpoint."""
        raise RuntimeError(f"{self.job}: a worker beside the job saves a checkpoint of {sorted(state)}")

    def restored(self) -> None:
        """No worker has a checkpoint."""


def load(call: JobCall, reference: str) -> Work:
    """The work of a job, ready for chunks. Raises whatever it raises while it loads."""
    asked = Asked.by(call)
    run, job = asked.run, asked.job
    work = kinds.resolve(reference)
    if "torch" in sys.modules:
        prepare(call.threads)
    params = kinds.kind(job.kind).params.model_validate(dict(job.params))
    return work(params, asked.context(Bystander(run, job.id), run.artifacts(job.id)))


def gone(error: Exception) -> Answer:
    """The answer of a worker that cannot go on; its traceback goes to the log."""
    with contextlib.suppress(OSError):  # the log may lie on the disk that is full
        traceback.print_exception(error, file=sys.stderr)
    if is_disk_full(error):
        return Answer(told="gone", cause="no space is left on the disk", way_out="Free space on the disk.")
    way_out = error.way_out if isinstance(error, StepwellError) else "Read the job's log and correct the cause."
    return Answer(told="gone", cause=cause_of(error), way_out=way_out)


def main(arguments: list[str] | None = None) -> int:
    """Take chunks from the standard input until it ends."""
    parser = argparse.ArgumentParser(prog="python -m stepwell.engine.chunk_worker")
    parser.add_argument("call", help="the job, as JSON", type=JobCall.from_json)
    parser.add_argument("work", help="module:function")
    parser.add_argument("--parent", type=int, required=True, help="end when this process is gone")
    given = parser.parse_args(arguments)
    die_with(given.parent)
    # Ctrl-C reaches all processes of a terminal: what it means is for the runner to say.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    out = answering()

    def answer(told: Answer) -> None:
        os.write(out, (json.dumps(told) + "\n").encode())

    try:
        work = load(given.call, given.work)
        answer(Answer(told="ready", cause="", way_out=""))
        for line in sys.stdin:
            start, stop = json.loads(line)
            answer(answer_of(attempt(work, range(start, stop))))
    except Exception as error:  # told to the job, whatever it is
        answer(gone(error))
        return 4
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
