"""The SLURM engine: each job a batch job, submitted with submitit, which starts the job's own process on its node.

submitit writes what it submits as pickles into RUN/slurm and loads them on the node: a function of this module, by
name, and strings. Nothing here loads one: the outcome comes back as a file of JSON beside them.
"""

from __future__ import annotations

import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from stepwell import kinds
from stepwell.engine.base import Handle, JobCall, Outcome, log_of
from stepwell.engine.launch import end_of
from stepwell.engine.remote import WARNINGS, on_gpus, package_of, parcel, run_there
from stepwell.errors import StepwellError
from stepwell.plan import Plan, jobs
from stepwell.store import RunFolder, write_atomically

SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_BETWEEN_QUESTIONS = 60.0
"""To SLURM itself, about all jobs at once. A job that ended as it should is seen by its answer, without a question."""
SECONDS_BETWEEN_QUESTIONS_AT_END = 5.0
SECONDS_TO_STOP = 300
"""Before its time is over a job is told, so that it reaches a checkpoint."""
MORE_MEMORY = "Raise slurm.memory_gb, or ask for less at a time in the stage; then run the same command again."
MORE_TIME = "Raise slurm.minutes, or save more often; then run the same command again."
WAYS_OUT = {"OUT_OF_MEMORY": MORE_MEMORY, "TIMEOUT": MORE_TIME}


@dataclass(eq=False)
class SlurmHandle:
    """A job in the queue."""

    call: JobCall
    job: Any
    answer: Path
    outcome: Outcome | None = None
    taken_back: bool = False
    cancelled: bool = False


