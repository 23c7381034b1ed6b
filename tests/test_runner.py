"""The runner: what runs, what does not run again, where gates lead, and every refusal with its words."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from stepwell.errors import Interrupted, StageFailed, StepwellError
from stepwell.plan import Plan, jobs
from stepwell.report.verdicts import verdict_rows
from stepwell.runner import Schedule, job_fingerprints, run, status
from stepwell.store import append_event
from toy import GATE, contents, drive, events_of, one_stage, small_disk, started, toy_plan, until

ALL = ["walk.0", "walk.1", "sum.0", "sum.1"]


def _verdicts(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "records" / "gates.jsonl").read_text().splitlines()]


# What runs, and what does not run again


def test_a_run_folder_is_complete_and_readable(tmp_path: Path):
    (tmp_path / "data.json").write_text("[1]")
    plan = toy_plan(walk={"data": str(tmp_path / "data.json")}, seed=7)
    result = run(plan, tmp_path / "run")
    assert result.decision == "go" and result.jobs == dict.fromkeys(ALL, "done") and result.overrides == ()
    assert [verdict.gate for verdict in result.verdicts] == ["early"]
    folder = tmp_path / "run"
    files = {path.name for path in folder.iterdir() if path.is_file()}
    assert files == {"plan.yaml", "policy.json", "env.json", "events.jsonl", "lock"}
    env = json.loads((folder / "env.json").read_text())
    assert env["plan_seed"] == 7 and env["seeds"]["walk.0"] != env["seeds"]["walk.1"]
    assert [*env["data"]] == [str(tmp_path / "data.json")]
    assert all("time" not in record for path in (folder / "records").glob("*") for record in _lines(path))
    assert {record["seed"] for record in _lines(folder / "records" / "walk.1.jsonl")} == {1}
    assert _verdicts(folder)[0]["kind"] == "verdict"


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_finished_run_runs_nothing_again(tmp_path: Path):
    first = run(toy_plan(), tmp_path / "run")
    before = contents(tmp_path / "run")
    assert run(toy_plan(), tmp_path / "run") == first
    assert started(tmp_path / "run") == ALL and contents(tmp_path / "run") == before
    assert events_of(tmp_path / "run", "plan-changed", "environment-changed", "job-rerun") == []


@pytest.mark.parametrize(
    ("changes", "again"),
    [
        ({"total": {"threshold": 0.5}}, ["sum.0", "sum.1"]),
        ({"walk": {"start": 1.0}}, ALL),
        ({"axes": {"seed": [0, 1, 2]}}, ["walk.2", "sum.2"]),
        ({"workers": 1, "title": "Another title"}, []),
        ({"seed": 1}, ALL),
        ({"threads_per_job": 2}, ALL),
    ],
)
def test_a_changed_stage_and_its_dependents_run_again_and_nothing_else(
    tmp_path: Path, changes: dict[str, Any], again: list[str]
):
    run(toy_plan(), tmp_path / "run")
    run(toy_plan(**changes), tmp_path / "run")
    assert started(tmp_path / "run")[len(ALL) :] == again
    run(toy_plan(**changes), tmp_path / "fresh")
    assert contents(tmp_path / "run") == contents(tmp_path / "fresh")


def test_data_counts_by_content(tmp_path: Path):
    for name in ("a", "b"):
        (tmp_path / name).write_text("[1]")
    run(toy_plan(walk={"data": str(tmp_path / "a")}), tmp_path / "run")
    run(toy_plan(walk={"data": str(tmp_path / "b")}), tmp_path / "run")
    assert started(tmp_path / "run") == ALL
    (tmp_path / "b").write_text("[2]")
    run(toy_plan(walk={"data": str(tmp_path / "b")}), tmp_path / "run")
    assert started(tmp_path / "run") == ALL * 2


def test_a_damaged_job_runs_again_alone_with_an_event(tmp_path: Path):
    run(toy_plan(), tmp_path / "run")
    before = contents(tmp_path / "run")
    path = tmp_path / "run" / "records" / "walk.1.jsonl"
    os.truncate(path, path.stat().st_size - 5)
    run(toy_plan(), tmp_path / "run")
    (event,) = events_of(tmp_path / "run", "job-rerun")
    assert event["job"] == "walk.1" and "bytes instead of" in event["reason"]
    assert started(tmp_path / "run") == [*ALL, "walk.1"]
    assert contents(tmp_path / "run") == before


def test_a_job_that_left_the_plan_leaves_the_tables(tmp_path: Path):
    run(toy_plan(), tmp_path / "run")
    run(toy_plan(axes={"seed": [0]}), tmp_path / "run")
    run(toy_plan(axes={"seed": [0]}), tmp_path / "fresh")
    assert contents(tmp_path / "run") == contents(tmp_path / "fresh")
    assert [event["job"] for event in events_of(tmp_path / "run", "job-retired")] == ["sum.1", "walk.1"]
    retired = {path.name.split(".")[0] for path in (tmp_path / "run" / "retired").iterdir()}
    assert retired == {"sum", "walk"}


def test_fingerprints_differ_where_they_must():
    plan = toy_plan()
    prints = job_fingerprints(plan, jobs(plan))
    assert len(set(prints.values())) == 4
    other = toy_plan(gates=[])
    assert job_fingerprints(other, jobs(other)) == prints


# Gates


def _branching(threshold: float, **routes: str) -> Plan:
    gate = {**GATE, "criteria": [{**GATE["criteria"][0], "threshold": threshold}], "routes": routes}
    stages = [
        {"name": "walk", "kind": "toy.walk"},
        {"name": "sum", "kind": "toy.sum", "needs": ["walk"]},
        {"name": "more", "kind": "toy.walk", "needs": ["sum"]},
        {"name": "last", "kind": "toy.sum", "needs": ["more"]},
        {"name": "other", "kind": "toy.walk", "needs": ["sum"], "on": "detour"},
        {"name": "free", "kind": "toy.walk"},
    ]
    return toy_plan(stages=stages, gates=[gate])


@pytest.mark.parametrize(
    ("threshold", "routes", "not_run"),
    [
        (0.0, {}, {"other"}),
        (1.1, {}, {"more", "last", "other"}),
        (1.1, {"no-go": "detour"}, {"more", "last"}),
        (1.1, {"no-go": "next"}, {"other"}),
        (0.0, {"go": "stop", "no-go": "detour"}, {"more", "last", "other"}),
    ],
)
def test_a_gate_leads_where_its_route_says(tmp_path: Path, threshold: float, routes: dict[str, str], not_run: set[str]):
    plan = _branching(threshold, **({"inconclusive": "detour"} | routes))
    result = run(plan, tmp_path / "run")
    assert {name for name, state in result.jobs.items() if state == "skipped"} == not_run
    assert {name for name, state in result.jobs.items() if state == "done"} == set(result.jobs) - not_run
    assert result.decision == ("go" if threshold == 0 else "no-go")
    skipped = {event["job"]: event["reason"] for event in events_of(tmp_path / "run", "job-skipped")}
    assert set(skipped) == not_run
    if "more" in not_run:
        assert skipped["more"] == f"gate early routed to `{result.verdicts[0].route}`"
        assert skipped["last"] == "it needs more, which is not run"


@pytest.mark.parametrize(("threshold", "asked"), [(0.0, False), (1.1, True)])
def test_a_gate_may_wait_for_the_route_of_another(tmp_path: Path, threshold: float, asked: bool):
    """What it holds back does not wait for a gate that is not asked; where it is asked, it decides."""
    first = {**GATE, "criteria": [{**GATE["criteria"][0], "threshold": threshold}], "routes": {"no-go": "doubt"}}
    stages = [
        {"name": "walk", "kind": "toy.walk"},
        {"name": "sum", "kind": "toy.sum", "needs": ["walk"]},
        {"name": "last", "kind": "toy.walk"},
    ]
    second = {**GATE, "name": "second", "on": "doubt", "before": ["last"], "routes": {"no-go": "stop"}}
    second["criteria"] = [{**GATE["criteria"][0], "threshold": 1.1}]
    result = run(toy_plan(stages=stages, gates=[first, second]), tmp_path / "run")
    assert [verdict.gate for verdict in result.verdicts] == ["early", *(["second"] if asked else [])]
    assert result.jobs["last"] == ("skipped" if asked else "done")
    assert result.decision == ("no-go" if asked else "go")
    rows = {row.gate: row for row in verdict_rows(tmp_path / "run")}
    assert rows["second"].decision == ("no-go" if asked else "not asked")


@pytest.mark.parametrize("there", [True, False])
def test_a_gate_is_asked_only_where_the_records_have_what_it_is_given(tmp_path: Path, there: bool):
    """Elsewhere it has no verdict, nothing waits for it, and the report says why; a second session finds the same."""
    stages = [*_branching(0.1).stages[:2], {"name": "last", "kind": "toy.walk", "needs": ["sum"]}]
    criteria = [{**GATE["criteria"][0], "threshold": 1.1}]
    given = {"kind": "item"} if there else {"kind": "item", "id": "nobody"}
    plan = toy_plan(stages=stages, gates=[{**GATE, "criteria": criteria, "given": given}])
    for _ in range(2):
        result = run(plan, tmp_path / "run")
        assert [verdict.gate for verdict in result.verdicts] == (["early"] if there else [])
        assert (result.jobs["last"], result.decision) == (("skipped", "no-go") if there else ("done", "go"))
        (row,) = verdict_rows(tmp_path / "run")
        if not there:
            assert (row.decision, row.reason) == ("not asked", "No record of `sum` has kind=item, id=nobody.")


def test_what_a_changed_route_leaves_behind_is_retired(tmp_path: Path):
    run(_branching(0.0, inconclusive="detour"), tmp_path / "run")
    run(_branching(1.1, inconclusive="detour"), tmp_path / "run", override="a stricter gate")
    assert set(contents(tmp_path / "run")) == {
        "records/gates.jsonl",
        *(f"records/{name}.jsonl" for name in ("walk", "sum", "free")),
        *(f"artifacts/{name}/final.json" for name in ("walk", "free")),
    }


def test_the_schedule_never_waits_for_ever_and_never_runs_too_early():
    """Random routes and failures: what runs had all it needs, and in the end every job has a fate."""
    rng = random.Random(3)
    plan = _branching(0.5, inconclusive="detour")
    for _ in range(300):
        schedule = Schedule(plan, jobs(plan))
        while True:
            for gate in schedule.to_decide():
                assert all(schedule.state[job] == "done" for job in schedule.after(gate))
                schedule.routes[gate.name] = rng.choice(["next", "stop", "detour"])
            schedule.settle()
            ready = schedule.ready()
            if not ready:
                break
            job = rng.choice(ready)
            assert all(schedule.state[need] == "done" for need in job.needs)
            schedule.state[job.id] = rng.choice(["done", "done", "failed"])
        assert "waiting" not in schedule.state.values() and "running" not in schedule.state.values()
        route = schedule.routes.get("early")
        assert schedule.state["more"] in ("done", "failed") or route != "next"
        assert (schedule.state["other"] in ("done", "failed")) == (route == "detour")
        assert (schedule.state["other"] == "blocked") == (route is None)


def test_a_changed_gate_is_refused_and_an_override_is_shown(tmp_path: Path):
    folder = tmp_path / "run"
    run(toy_plan(), folder)
    with pytest.raises(StepwellError) as caught:
        run(toy_plan(threshold=0.9), folder)
    assert "gates.early.criteria.0.threshold: 0.1 -> 0.9" in str(caught.value)
    assert caught.value.exit_code == 3 and "threshold: 0.1" in (folder / "plan.yaml").read_text()
    result = run(toy_plan(threshold=0.9), folder, override="the old one was a typing error")
    shown = {
        "reason": "the old one was a typing error",
        "changes": ["gates.early.criteria.0.threshold: 0.1 -> 0.9"],
    }
    assert result.decision == "no-go" and result.verdicts[0].override == shown
    assert result.overrides[0].items() >= shown.items()
    assert _verdicts(folder)[0]["override"] == shown
    (event,) = events_of(folder, "gate-override")
    assert event["reason"] == shown["reason"] and event["changes"] == shown["changes"]
    assert started(folder) == ALL
    # The same command again, as after a kill, changes nothing and still shows the override.
    again = run(toy_plan(threshold=0.9), folder, override="the old one was a typing error")
    assert again == result and len(events_of(folder, "gate-override")) == 1
    # Going back is a change too.
    with pytest.raises(StepwellError, match=r"0\.9 -> 0\.1"):
        run(toy_plan(), folder)


def test_the_policy_is_written_before_the_first_stage(tmp_path: Path):
    with pytest.raises(StageFailed):
        run(toy_plan(walk={"fail_at": 1}), tmp_path / "run")
    policy = json.loads((tmp_path / "run" / "policy.json").read_text())
    assert policy["gates"][0]["name"] == "early" and policy["overrides"] == []
    assert not (tmp_path / "run" / "records" / "gates.jsonl").exists()


def test_verdicts_stand_in_the_order_of_the_plan(tmp_path: Path):
    late = {**GATE, "name": "late"}
    quick = {**GATE, "name": "quick", "after": ["fast"], "criteria": [{**GATE["criteria"][0], "stage": "fast"}]}
    stages = [
        {"name": "walk", "kind": "toy.walk"},
        {"name": "fast", "kind": "toy.sum", "needs": ["walk"]},
        {"name": "slow", "kind": "toy.walk", "needs": ["walk"], "params": {"steps": 30}},
        {"name": "sum", "kind": "toy.sum", "needs": ["slow"]},
    ]
    plan = toy_plan(stages=stages, gates=[late, quick])
    run(plan, tmp_path / "run")
    decided = [event["gate"] for event in events_of(tmp_path / "run", "gate-decided")]
    assert decided == ["quick", "late"]
    assert [verdict["gate"] for verdict in _verdicts(tmp_path / "run")] == ["late", "quick"]


# Failures and refusals


def test_a_failed_job_is_named_and_the_others_finish(tmp_path: Path):
    stages = [
        {"name": "bad", "kind": "toy.walk", "params": {"fail_at": 3}},
        {"name": "after", "kind": "toy.sum", "needs": ["bad"]},
        {"name": "good", "kind": "toy.walk"},
        {"name": "fine", "kind": "toy.sum", "needs": ["good"]},
    ]
    folder = tmp_path / "run"
    with pytest.raises(StageFailed) as caught:
        run(toy_plan(stages=stages, gates=[]), folder)
    assert str(caught.value) == (
        f"stage bad: {folder / 'logs' / 'bad.log'}: ZeroDivisionError: the planted fault\n"
        "  Way out: Read its log, correct the cause, then run the same command again: what is done is kept."
    )
    assert caught.value.exit_code == 4
    (event,) = events_of(folder, "job-failed")
    assert (event["job"], event["log"]) == ("bad", "logs/bad.log") and "Traceback" in event["traceback"]
    states = {row.job: row.state for row in status(folder)}
    assert states == {"bad": "failed", "after": "blocked", "good": "done", "fine": "done"}
    assert events_of(folder, "job-blocked")[0]["reason"] == "it needs bad, which failed"


def test_two_failures_are_both_named(tmp_path: Path):
    with pytest.raises(StageFailed, match=r"stage walk\.0.*\(failed too: walk\.1\)"):
        run(toy_plan(walk={"fail_at": 2}), tmp_path / "run")


def test_a_gate_that_cannot_be_decided_fails_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def decide(gate: Any, records: Any) -> Any:
        raise StepwellError("two records answer for one item", "Name the kind in `where`.")

    monkeypatch.setattr("stepwell.gate.decide", decide)
    with pytest.raises(StageFailed, match=r"stage early: .*the gate cannot be decided: two records answer"):
        run(_branching(0.5, inconclusive="detour"), tmp_path / "run")
    assert {row.job: row.state for row in status(tmp_path / "run")}["more"] == "blocked"


def test_another_study_does_not_enter_the_folder(tmp_path: Path):
    run(toy_plan(), tmp_path / "run")
    with pytest.raises(StepwellError, match="the folder holds study toy at rung base, not toy at hero"):
        run(toy_plan(rung="hero"), tmp_path / "run")
    assert events_of(tmp_path / "run", "job-rerun") == []


def test_a_folder_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StepwellError, match="the run folder cannot be written") as caught:
        run(toy_plan(), tmp_path / "file" / "run")
    assert caught.value.exit_code == 3


def test_too_small_a_disk_is_refused_before_anything_runs(tmp_path: Path):
    with small_disk(tmp_path / "disk", 8 << 20) as disk:
        with pytest.raises(StepwellError, match=r"the disk has 8\.\d+ MB free, and the run needs about 16\.8 MB"):
            run(toy_plan(), disk / "run")
        assert not (disk / "run" / "policy.json").exists()


@pytest.mark.parametrize("engine", ["inline", "process"])
def test_a_disk_that_fills_up_loses_nothing(tmp_path: Path, engine: str):
    plan = toy_plan(engine=engine, walk={"fill_bytes": 3 << 20})
    run(plan, tmp_path / "fresh")
    with small_disk(tmp_path / "disk", 20 << 20) as disk:
        run_at = disk / "run"
        (disk / "ballast").write_bytes(bytes(15 << 20))
        with pytest.raises(StageFailed) as caught:
            run(plan, run_at, needed_bytes=1 << 20)
        assert "no space is left on the disk" in str(caught.value)
        assert f"Free space on the disk of {run_at}" in caught.value.way_out
        for path in run_at.rglob("*.jsonl"):
            assert all(json.loads(line) for line in path.read_text().splitlines())
        (disk / "ballast").unlink()
        before = len(started(run_at))
        assert run(plan, run_at, needed_bytes=1 << 20).decision in ("go", "inconclusive")
        assert {"walk.0", "walk.1"} & set(started(run_at)[before:])
        assert contents(run_at) == contents(tmp_path / "fresh")


def test_two_runs_cannot_write_one_folder(tmp_path: Path):
    slow = toy_plan(walk={"steps": 400})
    with drive(slow, tmp_path / "run", seconds_per_step=0.2) as first:
        until(lambda: events_of(tmp_path / "run", "progress"))
        with pytest.raises(StepwellError) as caught:
            run(slow, tmp_path / "run")
        assert re.search(rf"in use by process {first.pid} on \S+ since 20", str(caught.value))
        second = drive(slow, tmp_path / "run")
        assert f"in use by process {first.pid}" in second.communicate(timeout=30)[1]
        assert second.returncode == 3
        os.kill(first.pid, signal.SIGKILL)
        first.communicate()
    assert run(slow, tmp_path / "run").jobs == dict.fromkeys(ALL, "done")


# Stopping


@pytest.mark.parametrize("engine", ["inline", "process"])
@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_stops_and_loses_nothing(tmp_path: Path, engine: str, times: int):
    # Twice: the walk saves only every 1000 steps, so that the first Ctrl-C alone would not end it.
    plan = toy_plan(engine=engine, walk={"steps": 200, "save_every": 5 if times == 1 else 1000})
    folder = tmp_path / "run"
    with drive(plan, folder, seconds_per_step=0.1) as process:
        until(lambda: "walk.0" in {event["job"] for event in events_of(folder, "progress")})
        began = time.monotonic()
        for _ in range(times):
            os.kill(process.pid, signal.SIGINT)
            time.sleep(0.3)
        _, errors = process.communicate(timeout=30)
        assert time.monotonic() - began < 10.0, "200 steps alone take 20 s"
    assert process.returncode == 4, errors
    assert errors == f"error: {folder}: the run was stopped, as asked\n  Way out: {_GO_ON}\n"
    assert len(events_of(folder, "run-stopped")) == 1
    if times == 1:
        assert len((folder / "records" / "walk.0.jsonl").read_text().splitlines()) % 5 == 0
        assert (folder / "checkpoints" / "walk.0" / "last.ckpt").exists()
    assert {row.state for row in status(folder)} <= {"stopped", "waiting", "blocked"}
    run(plan, tmp_path / "fresh")
    run(plan, folder)
    assert contents(folder) == contents(tmp_path / "fresh")
    assert bool(events_of(folder, "job-restored")) == (times == 1)


_GO_ON = "Run the same command again: it goes on from where it stopped."


def test_sigterm_is_a_request_to_stop(tmp_path: Path):
    plan = toy_plan(engine="process", walk={"steps": 400})
    with drive(plan, tmp_path / "run", seconds_per_step=0.05) as process:
        until(lambda: len({event["job"] for event in events_of(tmp_path / "run", "progress")}) == 2)
        os.kill(process.pid, signal.SIGTERM)
        process.communicate(timeout=30)
    assert process.returncode == 4
    assert len(events_of(tmp_path / "run", "job-stopped")) == 2


def test_handlers_are_put_back(tmp_path: Path):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    run(toy_plan(), tmp_path / "run")
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_run_in_another_thread_works(tmp_path: Path):
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(run(toy_plan(engine="process"), tmp_path / "run")))
    thread.start()
    thread.join()
    assert results[0].decision == "go"


def test_a_run_of_this_process_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TOY_SECONDS_PER_STEP", "0.01")
    plan = one_stage("toy.walk", steps=1000)
    timer = threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(Interrupted, match="the run was stopped, as asked"):
        run(plan, tmp_path / "run")
    timer.join()


# Status


def test_status_tells_what_is_going_on(tmp_path: Path):
    plan = toy_plan(engine="process", workers=1)
    folder = tmp_path / "run"
    with pytest.raises(StepwellError, match="no run lies here"):
        status(folder)
    with drive(plan, folder, seconds_per_step=0.1) as process:
        until(lambda: events_of(folder, "progress"))
        rows = {row.job: row for row in status(folder)}
        assert rows["walk.0"].state == "running" and rows["walk.0"].axes == {"seed": 0}
        assert rows["walk.0"].total == 20 and "value" in rows["walk.0"].fields
        assert rows["walk.0"].seconds is not None and rows["walk.0"].seconds < 30
        assert [rows[name].state for name in ("walk.1", "sum.0", "sum.1")] == ["waiting"] * 3
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    until(lambda: status(folder)[0].state == "stopped")
    assert status(folder)[0].message == "the run was killed"
    run(toy_plan(), folder)
    assert [row.state for row in status(folder)] == ["done"] * 4
    append_event(folder / "events.jsonl", "from a newer version", job="walk.0")
    assert [row.state for row in status(folder)] == ["done"] * 4


def test_a_job_whose_end_was_not_logged_is_done_all_the_same(tmp_path: Path):
    """Killed between the marker and its event, and once more before the marker was looked at."""
    folder = tmp_path / "run"
    run(toy_plan(), folder)
    log = folder / "events.jsonl"
    lines = [line for line in log.read_text().splitlines() if json.loads(line)["event"] != "run-done"]
    ends = [at for at, line in enumerate(lines) if json.loads(line)["event"] == "job-done"]
    took = json.loads(lines.pop(ends[-1]))
    before = contents(folder)
    for more in ([], ['{"time": "2026-01-01T10:00:00.000+00:00", "event": "run-started"}']):
        log.write_text("".join(line + "\n" for line in [*lines, *more]))
        row = status(folder)[-1]
        assert (row.job, row.state, row.seconds, row.message) == (took["job"], "done", took["seconds"], "")
    run(toy_plan(), folder)
    assert started(folder) == ALL and contents(folder) == before
    ends = [event for event in events_of(folder, "job-done") if event["job"] == took["job"]]
    assert [event["seconds"] for event in ends] == [took["seconds"]]
    assert status(folder)[-1].seconds == took["seconds"]
    run(toy_plan(), folder)
    assert len(events_of(folder, "job-done")) == len(ALL)


def test_a_job_that_is_to_run_again_is_not_called_done(tmp_path: Path):
    folder = tmp_path / "run"
    run(toy_plan(), folder)
    append_event(folder / "events.jsonl", "job-rerun", job="walk.0", reason="its stage was changed")
    assert [row.state for row in status(folder)] == ["waiting", "done", "done", "done"]
    run(toy_plan(), folder)
    assert started(folder) == ALL


def test_a_run_needs_little_beyond_its_stages(tmp_path: Path):
    """A record and a call of `progress` cost about 10 microseconds; the bound leaves room for a busy machine."""
    run(one_stage("toy.walk", steps=20_000, save_every=100_000), tmp_path / "run")
    (event,) = events_of(tmp_path / "run", "job-done")
    assert event["seconds"] < 20_000 * 200e-6


def test_a_worker_finds_what_this_process_can_import(tmp_path: Path):
    """The import path of this process reaches the worker, without PYTHONPATH being set by the user."""
    plan = one_stage("toy.walk", engine="process")
    assert "PYTHONPATH" not in os.environ or "toy" not in os.environ["PYTHONPATH"]
    assert run(plan, tmp_path / "run").jobs == {"only": "done"}
    with pytest.raises(StepwellError, match="module `no_such_module` cannot be imported"):
        run(toy_plan(extensions=["no_such_module"]), tmp_path / "other")
