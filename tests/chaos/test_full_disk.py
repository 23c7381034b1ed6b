"""A disk that fills up in the middle of a run: one clear error, and with more room the same bytes in the end."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from alone import Study
from chaos_plans import PLANS
from forks import VERDICTS, Forks, Tail, held_locks, until
from wholeness import check_same, check_whole, unfinished

from toy import small_disk

pytestmark = pytest.mark.slow
SIZE_BYTES = 48 << 20
"""More than a run asks for before it begins, 16 MiB, and than it writes; what fills the disk is another process."""
TIMES = 2


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own; CI must be able to make one."""
    try:
        with small_disk(tmp_path / "disk", SIZE_BYTES) as at:
            yield at
    except pytest.skip.Exception as reason:
        if os.environ.get("CI"):
            pytest.fail(str(reason))
        raise


def fill(disk: Path) -> None:
    """Take all that is left but a few blocks, as another user of the disk would."""
    with (disk / "filler").open("ab", buffering=0) as filler:
        filler.write(bytes(max(0, shutil.disk_usage(disk).free - (8 << 10))))


def enlarge(disk: Path, size_bytes: int) -> None:
    """More room, while all that is there stays."""
    subprocess.run(["mount", "-o", f"remount,size={size_bytes}", str(disk)], check=True)


@pytest.mark.parametrize("name", [name for name in PLANS if name != "tune-answers"])
def test_with_more_room_it_goes_on_to_the_same_bytes(
    warm: Forks, study: Callable[[str], Study], disk: Path, name: str
) -> None:
    alone, rng, size, full = study(name), random.Random(name), SIZE_BYTES, 0
    # What names its inputs by path has to find the same path.
    folder = alone.fresh()
    (disk / "run").mkdir()
    folder.symlink_to(disk / "run")
    for job in sorted(rng.sample(list(alone.seconds)[:-1], TIMES), key=list(alone.seconds).index):
        tail = Tail(folder)
        attempt = warm.begin(alone.plan, folder)
        until(lambda tail=tail, job=job: tail.saw("job-started", job), attempt)
        time.sleep(rng.uniform(0, 0.3) * alone.seconds[job])
        fill(disk)
        if attempt.wait() not in VERDICTS:
            full += 1
            assert attempt.code in (3, 4)
            said = attempt.said()
            assert said.count("stepwell: ") == 1 and "Traceback" not in said
            assert "no space is left on the disk" in said or ("the disk" in said and "free" in said)
            assert "Way out: Free space" in said
        check_whole(folder, alone.plan)
        assert held_locks(folder) == []
        size += SIZE_BYTES
        enlarge(disk, size)
    warm.run(alone.plan, folder)
    check_same(folder, alone.whole)
    check_whole(folder, alone.plan)
    assert unfinished(folder) == [] and held_locks(folder) == []
    folder.unlink()
    assert full >= 1, "the disk was never full: the test tests nothing"
