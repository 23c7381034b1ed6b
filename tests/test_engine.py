"""Engines: the protocol, outcomes, logs, workers that die and workers that outlive nobody."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from stepwell.engine import Engine, JobCall, Outcome, engine_of
from stepwell.engine.inline import InlineEngine
from stepwell.engine.process import ProcessEngine
from stepwell.engine.worker import seed_of
from stepwell.errors import StageFailed, StepwellError
from stepwell.plan import Job, Plan, jobs
from stepwell.runner import job_fingerprints, run
from stepwell.stage import Memory, StageContext
from stepwell.store import JobStore, RunFolder, read_records
from toy import SOURCE, TOY, contents, events_of, marker, one_stage, started, toy_plan, until


def _calls(plan: Plan, folder: Path) -> list[JobCall]:
    where = RunFolder(folder)
    where.path.mkdir(exist_ok=True)
    where.write_plan(plan)
    identities = job_fingerprints(plan, jobs(plan))
    return [JobCall(folder=str(where.path), job=name, fingerprint=key, threads=1) for name, key in identities.items()]


def _wait(engine: Engine, handles: list[Any], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while any(handle.outcome is None for handle in handles):
        assert time.monotonic() < deadline
        engine.wait(handles, 0.5)


def test_calls_and_outcomes_are_plain_json():
    call = JobCall(folder="/a b", job="train.cot.0", fingerprint="f", threads=2)
    assert JobCall.from_json(call.to_json()) == call
    outcome = Outcome(state="failed", cause='a "quoted"\ncause', way_out="x", traceback="y")
    assert Outcome.from_json(outcome.to_json()) == outcome
    assert "\n" not in outcome.to_json()


def test_a_plan_names_its_engine():
    assert isinstance(engine_of(toy_plan(engine="inline")), InlineEngine)
    engine = engine_of(toy_plan(engine="process", workers=3))
    assert isinstance(engine, ProcessEngine) and engine.slots == 3


@pytest.mark.parametrize(("engine", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_an_engine_without_its_package_says_how_to_get_it(
    engine: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(StepwellError) as caught:
        engine_of(toy_plan(engine=engine))
    assert str(caught.value) == (
        f"engine {engine} needs the package {package}, which is not installed\n"
        f"  Way out: pip install 'stepwell[{engine}]', or take engine=process."
    )


@pytest.mark.parametrize("name", ["inline", "process"])
def test_both_engines_do_the_same(tmp_path: Path, name: str):
    plan = one_stage("toy.walk", engine=name, steps=9)
    (call,) = _calls(plan, tmp_path / name)
    engine = engine_of(plan)
    handle = engine.submit(call)
    _wait(engine, [handle])
    assert handle.outcome == Outcome(state="done")
    assert marker(tmp_path / name, "only")["fingerprint"] == call.fingerprint
    assert [record["step"] for record in read_records(tmp_path / name / "records" / "only.jsonl")] == [*range(1, 10)]
    assert (tmp_path / name / "logs" / "only.log").read_text() == "walking only\n"
    (event,) = events_of(tmp_path / name, "folder")
    assert event["path"] == str(tmp_path / name / "artifacts" / "only") and event["job"] == "only"
    assert not (tmp_path / name / "checkpoints" / "only").exists()


def test_records_do_not_depend_on_the_engine(tmp_path: Path):
    for name in ("inline", "process"):
        run(toy_plan(engine=name), tmp_path / name)
    assert contents(tmp_path / "inline") == contents(tmp_path / "process")


@pytest.mark.parametrize("name", ["inline", "process"])
def test_a_stage_that_raises(tmp_path: Path, name: str):
    plan = one_stage("toy.walk", engine=name, fail_at=3)
    (call,) = _calls(plan, tmp_path / "run")
    engine = engine_of(plan)
    handle = engine.submit(call)
    _wait(engine, [handle])
    outcome = handle.outcome
    assert outcome is not None and outcome.state == "failed"
    assert outcome.cause == "ZeroDivisionError: the planted fault"
    assert re.search(r"stepwell_toy_stages\.py.*raise ZeroDivisionError", outcome.traceback, re.DOTALL)
    log = (tmp_path / "run" / "logs" / "only.log").read_text()
    assert "about to fail" in log and "ZeroDivisionError: the planted fault" in log
    assert not (tmp_path / "run" / "jobs" / "only.json").exists()


@pytest.mark.parametrize(
    ("number", "cause"),
    [
        (signal.SIGKILL, "its worker was killed by SIGKILL (often the system's answer to a lack of memory)"),
        (signal.SIGSEGV, "its worker was killed by SIGSEGV"),
    ],
)
def test_a_worker_that_dies_says_how(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, cause: str
):
    monkeypatch.setenv("TOY_SECONDS_PER_STEP", "0.2")
    plan = one_stage("toy.walk", engine="process")
    engine = ProcessEngine(1)
    handle = engine.submit(_calls(plan, tmp_path / "run")[0])
    until(lambda: events_of(tmp_path / "run", "progress"))
    os.kill(handle.process.pid, number)
    _wait(engine, [handle])
    assert handle.outcome is not None
    assert (handle.outcome.state, handle.outcome.cause) == ("died", cause)
    assert "walking only" in handle.outcome.traceback


def test_a_dead_worker_is_retried_once_and_goes_on(tmp_path: Path):
    plan = one_stage("toy.walk", engine="process", die_at=9, deaths=1)
    run(plan, tmp_path / "died")
    run(one_stage("toy.walk", engine="process", die_at=9), tmp_path / "clean")
    assert started(tmp_path / "died") == ["only", "only"]
    (retried,) = events_of(tmp_path / "died", "job-retried")
    assert retried["cause"].startswith("its worker was killed by SIGKILL")
    (restored,) = events_of(tmp_path / "died", "job-restored")
    records = (tmp_path / "died" / "records" / "only.jsonl").read_bytes()
    assert restored["records_bytes"] == len(b"".join(records.splitlines(keepends=True)[:8]))
    assert records == (tmp_path / "clean" / "records" / "only.jsonl").read_bytes()


DIES_BEHIND_ITS_MARKER = """
import os, signal
from stepwell.store import JobStore

