"""The demo rungs of all studies, made small, have equal records and artifacts on every engine, byte for byte."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable

import pytest
from alone import Study
from chaos_plans import PLANS
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


@pytest.mark.timeout(900)
@pytest.mark.parametrize("engine", ON)
@pytest.mark.parametrize("name", PLANS)
def test_records_are_equal(name: str, engine: str, study: Callable[[str], Study]) -> None:
    package = PACKAGES.get(engine)
    if package is not None and importlib.util.find_spec(package) is None:
        reason = f"engine {engine} needs {package}: pip install 'stepwell[{engine}]'"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    alone = study(name)
    plan = Plan.model_validate(alone.plan.model_dump() | ON[engine] | {"device": "cpu"})
    folder = alone.fresh()  # the same path: what is merged names its base by it
    run(plan, folder)
    check_same(folder, alone.whole)
    check_whole(folder, plan)
