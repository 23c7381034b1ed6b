"""The shipped plan `tune`, so small that its stages run in seconds, on a model of random weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from stepwell.errors import Interrupted
from stepwell.plan import Plan, load_plan
from stepwell.stage import StageContext

DECODING = "{max_tokens: 8}"
TRAINING = (
    "steps=4",
    "batch_size=2",
    "accumulation=2",
    "lr=1.0e-2",
    "warmup_steps=1",
    "max_tokens=400",
    "lora={rank: 2, alpha: 4, dropout: 0.1}",
    "log_every=1",
    "checkpoint_every=2",
)
SIZES = (
    "engine=inline",
    "threads_per_job=1",
    "device=cpu",
    "data.n_train=24",
    "data.n_held=4",
    "data.n_test=6",
    "lint.max_tokens=400",
    "lint-b.max_tokens=400",
    "mine.items=12",
    *(f"{name}.decoding={DECODING}" for name in ("before", "after", "mine", "after-b")),
    *(f"{name}.{each}" for name in ("train", "train-b") for each in TRAINING),
    "train.epochs=null",
    "train-b.epochs=null",
)
WHOLE = (
    "data",
    "model",
    "lint",
    "before",
    "train",
    "merge",
    "after",
    "versus",
    "mine",
    "lint-b",
    "train-b",
    "merge-b",
    "after-b",
)


def tiny_tune(model: Path, *overrides: str, stages: Sequence[str] | None = WHOLE) -> Plan:
    """The rung `demo` on a few problems, without its gates: a model of random weights passes none of them."""
    plan = load_plan("tune", rung="demo", overrides=[*SIZES, f"model.name={model}", *overrides])
    # What takes a reference that answers is tried elsewhere.
    kept = tuple(stage for stage in plan.stages if (stages is None and not stage.on) or stage.name in (stages or ()))
    return Plan.model_validate(plan.model_copy(update={"stages": kept, "gates": ()}).model_dump())


def stopped_once(job: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A job is asked to stop at its first checkpoint; what is returned holds its id once that has happened."""
    stops: list[str] = []

    def stop(ctx: StageContext) -> None:
        if ctx.job.id == job and not stops:
            stops.append(job)
            raise Interrupted("stopped, as asked", "go on", stage=job)

    monkeypatch.setattr(StageContext, "stop_if_asked", stop)
    return stops
