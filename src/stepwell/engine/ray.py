"""The Ray engine: each job a task of a Ray cluster, which starts the job's own process on whatever machine it is given.

What crosses to a task is text, and what comes back. The machines need the same packages and see the run folder.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, cast

from stepwell import kinds
from stepwell.engine.base import Handle, JobCall, Outcome
from stepwell.engine.remote import dealt, on_gpus, package_of, parcel, run_there
from stepwell.errors import StepwellError
from stepwell.plan import Plan
from stepwell.store import RunFolder

SECONDS_BETWEEN_LOOKS = 0.1
ADDRESS = "RAY_ADDRESS"
"""Names a cluster: to Ray here, and to the workers of a job, which may start more."""


@dataclass(eq=False)
class RayHandle:
    """A job as a task."""

    call: JobCall
    task: Any
    outcome: Outcome | None = None


class RayEngine:
    """Has up to `slots` jobs with a cluster at a time; those that it has no room for wait there.

    Args:
        plan: says which cluster, and what a job holds. Where Ray is in use in this process already, that one is taken.

    Raises:
        StepwellError: Ray is not installed, the cluster does not answer, or this machine alone has too few GPUs.
    """

    def __init__(self, plan: Plan) -> None:
        self.slots = plan.workers
        self._plan, self._dealt = plan, dealt(plan)
        self._ray: Any = package_of("ray", "ray")
        self._live: dict[Any, RayHandle] = {}
        self._now = False
        with kept_signals():
            own = connect(self._ray, plan)
        self._gpus = gpus_of_a_job(self._ray, plan)
        if own:
            self._refuse_too_many()
        self._run: Any = self._ray.remote(max_retries=0)(run_task)

    def submit(self, call: JobCall) -> RayHandle:
        """Give a job to the cluster."""
        cpus, gpus = self.needs(call)
        task = self._run.options(num_cpus=cpus, num_gpus=gpus, name=call.job).remote(*parcel(call))
        handle = self._live[task] = RayHandle(call, task)
        return handle

    def needs(self, call: JobCall) -> tuple[int, float]:
        """CPUs and GPUs that the task of a job holds, on one machine."""
        if call.job in self._dealt:
            return 0, 0.0  # its workers hold them; with a share of its own, they could wait for it for ever
        if call.ranks > 1:
            return call.threads * call.ranks, float(call.ranks if self._gpus else 0)
        return call.threads, self._gpus

    def wait(self, handles: Collection[Handle], seconds: float) -> set[Handle]:
        """Those whose task ended."""
        tasks = [handle.task for handle in cast("Collection[RayHandle]", handles) if handle.outcome is None]
        deadline, ended, left = time.monotonic() + seconds, [], seconds
        while tasks and not ended and left > 0:
            if self._now:
                for task in tasks:
                    self._ray.cancel(task, force=True)
            # Python handles no signal while Ray waits, and two that come meanwhile would count as one.
            ended, _ = self._ray.wait(tasks, num_returns=1, timeout=min(left, SECONDS_BETWEEN_LOOKS))
            left = deadline - time.monotonic()
        for task in ended:
            handle = self._live.pop(task)
            handle.outcome = self._outcome(task)
        return {handle for handle in handles if handle.outcome is not None}

    def stop(self, *, now: bool) -> None:
        """Write the run's stop file, which jobs look for at their checkpoints; or end the tasks, in `wait`.

        A signal handler may be what calls this, in the middle of a call of Ray: it is not called from here.
        """
        for folder in {handle.call.folder for handle in list(self._live.values())}:
            RunFolder(folder).stop_path.touch()
        self._now = self._now or now

    def _outcome(self, task: Any) -> Outcome:
        errors = self._ray.exceptions
        try:
            return Outcome.from_json(self._ray.get(task))
        except errors.RayTaskError as error:
            lines = [line for line in str(error).splitlines() if line.strip()]
            return Outcome(
                state="failed",
                cause=f"its task failed on the cluster: {lines[-1].strip()}",
                way_out="Install the same packages on all machines; then run the same command again.",
                traceback=str(error),
            )
        except errors.RayError as error:  # its machine, its worker, or what it answered is gone
            first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
            return Outcome(
                state="died",
                cause=f"its Ray task is lost ({type(error).__name__}): {first}",
                way_out="See whether the machines are alive and have memory; then run the same command again.",
                traceback=str(error),
            )

    def _refuse_too_many(self) -> None:
        """A cluster of this machine alone gets no larger: a job that it cannot hold would wait for ever."""
        found = self._ray.cluster_resources().get("GPU", 0)
        most = max(kinds.kind(stage.kind).ranks(self._plan.devices) for stage in self._plan.stages)
        needed = most if most > 1 else self._gpus
        if self._gpus and needed > found:
            raise StepwellError(
                f"a job needs {needed:g} GPUs, and this machine, the whole cluster, has {found:g}",
                "Name a cluster with ray.address or RAY_ADDRESS, or set `devices` and `device`.",
            )


def gpus_of_a_job(ray: Any, plan: Plan) -> float:
    """The GPUs, or the share of one, that a job on one device holds; none where the plan or the cluster has none."""
    if not on_gpus(plan):
        return 0.0
    here = plan.device == "cuda" or ray.cluster_resources().get("GPU", 0) > 0
    return plan.ray.gpus_per_job if here else 0.0


def connect(ray: Any, plan: Plan) -> bool:
    """Make Ray ready in this process, and tell whether its cluster is one of this machine alone, begun here.

    Raises StepwellError where a cluster is named and does not answer.
    """
    if ray.is_initialized():
        return False
    # Ray tells at length what it does; what matters to the user comes back as outcomes.
    logging.getLogger("ray").setLevel(logging.ERROR)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    address = plan.ray.address or os.environ.get(ADDRESS)
    if address is None:
        # One that is too small for a job would never run it; more threads than CPUs only take turns.
        cpus = max(os.cpu_count() or 1, plan.threads_per_job * plan.devices)
        ray.init(address="local", num_cpus=cpus, include_dashboard=False, **quiet)
        return True
    try:
        ray.init(address=address, **quiet)
    except (ConnectionError, RuntimeError, ValueError) as error:
        first = str(error).partition("\n")[0]
        raise StepwellError(
            f"the Ray cluster {address} cannot be reached: {first}",
            "Correct ray.address or RAY_ADDRESS, or leave both out for a cluster of this machine alone.",
        ) from error
    return False


def run_task(text: str, import_path: str, version: str) -> str:
    """The task: run the job in a process of its own, and answer with its outcome as JSON."""
    import ray

    # The workers that the job starts for itself join this cluster.
    address = ray.get_runtime_context().gcs_address
    return run_there(text, import_path, version, variables={ADDRESS: address}).to_json()


@contextlib.contextmanager
def kept_signals() -> Iterator[None]:
    """Ray takes SIGTERM for itself; what it means for a run is the runner's to say."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # not the main thread: then Ray could not take it either
            signal.signal(signal.SIGTERM, before)
