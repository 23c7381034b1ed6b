"""The Ray engine on a small cluster of this machine: the same records as without, whatever dies; clear errors."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stepwell import __version__
from stepwell.engine import JobCall, Outcome
from stepwell.engine.ray import RayEngine
from stepwell.engine.remote import parcel, run_there
from stepwell.errors import Interrupted, StageFailed, StepwellError
from stepwell.plan import Plan, jobs
from stepwell.runner import job_fingerprints, run
from stepwell.store import RunFolder
from toy import contents, events_of, started, toy_plan, until


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two CPUs of this machine and a GPU that is only declared; skips for users, fails in CI, without Ray."""
    if importlib.util.find_spec("ray") is None:
        reason = "Ray is not installed: pip install 'stepwell[ray]'"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    import ray

    before = signal.getsignal(signal.SIGTERM)
    os.environ["TOY_SECONDS_PER_STEP"] = "0.02"  # workers have it from the cluster
    logging.getLogger("ray").setLevel(logging.ERROR)
    ray.init(
        address="local", num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR"
    )
    yield ray
    ray.shutdown()
    del os.environ["TOY_SECONDS_PER_STEP"]
    signal.signal(signal.SIGTERM, before)


def plan_of(engine: str = "ray", **changes: Any) -> Plan:
    return toy_plan(engine=engine, **{"device": "cpu", **changes})


def single(kind: str = "toy.walk", *, devices: int = 1, engine: str = "ray", **params: Any) -> Plan:
    stages = [{"name": "only", "kind": kind, "params": params}]
    return plan_of(engine, stages=stages, gates=[], devices=devices)


def calls_of(plan: Plan, folder: Path) -> list[JobCall]:
    where = RunFolder(folder)
    where.path.mkdir()
    where.write_plan(plan)
    identities = job_fingerprints(plan, jobs(plan))
    return [JobCall(folder=str(folder), job=name, fingerprint=key, threads=1) for name, key in identities.items()]


def call_of(plan: Plan, folder: Path) -> JobCall:
    (call,) = calls_of(plan, folder)
    return call


def worker_of(folder: Path, job: str = "only") -> tuple[int, int]:
    """The process of a job under way, and the one that started it."""
    until(lambda: [event for event in events_of(folder, "progress") if event["job"] == job])
    worker = json.loads(RunFolder(folder).job_lock_path(job).read_text())["pid"]
    return worker, int(Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1])


def runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except FileNotFoundError:
        return False


@pytest.mark.usefixtures("cluster")
def test_records_do_not_depend_on_the_engine(tmp_path: Path) -> None:
    # One walk's worker is killed by its own process, at a step after its checkpoint.
    for engine in ("inline", "process", "ray"):
        killed = {} if engine == "inline" else {"die_at": 9, "deaths": 1}
        run(plan_of(engine, walk=killed), tmp_path / engine)
    assert contents(tmp_path / "ray") == contents(tmp_path / "process") == contents(tmp_path / "inline")
    retried = events_of(tmp_path / "ray", "job-retried")
    assert sorted(event["job"] for event in retried) == ["walk.0", "walk.1"]
    assert {event["cause"].split(" (")[0] for event in retried} == {"its worker was killed by SIGKILL"}
    assert len(events_of(tmp_path / "ray", "job-restored")) == 2
    assert (tmp_path / "ray" / "logs" / "walk.0.log").read_text() == "walking walk.0\n" * 2


