"""Probes: exact p-values, honest folds, a planted code found, noise left alone, and scikit-learn's own ridge."""

from __future__ import annotations

from itertools import permutations as every_order

import numpy as np
import pytest
from scipy import stats
from sklearn.linear_model import RidgeClassifier
from sklearn.preprocessing import StandardScaler

from stepwell.analysis.probing import (
    PROBES,
    Fold,
    check_folds,
    hits,
    make_folds,
    permutation_p,
    probed,
    ridge,
    unfit,
)
from stepwell.errors import StepwellError


def planted(n: int, width: int, classes: int, strength: float, seed: int = 0) -> tuple[np.ndarray, list[str]]:
    """States that are noise plus `strength` x a direction of the label's own."""
    rng = np.random.default_rng(seed)
    codes, labels = rng.normal(size=(classes, width)), rng.integers(classes, size=n)
    return rng.normal(size=(n, width)) + strength * codes[labels], [f"c{label}" for label in labels]


def folds_of(n: int, folds: int = 4, inner: int = 3, seed: int = 0) -> tuple[Fold, ...]:
    return make_folds(n, folds=folds, inner=inner, seed=seed)


# ---- what a probe finds


@pytest.mark.parametrize("probe", ["ridge", "mlp"])
def test_a_planted_code_is_found_and_noise_is_not(probe: str) -> None:
    few = 19 if probe == "ridge" else 3
    common = {"probe": probe, "permutations": few, "smallest_class": 5, "seed": 1}
    x, labels = planted(120, 8, 4, 1.5)
    found = probed(x, labels, folds_of(120), **common)
    assert found.accuracy is not None and found.low is not None and found.control_accuracy is not None
    assert found.accuracy > 0.8 and found.low > 0.7 and found.control_accuracy < 0.4
    assert found.selectivity == pytest.approx(found.accuracy - found.control_accuracy)
    assert found.p_value == 1 / (few + 1) and found.permutations == few
    assert (found.n, found.classes, found.undefined) == (120, 4, None)
    assert found.chance == max(labels.count(label) for label in set(labels)) / 120
    noise = probed(np.random.default_rng(7).normal(size=(120, 8)), labels, folds_of(120), **common)
    assert noise.low is not None and noise.chance is not None and noise.selectivity is not None
    assert noise.low <= noise.chance and noise.selectivity < 0.15
    if probe == "ridge":
        assert noise.p_value is not None and noise.p_value > 0.05


def test_a_code_that_no_plane_separates_is_found_by_the_mlp_alone() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 2))
    labels = [str(int(a * b > 0)) for a, b in x]
    found = {
        probe: probed(x, labels, folds_of(400), probe=probe, permutations=0, smallest_class=5, seed=0).accuracy
        for probe in PROBES
    }
    assert found["mlp"] is not None and found["ridge"] is not None
    assert found["mlp"] > 0.9 and found["ridge"] < 0.65


@pytest.mark.parametrize("classes", [2, 5])
def test_the_ridge_is_scikit_learns_classifier(classes: int) -> None:
    """Many labellings in one fit give what `RidgeClassifier` gives each."""
    rng = np.random.default_rng(classes)
    x, new, labels = rng.normal(size=(40, 6)), rng.normal(size=(15, 6)), rng.integers(classes, size=(7, 40))
    labels[:, :classes] = np.arange(classes)
    scaler = StandardScaler().fit(x)
    wanted = [
        RidgeClassifier(alpha=3.0).fit(scaler.transform(x), some).predict(scaler.transform(new)) for some in labels
    ]
    assert np.array_equal(ridge(x, labels, new, classes, 3.0), np.stack(wanted))


