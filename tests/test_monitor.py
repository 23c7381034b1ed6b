"""Each planted curve is found by its monitor and by no other; curves as they should be raise nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from stepwell.monitor import Alert, Watch
from stepwell.recipe import Monitors

ALL_ALERT = Monitors(nan="alert", divergence="alert")
N = 500


def watched(losses: Any, spec: Monitors = ALL_ALERT, norms: Sequence[float] | None = None) -> list[Alert]:
    watch = Watch(spec)
    return [
        alert
        for step, loss in enumerate(losses, 1)
        for alert in watch.loss(step, float(loss), 1.0 if norms is None else norms[step - 1])
    ]


def looked_at(rights: Any, spec: Monitors = ALL_ALERT, n: int = N) -> list[Alert]:
    watch = Watch(spec)
    return [alert for look, right in enumerate(rights, 1) for alert in watch.accuracy(100 * look, int(right), n)]


def names(alerts: Sequence[Alert]) -> list[tuple[str, int]]:
    return [(alert.monitor, alert.step) for alert in alerts]


def falling(steps: int = 3000, seed: int = 0, noise: float = 0.1) -> np.ndarray:
    """A loss that falls from 3 to .05 with noise in proportion, and now and then a spike."""
    rng = np.random.default_rng(seed)
    curve = 0.05 + 2.95 * np.exp(-np.arange(steps) / 600)
    curve *= np.exp(noise * rng.standard_normal(steps))
    curve[rng.integers(0, steps, 10)] *= 3
    return curve


# ---- the loss


@pytest.mark.parametrize("seed", range(10))
def test_a_clean_loss_raises_nothing(seed: int) -> None:
    assert watched(falling(seed=seed)) == []


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_or_gradient_that_is_not_finite_is_found(value: float) -> None:
    curve = falling(100)
    norms = np.ones(100)
    norms[30] = value
    (alert,) = watched(curve, norms=norms.tolist())
    assert (alert.monitor, alert.step, alert.stop) == ("nan", 31, False)
    assert alert.message == f"loss {float(curve[30])}, gradient norm {value}: not finite"
    curve[70] = value
    assert names(watched(curve)) == [("nan", 71)]


def test_what_is_not_finite_is_kept_out_of_the_averages() -> None:
    curve = falling()
    curve[[0, 5, 800]] = math.nan
    assert names(watched(curve)) == [("nan", 1), ("nan", 6), ("nan", 801)]


@pytest.mark.parametrize("level", [0.01, 0.693, 8.0])
def test_a_flat_loss_is_found_once(level: float) -> None:
    rng = np.random.default_rng(1)
    (alert,) = watched(level * np.exp(0.02 * rng.standard_normal(2000)))
    assert (alert.monitor, alert.step) == ("flat", 500)
    assert alert.message.startswith(f"loss {level:.2f}"[:8]) and alert.message.endswith("after 500 steps")


def test_a_slow_loss_is_not_flat() -> None:
    assert watched(np.linspace(2.0, 1.9, 500)) == []
    assert names(watched(np.linspace(2.0, 1.99, 500))) == [("flat", 500)]


def test_a_diverging_loss_is_found_soon() -> None:
    curve = falling(2000)
    curve[1500:] = 3.0
    alerts = watched(curve)
    assert {alert.monitor for alert in alerts} == {"divergence"} and 1500 < alerts[0].step < 1530
    assert "after a best of 0." in alerts[0].message
    assert len(alerts) <= 3, "told again when it has tripled again, not at each step"


def test_a_loss_that_explodes_from_the_start_is_found() -> None:
    alerts = watched(np.exp(np.linspace(0, 10, 400)))
    assert {alert.monitor for alert in alerts} == {"divergence"}
    assert 2 <= len(alerts) <= 10 and alerts[0].step < 150


def test_near_zero_a_ratio_is_no_divergence() -> None:
    curve = np.full(3000, 1e-4)
    curve[:300] = np.linspace(2, 1e-4, 300)
    curve[2000:] = 0.04
    assert watched(curve) == []


def test_a_new_stage_is_another_task() -> None:
    """Its loss jumps, and its accuracy falls back: that is the curriculum, no divergence and no collapse."""
    for told in (True, False):
        watch, found = Watch(ALL_ALERT), []
        for step in range(1, 1201):
            found += watch.loss(step, 0.05 if step <= 600 else 2.0 * math.exp(-(step - 600) / 200), 1.0)
            if step % 100 == 0:
                found += watch.accuracy(step, 490 if step <= 600 else 260, N)
            if step == 600 and told:
                watch.new_stage()
        wanted = [("breakthrough", 100), ("flat", 500)]
        assert names(found)[:2] == wanted
        assert {name for name, _ in names(found)[2:]} == (set() if told else {"divergence", "collapse"})


@pytest.mark.parametrize("seed", range(10))
def test_a_stage_that_begins_with_an_easier_batch_has_not_diverged(seed: int) -> None:
    """A fifth of the batches are of an earlier stage, the first too: the average must settle first."""
    rng = np.random.default_rng(seed)
    easy = rng.random(600) < 0.2
    easy[0] = True
    watch = Watch(ALL_ALERT)
    found = [alert for step in range(1, 301) for alert in watch.loss(step, 2.0 * math.exp(-step / 60), 1.0)]
    watch.new_stage()
    for step, loss in enumerate(np.where(easy, 0.14, 0.45), 301):
        found += watch.loss(step, float(loss), 1.0)
    assert found == []


def test_flat_asks_about_the_start_alone() -> None:
    """A later stage whose task is learnt already has nothing to fall from."""
    watch, found = Watch(ALL_ALERT), []
    for step in range(1, 1601):
        found += watch.loss(step, 2.0 * math.exp(-step / 200) if step <= 800 else 0.5, 1.0)
        if step == 800:
            watch.new_stage()
    assert found == []


# ---- accuracy


def test_a_breakthrough_is_found_once() -> None:
    rights = [250, 245, 260, 255, 330, 420, 480, 200, 490]
    alerts = [a for a in looked_at(rights) if a.monitor == "breakthrough"]
    assert names(alerts) == [("breakthrough", 500)]
    assert alerts[0].message == "accuracy 0.660 of 500, above 0.5"


def test_chance_is_what_the_plan_says_it_is() -> None:
    rights = [330] * 3
    assert names(looked_at(rights, Monitors(chance=0.75))) == []
    assert names(looked_at([100, 100], Monitors(chance=0.0))) == [("breakthrough", 100)]


def test_a_collapse_is_found_once() -> None:
    alerts = looked_at([300, 400, 480, 485, 260, 255, 480, 250])
    assert names(alerts) == [("breakthrough", 100), ("collapse", 500)]
    assert alerts[1].message == "accuracy 0.520 of 500 after a best of 0.970"


def test_a_collapse_may_come_slowly() -> None:
    """Each look is near the one before; the best is what counts."""
    assert names(looked_at([480, 470, 460, 450])) == [("breakthrough", 100), ("collapse", 400)]
    assert [name for pair in ([480, 470], [470, 460], [460, 450]) for name, _ in names(looked_at(pair))] == [
        "breakthrough"
    ] * 3


def test_few_items_cannot_tell_a_collapse() -> None:
    assert [a for a in looked_at([9, 5], n=10) if a.monitor == "collapse"] == []
    assert looked_at([0, 0], n=0) == []


@pytest.mark.parametrize("rate", [0.5, 0.9])
def test_curves_that_only_fluctuate_rarely_raise_anything(rate: float) -> None:
    """Each look an independent sample: the worst case. At 95% a look, more than a third would alarm."""
    rng = np.random.default_rng(2)
    trainings, looks = 400, 60
    spec = Monitors(chance=rate)
    alarmed = sum(bool(looked_at(rng.binomial(N, rate, looks), spec)) for _ in range(trainings))
    assert alarmed / trainings <= 0.05


@pytest.mark.parametrize("seed", range(10))
def test_a_rising_accuracy_raises_its_breakthrough_only(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rates = 0.5 + 0.48 / (1 + np.exp(-(np.arange(30) - 12) / 2))
    assert [name for name, _ in names(looked_at(rng.binomial(N, rates)))] == ["breakthrough"]


# ---- what the plan wants


PLANTED = {
    "nan": ([1.0, math.nan], []),
    "flat": ([1.0] * 500, []),
    "divergence": ([1.0] * 60 + [50.0] * 4, []),
    "breakthrough": ([], [250, 450]),
    "collapse": ([], [150, 240, 10]),
}


@pytest.mark.parametrize("monitor", PLANTED)
@pytest.mark.parametrize("action", ["alert", "stop", "off"])
def test_each_monitor_stops_alerts_or_is_off(monitor: str, action: str) -> None:
    losses, rights = PLANTED[monitor]
    spec = Monitors.model_validate({monitor: action})
    found = watched(losses, spec) + looked_at(rights, spec)
    mine = [alert for alert in found if alert.monitor == monitor]
    assert {alert.monitor for alert in found} <= {monitor}
    assert [alert.stop for alert in mine] == ([] if action == "off" else [action == "stop"])


def test_by_default_only_what_cannot_be_repaired_stops() -> None:
    spec = Monitors()
    actions = {name: getattr(spec, name) for name in PLANTED}
    assert actions == {
        "nan": "stop", "flat": "alert", "divergence": "stop", "breakthrough": "alert", "collapse": "alert"
    }  # fmt: skip


# ---- its state


def test_a_watch_goes_on_from_its_state() -> None:
    """Cut anywhere, through JSON: the same alerts at the same steps."""
    rng = np.random.default_rng(3)
    losses = np.concatenate([np.full(600, 2.0), falling(600), np.full(100, 9.0)])
    rights = rng.binomial(N, [0.5] * 5 + [0.95] * 4 + [0.2] * 4)

    def run(watch: Watch, first: int, last: int) -> list[Alert]:
        found = []
        for step in range(first, last):
            found += watch.loss(step + 1, float(losses[step]), 1.0)
            if step % 100 == 99:
                found += watch.accuracy(step + 1, int(rights[step // 100]), N)
            if step == 1000:
                watch.new_stage()
        return found

    whole = run(Watch(ALL_ALERT), 0, len(losses))
    assert {alert.monitor for alert in whole} >= {"flat", "divergence", "breakthrough"}
    for cut in (1, 450, 700, 1001, 1250):
        first = Watch(ALL_ALERT)
        before = run(first, 0, cut)
        second = Watch.from_state(ALL_ALERT, json.loads(json.dumps(first.state())))
        assert before + run(second, cut, len(losses)) == whole
