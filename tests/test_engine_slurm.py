"""The SLURM engine: through submitit's stand-in on this machine, and through commands that behave like SLURM's."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stepwell.engine import JobCall, engine_of
from stepwell.engine.slurm import SlurmEngine
from stepwell.errors import Interrupted, StageFailed, StepwellError
from stepwell.plan import Plan
from stepwell.runner import run
from stepwell.store import RunFolder
from toy import contents, events_of, started, toy_plan, until


@pytest.fixture
def submitit() -> None:
    """Skips for users, fails in CI, where submitit is not installed."""
    if importlib.util.find_spec("submitit") is None:
        reason = "submitit is not installed: pip install 'stepwell[slurm]'"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)


def plan_of(engine: str = "slurm", slurm: dict[str, Any] | None = None, **changes: Any) -> Plan:
    return toy_plan(engine=engine, slurm=slurm or {"cluster": "local"}, **{"device": "cpu", **changes})


def single(engine: str = "slurm", slurm: dict[str, Any] | None = None, **params: Any) -> Plan:
    stages = [{"name": "only", "kind": "toy.walk", "params": params}]
    return plan_of(engine, slurm, stages=stages, gates=[])


def under_way(folder: Path) -> int:
    """The batch job's process, once its worker has made progress."""
    until(lambda: events_of(folder, "progress"))
    worker = json.loads(RunFolder(folder).job_lock_path("only").read_text())["pid"]
    return int(Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1])


def disturbed(plan: Plan, folder: Path, what: Callable[[], object]) -> None:
    """Run a plan; something happens in the middle."""
    thread = threading.Thread(target=what)
    thread.start()
    try:
        run(plan, folder)
    finally:
        thread.join()


@pytest.mark.usefixtures("submitit")
def test_records_do_not_depend_on_the_engine(tmp_path: Path) -> None:
    run(plan_of("inline"), tmp_path / "inline")
    run(plan_of(walk={"die_at": 9, "deaths": 1}), tmp_path / "slurm")
    assert contents(tmp_path / "slurm") == contents(tmp_path / "inline")
    retried = events_of(tmp_path / "slurm", "job-retried")
    assert sorted(event["job"] for event in retried) == ["walk.0", "walk.1"]
    assert {event["cause"].split(" (")[0] for event in retried} == {"its worker was killed by SIGKILL"}
    assert (tmp_path / "slurm" / "logs" / "walk.0.log").read_text() == "walking walk.0\n" * 2


@pytest.mark.usefixtures("submitit")
def test_a_job_that_slurm_stops_is_queued_again_and_one_that_it_kills_is_retried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOY_SECONDS_PER_STEP", "0.05")
    run(single("process"), tmp_path / "whole")
    stopped, killed = tmp_path / "stopped", tmp_path / "killed"
    disturbed(single(), stopped, lambda: os.kill(under_way(stopped), signal.SIGUSR2))
    (again,) = events_of(stopped, "job-queued-again")
    assert (again["job"], again["reason"]) == ("only", "SLURM asked it to stop")
    assert started(stopped) == ["only"] and len(events_of(stopped, "job-restored")) == 1
    disturbed(single(), killed, lambda: os.kill(under_way(killed), signal.SIGKILL))
    (retried,) = events_of(killed, "job-retried")
    assert retried["cause"].startswith("its SLURM job ") and "ended without a result, in state " in retried["cause"]
    assert contents(stopped) == contents(killed) == contents(tmp_path / "whole")


@pytest.mark.usefixtures("submitit")
def test_a_stop_file_stops_at_a_checkpoint_and_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOY_SECONDS_PER_STEP", "0.02")
    run(single("inline", steps=150), tmp_path / "whole")
    folder = tmp_path / "stopped"

    def touch() -> None:
        under_way(folder)
        RunFolder(folder).stop_path.touch()

    with pytest.raises(Interrupted):
        disturbed(single(steps=150), folder, touch)
    steps = len((folder / "records" / "only.jsonl").read_text().splitlines())
    assert steps % 4 == 0 and 0 < steps < 150 and not events_of(folder, "job-queued-again")
    run(single(steps=150), folder)
    assert contents(folder) == contents(tmp_path / "whole")


@pytest.mark.usefixtures("submitit")
def test_the_cause_of_a_stage_that_fails_comes_back(tmp_path: Path) -> None:
    with pytest.raises(StageFailed) as caught:
        run(single(fail_at=3), tmp_path / "run")
    assert "stage only: " in str(caught.value) and "ZeroDivisionError: the planted fault" in str(caught.value)
    assert "about to fail" in (tmp_path / "run" / "logs" / "only.log").read_text()


