"""Runs one job of a run folder: in this process for the inline engine, as `python -m stepwell.engine.worker` else.

Of several processes that `torchrun` has started for one job, this is one.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import hashlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from stepwell import kinds
from stepwell.engine.base import JobCall, Outcome
from stepwell.engine.pool import pool_of
from stepwell.engine.together import recording
from stepwell.errors import Interrupted, StepwellError
from stepwell.plan import Job, Plan, jobs
from stepwell.ranks import PeerLost, Ranks
from stepwell.stage import Input, Recorder, StageContext
from stepwell.store import RunFolder, is_disk_full, write_atomically

PR_SET_PDEATHSIG = 1
SECONDS_BETWEEN_LOOKS_AT_PARENT = 1.0
SECONDS_BETWEEN_LOOKS_FOR_STOP = 1.0
LONGEST_TRACEBACK = 20_000
STOP = "stop"
"""A file in the folder of answers: each of several processes is asked to stop."""


def prepare(threads: int) -> None:
    """Make torch repeat itself: deterministic algorithms, a fixed number of threads. Imports torch.

    Called for every stage whose module imports torch. A stage that imports torch only inside its function calls this
    itself, before its first tensor.
    """
    # cuBLAS reads it when CUDA starts, which is after this; see torch.use_deterministic_algorithms.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    import torch

    torch.set_num_threads(threads)
    # On CUDA some operations have no deterministic form: there it warns, on the CPU it is an error.
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]


def seed_of(plan_seed: int, job: Job) -> int:
    """A job's seed in [0, 2^31), from the plan's seed, the stage's name and the axis `seed` only.

    Arms under comparison thus share their random numbers, and adding an arm changes no other.
    """
    text = f"{plan_seed}/{job.stage}/{job.axes.get('seed', '')}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


@dataclass(frozen=True)
class Asked:
    """The job that a call asks for, as its run folder has it."""

    call: JobCall
    run: RunFolder
    plan: Plan
    job: Job
    inputs: Mapping[str, tuple[Input, ...]]

    @classmethod
    def by(cls, call: JobCall) -> Self:
        """Read the plan of the run, and find the job and what its needs left."""
        run = RunFolder(call.folder)
        plan = run.read_plan()
        among = {job.id: job for job in jobs(plan)}
        job = among[call.job]
        inputs: dict[str, tuple[Input, ...]] = {}
        for need in job.needs:
            given = Input(job=among[need], folder=run.artifacts(need), records_path=run.records(need))
            inputs[given.job.stage] = (*inputs.get(given.job.stage, ()), given)
        return cls(call, run, plan, job, inputs)

    def context(self, recorder: Recorder, folder: Path, **more: Any) -> StageContext:
        """What the stage is given; `more` as of StageContext."""
        return StageContext(
            job=self.job,
            folder=folder,
            inputs=self.inputs,
            threads=self.call.threads,
            seed=seed_of(self.plan.seed, self.job),
            asked_device=self.plan.device,
            recorder=recorder,
            **more,
        )


def execute(call: JobCall, stop_asked: Callable[[], bool]) -> Outcome:
    """Run one job to its end, whichever it is; no exception of the stage passes through."""
    try:
        asked = Asked.by(call)
        run, plan, job = asked.run, asked.plan, asked.job
        with (
            Ranks.joined(plan.device) as ranks,
            recording(run, job, call.fingerprint, ranks) as (recorder, folder),
        ):
            context = asked.context(
                recorder,
                folder,
                stop_asked=_StopAsked(run, stop_asked),
                ranks=ranks,
                shard=plan.shard and ranks.size > 1,
                pool=pool_of(call, kinds.kind(job.kind), plan),
            )
            _run_stage(job, context)
        return Outcome(state="done")
    except PeerLost as lost:
        return Outcome(state="died", cause=lost.cause, way_out=lost.way_out)
    except Interrupted as stop:
        return Outcome(state="stopped", cause=stop.cause, way_out=stop.way_out)
    except Exception as error:  # whatever a stage raises is its outcome
        return _failure(call, error)


def _run_stage(job: Job, context: StageContext) -> None:
    kind = kinds.kind(job.kind)
    function = kinds.resolve(kind.run)
    params: Any = kind.params.model_validate(dict(job.params))
    with _deterministic(context.threads):
        function(params, context)


class _StopAsked:
    """Whether a signal, the engine, or a file in the run folder asks to stop: remote workers hear no signal."""

    def __init__(self, run: RunFolder, asked: Callable[[], bool]) -> None:
        self.path, self.asked, self.looked = run.stop_path, asked, float("-inf")

    def __call__(self) -> bool:
        if self.asked():
            return True
        now = time.monotonic()
        if now - self.looked < SECONDS_BETWEEN_LOOKS_FOR_STOP:
            return False
        self.looked = now
        return self.path.exists()


@contextlib.contextmanager
def _deterministic(threads: int) -> Iterator[None]:
    """`prepare` for the time of a stage whose module imports torch; the inline engine's process is left as it was."""
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    before = (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled())
    filled = torch.utils.deterministic.fill_uninitialized_memory
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    prepare(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1], warn_only=warned)
        torch.utils.deterministic.fill_uninitialized_memory = filled