class SlurmEngine:
    """Has up to `slots` jobs in the queue at a time.

    A job that SLURM stopped after a checkpoint, for its time was over or its node was taken, is submitted again: that
    is no failure.

    Args:
        plan: says what is asked for a job.

    Raises:
        StepwellError: submitit is not installed, or there is no SLURM here.
    """

    def __init__(self, plan: Plan) -> None:
        self.slots = plan.workers
        self._plan = plan
        self._submitit: Any = package_of("slurm", "submitit")
        if plan.slurm.cluster == "slurm" and shutil.which("sbatch") is None:
            raise StepwellError(
                "engine slurm finds no `sbatch` here, the command of SLURM",
                "Run this where jobs are submitted, or try the engine on this machine with slurm.cluster=local.",
            )
        self._kinds = {job.id: job.kind for job in jobs(plan)}
        self._executor: Any = None
        self._live: list[SlurmHandle] = []
        self._asked = time.monotonic()
        self._stop = self._now = False

    def submit(self, call: JobCall) -> SlurmHandle:
        """Put a job into the queue. One that SLURM refuses has failed."""
        handle = SlurmHandle(call, None, Path())
        self._queue(handle)
        if handle.outcome is None:
            self._live.append(handle)
        return handle

    def wait(self, handles: Collection[Handle], seconds: float) -> set[Handle]:
        """Those that ended."""
        ours = cast("Collection[SlurmHandle]", handles)
        self._cancel()
        deadline = time.monotonic() + seconds
        while True:
            ended: set[Handle] = {handle for handle in ours if self._ended(handle)}
            left = deadline - time.monotonic()
            if ended or left <= 0 or not ours:
                return ended
            time.sleep(min(left, SECONDS_BETWEEN_LOOKS))

    def stop(self, *, now: bool) -> None:
        """Write the run's stop file, which jobs look for at their checkpoints, and take back those that still queue; or
        cancel all: both at the next wait, for a signal handler may be what calls this."""
        for folder in {handle.call.folder for handle in list(self._live)}:
            RunFolder(folder).stop_path.touch()
        self._stop, self._now = True, self._now or now

    def _queue(self, handle: SlurmHandle) -> None:
        call = handle.call
        folder = Path(call.folder) / "slurm"
        handle.answer = folder / f"{call.job}.{secrets.token_hex(4)}.json"
        try:
            if self._executor is None:
                self._executor = self._submitit.AutoExecutor(folder=folder, cluster=self._plan.slurm.cluster)
            self._executor.update_parameters(**self.asked(call))
            handle.job = self._executor.submit(run_job, *parcel(call), str(handle.answer))
            handle.taken_back = False
        except (RuntimeError, OSError) as error:
            handle.outcome = _refused(error)

    def asked(self, call: JobCall) -> dict[str, Any]:
        """What is asked for a job, in submitit's words."""
        options = self._plan.slurm
        devices = kinds.kind(self._kinds[call.job]).holds(self._plan.devices)
        flags = {name: value for name, value in options.flags.items() if value is not False}
        return {
            "name": f"{self._plan.study}-{call.job}",
            "nodes": 1,
            "tasks_per_node": 1,
            "cpus_per_task": call.threads * devices,
            "gpus_per_node": devices if on_gpus(self._plan) else None,
            "timeout_min": options.minutes,
            "mem_gb": options.memory_gb,
            "slurm_partition": options.partition,
            "slurm_account": options.account,
            "slurm_signal_delay_s": min(SECONDS_TO_STOP, 30 * options.minutes),
            # This engine submits again what SLURM stopped. Were both to do it, two would run.
            "slurm_additional_parameters": {"no-requeue": True, **flags},
        }

    def _ended(self, handle: SlurmHandle) -> bool:
        if handle.outcome is None and self._is_over(handle.job):
            outcome = self._answered(handle)
            run = RunFolder(handle.call.folder)
            if outcome.state == "stopped" and not self._stop and not run.stop_path.exists():
                run.event("job-queued-again", job=handle.call.job, reason="SLURM asked it to stop")
                self._queue(handle)
            else:
                handle.outcome = outcome
        if handle.outcome is not None and handle in self._live:
            self._live.remove(handle)
        return handle.outcome is not None

    def _is_over(self, job: Any) -> bool:
        pause = SECONDS_BETWEEN_QUESTIONS_AT_END if self._stop else SECONDS_BETWEEN_QUESTIONS
        due = time.monotonic() - self._asked >= pause
        if due:
            self._asked = time.monotonic()
        return job.done(force_check=due)

    def _answered(self, handle: SlurmHandle) -> Outcome:
        try:
            return Outcome.from_json(handle.answer.read_text(encoding="utf-8"))
        except (OSError, ValueError, TypeError):
            state = handle.job.state.partition(" ")[0]  # "CANCELLED by 1000"
            log = handle.job.paths.stderr
            return Outcome(
                state="died",
                cause=f"its SLURM job {handle.job.job_id} ended without a result, in state {state}",
                way_out=WAYS_OUT.get(state, f"Read {log}; then run the same command again."),
                traceback=end_of(log) or end_of(log_of(handle.call)),
            )

    def _cancel(self) -> None:
        """End what is to end at once, and take back what waits for a node: it would wait to be stopped."""
        if self._now:
            for handle in self._live:
                if not handle.cancelled:  # a second time, submitit's stand-in would leave its processes alone
                    handle.job.cancel(check=False)
                    handle.cancelled = True
        elif self._stop and self._plan.slurm.cluster == "slurm":
            waiting = [handle for handle in self._live if not handle.taken_back]
            if waiting:
                ids = [handle.job.job_id for handle in waiting]
                subprocess.run(["scancel", "--state=PENDING", *ids], check=False, stderr=subprocess.DEVNULL)
            for handle in waiting:
                handle.taken_back = True


def run_job(text: str, import_path: str, version: str, answer: str) -> None:
    """The batch job: run the job in a process of its own, and leave its outcome as JSON where it was asked for.

    What SLURM sends before it ends a job (SIGUSR2 some minutes before its time is over, SIGTERM where its node is
    taken) is passed on to the worker, which stops at its next checkpoint.
    """

    def listen(worker: subprocess.Popen[Any]) -> None:
        for number in (*WARNINGS, signal.SIGTERM):
            signal.signal(number, lambda *_: worker.terminate())

    outcome = run_there(text, import_path, version, started=listen)
    write_atomically(Path(answer), outcome.to_json())


def _refused(error: Exception) -> Outcome:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return Outcome(
        state="failed",
        cause=f"SLURM does not take it: {lines[-1] if lines else type(error).__name__}",
        way_out="Correct the options under `slurm` in the plan; then run the same command again.",
    )
