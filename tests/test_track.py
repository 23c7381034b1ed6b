"""Trackers get the numbers, and can harm nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from stepwell.errors import StepwellError
from stepwell.stage import Memory, StageContext
from stepwell.track import tracked


def context(folder: Path) -> tuple[StageContext, Memory]:
    job: Any = SimpleNamespace(id="train.cot.0", stage="train", kind="toy", axes={}, params={"lr": 0.1}, needs=())
    memory = Memory()
    return StageContext(job=job, folder=folder, inputs={}, threads=1, seed=0, recorder=memory), memory


def fake(monkeypatch: pytest.MonkeyPatch, name: str, log: Callable[..., None] | None = None) -> dict[str, Any]:
    """A module with the interface that wandb and trackio share."""
    seen: dict[str, Any] = {"sent": []}

    def init(**given: Any) -> Any:
        seen["init"] = given
        return SimpleNamespace(log=log or (lambda numbers, step: seen["sent"].append((step, numbers))))

    module = ModuleType(name)
    module.__dict__["init"] = init
    monkeypatch.setitem(sys.modules, name, module)
    return seen


@pytest.mark.parametrize("name", ["tensorboard", "trackio", "wandb"])
def test_a_tracker_that_is_not_installed_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with pytest.raises(StepwellError) as caught:
        tracked(context(tmp_path)[0], [name])
    assert str(caught.value) == (
        f"stage train.cot.0: tracker `{name}` is not installed\n"
        "  Way out: pip install 'stepwell[tracking]', or take it out of `trackers`"
    )


@pytest.mark.parametrize("name", ["trackio", "wandb"])
def test_a_tracker_gets_the_numbers_and_the_records_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    seen = fake(monkeypatch, name)
    ctx, memory = context(tmp_path)
    ctx = tracked(ctx, [name])
    ctx.write("step", step=10, loss=0.5, curriculum_stage=None, lr=0.1)
    ctx.write("validation", step=20, accuracy=0.75, n=4)
    ctx.write("advance", step=20, curriculum_stage=1, reason="accuracy")
    ctx.write("check", name="x", passed=True)
    assert seen["init"] == {"project": "stepwell", "name": "train.cot.0", "config": {"lr": 0.1}}
    assert seen["sent"] == [
        (10, {"step/loss": 0.5, "step/lr": 0.1}),
        (20, {"validation/accuracy": 0.75, "validation/n": 4}),
    ]
    assert [record["kind"] for record in memory.records] == ["step", "validation", "advance", "check"]
    assert memory.records[0] == {"kind": "step", "step": 10, "loss": 0.5, "curriculum_stage": None, "lr": 0.1}


def test_checkpoints_and_events_pass_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, "trackio")
    ctx, memory = context(tmp_path)
    ctx = tracked(ctx, ["trackio"])
    ctx.save({"step": 3})
    ctx.event("hello")
    assert memory.state == {"step": 3} == ctx.restored()
    assert memory.events == [{"event": "hello"}]


def test_a_tracker_that_fails_is_told_once_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(numbers: Any, step: int) -> None:
        raise ConnectionError(f"no network at step {step}")

    fake(monkeypatch, "wandb", broken)
    seen = fake(monkeypatch, "trackio")
    ctx, memory = context(tmp_path)
    ctx = tracked(ctx, ["wandb", "trackio"])
    for step in range(5):
        ctx.write("step", step=step, loss=1.0)
    assert [step for step, _ in seen["sent"]] == [0, 1, 2, 3, 4] and len(memory.records) == 5
    assert memory.events == [
        {"event": "tracker-failed", "tracker": "wandb", "error": "ConnectionError: no network at step 0"}
    ]


def test_a_tracker_that_cannot_begin_is_told_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(monkeypatch, "wandb")

    def no_account(**given: Any) -> Any:
        raise RuntimeError("not logged in")

    sys.modules["wandb"].__dict__["init"] = no_account
    ctx, memory = context(tmp_path)
    tracked(ctx, ["wandb"]).write("step", step=1, loss=1.0)
    assert len(memory.records) == 1
    assert memory.events == [{"event": "tracker-failed", "tracker": "wandb", "error": "RuntimeError: not logged in"}]


def test_tensorboard_is_flushed_at_each_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own flush comes every two minutes: a short run would leave an empty file."""
    calls: list[Any] = []

    class SummaryWriter:
        def __init__(self, folder: str) -> None:
            calls.append(folder)

        def add_scalar(self, name: str, value: float, step: int) -> None:
            calls.append((name, value, step))

        def flush(self) -> None:
            calls.append("flush")

    module = ModuleType("torch.utils.tensorboard")
    module.__dict__["SummaryWriter"] = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    ctx, _ = context(tmp_path)
    tracked(ctx, ["tensorboard"]).write("validation", step=7, accuracy=0.5, n=2)
    assert calls == [
        str(tmp_path / "tensorboard"), ("validation/accuracy", 0.5, 7), ("validation/n", 2, 7), "flush"
    ]  # fmt: skip


def test_the_real_tensorboard_writes_what_it_reads(tmp_path: Path) -> None:
    name = "tensorboard.backend.event_processing.event_accumulator"
    reader = pytest.importorskip(name, reason="tensorboard is not installed")
    ctx, _ = context(tmp_path)
    ctx = tracked(ctx, ["tensorboard"])
    for step in range(3):
        ctx.write("step", step=step, loss=float(step))
    found = reader.EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    assert [(event.step, event.value) for event in found.Scalars("step/loss")] == [(0, 0.0), (1, 1.0), (2, 2.0)]


def test_without_trackers_the_context_is_the_same(tmp_path: Path) -> None:
    ctx, _ = context(tmp_path)
    assert tracked(ctx, ()) is ctx