@pytest.mark.usefixtures("cluster")
def test_a_lost_task_is_retried_once_and_its_worker_goes_with_it(tmp_path: Path) -> None:
    run(single(engine="inline"), tmp_path / "whole")
    found: list[int] = []

    def kill() -> None:
        found.extend(worker_of(tmp_path / "killed"))
        os.kill(found[1], signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    run(single(), tmp_path / "killed")
    thread.join()
    (retried,) = events_of(tmp_path / "killed", "job-retried")
    assert retried["cause"].startswith("its Ray task is lost (WorkerCrashedError): ")
    assert started(tmp_path / "killed") == ["only", "only"] and not runs(found[0])
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


@pytest.mark.usefixtures("cluster")
def test_a_stop_file_stops_at_a_checkpoint_and_the_run_goes_on(tmp_path: Path) -> None:
    run(single(engine="inline", steps=200), tmp_path / "whole")
    folder = tmp_path / "stopped"

    def touch() -> None:
        worker_of(folder)
        RunFolder(folder).stop_path.touch()

    thread = threading.Thread(target=touch)
    thread.start()
    with pytest.raises(Interrupted, match="the run was stopped, as asked"):
        run(single(steps=200), folder)
    thread.join()
    steps = len((folder / "records" / "only.jsonl").read_text().splitlines())
    assert steps % 4 == 0 and 0 < steps < 200
    run(single(steps=200), folder)
    assert started(folder) == ["only", "only"] and len(events_of(folder, "job-restored")) == 1
    assert contents(folder) == contents(tmp_path / "whole")


@pytest.mark.usefixtures("cluster")
def test_stopped_at_once_a_task_ends_with_its_worker(tmp_path: Path) -> None:
    plan = single(steps=10_000, save_every=10_000)
    engine = RayEngine(plan)
    handle = engine.submit(call_of(plan, tmp_path / "run"))
    worker, _ = worker_of(tmp_path / "run")
    engine.stop(now=False)
    assert RunFolder(tmp_path / "run").stop_path.exists()
    engine.stop(now=True)
    until(lambda: engine.wait([handle], 1.0))
    assert handle.outcome is not None and handle.outcome.state == "died"
    until(lambda: not runs(worker), 5.0)


@pytest.mark.usefixtures("cluster")
def test_the_cause_of_a_stage_that_fails_comes_back(tmp_path: Path) -> None:
    with pytest.raises(StageFailed) as caught:
        run(single(fail_at=3), tmp_path / "run")
    assert "stage only: " in str(caught.value) and "ZeroDivisionError: the planted fault" in str(caught.value)
    assert "about to fail" in (tmp_path / "run" / "logs" / "only.log").read_text()
    assert started(tmp_path / "run") == ["only"]


@pytest.mark.usefixtures("cluster")
def test_a_job_that_deals_chunks_leaves_the_cluster_to_its_workers(tmp_path: Path) -> None:
    # Two workers of one CPU each, on two CPUs: one held by the job itself, and the second worker would never begin.
    run(single("toy.chunks", engine="inline"), tmp_path / "inline")
    run(single("toy.chunks", devices=2, seconds=0.05), tmp_path / "ray")
    assert len({event["worker"] for event in events_of(tmp_path / "ray", "worked")}) == 2
    records = (tmp_path / "inline" / "records" / "only.jsonl").read_bytes()
    assert (tmp_path / "ray" / "records" / "only.jsonl").read_bytes() == records


@pytest.mark.usefixtures("cluster")
def test_two_jobs_share_the_one_gpu(tmp_path: Path) -> None:
    stages = [{"name": "walk", "kind": "toy.walk", "each": {"seed": "seed"}, "params": {"steps": 10_000}}]
    plan = plan_of(device="cuda", stages=stages, gates=[], ray={"gpus_per_job": 0.5})
    engine = RayEngine(plan)
    handles = [engine.submit(call) for call in calls_of(plan, tmp_path / "run")]
    for job in ("walk.0", "walk.1"):
        worker_of(tmp_path / "run", job)
    assert all(handle.outcome is None for handle in handles)
    engine.stop(now=True)
    until(lambda: engine.wait(handles, 1.0) == set(handles))


@pytest.mark.usefixtures("cluster")
def test_what_a_task_holds(tmp_path: Path) -> None:
    def call(**changes: Any) -> JobCall:
        return JobCall(**{"folder": str(tmp_path), "job": "only", "fingerprint": "f", "threads": 3, **changes})

    engine = RayEngine(plan_of(device="auto", ray={"gpus_per_job": 0.25}))
    assert (engine.needs(call()), engine.needs(call(ranks=2))) == ((3, 0.25), (6, 2.0))
    assert RayEngine(plan_of(device="cpu")).needs(call(ranks=2)) == (6, 0.0)
    assert RayEngine(single("toy.chunks", devices=2)).needs(call()) == (0, 0.0)
    assert RayEngine(single("toy.chunks")).needs(call()) == (3, 0.0)


class Pretended(SimpleNamespace):
    """A Ray that notes how it was begun, with one CPU."""

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__(error=error, given={}, remote=lambda **_: lambda function: function)

    def is_initialized(self) -> bool:
        return False

    def init(self, **given: Any) -> None:
        self.given.update(given)
        if self.error:
            raise self.error

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 1.0}


