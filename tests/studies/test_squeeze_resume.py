"""`squeeze` after a death in the middle of a restorer's training: the same records and weights, byte for byte."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import contents, events, records, started
from tiny_squeeze import DIMS, letters_folder, tiny_squeeze

from stepwell.plan import Plan
from stepwell.runner import run
from stepwell.studies.squeeze import restore as stage

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
