"""The rules of curve health on synthetic curves, each with noise and at several lengths."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from stepwell.analysis.curves import (
    RULES,
    CurveRules,
    Health,
    conflict,
    conflicts,
    count_swings,
    curve_health,
    has_plateau,
    is_zero,
    leak_check,
    smooth,
)

LENGTHS = (40, 200, 1000)


def time(n: int) -> np.ndarray:
    return np.linspace(0, 1, n)


def step_down(t: np.ndarray, at: float) -> np.ndarray:
    return 1 / (1 + np.exp((t - at) / 0.02))


CURVES = {
    "monotone": [
        lambda t: 11 * np.exp(-6 * t) + 0.05,
        lambda t: 8 - 7 * t,
        # Reaches its end early, and stays there: that plateau is the aim.
        lambda t: 5 * np.exp(-40 * t) + 0.5,
    ],
    "plateau then drop": [
        lambda t: 1 + 9 * step_down(t, 0.6),
        lambda t: 1 + 5 * step_down(t, 0.1) + 5 * step_down(t, 0.7),
    ],
    "oscillation": [
        lambda t: 4 * np.exp(-2 * t) + 2 * np.cos(2 * np.pi * 5 * t),
        lambda t: 3 + 2 * np.cos(2 * np.pi * 4 * t),
    ],
    "flat": [lambda t: 11 + 0 * t, lambda t: 11 - 0.8 * t, lambda t: 11 + 0.5 * t],
    "diverging": [
        lambda t: 4 * np.exp(-10 * t) + 8 * t**2,
        lambda t: 11 + 6 * t,
        lambda t: np.where(t < 0.7, 6 * np.exp(-6 * t), 5.0),
    ],
    "zero": [lambda t: 11 * np.clip(1 - 2 * t, 0, None)],
}
CASES = [(shape, which) for shape, curves in CURVES.items() for which in range(len(curves))]


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize(("shape", "which"), CASES)
def test_shapes_are_told(shape: str, which: int, n: int):
    clean = CURVES[shape][which](time(n))
    assert curve_health(clean).shape == shape
    if shape != "zero":
        for seed in range(5):
            noisy = np.abs(clean + 0.02 * np.random.default_rng(seed).standard_normal(n))
            assert curve_health(noisy).shape == shape


def test_only_two_shapes_are_healthy():
    found = {shape: curve_health(curves[0](time(100))).healthy for shape, curves in CURVES.items()}
    assert {shape for shape, healthy in found.items() if healthy} == {"monotone", "plateau then drop"}


def test_a_single_spike_changes_nothing():
    curve = 11 * np.exp(-6 * time(200)) + 0.05
    for place in (0, 50, 199):
        spiked = curve.copy()
        spiked[place] = 40.0
        assert curve_health(spiked).shape == "monotone"


def test_the_unit_of_the_steps_does_not_matter():
    # A tenth of the points, or ten times as many of the same curve, is the same shape.
    for shape, which in CASES:
        assert curve_health(CURVES[shape][which](time(2000))[::10]).shape == shape


def test_short_and_broken_curves():
    assert curve_health([]) == Health(shape=None, why="no losses")
    assert curve_health([3.0, 2.0, 1.0]) == Health(shape=None, why="3 losses; a shape needs 8")
    assert curve_health([3.0]).healthy is None
    assert curve_health([3.0, 0.0]).shape == "zero"
    broken = curve_health([3.0, float("nan"), float("inf")])
    assert broken == Health(shape="diverging", why="2 losses are not finite")
    assert broken.healthy is False


def test_the_story_tells_the_numbers():
    assert curve_health(8 - 7 * time(141)).why.endswith("in the end")
    assert "nats a token at first, 1" in curve_health(8 - 7 * time(141)).why


def test_zero_is_a_bound_in_nats():
    assert is_zero([5.0, 1e-7])
    assert not is_zero([5.0, 1e-3])
    assert is_zero([5.0, 1e-3], CurveRules(zero_nats=1e-2))


def test_smoothing_is_a_running_median():
    curve = np.random.default_rng(0).standard_normal(200)
    window = 5
    expected = [np.median(np.pad(curve, window, mode="edge")[i : i + 2 * window + 1]) for i in range(200)]
    np.testing.assert_allclose(smooth(curve), expected)
    assert len(smooth([1.0, 2.0])) == 2


def test_swings_count_climbs_of_a_fifth_of_the_descent():
    def zigzag(depth: float, times: int) -> np.ndarray:
        corners = [10.0, 5.0] + [value for _ in range(times) for value in (5.0 + depth, 5.0)] + [0.0]
        return np.concatenate([np.linspace(a, b, 20) for a, b in pairwise(corners)])

    for times in range(5):
        assert count_swings(zigzag(2.5, times)) == times
        assert count_swings(zigzag(1.5, times)) == 0
    assert count_swings(np.full(50, 3.0)) == 0


def test_a_plateau_must_last_and_be_left():
    assert has_plateau(10 * step_down(time(200), 0.5), RULES)
    assert not has_plateau(10 * step_down(time(200), 0.15), RULES)
    assert not has_plateau(np.concatenate([np.linspace(10, 1, 50), np.full(150, 1.0)]), RULES)


def test_many_zeros_raise_an_alarm_and_a_few_do_not():
    assert leak_check([True] * 10 + [False] * 10).alarm
    few = leak_check([True] * 3 + [False] * 97)
    assert not few.alarm
    assert few.share.value == pytest.approx(0.03)
    # One of one is a large share, and no evidence: Wilson's interval begins at .21 there, above a limit of .05.
    assert leak_check([True]).alarm
    assert not leak_check([True], limit=0.25).alarm
    assert leak_check([]).share.value is None
    assert not leak_check([]).alarm


def test_conflict_is_that_of_the_changes_not_of_the_levels():
    generator = np.random.default_rng(1)
    alarms = {"against": 0, "apart": 0, "with": 0}
    for _ in range(20):
        push = np.cumsum(generator.standard_normal(400)) * 0.05
        other = np.cumsum(generator.standard_normal(400)) * 0.05
        base = 10 - 2 * time(400)
        results = {
            "against": conflict(base + push, base - push),
            "apart": conflict(base + push, base + other),
            "with": conflict(base + push, base + push),
        }
        alarms = {name: count + (results[name] or 0) for name, count in alarms.items()}
    assert alarms["against"] / 20 < -0.9
    assert abs(alarms["apart"] / 20) < 0.2
    assert alarms["with"] / 20 == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (np.arange(5.0), np.arange(5.0)),
        (np.full(100, 1.0), np.arange(100.0) ** 2),
        (np.append(np.arange(99.0), np.nan), np.arange(100.0)),
    ],
)
def test_conflict_can_be_undefined(first: np.ndarray, second: np.ndarray):
    assert conflict(first, second) is None


def test_conflict_wants_curves_of_one_problem():
    with pytest.raises(ValueError, match="curves of 3 and 4 losses"):
        conflict([1, 2, 3], [1, 2, 3, 4])


def test_conflicts_over_problems():
    found = conflicts([-0.5, -0.6, -0.4, None])
    assert found.alarm
    assert (found.correlation.n, found.undefined) == (3, 1)
    assert found.correlation.value == pytest.approx(-0.5)
    assert not conflicts([-0.5, 0.6, 0.1]).alarm
    nothing = conflicts([None])
    assert (nothing.correlation.value, nothing.undefined, nothing.alarm) == (None, 1, False)
