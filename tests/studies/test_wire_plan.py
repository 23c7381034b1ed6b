"""The shipped plan `wire`: every training of its stages B reads latents, and one that would read none is refused."""

from __future__ import annotations

import pytest

from stepwell.errors import StepwellError
from stepwell.plan import Plan, load_plan, rungs_of
from stepwell.plan.check import params_of
from stepwell.studies.qa.params import QADataParams
from stepwell.studies.wire.params import Arm, StageBParams

RUNGS = rungs_of("wire")


def keeps(plan: Plan, stage: str) -> list[float]:
    """The share of the examples that each step of a stage reads as latents, as the loop and the lesson count it."""
    params, data = params_of(plan.stage(stage)), params_of(plan.stage("data"))
    assert isinstance(params, StageBParams) and isinstance(data, QADataParams)
    items = min(params.items or data.n_train, data.n_train)
    per_epoch = items // (params.recipe.batch_size * params.recipe.accumulation)
    total = params.recipe.total_steps(per_epoch)
    return [params.mixing.keep(step / per_epoch, total / per_epoch) for step in range(total)]


@pytest.mark.parametrize("rung", RUNGS)
def test_every_training_of_every_rung_reads_latents(rung: str) -> None:
    plan = load_plan("wire", rung=rung)
    stages = [stage.name for stage in plan.stages if stage.kind == "wire.stage-b"]
    assert stages == ["stage-b", "sweep", "sampling", "hero"]
    for stage in stages:
        found = keeps(plan, stage)
        assert sum(keep > 0 for keep in found) / len(found) >= 1 / 2, stage
        assert sum(found) / len(found) >= 1 / 3, stage
        assert found[-1] == pytest.approx(0.85, abs=0.05), "the schedule comes to its end"
        assert (found[0] == 0) == (stage != "sampling"), "text first, but where a stage B went before"


def test_the_rungs_differ_in_passes_over_the_same_items() -> None:
    """A forecast from several rungs asks for that: only the length differs."""
    shares = {}
    for rung, steps in (("smoke", 160), ("extended", 320), ("sweep", 640)):
        found = keeps(load_plan("wire", rung=rung), "stage-b")
        assert len(found) == steps
        shares[rung] = sum(keep == 0 for keep in found)
    assert set(shares.values()) == {80}, "half an epoch of warm-up is as many steps in each"


@pytest.mark.parametrize(
    ("override", "stage", "said"),
    [
        ("stage-b.items=0", "stage-b", "160 steps are 0.32 epochs of 8000 items"),
        ("stage-b.recipe.steps=80", "stage-b", "80 steps are 0.5 epochs of 2560 items"),
        ("hero.mixing.warmup_epochs=10", "hero", "5000 steps are 10 epochs of 8000 items"),
        ("sweep.recipe.batch_size=1", "sweep", "640 steps are 0.25 epochs of 2560 items"),
    ],
)
def test_a_warm_up_as_long_as_its_training_is_refused(override: str, stage: str, said: str) -> None:
    with pytest.raises(StepwellError) as caught:
        load_plan("wire", rung="smoke", overrides=[override])
    told = str(caught.value)
    assert f"stages.{stage}.params.mixing.warmup_epochs: no step would read latents" in told and said in told
    assert told.count("no step would read latents") == 1


@pytest.mark.parametrize("override", ["stage-b.recipe.steps=81", "hero.mixing.warmup_epochs=9.9", "data.n_train=2000"])
def test_a_shorter_one_is_not(override: str) -> None:
    load_plan("wire", rung="smoke", overrides=[override])


def test_a_schedule_without_latents_is_refused() -> None:
    with pytest.raises(StepwellError, match="no example would be read as latents"):
        load_plan("wire", rung="smoke", overrides=["stage-b.mixing={start: 0, end: 0}"])


@pytest.mark.parametrize("rung", RUNGS)
def test_each_further_training_ends_at_a_gate_with_the_four_controls(rung: str) -> None:
    plan = load_plan("wire", rung=rung)
    for label in ("sweep", "sampling"):
        gates = [gate for gate in plan.gates if gate.name.startswith(f"ladder-{label}")]
        assert len(gates) == len(plan.axes["arm"]) * len(plan.axes["vectors"])
        for gate in gates:
            assert gate.on == label and [one.stage for one in gate.after] == [f"answer-{label}"]
            minus = [one["condition"] for criterion in gate.criteria for one in criterion.replaced]
            assert minus == ["zeros", "other", "mean"]
            assert [criterion.metric for criterion in gate.criteria[:2]] == ["f1", "above_cut"]
            assert gate.criteria[0].mode == "point" and gate.combine == "all"
    assert {label for gate in plan.gates for label in gate.routes_to()} >= {"silent", "sweep", "sampling", "hero"}


def test_an_arm_serves_its_smaller_m_beside_that_of_the_axis() -> None:
    arm = Arm.model_validate({"encoder": {"kind": "bytes", "vectors": [4, 8]}, "smaller": [32, 16, 64]})
    assert arm.served(64) == (16, 32, 64) and arm.served(16) == (16,) and arm.served(48) == (16, 32, 48)
    assert arm.served(None) == (4, 8), "without the axis the encoder's own"
