"""Nothing gets out of the sandbox, as root and as a user; and the same attempts do get out where there is none."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from sandbox_means import CHECKOUT, as_user, need_sandbox
from stepwell.cli import run
from stepwell.errors import StepwellError
from stepwell.sandbox import Program, box, check, execute, execution
from stepwell.sandbox.check import FORGED_TESTS, LIMITS, PROBES, Finding, Isolation, Probe, arena

NAMES = [probe.name for probe in PROBES]


@cache
def found_as(who: str) -> dict[str, Any]:
    need_sandbox()
    command = [sys.executable, "-B", "-m", "stepwell", "sandbox", "check", "--json"]
    if who == "user":
        command = as_user(*command)
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT / "src"), "HOME": "/tmp"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd="/", check=False)
    assert done.stdout.startswith("{"), done.stderr
    return {**json.loads(done.stdout), "exit": done.returncode}


@pytest.fixture(params=["root", "user"])
def who(request: pytest.FixtureRequest) -> str:
    if request.param == "root" and os.getuid() != 0:
        pytest.skip("these tests do not run as root")
    return request.param


@pytest.mark.parametrize("name", NAMES)
def test_it_holds(who: str, name: str):
    finding = {one["probe"]: one for one in found_as(who)["findings"]}[name]
    assert finding["held"], finding


def test_the_check_says_as_whom_and_that_it_is_clean(who: str):
    found = found_as(who)
    assert (found["user"], found["ok"], found["refused"], found["exit"]) == (who, True, None, 0)
    assert found["bubblewrap"].startswith("bubblewrap ")


def without_sandbox(name: str, tests: str, tmp_path: Path) -> tuple[int, str, list[str]]:
    """What a probe does in an ordinary process, with its tests beside it: as benchmarks of code often run answers."""
    with arena(LIMITS) as (given, touched):
        probe = next(one for one in PROBES if one.name == name)
        secret = f"{given['first_half']}-of-the-tests"
        program = tmp_path / "answer.py"
        program.write_text(f"{probe.code()}\n{tests.format(arena=given, secret=secret)}# {secret}\n")
        done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=60, check=False)
        return done.returncode, done.stdout + done.stderr, touched()


@pytest.mark.parametrize(
    ("name", "evidence"),
    [
        ("network", "TCP to 127.0.0.1"),
        ("network", "an abstract socket"),
        ("symlinks", "secret.txt: 'stepwell-mark-"),
        ("processes", "cmdline of another process"),
        ("processes", "of this machine"),
        ("processes", "traces a process outside"),
        ("processes", "processes can be traced"),
        ("signals", "a signal to"),
        ("tests_read", "answer.py"),
        ("disk", " MiB"),
    ],
)
def test_the_probe_reaches_something_where_there_is_no_sandbox(name: str, evidence: str, tmp_path: Path):
    if name == "disk":
        (program := tmp_path / "disk.py").write_text(next(one for one in PROBES if one.name == name).code())
        text = program.read_text().replace("/tmp/", f"{tmp_path}/")
        program.write_text(f"{text}\nassert not (reached := escape({{'disk_mib': 1}})), reached\n")
        done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, check=False)
        assert evidence in done.stderr
        return
    code, printed, touched = without_sandbox(name, check.HELD_TESTS, tmp_path)
    assert code == 1 and evidence in printed
    assert name != "network" or touched == ["it reached a server"]
    assert name != "signals" or touched == ["it ended a process outside"]


@pytest.mark.parametrize("name", ["verdict_forged", "verdict_by_exit"])
def test_a_forged_verdict_is_believed_where_there_is_no_sandbox(name: str, tmp_path: Path):
    assert without_sandbox(name, FORGED_TESTS, tmp_path)[0] == 0


def test_what_gets_out_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Planted: a probe whose program says that it reached something."""
    need_sandbox()
    monkeypatch.setattr(Probe, "code", lambda self: "def escape(arena):\n    return 'the moon'\n")
    monkeypatch.setattr(check.check, "__defaults__", (PROBES[:1],))
    found = check.check()
    assert not found.ok and not found.findings[0].held
    assert "AssertionError: the moon" in found.findings[0].detail
    with pytest.raises(StepwellError, match="the sandbox does not hold: network: AssertionError: the moon"):
        check.negative_control()
    assert run(["sandbox", "check"]) == 1
    assert "1 probes, 1 got out: execute nothing here" in capsys.readouterr().out