def _failure(call: JobCall, error: Exception) -> Outcome:
    trace = "".join(traceback.format_exception(error))[-LONGEST_TRACEBACK:]
    with contextlib.suppress(OSError):  # the log may lie on the disk that is full
        print(trace, file=sys.stderr, flush=True)
    if is_disk_full(error):
        cause = "no space is left on the disk"
        way_out = f"Free space on the disk of {call.folder}, then run the same command again: it goes on from there."
    elif isinstance(error, StepwellError):
        cause, way_out = str(error).partition("\n  Way out: ")[0], error.way_out
    else:
        cause = f"{type(error).__name__}: {error}"
        way_out = "Read its log, correct the cause, then run the same command again: what is done is kept."
    return Outcome(state="failed", cause=cause, way_out=way_out, traceback=trace)


def main(arguments: list[str] | None = None) -> int:
    """Run one job in this process and print its outcome, one line of JSON, on the standard output it was started with.

    All that the stage prints goes to standard error, which the engine sends to the job's log. One of several processes
    leaves its outcome in the folder `--answers` instead, under its rank, and stops when the file `STOP` comes there.
    """
    call, parent, answers = arguments_of(arguments)
    asked = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: asked.set())
    if answers is not None:
        parent = os.getppid()  # the agent of `torchrun`
    if parent is not None:
        die_with(parent)
    answer = answering()
    outcome = execute(call, lambda: asked.is_set() or (answers is not None and (answers / STOP).exists()))
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    if answers is None:
        os.write(answer, outcome.to_json().encode())
    else:
        write_atomically(answers / f"{os.environ['RANK']}.json", outcome.to_json())
    return 0 if outcome.state == "done" else 4


def arguments_of(arguments: list[str] | None) -> tuple[JobCall, int | None, Path | None]:
    """The call, the process to end with, and where one of several leaves its answer, from a command line."""
    parser = argparse.ArgumentParser(prog="python -m stepwell.engine.worker")
    parser.add_argument("folder", type=Path, metavar="RUN")
    parser.add_argument("job", metavar="JOB")
    parser.add_argument("--fingerprint", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--parent", type=int, help="end when this process is gone")
    parser.add_argument("--ranks", type=int, default=1, help="processes that train together")
    parser.add_argument("--answers", type=Path, help="of one of several: the folder where its outcome goes")
    given = parser.parse_args(arguments)
    folder = str(given.folder.absolute())
    call = JobCall(
        folder=folder, job=given.job, fingerprint=given.fingerprint, threads=given.threads, ranks=given.ranks
    )
    return call, given.parent, given.answers


def answering() -> int:
    """A descriptor of the standard output; what is printed from now on goes to standard error."""
    answer = os.dup(1)
    os.set_inheritable(answer, False)
    os.dup2(2, 1)
    return answer


def die_with(parent: int) -> None:
    """End this process when its parent ends: by the kernel on Linux, by looking each second elsewhere too."""
    die_by_kernel()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(SECONDS_BETWEEN_LOOKS_AT_PARENT)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True, name="watch-parent").start()


def die_by_kernel() -> None:
    """Have the kernel end this process when its parent ends, also once it runs another program; only on Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    raise SystemExit(main())
