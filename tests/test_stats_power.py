"""Power: against another library, against every table of a small experiment, and against simulated experiments."""

from __future__ import annotations

import math

import numpy as np
import pytest

from stepwell.stats import (
    Spread,
    crossed_error,
    crossed_power,
    items_for,
    items_for_mcnemar,
    items_for_mcnemar_about,
    mcnemar_exact,
    mcnemar_power,
    paired_power,
    pairs_for,
    seeds_for,
)


def test_the_paired_t_test_has_the_power_that_statsmodels_gives():
    reference = pytest.importorskip("statsmodels.stats.power").TTestPower()
    for d_z, n in [(0.2, 50), (0.5, 20), (-0.8, 10), (1.5, 4)]:
        assert paired_power(d_z, n) == pytest.approx(reference.power(abs(d_z), n, 0.05), abs=1e-6)
    for d_z in (0.1, 0.3, 1.0):
        assert pairs_for(d_z, power=0.9) == math.ceil(reference.solve_power(d_z, alpha=0.05, power=0.9))
    assert pairs_for(0.0) is None
    assert paired_power(1.0, 1) == 0.0


def test_mcnemar_has_the_power_of_all_tables_summed():
    n, first, second = 14, 0.35, 0.05
    total = 0.0
    for b in range(n + 1):
        for c in range(n + 1 - b):
            ways = math.comb(n, b) * math.comb(n - b, c)
            weight = ways * first**b * second**c * (1 - first - second) ** (n - b - c)
            total += weight * (mcnemar_exact(b, c) <= 0.05)
    assert mcnemar_power(n, first, second) == pytest.approx(total, abs=1e-12)
    assert mcnemar_power(0, first, second) == mcnemar_power(n, 0, 0) == 0.0


@pytest.mark.parametrize(("first", "second"), [(0.2, 0.1), (0.06, 0.02), (0.05, 0.0), (0.3, 0.7)])
def test_the_items_found_have_the_power_and_fewer_have_not(first: float, second: float):
    n = items_for_mcnemar(first, second)
    assert n is not None
    assert all(mcnemar_power(n + more, first, second) >= 0.8 for more in range(20))
    assert mcnemar_power(n - 1, first, second) < 0.8
    about = items_for_mcnemar_about(first, second)
    # The exact test needs a little more than the closed form of the plain one: about 1 / difference.
    assert about is not None and about <= n + 2 <= about + 3 + 3 / abs(first - second)


def test_the_items_found_hold_what_they_promise():
    n = items_for_mcnemar(0.12, 0.05)
    assert n is not None
    tables = np.random.default_rng(0).multinomial(n, [0.12, 0.05, 0.83], size=2000)
    shown = np.mean([mcnemar_exact(int(b), int(c)) <= 0.05 for b, c, _ in tables])
    assert shown == pytest.approx(0.8, abs=3 * math.sqrt(0.16 / 2000) + 0.01)


def test_no_difference_is_never_shown_however_many_items():
    assert items_for_mcnemar(0.1, 0.1) is None and items_for_mcnemar_about(0.1, 0.1) is None
    assert items_for_mcnemar(0.10001, 0.1) is None
    with pytest.raises(ValueError, match=r"0.8 and 0.7 are no probabilities"):
        mcnemar_power(10, 0.8, 0.7)
    with pytest.raises(ValueError, match=r"must lie in \(0, 1\), found 0.05 and 80"):
        items_for_mcnemar(0.2, 0.1, power=80)


@pytest.mark.parametrize(("items", "seeds"), [(100, 3), (50, 6)])
def test_power_over_items_and_seeds_is_what_simulated_experiments_show(items: int, seeds: int):
    rng = np.random.default_rng(1)
    spread, difference, trials, shown = Spread(item=0.2, seed=0.01, rest=0.3), 0.25, 800, 0
    for _ in range(trials):
        table = difference + rng.normal(0, math.sqrt(0.2), (items, 1)) + rng.normal(0, 0.1, (1, seeds))
        error = crossed_error(table + rng.normal(0, math.sqrt(0.3), (items, seeds)))
        assert error is not None
        shown += error.p_value() <= 0.05
    # The degrees of freedom are themselves estimated, which the formula does not know.
    assert crossed_power(difference, spread, items=items, seeds=seeds) == pytest.approx(shown / trials, abs=0.08)


def test_items_do_not_make_up_for_seeds_nor_seeds_for_items():
    wild = Spread(item=0.0, seed=0.04, rest=0.2)
    assert items_for(0.1, wild, seeds=3) is None
    found = seeds_for(0.1, wild, items=300)
    assert found is not None and found > 20
    reached, one_less = (crossed_power(0.1, wild, items=300, seeds=n) for n in (found, found - 1))
    assert reached >= 0.8 > one_less
    coarse = Spread(item=1.0, seed=0.0, rest=0.2)
    assert seeds_for(0.1, coarse, items=30) is None
    enough = items_for(0.1, coarse, seeds=5)
    assert enough is not None
    assert crossed_power(0.1, coarse, items=enough, seeds=5) >= 0.8
    assert crossed_power(0.1, coarse, items=1, seeds=5) == crossed_power(0.1, coarse, items=50, seeds=1) == 0.0
