"""One training on two devices: the losses of one, whichever study trains; killed, stopped, and gone on with."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import records, tiny
from tiny_tune import tiny_tune
from tiny_wire import ARM, tiny_wire, wire_model

from stepwell.errors import Interrupted, StepwellError
from stepwell.plan import Plan
from stepwell.runner import run
from toy import contents, events_of

TWO = {"engine": "process", "workers": 1}


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wire_model(tmp_path_factory.mktemp("devices"))


def of_thoughts(model: Path, *overrides: str) -> Plan:
    del model
    plan = tiny("train.steps=8", "train.batch_size=6", *overrides, arms=("continuous",), gates=())
    return only(plan, "data", "model", "train")


def of_text(model: Path, *overrides: str) -> Plan:
    del model
    plan = tiny("model.model.dropout=0", *overrides, text=True, arms=("continuous",), gates=())
    return only(plan, "data", "model", "train")


def of_wire(model: Path, *overrides: str) -> Plan:
    lora = "{rank: 2, alpha: 2, layers: first half, dropout: 0}"
    recipe = "{steps: 4, batch_size: 4, lr: 1.0e-3, checkpoint_every: 2}"
    sizes = (f"encoder.arms={{bytes: {ARM}}}", f"stage-b.lora={lora}", f"stage-b.recipe={recipe}", *overrides)
    return only(tiny_wire(model, *sizes), "data", "model", "encoder", "stage-a", "stage-b")


def of_tune(model: Path, *overrides: str) -> Plan:
    return tiny_tune(model, "train.lora.dropout=0", *overrides, stages=("data", "model", "lint", "train"))


def only(plan: Plan, *stages: str) -> Plan:
    kept = tuple(stage for stage in plan.stages if stage.name in stages)
    return Plan.model_validate(plan.model_copy(update={"stages": kept, "gates": ()}).model_dump())


def on(plan: Plan, devices: int, **changes: Any) -> Plan:
    return Plan.model_validate(plan.model_copy(update=TWO | {"devices": devices} | changes).model_dump())


def losses(folder: Path) -> dict[str, list[float]]:
    """Job -> the losses of its steps."""
    found = {path.stem: [one["loss"] for one in records(folder, path.stem, "step")]
             for path in sorted((folder / "records").glob("*.jsonl"))}  # fmt: skip
    return {job: values for job, values in found.items() if values}


WHOLE, IN_PARTS = {"shard": False}, {"shard": True}


@pytest.mark.parametrize(
    ("study", "ways"),
    [
        pytest.param(of_thoughts, [WHOLE], id="thoughts"),
        pytest.param(of_thoughts, [IN_PARTS], id="thoughts in parts", marks=pytest.mark.slow),
        pytest.param(of_text, [WHOLE], id="text", marks=pytest.mark.slow),
        pytest.param(of_wire, [WHOLE, IN_PARTS], id="wire", marks=pytest.mark.slow),
        pytest.param(of_tune, [WHOLE, IN_PARTS], id="tune", marks=pytest.mark.slow),
    ],
)
def test_two_devices_have_the_losses_of_one(
    study: Callable[..., Plan], ways: list[dict[str, bool]], model: Path, tmp_path: Path
) -> None:
    plan = study(model)
    run(on(plan, 1, engine="inline"), tmp_path / "1")
    one = losses(tmp_path / "1")
    assert all(len(set(values)) > 1 for values in one.values())
    for way in ways:
        folder = tmp_path / ("parts" if way["shard"] else "2")
        run(on(plan, 2, **way), folder)
        assert {event["processes"] for event in events_of(folder, "job-joined")} == {2}
        sharded = events_of(folder, "sharded")
        assert bool(sharded) == way["shard"]
        assert all(each["processes"] == 2 and each["held"] < 0.8 * each["weights"] for each in sharded)
        two = losses(folder)
        assert one.keys() == two.keys()
        for job, values in one.items():
            assert two[job] == pytest.approx(values, rel=2e-3, abs=2e-4), job


def processes_of(folder: Path) -> list[int]:
    """The training processes of a run: those beside the agent and the wrapper."""
    found = subprocess.run(["pgrep", "-f", f"stepwell.engine.worker {folder}"], capture_output=True, text=True)
    lines = [int(line) for line in found.stdout.split()]
    return [pid for pid in lines if "--answers" in Path(f"/proc/{pid}/cmdline").read_text()
            and "torch.distributed.run" not in Path(f"/proc/{pid}/cmdline").read_text()]  # fmt: skip


def when_saved(folder: Path, act: Callable[[], None]) -> threading.Thread:
    """Act as soon as the training has a checkpoint."""

    def look() -> None:
        deadline = time.monotonic() + 100
        while time.monotonic() < deadline:
            if any((folder / "checkpoints").glob("train*/last.ckpt")):
                act()
                return
            time.sleep(0.02)

    thread = threading.Thread(target=look)
    thread.start()
    return thread


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, Path]:
    """A training on two devices that was left alone."""
    plan, folder = on(of_thoughts(model, "train.steps=40"), 2), tmp_path_factory.mktemp("whole") / "run"
    run(plan, folder)
    return plan, folder


@pytest.mark.slow
@pytest.mark.xdist_group("left alone")
def test_a_killed_process_takes_the_job_back_to_its_checkpoint(whole: tuple[Plan, Path], tmp_path: Path) -> None:
    """The other process does not wait for ever, and the job's second attempt ends as one that was left alone."""
    (plan, left_alone), folder = whole, tmp_path / "killed"
    watcher = when_saved(folder, lambda: os.kill(processes_of(folder)[-1], signal.SIGKILL))
    run(plan, folder)
    watcher.join()
    (retried,) = events_of(folder, "job-retried")
    assert len(events_of(folder, "job-joined")) == 2
    assert re.search(r"process \d of 2 ended without a result", retried["cause"]), retried["cause"]
    assert len(events_of(folder, "job-restored")) == 1
    assert contents(folder) == contents(left_alone)
    assert not processes_of(folder)


