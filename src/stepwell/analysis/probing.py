"""Probes: what can be read off a state, against chance, against random labels, and with a p-value that is exact.

Every item is scored once, by a probe that was fitted, and whose regularisation was chosen, on other items (nested
cross-validation). The null hypothesis is that states and labels are independent. Under it, permuting the labels
changes nothing, so that with m random permutations, each put through the WHOLE procedure, the choice of the
regularisation included, p = (c + 1) / (m + 1) is exact, c of them scoring at least as well (Phipson & Smyth 2010,
arXiv 1603.05766). The mean score of the permutations is the control task with random labels (Hewitt & Liang 2019,
arXiv 1909.03368), and the score above it the selectivity.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stepwell.errors import StepwellError
from stepwell.stats import wilson

Rows = NDArray[np.intp]
Floats = NDArray[np.floating]
Ints = NDArray[np.int64]
SCORING_FOLDS = "scoring-folds"
BLOCK = 16_000_000
"""Scores (items x permutations x classes) that are computed together."""


@dataclass(frozen=True, kw_only=True)
class Fold:
    """Rows that are scored, and those by which the probe that scores them comes about.

    Attributes:
        choose: (rows to fit, rows to compare on) pairs by which the regularisation is chosen.
        fit: rows on which the chosen probe is fitted.
        score: rows it is asked.
    """

    choose: tuple[tuple[Rows, Rows], ...]
    fit: Rows
    score: Rows

    @property
    def used(self) -> Rows:
        """All rows that the probe came about by."""
        return np.unique(np.concatenate([self.fit, *(rows for pair in self.choose for rows in pair)]))

    def among(self, rows: Rows) -> Fold:
        """The fold over these rows only, renumbered to their places."""
        place = np.full(int(max(rows.max(initial=0), self.used.max(initial=0), self.score.max(initial=0))) + 1, -1)
        place[rows] = np.arange(len(rows))

        def kept(some: Rows) -> Rows:
            found = place[some]
            return found[found >= 0].astype(np.intp)

        return Fold(
            choose=tuple((kept(a), kept(b)) for a, b in self.choose), fit=kept(self.fit), score=kept(self.score)
        )


def make_folds(n: int, *, folds: int, inner: int, seed: int) -> tuple[Fold, ...]:
    """Folds of n rows at random; they do not look at labels, or permuting these would not be exact."""
    from sklearn.model_selection import KFold

    rows, made = np.arange(n), []
    for fit, score in KFold(folds, shuffle=True, random_state=seed).split(rows):
        pairs = KFold(inner, shuffle=True, random_state=seed + 1).split(fit)
        made.append(Fold(choose=tuple((fit[a], fit[b]) for a, b in pairs), fit=fit, score=score))
    check_folds(made, n)
    return tuple(made)


def check_folds(folds: Sequence[Fold], n: int) -> None:
    """Refuse folds whose scored rows took part in fitting or choosing, or that do not score every row once.

    Raises:
        StepwellError: `scoring-folds`, with how many rows of which fold.
    """
    way_out = "fit and choose on the other folds only; `make_folds` makes such folds"
    for number, fold in enumerate(folds):
        if len(both := np.intersect1d(fold.score, fold.used)):
            raise StepwellError(
                f"{SCORING_FOLDS}: {len(both)} of the {len(fold.score)} rows that fold {number} scores were used to "
                "fit or to choose the probe that scores them",
                way_out,
            )
    scored = np.sort(np.concatenate([fold.score for fold in folds])) if folds else np.empty(0)
    if not np.array_equal(scored, np.arange(n)):
        raise StepwellError(f"{SCORING_FOLDS}: the folds do not score each of {n} rows exactly once", way_out)


Fitted = Callable[[Floats, Ints, Floats, int, float], Ints]
"""(states (n, D), labels (m, n), new states (n', D), classes, regularisation) -> labels (m, n')."""


def ridge(x: Floats, labels: Ints, new: Floats, classes: int, strength: float) -> Ints:
    """Least squares on one-hot labels with an L2 penalty (scikit-learn's `Ridge`).

    Its answer is linear in the targets. So one fit, of the identity, gives the matrix that turns any labels into
    scores, and a labelling more costs a sum of its columns by class.
    """
    from scipy.sparse import csr_array
    from sklearn.linear_model import Ridge
    from sklearn.preprocessing import StandardScaler

    scaler, n = StandardScaler().fit(x), len(x)
    x, new = np.asarray(scaler.transform(x)), np.asarray(scaler.transform(new))
    hat = np.ascontiguousarray(Ridge(alpha=strength).fit(x, np.eye(n)).predict(new).T)  # (n, n')
    step = max(1, BLOCK // (len(new) * classes))
    found = []
    for start in range(0, len(labels), step):
        some = labels[start : start + step]
        rows = some + classes * np.arange(len(some))[:, None]
        places = (rows.ravel(), np.tile(np.arange(n), len(some)))
        by_class = csr_array((np.ones(some.size), places), shape=(len(some) * classes, n))
        found.append((by_class @ hat).reshape(len(some), classes, len(new)).argmax(1))
    return np.concatenate(found)


def mlp(x: Floats, labels: Ints, new: Floats, classes: int, strength: float) -> Ints:
    """One hidden layer of 64 (scikit-learn's `MLPClassifier`), each labelling for itself."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(x)
    x, new = np.asarray(scaler.transform(x)), np.asarray(scaler.transform(new))
    found = []
    for some in labels:
        if len(np.unique(some)) == 1:
            found.append(np.full(len(new), some[0]))
            continue
        probe = MLPClassifier((64,), alpha=strength, learning_rate_init=3e-3, max_iter=60, random_state=0)
        with warnings.catch_warnings():
            # A fixed number of epochs is the budget, the same for real and for permuted labels.
            warnings.simplefilter("ignore", ConvergenceWarning)
            found.append(probe.fit(x, some).predict(new))
    return np.stack(found)


PROBES: dict[str, tuple[Fitted, tuple[float, ...]]] = {
    "ridge": (ridge, (1000.0, 30.0, 1.0)),
    "mlp": (mlp, (1.0, 0.01)),
}
"""Each probe with the strengths of regularisation to choose from, the strongest first (it wins ties)."""


def hits(
    x: Floats, labels: Ints, folds: Sequence[Fold], probe: Fitted, strengths: Sequence[float], classes: int
) -> NDArray[np.bool_]:
    """Which items each of m labellings gets right, every item scored by a probe that never saw it.

    Args:
        x: (n, D).
        labels: (m, n), from 0 to below `classes`.
        folds: over the n rows.
        probe: fits and answers.
        strengths: of regularisation; each labelling chooses its own, on the rows of `Fold.choose`.
        classes: how many there are.

    Returns:
        (m, n).

    Raises:
        StepwellError: `scoring-folds`.
    """
    check_folds(folds, x.shape[0])
    right = np.zeros(labels.shape, bool)
    for fold in folds:
        chosen = np.zeros(len(labels), np.intp)
        if len(strengths) > 1:
            agreed = np.zeros((len(strengths), len(labels)))
            for fit, held in fold.choose:
                for place, strength in enumerate(strengths):
                    said = probe(x[fit], labels[:, fit], x[held], classes, strength)
                    agreed[place] += (said == labels[:, held]).sum(1)
            chosen = agreed.argmax(0)
        for place, strength in enumerate(strengths):
            mine = np.flatnonzero(chosen == place)
            if len(mine):
                said = probe(x[fold.fit], labels[np.ix_(mine, fold.fit)], x[fold.score], classes, strength)
                right[np.ix_(mine, fold.score)] = said == labels[np.ix_(mine, fold.score)]
    return right


def permutation_p(observed: float, null: Sequence[float] | NDArray[np.number]) -> float | None:
    """(c + 1) / (m + 1), c of the m null values at least as large as the observed one; None where m = 0."""
    values = np.asarray(null)
    return (int((values >= observed).sum()) + 1) / (len(values) + 1) if len(values) else None


@dataclass(frozen=True, kw_only=True)
class Probed:
    """One cell of a probe's grid; numbers are None where `undefined` says why.

    Attributes:
        n, classes: items with a label, and different labels.
        accuracy, low, high: share of items named right, with its Wilson interval.
        control_accuracy: the same with labels permuted, mean over the permutations.
        selectivity: accuracy - control_accuracy.
        p_value: see the module.
        chance: share of the most frequent label.
    """

    n: int
    classes: int
    accuracy: float | None = None
    low: float | None = None
    high: float | None = None
    control_accuracy: float | None = None
    selectivity: float | None = None
    p_value: float | None = None
    permutations: int = 0
    chance: float | None = None
    undefined: str | None = None


def unfit(labels: Sequence[str], *, folds: int, smallest_class: int) -> str | None:
    """Why labels are too few to be probed, or None."""
    counts = Counter(labels)
    if len(counts) < 2:
        return f"{len(labels)} items with {len(counts)} different labels: nothing to tell apart"
    label, least = min(counts.items(), key=lambda pair: (pair[1], pair[0]))
    if least < smallest_class:
        rare = sum(count < smallest_class for count in counts.values())
        return f"{rare} of {len(counts)} classes have fewer than {smallest_class} items, {label} has {least}"
    return f"{len(labels)} items for {folds} folds" if len(labels) < 2 * folds else None


def _enough(fold: Fold) -> bool:
    """Whether all fits have two rows at least, and whatever is asked has one: few items fall into folds unevenly."""
    return min(map(len, (fold.fit, *(fit for fit, _ in fold.choose)))) >= 2 and all(
        len(asked) for asked in (fold.score, *(held for _, held in fold.choose))
    )


def probed(
    x: Floats, labels: Sequence[str], folds: Sequence[Fold], *, probe: str, permutations: int, smallest_class: int,
    seed: int, confidence: float = 0.95,
) -> Probed:  # fmt: skip
    """Probe one layer and position.

    Args:
        x: (n, D), the states.
        labels: n of them.
        folds: over the n rows.
        probe: a name of `PROBES`.
        permutations: m; 0 = no control and no p-value.
        smallest_class: every label must have so many items.
        seed: of the permutations; the same seed permutes alike at every layer and position.

    Raises:
        StepwellError: `scoring-folds`.
    """
    names, coded = np.unique(np.asarray(labels), return_inverse=True)
    n, classes = len(labels), len(names)
    reason = unfit(labels, folds=len(folds), smallest_class=smallest_class)
    if reason is not None:
        return Probed(n=n, classes=classes, undefined=reason)
    if not all(_enough(fold) for fold in folds):
        return Probed(n=n, classes=classes, undefined=f"{n} items leave a fold with too few of them")
    check_folds(folds, n)
    rng = np.random.default_rng(seed)
    labellings = np.stack([coded, *(rng.permutation(coded) for _ in range(permutations))])
    method, strengths = PROBES[probe]
    right = hits(np.asarray(x, np.float64), labellings, folds, method, strengths, classes).sum(1)
    found = wilson(int(right[0]), n, confidence)
    accuracy = int(right[0]) / n
    control = float(right[1:].mean() / n) if permutations else None
    return Probed(
        n=n, classes=classes, accuracy=accuracy, low=found.low, high=found.high, control_accuracy=control,
        selectivity=None if control is None else accuracy - control,
        p_value=permutation_p(right[0], right[1:]), permutations=permutations,
        chance=max(Counter(labels).values()) / n,
    )  # fmt: skip
