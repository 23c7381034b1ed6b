"""Items crossed with seeds: the variance components of another library, coverage by simulation, and what one seed is
not enough for."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from stepwell.stats import crossed, crossed_error, crossed_mean, mechanism_claim, spread
from stepwell.stats.crossed import grid
from stepwell.stats.estimate import Floats
from stepwell.stats.intervals import clustered_error

TRIALS = 400
SLACK = 3 * math.sqrt(0.95 * 0.05 / TRIALS)


def drawn(rng: np.random.Generator, shape: tuple[int, int], item: float, seed: float, rest: float) -> Floats:
    """A table of mean 0 with the given standard deviations."""
    items, seeds = shape
    return rng.normal(0, item, (items, 1)) + rng.normal(0, seed, (1, seeds)) + rng.normal(0, rest, shape)


def labels(shape: tuple[int, int]) -> dict[str, Any]:
    """Items and seeds of a table that is read row by row."""
    items, seeds = shape
    return {"items": np.repeat(np.arange(items), seeds).tolist(), "seeds": np.tile(np.arange(seeds), items).tolist()}


def test_the_components_are_those_of_an_analysis_of_variance():
    anova = pytest.importorskip("statsmodels.stats.anova")
    formula = pytest.importorskip("statsmodels.formula.api")
    pandas = pytest.importorskip("pandas")
    table = drawn(np.random.default_rng(0), (12, 4), 1.0, 2.0, 0.5)
    long = pandas.DataFrame({"value": table.ravel(), **labels(table.shape)})
    squares = anova.anova_lm(formula.ols("value ~ C(items) + C(seeds)", long).fit())["mean_sq"]
    items, seeds, rest = squares["C(items)"], squares["C(seeds)"], squares["Residual"]
    found = spread(table.ravel(), **labels(table.shape))
    assert found is not None
    expected = ((items - rest) / 4, (seeds - rest) / 12, rest)
    assert (found.item, found.seed, found.rest) == pytest.approx(expected)
    error = crossed_error(table)
    assert error is not None
    assert error.error == pytest.approx(math.sqrt((items + seeds - rest) / 48))


@pytest.mark.parametrize("seeds", [3, 8])
@pytest.mark.parametrize("deviations", [(1, 0, 1), (0, 0, 1), (0.3, 0.3, 1), (0, 0.05, 1), (0, 0.5, 0.5)])
def test_crossed_intervals_cover_whichever_component_leads(seeds: int, deviations: tuple[float, float, float]):
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(TRIALS):
        error = crossed_error(drawn(rng, (120, seeds), *deviations))
        assert error is not None
        low, high = error.interval(0.95)
        hits += low <= 0 <= high
    assert hits / TRIALS >= 0.93 - SLACK


def test_clustering_by_items_alone_does_not_cover_new_seeds():
    rng = np.random.default_rng(2)
    where, hits = labels((100, 3))["items"], 0
    for _ in range(200):
        error = clustered_error(drawn(rng, (100, 3), 0.3, 0.3, 1).ravel(), where)
        assert error is not None
        low, high = error.interval(0.95)
        hits += low <= 0 <= high
    assert hits / 200 < 0.7


def resampled_coverage(shape: tuple[int, int], trials: int) -> float:
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(trials):
        low, high = np.quantile(crossed.pigeonhole(drawn(rng, shape, 0.2, 0.5, 0.5)), [0.025, 0.975])
        hits += low <= 0 <= high
    return hits / trials


def test_the_pigeonhole_bootstrap_covers_with_many_seeds_and_not_with_three(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(crossed, "RESAMPLES", 399)
    assert resampled_coverage((40, 40), 150) >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / 150)
    assert resampled_coverage((40, 3), 150) < 0.9


def test_many_items_and_seeds_are_resampled_and_few_are_not(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(crossed, "RESAMPLES", 999)
    rng = np.random.default_rng(4)
    for shape, method in [((40, 35), "pigeonhole"), ((40, 3), "crossed-t")]:
        table = 1 + drawn(rng, shape, 1, 1, 1)
        found = crossed_mean(table.ravel(), **labels(shape))
        assert (found.method, found.n, found.value) == (method, 40, pytest.approx(table.mean()))
        error = crossed_error(table)
        assert error is not None and found.low is not None and found.high is not None
        assert (found.low, found.high) == pytest.approx(error.interval(0.95), abs=0.6 * error.error)


def test_the_order_of_the_values_does_not_matter():
    rng = np.random.default_rng(5)
    table, where = drawn(rng, (20, 3), 1, 1, 1).ravel(), labels((20, 3))
    order = rng.permutation(60)
    moved: dict[str, Any] = {name: [given[i] for i in order] for name, given in where.items()}
    one, other = crossed_mean(table, **where), crossed_mean(table[order], **moved)
    assert (one.value, one.low, one.high) == pytest.approx((other.value, other.low, other.high))


def test_one_seed_has_no_interval_for_new_seeds():
    found = crossed_mean([1.0, 2.0, 3.0], items=[0, 1, 2], seeds=[0, 0, 0])
    assert (found.value, found.low, found.high, found.n) == (2.0, None, None, 3)
    assert spread([1.0, 2.0, 3.0], items=[0, 1, 2], seeds=[0, 0, 0]) is None
    nothing = crossed_mean([], items=[], seeds=[])
    assert (nothing.value, nothing.low, nothing.high, nothing.n) == (None, None, None, 0)


def test_a_table_with_holes_or_doubles_is_refused():
    with pytest.raises(ValueError, match="2 items x 2 seeds need 4 values, one each; found 3 values in 3 cells"):
        grid([1, 2, 3], [0, 0, 1], [0, 1, 0])
    with pytest.raises(ValueError, match="2 items x 2 seeds need 4 values, one each; found 4 values in 3 cells"):
        grid([1, 2, 3, 4], [0, 0, 1, 1], [0, 1, 0, 0])
    with pytest.raises(ValueError, match="2 values but 1 items and 2 seeds"):
        grid([1, 2], [0], [0, 1])


# --- claims about a mechanism


def answers(rng: np.random.Generator, share: float, shape: tuple[int, int]) -> list[int]:
    return (rng.random(shape) < share).astype(int).ravel().tolist()


@pytest.mark.parametrize(("seeds", "says"), [(1, "1 seed of each arm"), (2, "2 seeds of each arm")])
def test_fewer_than_three_seeds_carry_no_claim(seeds: int, says: str):
    rng = np.random.default_rng(6)
    shape = (400, seeds)
    claim = mechanism_claim(answers(rng, 0.9, shape), answers(rng, 0.5, shape), **labels(shape))
    assert (claim.verdict, claim.seeds, claim.p_value) == ("undefined", seeds, None)
    assert claim.reason == f"{says}; a claim about a mechanism needs at least 3"


def test_three_seeds_that_agree_carry_one():
    rng = np.random.default_rng(7)
    shape = (400, 3)
    good, bad = answers(rng, 0.9, shape), answers(rng, 0.5, shape)
    claim = mechanism_claim(good, bad, **labels(shape))
    assert claim.verdict == "above" and claim.p_value is not None and claim.p_value < 0.001
    assert "over 400 items x 3 seeds lies above 0" in claim.reason
    assert mechanism_claim(bad, good, **labels(shape)).verdict == "below"
    assert mechanism_claim(good, bad, threshold=0.39, **labels(shape)).verdict == "not shown"
    same = mechanism_claim(good, good, **labels(shape))
    assert (same.verdict, same.p_value) == ("undefined", None)


def test_seeds_that_differ_are_not_taken_for_a_mechanism():
    rng = np.random.default_rng(8)
    shape = (300, 3)
    claimed, plain = 0, 0
    for _ in range(200):
        lifts = rng.normal(0, 0.1, (2, 3))
        first, second = ((rng.random(shape) < 0.7 + lift).astype(int).ravel() for lift in lifts)
        claimed += mechanism_claim(first, second, **labels(shape)).verdict in ("above", "below")
        error = clustered_error(first - second, labels(shape)["items"])
        assert error is not None
        plain += error.p_value() < 0.05
    assert claimed / 200 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 200)
    assert plain / 200 > 0.3