finish = JobStore.finish

def die(self):
    finish(self)
    if os.environ["RUNNER"] != str(os.getpid()):
        os.kill(os.getpid(), signal.SIGKILL)

JobStore.finish = die
"""


def test_a_worker_that_dies_behind_its_marker_has_done_its_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "dies_behind_its_marker.py").write_text(DIES_BEHIND_ITS_MARKER)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("RUNNER", str(os.getpid()))
    monkeypatch.setattr(JobStore, "finish", JobStore.finish)  # put back at the end: this process imports it too
    plan = one_stage("toy.walk", engine="process")
    plan = plan.model_copy(update={"extensions": (*plan.extensions, "dies_behind_its_marker")})
    assert run(plan, tmp_path / "run").jobs == {"only": "done"}
    assert started(tmp_path / "run") == ["only"] and events_of(tmp_path / "run", "job-retried") == []
    (done,) = events_of(tmp_path / "run", "job-done")
    assert done["seconds"] > 0


def test_a_worker_that_dies_twice_fails_its_job(tmp_path: Path):
    plan = toy_plan(engine="process", walk={"die_at": 9, "deaths": 2}, axes={"seed": [0]}, gates=[])
    with pytest.raises(StageFailed) as caught:
        run(plan, tmp_path / "run")
    assert "stage walk.0: " in str(caught.value) and "logs/walk.0.log" in str(caught.value)
    assert "its worker was killed by SIGKILL" in str(caught.value) and "(in 2 attempts)" in str(caught.value)
    assert started(tmp_path / "run") == ["walk.0", "walk.0"]
    assert len(events_of(tmp_path / "run", "job-failed")) == 1
    # The third attempt, a new run, has no planted death left.
    assert run(plan, tmp_path / "run").jobs == {"walk.0": "done", "sum.0": "done"}


def test_jobs_run_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TOY_SECONDS_PER_STEP", "0.05")
    plan = toy_plan(engine="process", gates=[])
    run(plan, tmp_path / "run")
    spans = {}
    for event in events_of(tmp_path / "run", "job-started", "job-done"):
        spans.setdefault(event["job"], []).append(event["time"])
    assert spans["walk.1"][0] < spans["walk.0"][1] and spans["walk.0"][0] < spans["walk.1"][1]


def test_asked_to_stop_a_worker_stops_after_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TOY_SECONDS_PER_STEP", "0.02")
    plan = one_stage("toy.walk", engine="process", steps=1000)
    engine = ProcessEngine(1)
    handle = engine.submit(_calls(plan, tmp_path / "run")[0])
    until(lambda: events_of(tmp_path / "run", "progress"))
    engine.stop(now=False)
    _wait(engine, [handle])
    assert handle.outcome is not None and handle.outcome.state == "stopped"
    steps = len([*read_records(tmp_path / "run" / "records" / "only.jsonl")])
    assert steps % 4 == 0 and steps < 1000


def test_workers_die_with_their_runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TOY_SECONDS_PER_STEP", "0.05")
    plan = one_stage("toy.walk", engine="process", steps=1000)
    (call,) = _calls(plan, tmp_path / "run")
    code = (
        "import sys, time\n"
        "from stepwell.engine import JobCall\n"
        "from stepwell.engine.process import ProcessEngine\n"
        "handle = ProcessEngine(1).submit(JobCall.from_json(sys.argv[1]))\n"
        "print(handle.process.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(SOURCE), str(TOY)])}
    command = [sys.executable, "-c", code, call.to_json()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as runner:
        assert runner.stdout is not None
        worker = int(runner.stdout.readline())
        until(lambda: events_of(tmp_path / "run", "progress"))
        os.kill(runner.pid, signal.SIGKILL)
        runner.wait()
    until(lambda: not _runs(worker), seconds=5.0)


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in ("Z", "X")


def test_the_inline_engine_leaves_torch_as_it_was(tmp_path: Path):
    import torch

    threads = torch.get_num_threads()
    plan = toy_plan(stages=[{"name": "only", "kind": "toy.train"}], gates=[], threads_per_job=threads + 1)
    run(plan, tmp_path / "run")
    assert torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()


def test_seeds_are_shared_by_arms_and_differ_between_stages():
    def job(stage: str, **axes: Any) -> Job:
        return Job(id="x", stage=stage, kind="k", axes=axes, params={})

    assert seed_of(0, job("train", arm="cot", seed=0)) == seed_of(0, job("train", arm="direct", seed=0))
    seeds = {
        seed_of(plan, job(stage, **axes))
        for plan in (0, 1)
        for stage in ("a", "b")
        for axes in ({}, {"seed": 0}, {"seed": 1})
    }
    assert len(seeds) == 12 and all(0 <= seed < 1 << 31 for seed in seeds)
    # sha256("0/train/0") by hand: a number that must never change, for every record of an old run would.
    assert seed_of(0, job("train", seed=0)) == 746405699


def test_a_context_in_memory(tmp_path: Path):
    memory = Memory(axes={"arm": "cot"})
    job = Job(id="train.cot", stage="train", kind="k", axes={"arm": "cot"}, params={})
    context = StageContext(job=job, folder=tmp_path, inputs={}, threads=1, seed=1, asked_device="cpu", recorder=memory)
    assert context.restored() is None and context.device == "cpu"
    context.write("step", step=1)
    context.save({"step": [1]})
    context.write("step", step=2)
    for step in range(100):
        context.progress(step, 99)
    assert memory.restored() == {"step": [1]}
    assert memory.records == [{"kind": "step", "arm": "cot", "step": 1}]
    assert [event["done"] for event in memory.events] == [0, 99]
