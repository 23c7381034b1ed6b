from __future__ import annotations

import json
from pathlib import Path

import pytest

import toy_kinds
from stepwell.calibrate import calibrate
from stepwell.cli.show import totals
from stepwell.devices import DEVICES, Device, calibrated, find_device
from stepwell.errors import StepwellError
from stepwell.estimate import Estimate, Work, estimate
from stepwell.plan import Plan, load_plan


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STEPWELL_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def toy(tmp_path: Path, *overrides: str) -> Plan:
    (tmp_path / "toy.yaml").write_text(toy_kinds.PLAN)
    return load_plan(tmp_path / "toy.yaml", rung="demo", overrides=overrides)


def by_stage(cost: Estimate):
    return {each.stage: each for each in cost.stages}


def test_flop_time_and_price_are_those_counted_by_hand(tmp_path: Path) -> None:
    plan = toy(tmp_path, "train.shape.width=1e12", "evaluate.shape.width=1e12")
    cost = estimate(plan, "h100", hourly_price=2.0)
    # train: 2 FLOP x width x 3 steps x 10 items, x 2 for `shared`, x 2 seeds each; evaluate the same without seeds.
    one = 2 * 1e12 * 3 * 10
    train, evaluate = by_stage(cost)["train"], by_stage(cost)["evaluate"]
    assert (train.jobs, train.flop, train.tokens) == (4, 2 * one + 2 * 2 * one, 4 * 30)
    assert (evaluate.jobs, evaluate.flop) == (2, 3 * one)
    assert cost.flop == 9 * one
    assert cost.hours == pytest.approx(9 * one / (67e12 * 0.30) / 3600, rel=1e-12)
    assert cost.price == pytest.approx(2 * cost.hours, rel=1e-12)


def test_what_has_no_estimate_is_unknown_and_named_not_zero(tmp_path: Path) -> None:
    cost = estimate(toy(tmp_path))
    assert by_stage(cost)["data"].flop is None
    assert by_stage(cost)["data"].hours is None
    assert cost.unknown == ("data",)
    assert cost.price is None
    only_data = toy(tmp_path).model_copy(update={"stages": toy(tmp_path).stages[:1], "gates": ()})
    cost = estimate(only_data, hourly_price=3)
    assert (cost.flop, cost.hours, cost.price) == (None, None, None)


def test_a_stage_that_waits_for_a_route_is_not_in_the_sums(tmp_path: Path) -> None:
    cost = estimate(toy(tmp_path))
    assert by_stage(cost)["more"].conditional
    counted = [each.flop for each in cost.stages if each.flop is not None and not each.conditional]
    assert cost.flop == sum(counted) < sum(each.flop for each in cost.stages if each.flop is not None)


def test_workers_share_a_gpu_without_gain_and_use_cores_of_their_own(tmp_path: Path) -> None:
    one, two = toy(tmp_path), toy(tmp_path, "workers=2")
    assert by_stage(estimate(one, "h100"))["train"] == by_stage(estimate(two, "h100"))["train"]
    alone, shared = by_stage(estimate(one, "cpu"))["train"].hours, by_stage(estimate(two, "cpu"))["train"].hours
    assert alone is not None and shared is not None
    # Jobs of 1, 1, 2, 2 units on two workers: 3 each.
    assert shared == pytest.approx(alone / 2)
    threads = by_stage(estimate(toy(tmp_path, "threads_per_job=2"), "cpu"))["train"].hours
    assert threads == pytest.approx(alone / 2)


def test_the_job_that_holds_most_is_shown_against_the_device() -> None:
    plan = load_plan("wire", rung="hero")
    cost = estimate(plan, "h100")
    assert by_stage(cost)["data"].memory is None, "unknown, not nothing"
    held = {name: each.memory for name, each in by_stage(cost).items() if each.memory is not None}
    most = max(held, key=lambda name: held[name].device)
    (line,) = [line for line in totals(cost).splitlines() if line.startswith("memory")]
    assert f"by one job of {most}, of 80 GB on h100 (weights 16.1 GB, " in line and "DOES NOT FIT" not in line
    assert "of the machine's own" in line, "the teacher's states are not on the device"
    assert held["stage-b"].host > 0 and held[most].device < 80e9
    assert "DOES NOT FIT" in totals(estimate(plan, "l4"))
    assert "DOES NOT FIT" not in totals(estimate(plan, "cpu")), "how much a CPU has is not known"
    whole = load_plan("wire", rung="hero", overrides=["hero.recipe={epochs: 1, batch_size: 16}"])
    assert "DOES NOT FIT" in totals(estimate(whole, "h100")), "16 whole texts at once"


def test_nothing_is_said_of_memory_where_no_kind_says_it(tmp_path: Path) -> None:
    assert "memory" not in totals(estimate(toy(tmp_path)))


def test_the_slower_of_arithmetic_and_memory_counts_and_measured_seconds_override() -> None:
    device = Device(name="d", flop_per_second={"fp32": 100.0, "bf16": 1000.0}, bytes_per_second=10.0)
    assert device.seconds(Work(flop=300)) == pytest.approx(300 / (100 * 0.30))
    assert device.seconds(Work(flop=300, precision="bf16")) == pytest.approx(1.0)
    assert device.seconds(Work(flop=300, bytes=1000)) == pytest.approx(100.0)
    assert device.seconds(Work(flop=300, bytes=1000, seconds=7.0)) == 7.0


def test_the_study_arm_of_the_specification_takes_its_15_to_40_minutes_on_an_h100() -> None:
    minutes = DEVICES["h100"].seconds(Work(flop=2.7e17, precision="bf16")) / 60
    assert 14 < minutes < 40


def test_unknown_devices_are_named_with_those_known(tmp_path: Path) -> None:
    with pytest.raises(StepwellError, match=r"unknown device `h10` \(did you mean `h100`\?\); devices: a100, cpu, "):
        estimate(toy(tmp_path), "h10")


def test_calibration_measures_this_machine_and_takes_the_place_of_the_data_sheet(own_home: Path) -> None:
    assert calibrated() == {}
    assert find_device("cpu") is DEVICES["cpu"]
    measured = calibrate("cpu")
    assert find_device("cpu") == measured == calibrated()["cpu"]
    assert measured.measured and measured.cores
    # Any core built in the last fifteen years lies between these, and so does its memory.
    assert 5e8 < measured.flop_per_second["fp32"] < 1e12
    assert 1e8 < measured.bytes_per_second < 1e12
    assert json.loads((own_home / "calibration.json").read_text())["cpu"]["measured"] is True


def test_calibration_that_cannot_be_read_or_made_says_so(own_home: Path) -> None:
    own_home.mkdir()
    for content in ("not json", "[]", '{"cpu": {"speed": 1}}'):
        (own_home / "calibration.json").write_text(content)
        with pytest.raises(StepwellError, match=r"calibration.json: not a calibration: "):
            find_device("cpu")
    with pytest.raises(StepwellError, match="device `mps` cannot be measured here"):
        calibrate("mps")
