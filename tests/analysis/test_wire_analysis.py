"""What a training of `wire` is said to have done: against hand-made curves, other implementations and simulations."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest, linregress, t

from stepwell.analysis.wire import Look, analyse_training, breakthroughs, curve_of, label_of, regressions
from stepwell.analysis.wire_forecast import Point, forecast
from stepwell.analysis.wire_ladder import Run, examples_by_job, hero_examples, outlooks


def steps(*hits: int, n: int = 200, majority: float | None = None, **fields: Any) -> list[dict[str, Any]]:
    """A record of a step for each number of hits of n."""
    return [
        {"kind": "step", "step": 10 * place, "first_acc": hit / n, "n": n, "majority_acc": majority, "mode": "b",
         "items": 4, "grad_norm": 1.0, "skipped": False, **fields}
        for place, hit in enumerate(hits, 1)
    ]  # fmt: skip


def curve(*hits: int, n: int = 200, majority: float | None = None) -> Any:
    found = curve_of("first_acc", steps(*hits, n=n, majority=majority))
    assert found is not None
    return found


# Curves.


def test_intervals_are_wilsons_and_hold_all_together() -> None:
    found = curve(10, 20, 60, 40, majority=0.06)
    for look, hits in zip(found.looks, (10, 20, 60, 40), strict=True):
        ends = binomtest(hits, 200).proportion_ci(confidence_level=1 - 0.05 / 5, method="wilson")
        assert (look.value, look.low, look.high) == pytest.approx((hits / 200, ends.low, ends.high))
    assert found.baseline is not None and found.baseline.value == 0.06
    assert (found.peak.step, found.final.step, found.final_over_peak) == (30, 40, pytest.approx(40 / 60))


def test_peaks_breakthroughs_and_a_regression_are_found() -> None:
    found = curve(12, 40, 100, 104, 30, 28, 100, majority=0.06)
    assert [(up.look.step, up.above.step) for up in found.breakthroughs] == [(20, 0), (30, 20)]
    (down,) = found.regressions
    assert (down.best.step, down.start.step, down.lowest.step, down.end) == (40, 50, 60, 70)
    (open_,) = curve(100, 20).regressions
    assert open_.end is None and open_.start == open_.lowest


def test_03_one_or_two_hits_of_24_are_no_breakthrough() -> None:
    """Fault 03: "breakthroughs" of 4.17% and 8.33%, which were 1 and 2 hits of 24."""
    found = curve(0, 1, 0, 2, 1, n=24, majority=0.0)
    assert found.peak.value == pytest.approx(2 / 24) and found.peak.low < 0.02
    assert not found.breakthroughs and not found.regressions


def test_03_a_peak_that_is_the_commonest_token_is_no_breakthrough() -> None:
    """Fault 03: a "20.8% peak" that was the word "the"."""
    assert not curve(0, 42, 0, 42, majority=0.208).breakthroughs
    assert curve(0, 42, 120, 42, majority=0.208).breakthroughs, "and one far above it is"


def test_noise_seldom_breaks_through_or_falls_back() -> None:
    rng = np.random.default_rng(0)
    alarms = 0
    for _ in range(300):
        found = curve(*rng.binomial(200, 0.2, size=40).tolist(), majority=0.2)
        alarms += bool(found.breakthroughs or found.regressions)
    assert alarms <= 6, "intervals that hold together at 95%, and that must not touch"


def test_f1_is_read_from_held_out_answers_and_its_first_hit_is_named() -> None:
    answers = [{"kind": "validation", "step": s, "n": 32, "f1": f1, "best_f1": f1} for s, f1 in ((5, 0.0), (9, 0.02))]
    alert = {"kind": "alert", "step": 9, "monitor": "first-f1", "message": "first"}
    found = analyse_training("stage-b.bytes.16.0", [*steps(10), *answers, alert, {"kind": "outcome", "steps": 10}])
    assert found is not None and found.finished and found.first_f1_step == 9
    assert found.curves["f1"].peak.value == 0.02 and found.alerts == ((9, "first-f1", "first"),)
    assert json.loads(json.dumps(found.to_json()))["curves"]["f1"]["peak"]["step"] == 9


def test_a_training_that_runs_still_is_analysed_and_one_that_has_not_begun_is_none() -> None:
    found = analyse_training("stage-a.bytes", steps(1, 2, grad_norm=None, skipped=True, arm="bytes", seed=0))
    assert found is not None and not found.finished and found.first_f1_step is None
    assert found.max_grad_norm is None and found.skipped == 2 and "f1" not in found.curves
    assert label_of({"arm": "bytes", "vectors": 16, "seed": 0}) == "bytes, 16 vectors, seed 0"
    assert analyse_training("stage-a.bytes", [{"kind": "check"}]) is None


@pytest.mark.parametrize("bad", [None, "x", True, -1, 1e300, math.nan, [1], {}])
def test_no_field_can_break_it(bad: Any) -> None:
    whole = [*steps(10, 20, majority=0.1), {"kind": "validation", "step": 3, "n": 4, "f1": 0.5, "best_f1": 1.0}]
    for name in {name for record in whole for name in record} - {"kind"}:
        analyse_training("a.b", [{**record, name: bad} for record in whole])
        analyse_training("a.b", [*whole, *({**record, name: bad} for record in whole)])


def test_ends_that_touch_are_not_sure() -> None:
    level, touching = (Look(step=s, value=v, low=v - 0.1, high=v + 0.1, n=9) for s, v in ((1, 0.25), (2, 0.45)))
    assert breakthroughs([level, touching], None) == () == regressions([touching, level])


# Forecasts.


def points(values: dict[int, list[float]], n: int = 1000) -> list[Point]:
    return [Point(examples=size, value=value, n=n) for size, some in values.items() for value in some]


def by_hand(x: np.ndarray, y: np.ndarray, at: float, least: float) -> tuple[float, float, float]:
    """A prediction interval from scipy's regression and the textbook's formula."""
    fit: Any = linregress(x, y)
    value = fit.intercept + fit.slope * at
    variance = max(float(((y - fit.intercept - fit.slope * x) ** 2).sum()) / (len(x) - 2), least)
    reach = t.ppf(0.975, len(x) - 2) * math.sqrt(variance * (1 + 1 / len(x) + (at - x.mean()) ** 2 / x.var() / len(x)))
    return value, value - reach, value + reach


def test_a_forecast_is_the_hull_of_two_prediction_intervals() -> None:
    given = {1000: [0.10, 0.12, 0.11], 2000: [0.15, 0.17, 0.16], 4000: [0.20, 0.22, 0.21]}
    found = forecast(points(given), 16000)
    sizes = np.repeat(np.array([1000.0, 2000.0, 4000.0]), 3)
    y = np.arcsin(np.sqrt(np.array([value for some in given.values() for value in some])))
    least = 1 / 4000
    fits = [by_hand(np.log(sizes), y, math.log(16000), least), by_hand(sizes**-0.5, y, 16000**-0.5, least)]
    back = [[math.sin(end) ** 2 for end in fit] for fit in fits]
    assert (found.value, found.low, found.high) == pytest.approx(
        (np.mean([fit[0] for fit in back]), min(fit[1] for fit in back), max(fit[2] for fit in back))
    )
    assert found.checked and not found.refused and found.points == 9 and found.sizes == (1000, 2000, 4000)


@pytest.mark.parametrize("power", [True, False])
def test_forecasts_hold_what_they_promise(power: bool) -> None:
    """Curves that go on, and curves that level off: where anything is said, the truth is inside in 95% at least."""
    rng, inside, said = np.random.default_rng(1), 0, 0

    def truth(size: float) -> float:
        return math.sin(0.05 * math.log(size) - 0.2 if power else 0.5 - 6 / math.sqrt(size)) ** 2

    for _ in range(300):
        given = {size: [float(rng.binomial(400, truth(size)) / 400) for _ in range(3)] for size in (1000, 2000, 4000)}
        found = forecast(points(given, n=400), 16000)
        if not found.refused:
            said += 1
            inside += found.low <= rng.binomial(400, truth(16000)) / 400 <= found.high  # type: ignore[operator]
    assert said > 200 and inside >= 0.95 * said


GROWN = {1000: [0.10, 0.11], 2000: [0.15, 0.16], 4000: [0.20, 0.21]}


@pytest.mark.parametrize(
    ("given", "examples", "why"),
    [
        ({}, 9000, "no shorter training has been answered"),
        (GROWN, None, "does not say how long"),
        (GROWN, 500, "no shorter training has been answered"),
        ({1000: [0.1] * 4, 4000: [0.2] * 4}, 9000, "3 lengths of training are needed, and there are 2"),
        ({1000: [0.1], 2000: [0.2], 4000: [0.3]}, 9000, "4 trainings are needed, and there are 3"),
        ({1000: [0.0] * 2, 2000: [0.0] * 2, 4000: [0.0] * 2}, 9000, "no shorter training came to more than 0"),
        (GROWN, 4000 * 20, "20 times as long as the longest; 16 times is the most"),
        ({1000: [0.1, 0.5], 2000: [0.5, 0.1], 4000: [0.3, 0.3]}, 60000, "covers more than half"),
        ({1000: [0.1] * 4, 2000: [0.101] * 4, 4000: [0.6] * 4}, 9000, "the trend does not hold"),
    ],
)
def test_what_cannot_be_forecast_says_why(given: dict[int, list[float]], examples: int | None, why: str) -> None:
    found = forecast(points(given), examples)
    assert why in found.refused
    assert (found.value, found.low, found.high) == (None, None, None)


def test_trainings_of_different_settings_are_not_mixed() -> None:
    mixed = [*points(GROWN)[:3], *(Point(**{**vars(p), "setting": "other"}) for p in points(GROWN)[3:])]
    assert "differ in contract, model or items" in forecast(mixed, 9000).refused


# The ladder.


def ladder(*done: str, f1: dict[str, float] | None = None, seeds: int = 2, **hero: Any) -> Run:
    """A run with these stages of B ended: 100 steps of 4 examples, `sampling` after `stage-b`."""
    recipe = {"steps": 2000, "epochs": None, "batch_size": 4, "accumulation": 2} | hero
    names = {"stage-b": "stage-a", "sweep": "stage-a", "sampling": "stage-b", "hero": "stage-a"}
    stages: list[dict[str, Any]] = [{"name": "stage-a", "kind": "wire.stage-a", "needs": ["data"]}]
    for name, before in names.items():
        params = {"items": 0, "recipe": recipe} if name == "hero" else {}
        stages += [
            {"name": name, "kind": "wire.stage-b", "needs": ["data", before], "params": params},
            {"name": f"answer-{name}", "kind": "wire.answer", "needs": ["text", name]},
        ]
    records: dict[str, list[dict[str, Any]]] = {"data": [{"kind": "dataset", "set": "train", "n": 1003}]}
    length = {"stage-b": 100, "sweep": 400, "sampling": 300, "hero": 4000}
    for name in done:
        for seed in range(seeds):
            axes = {"arm": "bytes", "vectors": 16, "seed": seed}
            about = {"kind": "parameters", "contract": "c", "base": "b"}
            end = {"kind": "outcome", "steps": length[name]}
            key = f"bytes.16.{seed}"
            records[f"{name}.{key}"] = [{**r, **axes} for r in (about, *steps(20 + seed, 30), end)]
            value = (f1 or {}).get(name, 0.2) + seed / 100
            items = [{"kind": "item", "condition": "latent", "vectors": 16, "id": i, "f1": value} for i in range(50)]
            other = {"kind": "item", "condition": "zeros", "vectors": 16, "id": 0, "f1": 1.0}
            records[f"answer-{name}.{key}"] = [*items, other]
    return Run(plan={"stages": stages}, records=records)


def test_examples_are_counted_over_the_trainings_gone_on_from() -> None:
    run = ladder("stage-b", "sweep", "sampling", seeds=1)
    assert examples_by_job(run) == {"stage-b.bytes.16.0": 400, "sweep.bytes.16.0": 1600, "sampling.bytes.16.0": 1600}
    assert examples_by_job(ladder("sampling", seeds=1)) == {}, "what it went on from is not known"


def test_the_heros_length_is_the_plans() -> None:
    assert hero_examples(ladder()) == 2000 * 8
    assert hero_examples(ladder(steps=None, epochs=3)) == 3 * (1003 // 8) * 8
    assert hero_examples(Run(plan={}, records={})) is None
    assert hero_examples(Run(plan={"stages": "x"}, records={})) is None


def test_one_run_or_several_make_the_ladder_and_the_hero_is_measured_against_it() -> None:
    grown = {"stage-b": 0.1, "sampling": 0.2, "sweep": 0.2, "hero": 0.4}
    (f1, first) = outlooks([ladder("stage-b", "sampling", "sweep", "hero", f1=grown)])
    assert (f1.metric, f1.arm, f1.vectors, first.metric) == ("f1", "bytes", 16, "first_acc")
    assert f1.forecast.points == 6 and f1.measured == pytest.approx(0.405)
    assert "3 lengths of training are needed" in f1.forecast.refused
    longer = ladder("sweep", f1={"sweep": 0.25})
    longer.records["sweep.bytes.16.0"][-1]["steps"] = longer.records["sweep.bytes.16.1"][-1]["steps"] = 800  # type: ignore[index]
    (f1, _) = outlooks([ladder("stage-b", "sweep", f1=grown), longer], examples=6400)
    assert f1.forecast.sizes == (400, 1600, 3200) and f1.forecast.examples == 6400 and f1.forecast.checked
    assert f1.forecast.value is not None and 0.2 < f1.forecast.value < 0.35 and f1.measured is None
    assert json.loads(json.dumps(f1.to_json()))["forecast"]["points"] == 6


def test_a_run_with_nothing_ended_has_no_outlook() -> None:
    assert outlooks([ladder()]) == []
    assert outlooks([Run(plan={"stages": [{"name": "x"}]}, records={"x": [{"kind": "step"}]})]) == []
