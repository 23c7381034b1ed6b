"""A run of `thoughts` that is killed anywhere and gone on with ends with the records of one that was left alone."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from tiny import contents, events, started, tiny

import stepwell.store.job
from stepwell.plan import Plan
from stepwell.runner import run


def reference(plan: Plan, folder: Path) -> dict[str, str]:
    """Records and artifacts of an unkilled run, in this process."""
    run(plan, folder)
    return contents(folder)


class Killed(BaseException):
    """What no `except Exception` stops: the process is gone."""


def test_stopped_dead_after_any_checkpoint_it_goes_on_bit_by_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GPT-2 with dropout, the optimizer reset at each epoch; cut right behind a checkpoint and some records later."""
    plan = tiny(
        "engine=inline", "train.checkpoint_every=2", "train.log_every=1", text=True, arms=("continuous",), gates=()
    )
    assert plan.stage("model").params["model"]["dropout"] == 0.1
    assert plan.stage("train").params["reset_optimizer"] == "epoch"
    wanted = reference(plan, tmp_path / "whole")
    store, honest = stepwell.store.job.JobStore, stepwell.store.job.JobStore.write
    rng, cuts = random.Random(7), 0
    while True:
        left = rng.randint(2, 7)

        def mortal(self: object, kind: str, fields: object) -> None:
            nonlocal left
            if self.job.stage == "train":  # pyright: ignore[reportAttributeAccessIssue]
                left -= 1
                if left < 0:
                    raise Killed
            honest(self, kind, fields)  # pyright: ignore[reportArgumentType]

        monkeypatch.setattr(store, "write", mortal)
        try:
            run(plan, tmp_path / "killed")
            break
        except Killed:
            cuts += 1
    assert cuts >= 3
    assert contents(tmp_path / "killed") == wanted
    assert len(events(tmp_path / "killed", "job-restored")) >= 2


def test_what_a_change_runs_again(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arms = ("cot", "continuous")
    asked = [f"{stage}.{arm}.0" for stage in ("evaluate", "intervene", "probe", "trace") for arm in arms]
    everything = ["data", "audit", *(f"model.{arm}" for arm in arms), *(f"train.{arm}.0" for arm in arms), *asked]
    training, evaluation = everything[4:], asked[:2]
    small = ("engine=inline", "train.steps=6", "train.lr=1e-3")
    before: list[str] = []
    for overrides, wanted in (
        ((), everything),
        ((), []),
        (("evaluate.items=5",), evaluation),
        (("evaluate.items=5", "train.lr=2e-3"), training),
        (("evaluate.items=5", "train.lr=2e-3", "workers=1", "hourly_price=2.0"), []),
        (("evaluate.items=5", "train.lr=2e-3", "model.selftest_steps=81"), everything[2:]),
        (("evaluate.items=5", "train.lr=2e-3", "model.selftest_steps=81", "data.n_test=17"),
         ["data", "audit", *everything[4:]]),
    ):  # fmt: skip
        run(tiny(*small, *overrides), folder)
        now = started(folder)
        assert sorted(now[len(before) :]) == sorted(wanted), overrides
        before = now
    # What was run piece by piece is what one run of the last plan gives.
    run(tiny(*small, *overrides), tmp_path / "fresh")
    assert contents(folder) == contents(tmp_path / "fresh")
