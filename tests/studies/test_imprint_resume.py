"""A fit of `imprint` that is killed goes on with the chunks that had not ended, and comes to the same records."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import contents, events, records, started, write_plan
from tiny_imprint import FIT, tiny_imprint

from stepwell.errors import StageFailed, StepwellError
from stepwell.fitting.result import Fitted
from stepwell.plan import Plan
from stepwell.runner import run
from stepwell.studies.imprint.fits import VECTORS
from stepwell.studies.imprint.kept import Ends, Kept
from stepwell.studies.imprint.measures import analysis

SOURCE = Path(__file__).resolve().parents[2] / "src"
JOB = "joint.arithmetic.tiny"
Key = tuple[str, int]


def plan_of(steps: int = 30) -> Plan:
    """Five pairs in chunks of one, and one row at a time: long enough to be hit between two."""
    recipe = f"{{steps: {steps}, restarts: 2, lr: 0.1, schedule: constant, init: table, stop_when_exact: false}}"
    return tiny_imprint(
        "data.tiers.arithmetic.n=5", f"joint.recipe={recipe}", "joint.columns=20", "joint.chunk=1", stages=FIT, gates=()
    )


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, Path, dict[Key, torch.Tensor]]:
    """A run that died in the middle of its fit, and the vectors of the restarts that had ended."""
    folder = tmp_path_factory.mktemp("killed")
    plan = plan_of()
    process = subprocess.Popen(
        [sys.executable, "-m", "stepwell", "run", str(write_plan(plan, folder / "plan.yaml")), "--out",
         str(folder / "run"), "--quiet"],
        env={**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0, cwd=folder,
    )  # fmt: skip
    ended = folder / "run" / "artifacts" / JOB / "ended"
    deadline = time.monotonic() + 200
    while len(list(ended.glob("*.safetensors"))) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    _, errors = process.communicate()
    assert errors == ""
    parts = [Kept(ended).read(chunk) for chunk in Kept(ended).chunks()]
    kept = {(record.id, record.restart): vectors for part in parts for record, vectors in part.ended}
    assert 4 <= len(kept) < 10, "the kill came too early or too late: the test tests nothing"
    assert not (folder / "run" / "jobs" / f"{JOB}.json").exists()
    return plan, folder / "run", kept


def gone_on(plan: Plan, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Key], Fitted]:
    """Run it to its end: which restarts were fitted now, and all that there is."""
    now: list[Key] = []
    honest = Kept.write

    def write(self: Kept, chunk: range, part: Ends) -> None:
        now.extend((record.id, record.restart) for record, _ in part.ended)
        honest(self, chunk, part)

    monkeypatch.setattr(Kept, "write", write)
    run(plan, folder)
    return now, Fitted.load(folder / "artifacts" / JOB / VECTORS)


def copied(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to))


def test_what_had_ended_is_not_fitted_again(
    killed: tuple[Plan, Path, dict[Key, torch.Tensor]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, before, kept = killed
    folder = copied(before, tmp_path / "run")
    # What a kill leaves of a file and of a folder that were just being written.
    artifacts = folder / "artifacts" / JOB
    (artifacts / "ended" / ".torn.safetensors.123.part").write_bytes(b"half")
    (artifacts / f".{VECTORS}-torn").mkdir()
    (artifacts / f".{VECTORS}-torn" / "vectors.safetensors").write_bytes(b"half")
    now, found = gone_on(plan, folder, monkeypatch)
    everything = {(record.id, record.restart) for record in found.records}
    assert len(everything) == 10
    assert set(now) == everything - kept.keys() and len(now) == len(set(now))
    for (id, restart), vectors in kept.items():
        assert found.vectors[id][restart].numpy().tobytes() == vectors.numpy().tobytes()
    assert [path.name for path in artifacts.iterdir()] == [VECTORS], "something half written is left"
    assert [event["job"] for event in events(folder, "job-restored")] == [JOB]
    assert started(folder).count(JOB) == 2 and started(folder).count("data.arithmetic") == 1
    # As without a kill, byte for byte.
    run(plan, tmp_path / "whole")
    assert contents(folder) == contents(tmp_path / "whole")
    assert len(records(folder, JOB, "pair")) == 5
    # Done, it is not touched again.
    run(plan, folder)
    assert started(folder).count(JOB) == 2


def test_a_torn_kept_file_is_named_with_the_way_out(
    killed: tuple[Plan, Path, dict[Key, torch.Tensor]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, before, kept = killed
    folder = copied(before, tmp_path / "run")
    torn = min((folder / "artifacts" / JOB / "ended").glob("*.safetensors"))
    torn.write_bytes(torn.read_bytes()[:100])
    with pytest.raises(StageFailed) as caught:
        run(plan, folder)
    text = str(caught.value)
    assert caught.value.exit_code == 4 and f"stage {JOB}: " in text
    assert f"{torn}: a kept chunk cannot be read: " in text
    assert "Way out: Delete this file: its pairs are fitted again." in text
    torn.unlink()
    now, found = gone_on(plan, folder, monkeypatch)
    assert len(now) == 10 - len(kept) + 2 and len(found.records) == 10


def test_another_recipe_begins_anew(
    killed: tuple[Plan, Path, dict[Key, torch.Tensor]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was kept belongs to another fit: it is dropped, and never mixed with this one."""
    _, before, _ = killed
    folder = copied(before, tmp_path / "run")
    now, found = gone_on(plan_of(steps=3), folder, monkeypatch)
    assert len(now) == 10 and {record.steps for record in found.records} == {3}
    assert events(folder, "checkpoint-discarded")


def test_a_kept_file_without_records_is_torn_too(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    kept, path = Kept(tmp_path), tmp_path / "0000000000-0000000001.safetensors"
    assert kept.chunks() == []
    save_file({"0": torch.ones(2)}, path)
    (chunk,) = kept.chunks()
    with pytest.raises(StepwellError, match="a kept chunk cannot be read") as caught:
        kept.read(chunk)
    assert str(path) in str(caught.value)


def test_a_killed_search_goes_on_with_the_next_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = tiny_imprint("smallest.items=2", "smallest.highest=2", stages=("data", "model", "smallest"), gates=())
    run(plan, tmp_path / "whole")

    class Killed(BaseException):
        """What no `except Exception` stops."""

    honest, calls = analysis.smallest_slots, 0

    def mortal(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise Killed
        return honest(*arguments, **options)

    monkeypatch.setattr(analysis, "smallest_slots", mortal)
    with pytest.raises(Killed):
        run(plan, tmp_path / "run")
    run(plan, tmp_path / "run")
    assert calls == 3, "a pair that was done was searched again"
    name = "smallest.arithmetic.tiny"
    assert records(tmp_path / "run", name) == records(tmp_path / "whole", name)
    assert len(records(tmp_path / "run", name)) == 2