def test_blocks_of_labellings_give_what_all_at_once_give(monkeypatch: pytest.MonkeyPatch) -> None:
    x, labels = planted(40, 4, 3, 1.0)
    coded = np.stack(
        [np.random.default_rng(i).permutation(np.unique(labels, return_inverse=True)[1]) for i in range(9)]
    )
    whole = ridge(x, coded, x, 3, 1.0)
    monkeypatch.setattr("stepwell.analysis.probing.BLOCK", 40 * 3 * 2)
    assert np.array_equal(ridge(x, coded, x, 3, 1.0), whole)


# ---- p-values


def test_p_is_c_plus_one_over_m_plus_one() -> None:
    assert permutation_p(5, [1, 5, 6, 2]) == 3 / 5
    assert permutation_p(7, [1, 5, 6, 2]) == 1 / 5, "never zero"
    assert permutation_p(0, [1, 5, 6, 2]) == 1
    assert permutation_p(0, []) is None, "no permutations, no p-value"


def test_the_p_of_all_permutations_is_exact() -> None:
    """With every order of 5 labels as the null, P(p <= a) over all equally likely outcomes never exceeds a."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=5)
    scores = [float(x @ np.array(order)) for order in every_order(range(5))]
    p = np.array([permutation_p(mine, [s for place, s in enumerate(scores) if place != at])
                  for at, mine in enumerate(scores)], float)  # fmt: skip
    assert len(p) == 120 and sorted(p.tolist()) == pytest.approx([(i + 1) / 120 for i in range(120)])


def test_p_values_are_uniform_under_the_null() -> None:
    """The whole procedure, choice of the regularisation included, on labels that states know nothing of."""
    rng = np.random.default_rng(0)
    found = []
    for seed in range(100):
        x, labels = rng.normal(size=(30, 3)), [str(i) for i in rng.permutation(np.arange(30) % 2)]
        cell = probed(x, labels, folds_of(30, 3, 2, seed), probe="ridge", permutations=9, smallest_class=5, seed=seed)
        assert cell.p_value is not None
        found.append(cell.p_value)
    p = np.array(found)
    for level in np.arange(1, 10) / 10:
        # Not more often below a level than it says (binomial, 1 in 1,000), and, ties aside, not far less often.
        count = int((p <= level + 1e-9).sum())
        assert stats.binomtest(count, len(p), level, alternative="greater").pvalue > 1e-3
        assert count / len(p) > level - 0.2
    assert set(np.round(p * 10).astype(int)) <= set(range(1, 11))


def test_a_procedure_that_chooses_on_the_scored_rows_would_not_be_uniform() -> None:
    """The leak, by hand: choosing among probes by the score that is reported finds what is not there."""
    rng = np.random.default_rng(0)
    best = []
    for _ in range(20):
        x, labels = rng.normal(size=(60, 40)), (np.arange(60) % 2)[None]
        folds = folds_of(60, 3, 2)
        best.append(max(hits(x[:, i : i + 2], labels, folds, ridge, (1.0,), 2).mean() for i in range(0, 40, 2)))
    assert np.mean(best) > 0.55


# ---- folds


def test_folds_score_every_row_once_and_never_use_it() -> None:
    for n in (20, 33):
        folds = folds_of(n, 5, 3, seed=n)
        assert np.array_equal(np.sort(np.concatenate([fold.score for fold in folds])), np.arange(n))
        for fold in folds:
            assert not set(fold.score) & set(fold.used) and len(fold.used) + len(fold.score) == n
            assert len(fold.choose) == 3
            for fit, held in fold.choose:
                assert not set(fit) & set(held) and set(fit) | set(held) == set(fold.fit)
    assert [f.score.tolist() for f in folds_of(20)] == [f.score.tolist() for f in folds_of(20)]
    assert [f.score.tolist() for f in folds_of(20)] != [f.score.tolist() for f in folds_of(20, seed=9)]


def test_folds_keep_apart_what_they_kept_apart_when_rows_are_left_out() -> None:
    rows = np.array([1, 4, 5, 9, 12, 13, 17, 18])
    for fold in folds_of(20):
        here = fold.among(rows)
        assert set(rows[here.score]) == set(fold.score) & set(rows)
        assert set(rows[here.fit]) == set(fold.fit) & set(rows)
        assert [set(rows[a]) for a, _ in here.choose] == [set(a) & set(rows) for a, _ in fold.choose]
    check_folds([fold.among(rows) for fold in folds_of(20)], len(rows))


def leaky(where: str) -> list[Fold]:
    """Folds in which rows that are scored are also fitted on, or chosen by."""
    folds, all_rows = list(folds_of(24)), np.arange(24)
    spoiled = folds[2]
    if where == "fit":
        folds[2] = Fold(choose=spoiled.choose, fit=all_rows, score=spoiled.score)
    else:
        folds[2] = Fold(choose=((spoiled.fit, spoiled.score),), fit=spoiled.fit, score=spoiled.score)
    return folds


@pytest.mark.parametrize("where", ["fit", "choose"])
def test_a_scoring_fold_that_was_seen_is_refused(where: str) -> None:
    x, labels = planted(24, 3, 2, 1.0)
    said = "scoring-folds: 6 of the 6 rows that fold 2 scores were used to fit or to choose the probe that scores them"
    with pytest.raises(StepwellError, match=said):
        probed(x, labels, leaky(where), probe="ridge", permutations=9, smallest_class=1, seed=0)
    with pytest.raises(StepwellError, match="scoring-folds"):
        hits(x, np.zeros((1, 24), int), leaky(where), ridge, (1.0, 2.0), 2)


def test_folds_that_leave_a_row_out_or_score_it_twice_are_refused() -> None:
    folds = folds_of(24)
    for wrong in (folds[1:], (*folds, folds[0]), ()):
        with pytest.raises(StepwellError, match="do not score each of 24 rows exactly once"):
            check_folds(wrong, 24)


# ---- undefined


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        (["a"] * 20 + ["b"] * 20 + ["c"] * 4 + ["d"] * 2, "2 of 4 classes have fewer than 5 items, d has 2"),
        (["a"] * 30, "30 items with 1 different labels: nothing to tell apart"),
        ([], "0 items with 0 different labels: nothing to tell apart"),
    ],
)
def test_too_few_items_of_a_class_leave_a_cell_undefined(labels: list[str], reason: str) -> None:
    folds = folds_of(max(len(labels), 8))
    found = probed(np.zeros((len(labels), 2)), labels, folds, probe="ridge", permutations=9, smallest_class=5, seed=0)
    assert found.undefined == reason
    for name in ("accuracy", "low", "high", "control_accuracy", "selectivity", "p_value", "chance"):
        assert getattr(found, name) is None
    assert unfit(["a", "b"] * 5, folds=6, smallest_class=1) == "10 items for 6 folds"
    assert unfit(["a", "b"] * 6, folds=6, smallest_class=6) is None


def test_few_items_that_leave_a_part_of_a_fold_empty_are_undefined_and_others_are_scored() -> None:
    """A late step is one of few items, which fall into the folds of all items unevenly."""
    rng, seen = np.random.default_rng(0), set()
    for seed in range(12):
        rows = np.sort(rng.choice(60, 10, replace=False))
        folds = [fold.among(rows) for fold in folds_of(60, 4, 2, seed)]
        parts = [len(part) for fold in folds for part in (fold.score, *(held for _, held in fold.choose))]
        fits = [len(part) for fold in folds for part in (fold.fit, *(fit for fit, _ in fold.choose))]
        found = probed(rng.normal(size=(10, 3)), ["a", "b"] * 5, folds, probe="ridge", permutations=1, smallest_class=5,
                       seed=0)  # fmt: skip
        thin = min(parts) == 0 or min(fits) < 2
        assert found.undefined == ("10 items leave a fold with too few of them" if thin else None)
        assert (found.accuracy is None) == thin
        seen.add(thin)
    assert seen == {True, False}
