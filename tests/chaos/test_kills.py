"""SIGKILL at random moments, in every stage of every study: the same bytes, nothing half read, no lock held."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from alone import Study
from chaos_plans import PLANS
from forks import VERDICTS, Attempt, Forks, Tail, environment, held_locks, until
from tiny import events
from wholeness import check_same, check_whole, unfinished

from stepwell.plan import dump_plan
from stepwell.store import RunFolder

pytestmark = pytest.mark.slow
ANYWHERE = 4
"""Kills at any moment of a run, from its first millisecond on, besides those that are aimed at jobs."""
ROUNDS = 8
PASSES = 5
"""A stage of milliseconds may end before the kill that was meant for it: it is aimed at again in another run."""


SAVING = {
    "thoughts": ("train.cot.0", "train.continuous.0"),
    "thoughts-text": ("train.continuous.0", "train.shared.0"),
    "imprint": ("single.arithmetic.tiny", "joint.arithmetic.tiny"),
    "squeeze": ("restore.residual.8.0", "refine.residual.8.0"),
    "wire": ("stage-a.bytes.3.0", "stage-b.bytes.3.0"),
    "tune": ("train.0", "train-b.0"),
}
"""Jobs that save checkpoints, or chunks, on their way: each is also hit behind one."""


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


def killed(
    warm: Forks, study: Study, folder: Path, tally: Tally, seconds: float, *, job: str = "", saved: bool = False
) -> None:
    """One kill, so many seconds after a job, or the run itself, has begun or saved; then everything is looked at."""
    tail, checkpoint = Tail(folder), RunFolder(folder).checkpoint(job)
    attempt = warm.begin(study.plan, folder)
    if job:
        until(checkpoint.exists if saved else lambda: tail.saw("job-started", job), attempt)
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


def ended(warm: Forks, study: Study, folder: Path) -> None:
    """Run to the end, and compared with the run that was left alone."""
    warm.run(study.plan, folder)
    check_same(folder, study.whole)
    assert check_whole(folder, study.plan) >= {"marker", "plan.yaml", "policy.json", "env.json", "report.html"}
    assert unfinished(folder) == [] and held_locks(folder) == []
    # A report is also written by `stepwell report`, beside a run: what is left of one is nobody's to remove.
    assert all(path.name.startswith((".report.html.", ".summary.json.")) for path in folder.rglob(".*.part"))


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", PLANS)
def test_killed_in_every_stage_it_ends_with_the_same_bytes(
    warm: Forks, study: Callable[[str], Study], name: str
) -> None:
    alone, tally, restored, rng = study(name), Tally(), set[str](), random.Random(name)
    for number in range(PASSES):
        unhit = [job for job in alone.seconds if job.partition(".")[0] not in tally.hit]
        unsaved = {*SAVING.get(name, ())} - restored
        if not unhit and not unsaved:
            break
        folder = alone.fresh()
        for job in alone.seconds:
            seconds = alone.seconds[job] / (1 + number)
            if job in unhit and not (folder / "jobs" / f"{job}.json").exists():
                killed(warm, alone, folder, tally, rng.uniform(0, 0.8 * seconds), job=job)
            if job in unsaved:
                killed(warm, alone, folder, tally, rng.uniform(0, 0.2 * seconds), job=job, saved=True)
        ended(warm, alone, folder)
        restored |= {event["job"] for event in events(folder, "job-restored")}
    folder = alone.fresh()
    for _ in range(ANYWHERE):
        killed(warm, alone, folder, tally, rng.uniform(0, alone.all_seconds))
    ended(warm, alone, folder)
    print(f"{name}: {tally.kills} kills, {tally.inside} of them in jobs; gone on from a checkpoint: {sorted(restored)}")
    assert tally.hit == alone.stages(), "a stage was not hit: the test does not test it"
    assert restored >= {*SAVING.get(name, ())}, "a job was not hit behind its checkpoint"
    assert tally.kills >= (10 if len(alone.seconds) > 8 else 6) and tally.inside >= 0.7 * len(alone.seconds)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", [name for name in SAVING if name != "thoughts-text"])
def test_a_worker_is_killed_and_then_its_runner(warm: Forks, study: Callable[[str], Study], name: str) -> None:
    """Workers are processes of their own; what one forked process gives, they give to the byte."""
    alone, job, rng = study(name), SAVING[name][0], random.Random(name)
    for number in range(ROUNDS):
        folder = alone.fresh()
        # A job of a fraction of a second may be over before the kill that was meant for it: then it is aimed sooner.
        if killed_twice(warm, alone, folder, job, rng.uniform(0, 0.3 / (1 + number)) * alone.seconds[job]):
            break
    else:
        pytest.fail("every kill came too late: the test tests nothing")
    ended(warm, alone, folder)


def killed_twice(warm: Forks, study: Study, folder: Path, job: str, seconds: float) -> bool:
    """A worker is killed so many seconds after it has taken a job on; then its runner, in the second attempt.

    Whether both came before the job's end.
    """
    inline = warm.begin(study.plan, folder)
    tail = Tail(folder)
    assert until(lambda: tail.saw("job-started", job), inline)
    inline.kill()
    separate = study.plan.model_copy(update={"engine": "process", "workers": 2})
    attempt = warm.begin(separate, folder)
    victims = working(attempt, job)
    time.sleep(seconds)
    for victim in victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
    tried_again = until(lambda: job in {event["job"] for event in events(folder, "job-retried")}, attempt, 20)
    if tried_again:
        working(attempt, job)
        time.sleep(seconds)
    attempt.kill()
    gone = time.monotonic() + 20
    while held_locks(folder) and time.monotonic() < gone:  # the kernel ends workers with their runner
        time.sleep(0.01)
    assert held_locks(folder) == []
    check_whole(folder, study.plan)
    return tried_again and not (folder / "jobs" / f"{job}.json").exists()


def test_a_process_of_its_own_gives_the_bytes_of_a_fork(study: Callable[[str], Study]) -> None:
    """What all these tests stand on: a fork of the warm process differs in nothing from a new one."""
    alone = study("wire")
    folder = alone.fresh()
    file = folder.with_name("plan.yaml")
    file.write_text(dump_plan(alone.plan))
    command = [sys.executable, "-m", "stepwell", "run", str(file), "--out", str(folder), "--quiet"]
    done = subprocess.run(command, env=environment(), cwd=folder.parent, capture_output=True, text=True)
    assert done.returncode in VERDICTS and done.stderr == ""
    check_same(folder, alone.whole)


def working(attempt: Attempt, job: str) -> list[int]:
    """The runner's workers, once one of them has taken this job on."""
    lock = f"{job}.lock"
    until(lambda: lock in held_locks(attempt.folder), attempt, 120)
    return attempt.children()
