"""One job on another machine, for the engines that only hand it on: what crosses to it, and what it does there."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from stepwell import __version__, kinds
from stepwell.engine.base import JobCall, Outcome
from stepwell.engine.launch import end_group, environment, outcome_of, start
from stepwell.errors import StepwellError
from stepwell.plan import Plan, jobs
from stepwell.store import RunFolder

WARNINGS = {signal.SIGUSR1, signal.SIGUSR2}
"""What queues send to all processes of a job before they end it."""


def package_of(engine: str, name: str) -> ModuleType:
    """The package that an engine needs. Raises StepwellError where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise StepwellError(
            f"engine {engine} needs the package {name}, which is not installed",
            f"pip install 'stepwell[{engine}]', or take engine=process.",
        ) from error


def dealt(plan: Plan) -> frozenset[str]:
    """The jobs that deal chunks of their items to several workers instead of doing the work."""
    if plan.devices == 1:
        return frozenset()
    return frozenset(job.id for job in jobs(plan) if kinds.kind(job.kind).parallel == "chunks")


def on_gpus(plan: Plan) -> bool:
    """Whether the plan's jobs may use GPUs where they run."""
    return plan.device in ("auto", "cuda")


def parcel(call: JobCall) -> tuple[str, str, str]:
    """What crosses: the call, where this process finds its modules, and the version that computed the fingerprint."""
    return call.to_json(), environment(call.threads)["PYTHONPATH"], __version__


def run_there(
    text: str,
    import_path: str,
    version: str,
    *,
    variables: Mapping[str, str] | None = None,
    started: Callable[[subprocess.Popen[Any]], object] | None = None,
) -> Outcome:
    """Run a job beside this process, to its end.

    Args:
        text: the call, as `parcel` made it.
        import_path: of the sender; searched first, as far as it is there.
        version: of the sender.
        variables: more for the worker's environment.
        started: called with the worker's process.
    """
    call = JobCall.from_json(text)
    unfit = _unfit(call, version)
    if unfit is not None:
        return unfit
    path = os.pathsep.join(part for part in (import_path, environment(call.threads)["PYTHONPATH"]) if part)
    try:
        with _hidden_from_workers():
            process = start(call, {"PYTHONPATH": path, **(variables or {})})
    except OSError as error:
        return Outcome(
            state="failed",
            cause=f"its worker cannot be started on {socket.gethostname()}: {error}",
            way_out="Correct that on this machine, then run the same command again.",
        )
    if started is not None:
        started(process)
    answer, _ = process.communicate()
    outcome = outcome_of(call, answer, process.returncode)
    if outcome.state == "died":
        end_group(process)
    return outcome


def _unfit(call: JobCall, version: str) -> Outcome | None:
    """Why this machine cannot run the job, or need not; None where it can."""
    run, host = RunFolder(call.folder), socket.gethostname()
    if not run.plan_path.exists():
        return Outcome(
            state="failed",
            cause=f"machine {host} does not see the run folder {run.path}",
            way_out="Put the run folder on a file system that all machines share, under the same path: --out FOLDER.",
        )
    if version != __version__:
        return Outcome(
            state="failed",
            cause=f"machine {host} has stepwell {__version__}, the run was begun with {version}",
            way_out="Install the same version on all machines.",
        )
    if run.stop_path.exists():
        return Outcome(state="stopped", cause="stopped, as asked, before it began")
    return None


@contextlib.contextmanager
def _hidden_from_workers():
    """A process that is started here hears no warning of a queue: their default is to end it, and this one tells it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, WARNINGS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
