"""The demo rungs of all studies, made small, have equal records and artifacts on every engine, byte for byte."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from alone import Study
from chaos_plans import PLANS
from tiny import events, tiny
from wholeness import check_same, check_whole

from stepwell.plan import Plan
from stepwell.runner import run

pytestmark = pytest.mark.slow

PACKAGES = {"ray": "ray", "slurm": "submitit"}
ON = {
    "process": {"engine": "process", "workers": 2},
    "ray": {"engine": "ray", "workers": 2, "devices": 1},
    "slurm": {"engine": "slurm", "workers": 2, "slurm": {"cluster": "local"}},
}


def need(engine: str) -> None:
    """Skips for users, fails in CI, where the engine's package is not installed."""
    package = PACKAGES.get(engine)
    if package is not None and importlib.util.find_spec(package) is None:
        reason = f"engine {engine} needs {package}: pip install 'stepwell[{engine}]'"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("engine", ON)
@pytest.mark.parametrize("name", PLANS)
def test_records_are_equal(name: str, engine: str, study: Callable[[str], Study]) -> None:
    need(engine)
    alone = study(name)
    plan = Plan.model_validate(alone.plan.model_dump() | ON[engine] | {"device": "cpu"})
    folder = alone.fresh()  # the same path: what is merged names its base by it
    run(plan, folder)
    check_same(folder, alone.whole)
    check_whole(folder, plan)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("engine", ["ray", "slurm"])
def test_one_training_on_two_devices_is_equal_too(engine: str, tmp_path: Path) -> None:
    """`torchrun` inside a task, and inside a batch job."""
    need(engine)
    small = tiny("train.steps=8", arms=("continuous",), gates=())
    kept = tuple(stage for stage in small.stages if stage.name in ("data", "model", "train"))
    for name in ("process", engine):
        changed = small.model_dump() | {"stages": kept} | ON[name] | {"devices": 2, "workers": 1, "device": "cpu"}
        run(Plan.model_validate(changed), tmp_path / name)
        assert [event["processes"] for event in events(tmp_path / name, "job-joined")] == [2]
    check_same(tmp_path / engine, tmp_path / "process")
