"""SIGKILL at random moments, in every stage of every study: the same bytes, nothing half read, no lock held."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from chaos_plans import PLANS
from conftest import Study
from forks import Forks, Tail, held_locks, until
from tiny import events, started
from wholeness import check_same, check_whole, unfinished

pytestmark = pytest.mark.slow
ANYWHERE = 3
"""Kills at any moment of a whole run, from its first millisecond on."""
PASSES = 3


@dataclass
class Tally:
    """Kills of a study: all, those that hit a job under way, and the stages that were hit."""

    kills: int = 0
    inside: int = 0
    hit: set[str] = field(default_factory=set)
    seen: set[str] = field(default_factory=set)


def under_way(folder: Path) -> str:
    """The job that had begun and not ended when the run was killed; empty where there is none."""
    last = ([""], *([each["job"], each["event"]] for each in events(folder, "job-started", "job-done")))[-1]
    return last[0] if last[-1] == "job-started" else ""


def killed(warm: Forks, study: Study, folder: Path, tally: Tally, job: str | None, seconds: float) -> None:
    """One kill, so many seconds after a job, or the run itself, has begun; then everything is looked at."""
    tail = Tail(folder)
    attempt = warm.begin(study.plan, folder)
    if job is not None:
        until(lambda: tail.saw("job-started", job), attempt)
    time.sleep(seconds)
    if not attempt.alive():
        attempt.wait()
        return
    attempt.kill()
    tally.kills += 1
    assert held_locks(folder) == []
    tally.seen |= check_whole(folder, study.plan)
    if hit := under_way(folder):
        tally.inside += 1
        tally.hit.add(hit.partition(".")[0])


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", PLANS)
def test_killed_in_every_stage_it_ends_with_the_same_bytes(
    warm: Forks, study: Callable[[str], Study], tmp_path: Path, name: str
) -> None:
    alone, tally, rng = study(name), Tally(), random.Random(name)
    for number in range(PASSES):
        missing = [job for job in alone.seconds if job.partition(".")[0] not in tally.hit]
        if not missing:
            break
        folder = tmp_path / f"run{number}"
        if number == 0:
            for _ in range(ANYWHERE):
                killed(warm, alone, folder, tally, None, rng.uniform(0, alone.all_seconds))
        for job in missing:
            done = (folder / "jobs" / f"{job}.json").exists()
            if not done:
                killed(warm, alone, folder, tally, job, rng.uniform(0, 0.8 * alone.seconds[job]))
        warm.run(alone.plan, folder)
        check_same(folder, alone.whole)
        assert check_whole(folder, alone.plan) >= {"marker", "plan.yaml", "policy.json", "env.json", "report.html"}
        assert unfinished(folder) == [] and held_locks(folder) == []
        again = len(started(folder)) - len(alone.seconds)
        print(name, number, tally, again, len(events(folder, "job-restored")))
    assert tally.hit == alone.stages(), "a stage was not hit: the test does not test it"
    assert tally.inside >= len(alone.stages()) and tally.kills >= min(10, 2 * len(alone.stages()))