@pytest.mark.slow
@pytest.mark.xdist_group("left alone")
def test_all_processes_stop_together_and_go_on(whole: tuple[Plan, Path], tmp_path: Path) -> None:
    (plan, left_alone), folder = whole, tmp_path / "stopped"
    watcher = when_saved(folder, (folder / "stop").touch)
    with pytest.raises(Interrupted, match="the run was stopped, as asked"):
        run(plan, folder)
    watcher.join()
    assert not (folder / "jobs" / "train.continuous.0.json").exists()
    run(plan, folder)
    assert not (folder / "stop").exists() and contents(folder) == contents(left_alone)


@pytest.mark.slow
def test_a_checkpoint_goes_on_on_another_number_of_devices(model: Path, tmp_path: Path) -> None:
    plan = of_thoughts(model, "train.steps=40")
    watcher = when_saved(tmp_path / "changed", (tmp_path / "changed" / "stop").touch)
    with pytest.raises(Interrupted):
        run(on(plan, 2, shard=True), tmp_path / "changed")
    watcher.join()
    for folder in ("changed", "alone"):
        run(on(plan, 1, engine="inline"), tmp_path / folder)
    assert len(events_of(tmp_path / "changed", "job-restored")) == 1
    (changed,), (alone,) = losses(tmp_path / "changed").values(), losses(tmp_path / "alone").values()
    assert changed == pytest.approx(alone, rel=1e-4)


def test_what_several_devices_cannot_do_is_refused(model: Path) -> None:
    with pytest.raises(StepwellError, match=r"train is to train on 2 devices.*engine=process"):
        run(on(of_thoughts(model), 2, engine="inline"), Path("unused"))
    with pytest.raises(StepwellError, match="set `devices` to 2 at least"):
        run(on(of_tune(model), 1, shard=True), Path("unused"))
    muon = of_thoughts(model, "train.optimizer=muon", "train.muon_lr=1e-2")
    with pytest.raises(StepwellError, match="train trains by Muon, which needs whole matrices"):
        run(on(muon, 2, shard=True), Path("unused"))
