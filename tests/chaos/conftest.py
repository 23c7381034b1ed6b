"""What all tests of chaos share: the process that forks, and for each study a run that was left alone."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(1, str(TESTS / "studies"))  # the tiny plans

from alone import Study  # noqa: E402
from chaos_plans import PLANS  # noqa: E402
from forks import Forks, forks  # noqa: E402
from tiny import events  # noqa: E402
from wholeness import check_same  # noqa: E402


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With `--dist loadgroup` all tests of a study go to one worker, which runs it alone but once."""
    for item in items:
        if isinstance(item, pytest.Function) and "study" in item.fixturenames:
            callspec = getattr(item, "callspec", None)
            name = "wire" if callspec is None else callspec.params.get("name", "thoughts")
            item.add_marker(pytest.mark.xdist_group(name))


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
