"""The clock on the wall is set forward and back during a run: records, status, budget and report do not mind."""

from __future__ import annotations

import datetime
import random
import time
from collections.abc import Callable

import pytest
from alone import Study
from forks import Forks, Tail, held_locks, until
from tiny import events
from wholeness import check_same, check_whole, unfinished

from stepwell.cli import run as command
from stepwell.plan import Plan
from stepwell.runner import spent_hours, status

pytestmark = pytest.mark.slow


# One plan a study: the clock is the runner's, whatever its stages do.
@pytest.mark.parametrize("name", ["thoughts", "imprint", "squeeze", "wire", "tune-answers"])
def test_records_status_and_budget_do_not_mind(
    warm: Forks, study: Callable[[str], Study], capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """Killed once on the way, so that sessions are added up; with a budget that any of the jumps would use up."""
    alone, rng = study(name), random.Random(name)
    # However short the study is, the clock is to be set back in its course too.
    every = min(0.05 + 0.05 * rng.random(), alone.all_seconds / 30)
    folder, jumps = alone.fresh(), {"clock": {"every_seconds": every}}
    plan = Plan.model_validate({**alone.plan.model_dump(mode="json"), "budget": {"hours": 0.4}})
    began = time.monotonic()
    tail, attempt = Tail(folder), warm.begin(plan, folder, jumps)
    until(tail.new, attempt)
    time.sleep(rng.uniform(0.2, 0.8) * alone.all_seconds)
    attempt.kill()
    assert command(["status", str(folder)]) == 0
    warm.run(plan, folder, jumps)
    passed = time.monotonic() - began

    times = [datetime.datetime.fromisoformat(event["time"]) for event in events(folder, *NAMES)]
    assert max(times) - min(times) > datetime.timedelta(hours=24), "the clock was not set: the test tests nothing"
    assert times != sorted(times)
    check_same(folder, alone.whole)
    check_whole(folder, alone.plan)
    assert unfinished(folder) == [] and held_locks(folder) == []
    spent = spent_hours(folder)
    assert spent is not None and 0 < spent <= passed / 3600
    rows = {row.job: row for row in status(folder) if row.state == "done"}
    assert rows.keys() == alone.seconds.keys()
    assert all(row.seconds is not None and 0 <= row.seconds <= passed for row in rows.values())
    assert command(["status", str(folder)]) == 0
    assert "done" in capsys.readouterr().out


NAMES = ("run-started", "job-started", "job-done", "spent", "run-done")