def begun(monkeypatch: pytest.MonkeyPatch, plan: Plan, error: Exception | None = None) -> dict[str, Any]:
    pretended = Pretended(error)
    monkeypatch.setitem(sys.modules, "ray", pretended)  # pyright: ignore[reportArgumentType]
    RayEngine(plan)
    return pretended.given


def test_which_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    own = begun(monkeypatch, plan_of(threads_per_job=64))
    assert own["address"] == "local" and own["num_cpus"] == max(64, os.cpu_count() or 1)
    assert begun(monkeypatch, plan_of(ray={"address": "10.0.0.1:6379"}))["address"] == "10.0.0.1:6379"
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    named = begun(monkeypatch, plan_of(device="cuda"))  # its machines may come later: no job is refused for them
    assert named["address"] == "auto" and "num_cpus" not in named
    with pytest.raises(StepwellError) as caught:
        begun(monkeypatch, plan_of(), ConnectionError("Could not find any running Ray instance.\nAnd more."))
    assert str(caught.value) == (
        "the Ray cluster auto cannot be reached: Could not find any running Ray instance.\n"
        "  Way out: Correct ray.address or RAY_ADDRESS, or leave both out for a cluster of this machine alone."
    )


def test_a_machine_alone_without_the_gpus_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(StepwellError) as caught:
        begun(monkeypatch, plan_of(device="cuda"))
    assert caught.value.cause == "a job needs 1 GPUs, and this machine, the whole cluster, has 0"
    assert begun(monkeypatch, plan_of(device="auto"))["address"] == "local"


def test_a_machine_that_cannot_run_a_job_says_why(tmp_path: Path) -> None:
    plan, host = single(engine="process"), socket.gethostname()
    call = call_of(plan, tmp_path / "run")
    text, path, version = parcel(call)
    unseen = run_there(text.replace("/run", "/elsewhere"), path, version)
    assert unseen == Outcome(
        state="failed",
        cause=f"machine {host} does not see the run folder {tmp_path / 'elsewhere'}",
        way_out="Put the run folder on a file system that all machines share, under the same path: --out FOLDER.",
    )
    other = run_there(text, path, "0.0.0")
    assert other.cause == f"machine {host} has stepwell {__version__}, the run was begun with 0.0.0"
    RunFolder(call.folder).stop_path.touch()
    assert run_there(text, path, version).state == "stopped"
    assert not (tmp_path / "run" / "jobs").exists()


def test_what_a_queue_sends_to_all_processes_ends_no_worker(tmp_path: Path) -> None:
    # 100 signals after its first step: without the mask, the first would end it.
    def bother(worker: subprocess.Popen[Any]) -> None:
        for _ in range(100):
            worker.send_signal(signal.SIGUSR2)

    plan = single(engine="process")
    outcome = run_there(*parcel(call_of(plan, tmp_path / "run")), started=bother)
    assert outcome == Outcome(state="done")
    assert signal.SIGUSR2 not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