@pytest.mark.parametrize("ends", [True, False])
def test_a_probe_that_ran_out_of_time_is_tried_again_alone(ends: bool, monkeypatch: pytest.MonkeyPatch):
    """Planted: one that needs a second, of which it has a tenth at first, and one that never ends."""
    need_sandbox()
    monkeypatch.setattr(check, "PATIENCE", 100 if ends else 5)
    seconds = 1 if ends else 600
    monkeypatch.setattr(Probe, "code", lambda self: f"import time\ntime.sleep({seconds})\nescape = lambda arena: ''\n")
    found = check.check([Probe(name="network", what="a slow one", seconds=0.1)])
    assert found.ok == ends and found.findings[0].status == ("passed" if ends else "timeout")


@pytest.mark.parametrize("stays", [False, True])
def test_a_process_that_is_dying_is_not_left_behind(stays: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(check, "DYING_SECONDS", 0.5 if stays else 60)
    link = tmp_path / ("probe-stays" if stays else "probe-dies")
    link.symlink_to(shutil.which("sleep") or "/bin/sleep")
    one = subprocess.Popen([str(link), "60"])
    dies = threading.Timer(0.2, lambda: (one.kill(), one.wait()))
    try:
        while check._named(link.name) is None:
            time.sleep(0.01)  # the kernel names a process a moment after it has begun
        if not stays:
            dies.start()
        assert check._left(link.name) == (one.pid if stays else None)
    finally:
        one.kill()
        one.wait()


def test_without_bubblewrap_nothing_is_executed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(box.shutil, "which", lambda name: None)
    box.bubblewrap.cache_clear()
    execution.require.cache_clear()
    try:
        with pytest.raises(StepwellError) as error:
            execute([])
        assert error.value.cause.startswith("bubblewrap is not installed")
        assert "apt-get install bubblewrap" in error.value.way_out
        assert run(["sandbox", "check"]) == 3
        assert "no sandbox: bubblewrap is not installed" in capsys.readouterr().out
    finally:
        box.bubblewrap.cache_clear()
        execution.require.cache_clear()


def test_bubblewrap_that_may_not_make_namespaces_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fake = tmp_path / "bwrap"
    fake.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setattr(box, "bubblewrap", lambda: str(fake))
    execution.require.cache_clear()
    try:
        with pytest.raises(StepwellError, match=r"nothing is executed: .*No permissions to create new namespace"):
            execute([])
    finally:
        execution.require.cache_clear()


@pytest.mark.parametrize(
    "missing",
    ["uid", "capabilities", "no_new_privileges", "filtered", "interfaces", "memory_bytes", "processes_seen"],
)
def test_a_sandbox_in_which_something_does_not_hold_runs_nothing(missing: str, monkeypatch: pytest.MonkeyPatch):
    """Planted: what the first process of the sandbox finds is wrong in one thing."""
    need_sandbox()
    wrong = {
        "uid": 0,
        "capabilities": 1,
        "no_new_privileges": False,
        "filtered": False,
        "interfaces": ["eth0"],
        "processes_seen": 9,
    }
    begins = box.Box.begins
    monkeypatch.setattr(box.Box, "begins", lambda self, state: begins(self, {**state, missing: wrong.get(missing, -1)}))
    program = Program(id="a", code="def one():\n    return 1\n", tests="assert one() == 1\n")
    outcome = execute([program])[0]
    assert outcome.status == "sandbox-error" and outcome.detail.startswith("the sandbox does not hold: ")
    assert outcome.right is None


def test_findings_decide():
    finding = Finding(probe="a", what="b", held=True, status="passed", detail="")
    assert Isolation(user="user", bubblewrap="x", kernel="y", system_calls_filtered=True, findings=(finding,)).ok
    assert not Isolation(user="user", bubblewrap="x", kernel="y", system_calls_filtered=True).ok
