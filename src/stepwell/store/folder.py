"""The run folder: where everything lies, and the markers by which a finished job is known and proved."""

from __future__ import annotations

import contextlib
import errno
import json
import secrets
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from stepwell.fingerprint import fingerprint
from stepwell.plan import Job, Plan, dump_plan, load_plan
from stepwell.store.environment import environment
from stepwell.store.events import append_event
from stepwell.store.files import remove_torn, sha256_of, write_atomically
from stepwell.store.locks import Lock

SECONDS_A_DYING_WORKER_MAY_TAKE = 30.0
MOMENT_SECONDS = 0.3
MACHINE = ("python", "platform", "host", "cpu", "devices", "git", "packages")


class RunFolder:
    """Paths and files of one run. Constructing it touches nothing."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path).absolute()
        self.plan_path = self.path / "plan.yaml"
        self.policy_path = self.path / "policy.json"
        self.env_path = self.path / "env.json"
        self.events_path = self.path / "events.jsonl"
        self.gates_path = self.path / "records" / "gates.jsonl"
        self.stop_path = self.path / "stop"

    def records(self, job: str) -> Path:
        """The records of a job."""
        return self.path / "records" / f"{job}.jsonl"

    def artifacts(self, job: str) -> Path:
        """The artifacts of a job."""
        return self.path / "artifacts" / job

    def marker_path(self, job: str) -> Path:
        """What says that a job is done, with the hashes that prove it."""
        return self.path / "jobs" / f"{job}.json"

    def checkpoints(self, job: str) -> Path:
        """The checkpoint of a job that is not done, and whose it is."""
        return self.path / "checkpoints" / job

    def checkpoint(self, job: str) -> Path:
        """The last state of a job that is not done."""
        return self.checkpoints(job) / "last.ckpt"

    def remove_torn(self) -> None:
        """Remove what a run that was killed has left of the files that it was writing. The caller holds the lock."""
        for path in (self.plan_path, self.policy_path, self.env_path, self.gates_path):
            remove_torn(path)

    def drop_checkpoint(self, job: str) -> None:
        """Remove the state of a job that is done, or no longer run."""
        self.checkpoint(job).unlink(missing_ok=True)  # before its owner's name: what is left must never look foreign
        shutil.rmtree(self.checkpoints(job), ignore_errors=True)

    def log(self, job: str) -> Path:
        """What a job printed."""
        return self.path / "logs" / f"{job}.log"

    def lock(self) -> Lock:
        """Guards the whole folder: one run at a time."""
        # The moment covers `is_held`, which holds a lock for some microseconds to look at it.
        return Lock(self.path / "lock", "the run folder", wait_seconds=MOMENT_SECONDS)

    def job_lock_path(self, job: str) -> Path:
        """Held while a job runs."""
        return self.path / "jobs" / f"{job}.lock"

    def job_lock(self, job: str) -> Lock:
        """Guards one job, so that a worker of a killed run, still dying, cannot write beside its successor."""
        return Lock(self.job_lock_path(job), f"job {job}", wait_seconds=SECONDS_A_DYING_WORKER_MAY_TAKE)

    def event(self, event: str, /, **fields: Any) -> None:
        """Append to events.jsonl. On a full disk the line is lost: the run must still end in order."""
        try:
            append_event(self.events_path, event, **fields)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise

    def write_plan(self, plan: Plan) -> None:
        """Write the resolved plan where it is new or changed."""
        text = dump_plan(plan)
        if not self.plan_path.exists():
            write_atomically(self.plan_path, text)
        elif self.plan_path.read_text(encoding="utf-8") != text:
            write_atomically(self.plan_path, text)
            self.event("plan-changed", rung=plan.rung)

    def read_plan(self) -> Plan:
        """The resolved plan. Raises StepwellError where there is none."""
        return load_plan(self.plan_path)

    def write_environment(self, plan: Plan, seeds: Mapping[str, int], data_files: Iterable[Path]) -> None:
        """Write env.json. When a run is resumed elsewhere, an event names what changed, and the run keeps its id."""
        facts = environment(data_files=data_files)
        old = self._environment()
        run = old.get("run") or secrets.token_hex(8)
        kept = {"run": run, "plan_seed": plan.seed, "seeds": dict(seeds), **facts}
        if old == kept:
            return
        changed = [key for key in MACHINE if old and old.get(key) != kept[key]]
        if changed:
            small = {key: {"old": old.get(key), "new": kept[key]} for key in changed if key != "packages"}
            self.event("environment-changed", changed=changed, **small)
        write_atomically(self.env_path, json.dumps(kept, indent=1))

    def run_id(self) -> str:
        """The id a run got when it began; it moves along with the folder."""
        return str(self._environment().get("run", ""))

    def _environment(self) -> dict[str, Any]:
        try:
            return json.loads(self.env_path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    def marker(self, job: str) -> dict[str, Any] | None:
        """The done marker of a job; None where there is none that can be read."""
        try:
            return json.loads(self.marker_path(job).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def write_marker(
        self, job: Job, job_fingerprint: str, records: Mapping[str, Any], *, seconds: float
    ) -> dict[str, Any]:
        """Declare a job done: hash and flush what it left, then write the marker in one go.

        The seconds of its last attempt stand in it: a run killed right behind the marker has them from nowhere else.
        """
        folder = self.artifacts(job.id)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        content = {
            "records": dict(records),
            "artifacts": {
                path.relative_to(folder).as_posix(): {
                    "sha256": sha256_of(path, sync=True),
                    "bytes": path.stat().st_size,
                }
                for path in files
            },
        }
        marker = {
            "job": job.id,
            "stage": job.stage,
            "kind": job.kind,
            "axes": dict(job.axes),
            "fingerprint": job_fingerprint,
            "inputs": {need: (self.marker(need) or {}).get("content") for need in job.needs},
            "seconds": round(seconds, 3),
            "content": fingerprint(content),
            **content,
        }
        write_atomically(self.marker_path(job.id), json.dumps(marker, indent=1))
        return marker

    def fault(self, job: Job, job_fingerprint: str) -> str | None:
        """Why a job must run (again), in one phrase; None when its marker proves that it is done.

        Its inputs must be done: their content is compared with what this job read.
        """
        marker = self.marker(job.id)
        if marker is None:
            unreadable = self.marker_path(job.id).exists()
            return "its done marker cannot be read" if unreadable else "it is not done"
        try:
            if marker["fingerprint"] != job_fingerprint:
                return "its stage, parameters or inputs were changed"
            for need in job.needs:
                if marker["inputs"][need] != (self.marker(need) or {}).get("content"):
                    return f"its input {need} is no longer the same"
            records, artifacts = marker["records"], marker["artifacts"]
            if marker["content"] != fingerprint({"records": records, "artifacts": artifacts}):
                return "its done marker was changed"
            faults = [self._file_fault(self.records(job.id), records)]
            faults += [self._file_fault(self.artifacts(job.id) / name, facts) for name, facts in artifacts.items()]
        except (KeyError, TypeError, AttributeError):
            return "its done marker cannot be read"
        return next((fault for fault in faults if fault), None)

    def _file_fault(self, path: Path, facts: Mapping[str, Any]) -> str | None:
        name = path.relative_to(self.path).as_posix()
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != facts["bytes"]:
            return f"{name} has {path.stat().st_size} bytes instead of {facts['bytes']}"
        return None if sha256_of(path) == facts["sha256"] else f"{name} was changed (its sha256 differs)"

    def known_jobs(self) -> frozenset[str]:
        """Jobs that left records, artifacts or a marker."""
        names = {path.stem for path in (self.path / "records").glob("*.jsonl")} - {"gates"}
        names |= {path.stem for path in (self.path / "jobs").glob("*.json")}
        names |= {path.name for folder in ("artifacts", "checkpoints") for path in (self.path / folder).glob("*")}
        return frozenset(names)

    def retire(self, job: str) -> None:
        """Move what a job left out of the way, into retired/: the plan no longer runs it, and no table may count it."""
        attic = self.path / "retired" / f"{job}.{secrets.token_hex(3)}"
        attic.mkdir(parents=True)
        moves = {
            "marker.json": self.marker_path(job),
            "records.jsonl": self.records(job),
            "artifacts": self.artifacts(job),
        }
        for name, path in moves.items():
            with contextlib.suppress(FileNotFoundError):
                path.rename(attic / name)
        self.drop_checkpoint(job)
        self.event("job-retired", job=job, folder=attic.relative_to(self.path).as_posix())
