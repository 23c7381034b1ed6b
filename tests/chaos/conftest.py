"""What all tests of chaos share: the process that forks, and for each study a run that was left alone."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(1, str(TESTS / "studies"))  # the tiny plans

from chaos_plans import PLANS  # noqa: E402
from forks import Forks, forks  # noqa: E402
from tiny import events  # noqa: E402
from wholeness import check_same  # noqa: E402

from stepwell.plan import Plan  # noqa: E402


@dataclass(frozen=True, kw_only=True)
class Study:
    """A plan, a run of it that was left alone, and its jobs with the seconds they took, in the order of starts.

    All its runs take place in one folder, and are moved away: what names its inputs by path is then the same as well.
    """

    plan: Plan
    place: Path
    whole: Path
    seconds: dict[str, float]

    @property
    def all_seconds(self) -> float:
        return sum(self.seconds.values())

    def stages(self) -> set[str]:
        """The stages that ran."""
        return {job.partition(".")[0] for job in self.seconds}

    def fresh(self) -> Path:
        """The folder of all runs, empty."""
        if self.place.exists():
            self.place.rename(self.place.with_name(f"old{len(list(self.place.parent.glob('old*')))}"))
        return self.place


@pytest.fixture(scope="session")
def warm() -> Iterator[Forks]:
    with forks() as server:
        yield server


@pytest.fixture(scope="session")
def study(warm: Forks, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Study]:
    """By name; each is run twice when it is first asked for: the first run imports, the second is timed."""
    known: dict[str, Study] = {}

    def of(name: str) -> Study:
        if name not in known:
            here = tmp_path_factory.mktemp(name)
            plan, run, whole = PLANS[name](here), here / "run", here / "whole"
            for each in (here / "first", whole):
                warm.run(plan, run)
                run.rename(each)
            check_same(here / "first", whole)
            seconds = {event["job"]: event["seconds"] for event in events(whole, "job-done")}
            known[name] = Study(plan=plan, place=run, whole=whole, seconds=seconds)
        return known[name]

    return of
