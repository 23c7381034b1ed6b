"""Workers as Ray actors, on a small cluster of this machine: the same records as without, whoever raises or dies."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stepwell.engine.base import JobCall
from stepwell.engine.chunks import DIED, Queue, run_chunks
from stepwell.engine.ray_pool import RayPool
from stepwell.errors import StepwellError
from stepwell.plan import Plan
from stepwell.store import RunFolder, read_events
from toy import one_stage

WORK = "stepwell_toy_chunks:work"


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Two CPUs of this machine as a cluster; skips for users, fails in CI, where Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        reason = "Ray is not installed: pip install 'stepwell[ray]'"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield
    ray.shutdown()


def worked(folder: Path, **params: Any) -> tuple[list[range], dict[int, str], set[int]]:
    """What actors do of a job: the chunks that ended well, the items that were given up, and the processes."""
    plan = Plan.model_validate({**one_stage("toy.chunks", **params).model_dump(), "engine": "ray", "devices": 2})
    run = RunFolder(folder)
    run.path.mkdir()
    run.write_plan(plan)
    run.artifacts("only").mkdir(parents=True)
    passed: list[range] = []
    lost: dict[int, str] = {}
    call = JobCall(folder=str(folder), job="only", fingerprint="f", threads=1)
    run_chunks(
        RayPool(call, WORK, plan), Queue(count=20, size=4), done=passed.append, poisoned=lost.__setitem__,
        stop=lambda: False,
    )  # fmt: skip
    events = [event for event in read_events(run.events_path) if event["event"] == "worked"]
    return sorted(passed, key=lambda chunk: chunk.start), lost, {event["worker"] for event in events}


def alive(process: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False


@pytest.mark.usefixtures("cluster")
def test_actors_work_and_end_with_the_pool(tmp_path: Path) -> None:
    passed, lost, workers = worked(tmp_path / "run", seconds=0.05)
    assert passed == [range(at, at + 4) for at in range(0, 20, 4)] and lost == {}
    assert len(workers) == 2 and os.getpid() not in workers


@pytest.mark.usefixtures("cluster")
def test_what_kills_or_raises_is_given_up_and_nothing_else(tmp_path: Path) -> None:
    passed, lost, workers = worked(tmp_path / "run", kills=[6], kills_once=[1], raises=[18])
    assert lost == {6: DIED, 18: "ZeroDivisionError: item 18 is planted"}
    assert sorted([item for chunk in passed for item in chunk] + list(lost)) == list(range(20))
    assert {range(0, 4), range(8, 12), range(12, 16)} <= set(passed) and len(workers) >= 2
    log = (tmp_path / "run" / "logs" / "only.log").read_text()
    assert "ZeroDivisionError: item 18 is planted" in log and "stepwell_toy_chunks.py" in log


@pytest.mark.usefixtures("cluster")
def test_actors_that_cannot_load_fail_the_job(tmp_path: Path) -> None:
    with pytest.raises(StepwellError) as caught:
        worked(tmp_path / "fails", loads="fails")
    assert str(caught.value) == "a worker cannot go on: the model is gone\n  Way out: Pull it again."
    with pytest.raises(StepwellError, match="3 workers died while they loaded: "):
        worked(tmp_path / "dies", loads="dies")
