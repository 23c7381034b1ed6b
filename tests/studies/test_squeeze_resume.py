"""`squeeze` after a kill in the middle of a restorer's training: the same records and weights, byte for byte."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import contents, events, records, started, write_plan
from tiny_squeeze import DIMS, letters_folder, tiny_squeeze

from stepwell.plan import Plan
from stepwell.runner import run
from stepwell.studies.squeeze import restore as stage

SOURCE = Path(__file__).resolve().parents[2] / "src"
TRAINED, REFINED = f"restore.residual.{DIMS}.0", f"refine.residual.{DIMS}.0"
STAGES = ("data", "model", "restore", "refine")


def plan_of(model: Path, steps: int) -> Plan:
    """One arm, trained long enough to be hit in the middle."""
    recipe = f"restore.arms.residual.recipe={{steps: {steps}, batch_size: 256, lr: 1e-3, schedule: cosine}}"
    small = (recipe, "restore.checkpoint_every=20", "restore.log_every=7")
    return tiny_squeeze(model, *small, stages=STAGES, arms=["residual"])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return letters_folder(tmp_path_factory.mktemp("model") / "letters")


def check_same(one: Path, other: Path) -> None:
    """Records byte for byte, weights bit for bit; safetensors writes what it holds in any order."""
    assert contents(one, "records") == contents(other, "records")
    for job in (TRAINED, REFINED):
        first, second = (load_file(run / "artifacts" / job / stage.FILE) for run in (one, other))
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_killed_training_ends_as_one_that_was_not(model: Path, tmp_path: Path) -> None:
    plan = plan_of(model, steps=800)
    process = subprocess.Popen(
        [sys.executable, "-m", "stepwell", "run", str(write_plan(plan, tmp_path / "plan.yaml")), "--out",
         str(tmp_path / "run"), "--quiet"],
        env={**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0, cwd=tmp_path,
    )  # fmt: skip
    told, deadline = tmp_path / "run" / "records" / f"{TRAINED}.jsonl", time.monotonic() + 200
    while process.poll() is None and time.monotonic() < deadline:
        if told.exists() and told.read_bytes().count(b"\n") > 40:
            break
        time.sleep(0.002)
    process.kill()
    _, errors = process.communicate()
    assert errors == ""
    assert not (tmp_path / "run" / "jobs" / f"{TRAINED}.json").exists(), "the kill came too late: it tests nothing"
    assert 40 < told.read_bytes().count(b"\n") < 800 // 7
    run(plan, tmp_path / "run")
    assert [event["job"] for event in events(tmp_path / "run", "job-restored")] == [TRAINED]
    assert started(tmp_path / "run").count("data") == 1
    run(plan, tmp_path / "whole")
    check_same(tmp_path / "run", tmp_path / "whole")
    steps = [row["step"] for row in records(tmp_path / "run", TRAINED, "step")]
    assert steps == [*range(7, 800, 7), 800]


@pytest.mark.parametrize("job", [TRAINED, REFINED])
@pytest.mark.parametrize("at", ["a checkpoint", "the end"])
def test_wherever_it_dies_it_goes_on_from_there(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Path, job: str, at: str
) -> None:
    """After a checkpoint in the middle; and after the last one, when the weights are in it alone."""

    class Killed(BaseException):
        """What no `except Exception` stops."""

    name = "_finish" if at == "the end" else "train_restorer"
    honest, seen = getattr(stage, name), 0

    def mortal(*arguments: Any, **options: Any) -> Any:
        nonlocal seen
        current = started(tmp_path / "run")[-1]
        seen += current == job
        if current == job and seen == (1 if at == "the end" else 2):
            raise Killed
        return honest(*arguments, **options)

    monkeypatch.setattr(stage, name, mortal)
    with pytest.raises(Killed):
        run(plan_of(model, steps=45), tmp_path / "run")
    run(plan_of(model, steps=45), tmp_path / "run")
    assert [event["job"] for event in events(tmp_path / "run", "job-restored")] == [job]
    check_same(tmp_path / "run", whole)


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(plan_of(model, steps=45), folder)
    return folder


def test_a_second_run_does_nothing_and_another_recipe_begins_anew(model: Path, tmp_path: Path, whole: Path) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "run"))
    before = started(folder)
    run(plan_of(model, steps=45), folder)
    assert started(folder) == before
    run(plan_of(model, steps=10), folder)
    assert started(folder)[len(before) :] == [TRAINED, REFINED]
    assert [row["step"] for row in records(folder, TRAINED, "step")] == [7, 10]