SBATCH = """#!/bin/bash
[ -e "{here}/refuses" ] && { echo "sbatch: error: invalid partition specified: $USER" >&2; exit 1; }
cp "$1" "{here}/script"
export SLURM_JOB_ID=$$
echo "$SLURM_JOB_ID" > "{here}/job"
echo RUNNING > "{here}/state"
if [ ! -e "{here}/pends" ]; then
  (bash "$1" && echo COMPLETED > "{here}/state") > /dev/null 2>&1 &
fi
echo "Submitted batch job $SLURM_JOB_ID"
"""
SRUN = """#!/bin/bash
while [ "${1#--}" != "$1" ]; do case "$1" in --output|--error) shift;; esac; shift; done
[ -e "{here}/out-of-memory" ] && { echo OUT_OF_MEMORY > "{here}/state"; exit 1; }
exec "$@"
"""
SACCT = """#!/bin/bash
echo "JobID|State|NodeList"
echo "$(cat "{here}/job")|$(cat "{here}/state")|node1"
"""
SCANCEL = """#!/bin/bash
echo "$@" >> "{here}/cancelled"
echo "CANCELLED by 1000" > "{here}/state"
"""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of commands that do what SLURM's do, for one job at a time; its files say what they do and were told."""
    here = tmp_path / "bin"
    here.mkdir()
    for name, text in (("sbatch", SBATCH), ("srun", SRUN), ("sacct", SACCT), ("scancel", SCANCEL)):
        (here / name).write_text(text.replace("{here}", str(here)))
        (here / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{here}{os.pathsep}{os.environ['PATH']}")
    return here


OPTIONS = {
    "partition": "gpu",
    "account": "lab",
    "minutes": 240,
    "memory_gb": 64,
    "flags": {"constraint": "a100", "exclusive": True, "overcommit": False},
}


@pytest.mark.usefixtures("submitit")
def test_what_is_asked_of_slurm(tmp_path: Path, slurm: Path) -> None:
    run(single("inline"), tmp_path / "inline")
    run(single(slurm=OPTIONS), tmp_path / "run")
    assert contents(tmp_path / "run") == contents(tmp_path / "inline")
    lines = (slurm / "script").read_text().splitlines()
    asked = {line.removeprefix("#SBATCH --") for line in lines if line.startswith("#SBATCH --")}
    assert asked >= {
        "job-name=toy-only", "partition=gpu", "account=lab", "time=240", "mem=64GB", "constraint=a100", "exclusive",
        "no-requeue", "nodes=1", "ntasks-per-node=1", "cpus-per-task=1", "signal=USR2@300",
    }  # fmt: skip
    assert not any(line.startswith(("gpus", "overcommit")) for line in asked)


@pytest.mark.usefixtures("submitit")
def test_what_slurm_says_of_a_job_without_a_result(
    tmp_path: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stepwell.engine.slurm.SECONDS_BETWEEN_QUESTIONS", 0.5)
    (slurm / "out-of-memory").touch()
    with pytest.raises(StageFailed) as caught:
        run(single(slurm=OPTIONS), tmp_path / "run")
    job = (slurm / "job").read_text().strip()
    assert f"its SLURM job {job} ended without a result, in state OUT_OF_MEMORY (in 2 attempts)" in str(caught.value)
    assert caught.value.way_out.startswith("Raise slurm.memory_gb")


@pytest.mark.usefixtures("submitit")
def test_a_job_that_slurm_does_not_take(tmp_path: Path, slurm: Path) -> None:
    (slurm / "refuses").touch()
    with pytest.raises(StageFailed) as caught:
        run(single(slurm=OPTIONS), tmp_path / "run")
    assert "SLURM does not take it: " in caught.value.cause and "invalid partition specified" in caught.value.cause
    assert caught.value.way_out.startswith("Correct the options under `slurm`")


@pytest.mark.usefixtures("submitit")
@pytest.mark.parametrize(("now", "told"), [(False, "--state=PENDING {job}"), (True, "{job}")])
def test_asked_to_stop_no_job_goes_on_waiting_for_a_node(
    tmp_path: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch, now: bool, told: str
) -> None:
    monkeypatch.setattr("stepwell.engine.slurm.SECONDS_BETWEEN_QUESTIONS_AT_END", 0.5)
    (slurm / "pends").touch()
    plan = single(slurm=OPTIONS)
    engine, run_folder = SlurmEngine(plan), RunFolder(tmp_path / "run")
    run_folder.path.mkdir()
    handle = engine.submit(JobCall(folder=str(run_folder.path), job="only", fingerprint="f", threads=1))
    assert engine.wait([handle], 0.1) == set()
    engine.stop(now=now)
    assert run_folder.stop_path.exists()
    until(lambda: engine.wait([handle], 1.0))
    job = (slurm / "job").read_text().strip()
    assert (slurm / "cancelled").read_text().splitlines() == [told.format(job=job)]
    assert handle.outcome is not None and handle.outcome.state == "died"
    assert handle.outcome.cause == f"its SLURM job {job} ended without a result, in state CANCELLED"


@pytest.mark.usefixtures("submitit", "slurm")
def test_what_a_job_of_several_devices_asks_for(tmp_path: Path) -> None:
    stages = [{"name": "only", "kind": "toy.walk"}, {"name": "items", "kind": "toy.chunks"}]
    plan = plan_of(slurm=OPTIONS, stages=stages, gates=[], devices=4, device="auto")
    engine = SlurmEngine(plan)
    one, several = (
        engine.asked(JobCall(folder=str(tmp_path), job=job, fingerprint="f", threads=3)) for job in ("only", "items")
    )
    assert (one["cpus_per_task"], one["gpus_per_node"]) == (3, 1)
    assert (several["cpus_per_task"], several["gpus_per_node"]) == (12, 4)


@pytest.mark.usefixtures("submitit")
def test_without_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StepwellError) as caught:
        engine_of(single(slurm={"cluster": "slurm"}))
    assert caught.value.exit_code == 3
    assert str(caught.value) == (
        "engine slurm finds no `sbatch` here, the command of SLURM\n"
        "  Way out: Run this where jobs are submitted, or try the engine on this machine with slurm.cluster=local."
    )
