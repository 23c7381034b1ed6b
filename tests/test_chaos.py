"""A run killed at random moments ends with the same bytes as one that was left alone."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

from stepwell.runner import run
from toy import contents, drive, events_of, toy_plan

KILLS = 20
WALK = {"steps": 60, "save_every": 3}
SECONDS_PER_STEP = 0.02


def test_twenty_kills_at_random_moments_change_no_byte(tmp_path: Path):
    plan = toy_plan(engine="process", walk=WALK, axes={"seed": [0, 1, 2]})
    run(plan, tmp_path / "fresh")
    whole = contents(tmp_path / "fresh")
    rng = random.Random(20)
    kills, folders = 0, 0
    while kills < KILLS:
        folder = tmp_path / f"run{folders}"
        folders += 1
        while True:
            process = drive(plan, folder, seconds_per_step=SECONDS_PER_STEP)
            try:
                # Some kills meet the start, some a step, some the end of a run.
                _, errors = process.communicate(timeout=rng.uniform(0.1, 2.5) if kills < KILLS else 120.0)
                break
            except subprocess.TimeoutExpired:
                os.kill(process.pid, signal.SIGKILL)
                process.communicate()
                kills += 1
        assert process.returncode == 0, errors
        assert contents(folder) == whole
        assert not any((folder / "checkpoints").glob("*/*.ckpt"))
    restored = sum(len(events_of(tmp_path / f"run{number}", "job-restored")) for number in range(folders))
    assert kills == KILLS and restored >= 5, "the kills hit no job that had a checkpoint: the test tests nothing"


def test_a_worker_killed_at_random_changes_no_byte(tmp_path: Path):
    plan = toy_plan(engine="process", walk=WALK, gates=[])
    folder = tmp_path / "run"
    run(plan, tmp_path / "fresh")
    with drive(plan, folder, seconds_per_step=SECONDS_PER_STEP) as process:
        deadline = time.monotonic() + 20
        while len(events_of(folder, "progress")) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(random.Random(1).uniform(0.1, 0.5))
        victim = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])
        os.kill(victim, signal.SIGKILL)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert len(events_of(folder, "job-retried")) == 1
    assert contents(folder) == contents(tmp_path / "fresh")
