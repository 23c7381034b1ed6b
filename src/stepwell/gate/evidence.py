"""From records to what a criterion judges: records selected, paired and clustered, as one sample or as facts."""

from __future__ import annotations

import difflib
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from stepwell import stats
from stepwell.errors import StepwellError
from stepwell.stats import Estimate, Floats

if TYPE_CHECKING:
    from stepwell.plan import Criterion

Record = Mapping[str, Any]

# How far accuracy * n may lie from a whole number (records may hold float32) and still be a count of successes.
COUNT_TOLERANCE = 1e-4


@dataclass(frozen=True, kw_only=True)
class Facts:
    """How many records are true. A number is true when it is finite and meets the threshold; null never is.

    Null is how a record says that a number was not finite, so leaving it out would let a diverged loss pass.
    """

    true: int
    n: int
    null: int


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The values of one question, and how they hang together.

    Args:
        values: one per record, shape (R,).
        partners: what is subtracted from them, shape (R,), where the criterion has `minus`.
        differences: how many differences are taken, 0 to 2; with two, those two are differences themselves.
        counts: items behind each value, shape (R,), where the values are proportions over their record's `n`.
        clusters: one label per value where several values belong to one item; None where all are independent.
        seeds: one label per value where the claim is about a mechanism; items and seeds are then crossed.
        repeated: the gate is looked at again and again: estimate by a confidence sequence.
        without_value: records (or pairs) left out because the metric is null there.
    """

    values: Floats
    partners: Floats | None = None
    differences: int = 0
    counts: Floats | None = None
    clusters: tuple[Hashable, ...] | None = None
    seeds: tuple[Hashable, ...] | None = None
    repeated: bool = False
    without_value: int = 0

    @cached_property
    def n(self) -> int:
        """Independent units, at least: distinct items, or the items of one record where records share theirs."""
        if self.counts is not None:
            return int(self._items)
        return len(self.values) if self.clusters is None else len(set(self.clusters))

    @property
    def _items(self) -> float:
        """Effective n of proportions over (maybe) the same items: whatever their dependence, the spread of their mean
        is at most the mean of their spreads (Minkowski), that of N^2 / (sum sqrt n)^2 independent items. Equal n: n.
        """
        assert self.counts is not None
        # Rounded, or 300 equal items would be 299.99999999999994.
        return round(float(self.counts.sum() ** 2 / np.sqrt(self.counts).sum() ** 2), 6)

    @cached_property
    def _units(self) -> Floats:
        """One value (or difference) per independent unit, in order of appearance."""
        values = self.values if self.partners is None else self.values - self.partners
        if self.clusters is None:
            return values
        members: dict[Hashable, list[float]] = {}
        for label, value in zip(self.clusters, values.tolist(), strict=True):
            members.setdefault(label, []).append(value)
        return np.array([math.fsum(group) / len(group) for group in members.values()])

    @property
    def value(self) -> float | None:
        """The mean over all values (or differences, or items where records count them); None without any."""
        if not len(self.values):
            return None
        weights = self.counts if self.counts is not None else np.ones_like(self.values)
        values = self.values if self.partners is None else self.values - self.partners
        return float(values @ weights / weights.sum())

    @property
    def _bounds(self) -> tuple[float, float]:
        return (0.0, 1.0) if not self.differences else (-float(self.differences), float(self.differences))

    @property
    def _binary(self) -> bool:
        return self.partners is None and stats.is_binary(self.values)

    def estimate(self, confidence: float) -> Estimate:
        """Wilson for 0/1 values, the bootstrap for others, paired and clustered where need be; see `stats`."""
        if self.seeds is not None:
            return self._over_seeds(self.seeds, confidence)
        if self.counts is not None:
            items, share = self._items, self.value or 0.0
            method = stats.proportion_sequence if self.repeated else stats.wilson
            return method(min(share * items, items), items, confidence)
        if self.repeated and self._binary and self.clusters is None:
            return stats.proportion_sequence(float(self.values.sum()), len(self.values), confidence)
        if self.repeated:
            return stats.confidence_sequence(self._units, confidence, bounds=self._bounds)
        if self.partners is not None:
            return stats.paired_difference(self.values, self.partners, confidence, clusters=self.clusters)
        if self._binary:
            return stats.proportion(self.values, confidence, clusters=self.clusters)
        return stats.bootstrap_mean(self.values, confidence, clusters=self.clusters)

    def _over_seeds(self, seeds: tuple[Hashable, ...], confidence: float) -> Estimate:
        """For new items and new trainings; without an interval where there are fewer than three."""
        items = tuple(range(len(self.values))) if self.clusters is None else self.clusters
        values = self.values if self.partners is None else self.values - self.partners
        found = stats.crossed_mean(values, confidence, items=items, seeds=seeds)
        return found if len(set(seeds)) >= stats.FEWEST_SEEDS else replace(found, low=None, high=None, method="crossed")

    def n_to_decide(self, threshold: float, confidence: float) -> int | None:
        """Units in total that would put the interval on one side of the threshold; see `stats.n_to_decide`."""
        if self.seeds is not None:
            return None  # it takes seeds, of which items are no substitute
        estimate = self.estimate(confidence)
        if estimate.method == "betting" and estimate.low is not None:
            return stats.n_to_refute(self._units, threshold, confidence, bounds=self._bounds)
        return stats.n_to_decide(estimate, threshold)


def evidence(criterion: Criterion, records: Sequence[Record]) -> dict[Any, Sample | Facts]:
    """What the criterion judges, by value of its `per` field (the one key None without `per`). Empty: no records.

    With `any_of` the keys are pairs: (value of `per`, value of `any_of`).

    Raises StepwellError where the records cannot answer: a metric that is not a finite number (except for `every`),
    partners missing, several records for one pair, a misspelt metric.
    """
    first = _chosen(criterion, criterion.where, records)
    if not criterion.replaced:
        return {value: _judged(criterion, rows) for value, rows in _by_value(criterion, first).items()}
    if criterion.statistic == "every":
        raise _refuse(criterion, "`minus` takes a difference, of which `every` makes no sense", "Use statistic: mean.")
    for field in {criterion.per, criterion.any_of} & {field for replaced in criterion.replaced for field in replaced}:
        raise _refuse(criterion, f"`minus` replaces {field}, so it cannot be decided per {field}", "Drop one.")
    sides = [
        _by_value(criterion, first if not replaced else _chosen(criterion, {**criterion.where, **replaced}, records))
        for replaced in _corners(criterion)
    ]
    return {
        value: _paired(criterion, [side[value] for side in sides])
        if all(value in side for side in sides)
        else _sample(criterion, [])
        for value in sorted(set().union(*sides), key=repr)
    }


def _corners(criterion: Criterion) -> list[Mapping[str, Any]]:
    """What each side of the difference replaces: a, b of a - b; a, b, c, d of (a - b) - (c - d)."""
    one, *two = criterion.replaced
    return [{}, one] if not two else [{}, one, two[0], {**one, **two[0]}]


def _refuse(criterion: Criterion, cause: str, way_out: str) -> StepwellError:
    return StepwellError(f"metric {criterion.metric}: {cause}", way_out, stage=criterion.stage)


def _meets(found: Any, wanted: Any) -> bool:
    return found in wanted if isinstance(wanted, tuple | list) else found == wanted


def _at_most(found: Any, most: float) -> bool:
    return isinstance(found, int | float) and found <= most


def matches(record: Record, where: Mapping[str, Any]) -> bool:
    """Whether a record has all these fields, each equal to its value, or to one of its values."""
    return all(key in record and _meets(record[key], wanted) for key, wanted in where.items())


def _chosen(criterion: Criterion, where: Mapping[str, Any], records: Iterable[Record]) -> list[Record]:
    """The records that match, have the metric as a field, and are picked from their curve."""
    rows = [
        record
        for record in records
        if matches(record, where) and all(_at_most(record.get(key), most) for key, most in criterion.at_most.items())
    ]
    having = [record for record in rows if criterion.metric in record]
    if rows and not having and "kind" in where:
        fields = sorted({key for record in rows for key in record})
        close = difflib.get_close_matches(criterion.metric, fields, n=1)
        hint = f"Did you mean `{close[0]}`? " if close else ""
        raise _refuse(
            criterion, f"none of the {len(rows)} records has this field", f"{hint}Fields: {', '.join(fields)}."
        )
    return having if criterion.pick == "all" else _picked(criterion, where, having)


def _picked(criterion: Criterion, where: Mapping[str, Any], rows: list[Record]) -> list[Record]:
    """The last or best record of each curve. Text fields, seed, id, and what the criterion names tell curves apart."""
    replaced = {field for each in criterion.replaced for field in each}
    named = {"seed", "id", *where, *replaced, criterion.per, criterion.any_of} - {"step", criterion.metric}
    curves: dict[Hashable, dict[Any, Record]] = {}
    for row in rows:
        if row.get("step") is None:
            raise _refuse(criterion, f"pick: {criterion.pick} needs records with a `step`", "Use pick: all.")
        telling = (key for key in sorted(row) if key in named or isinstance(row[key], str))
        curve = curves.setdefault(tuple((key, row[key]) for key in telling if key != criterion.metric), {})
        if row["step"] in curve:
            way_out = "Name the field that tells them apart in `where` or `per`."
            raise _refuse(
                criterion, f"several records share step {row['step']}, so they are of several curves", way_out
            )
        curve[row["step"]] = row
    if criterion.pick == "last":
        return [curve[max(curve)] for curve in curves.values()]
    sign = 1 if criterion.comparison.startswith(">") else -1
    best: list[Record] = []
    for curve in curves.values():
        measured = [row for row in curve.values() if row[criterion.metric] is not None]
        numbers = _numbers(criterion, measured)
        best += [measured[int(np.argmax(sign * numbers))]] if measured else []
    return best


def _by_value(criterion: Criterion, rows: list[Record]) -> dict[Any, list[Record]]:
    if criterion.per is None:
        return {None: rows} if rows else {}
    groups: dict[Any, list[Record]] = {}
    fields = [criterion.per, *([criterion.any_of] if criterion.any_of else [])]
    for row in rows:
        for field in fields:
            if field not in row:
                raise _refuse(criterion, f"a record has no field `{field}` to decide per", "Correct `per` or `where`.")
        found = tuple(row[field] for field in fields)
        groups.setdefault(found if criterion.any_of else found[0], []).append(row)
    return {value: groups[value] for value in sorted(groups, key=_place)}


def _place(value: Any) -> Any:
    """Numbers before text, each in order."""
    return tuple(map(_place, value)) if isinstance(value, tuple) else (isinstance(value, str), value)


def _numbers(criterion: Criterion, rows: list[Record]) -> Floats:
    """The metric of each row, shape (R,); StepwellError where one is not a finite number."""
    found = [row[criterion.metric] for row in rows]
    odd = [value for value in found if not isinstance(value, bool | int | float)]
    if odd:
        raise _refuse(
            criterion, f"{odd[0]!r} is not a number ({len(odd)} of {len(found)} records)", "Judge another field."
        )
    numbers = np.array(found, dtype=np.float64)
    bad = int((~np.isfinite(numbers)).sum())
    if bad:
        cause = f"not finite in {bad} of {len(found)} records, so its mean is undefined"
        raise _refuse(criterion, cause, "Find out why, or ask `statistic: every`, for which such a record is a no-go.")
    return numbers


def _judged(criterion: Criterion, rows: list[Record]) -> Sample | Facts:
    if criterion.statistic == "mean":
        return _sample(criterion, rows)
    found = [row[criterion.metric] for row in rows]
    true = sum(_is_true(criterion, value) for value in found)
    return Facts(true=true, n=len(found), null=sum(value is None for value in found))


def _is_true(criterion: Criterion, value: Any) -> bool:
    if isinstance(value, bool) or value is None:
        return value is True
    if not isinstance(value, int | float):
        raise _refuse(criterion, f"{value!r} is neither true, false nor a number", "Judge another field.")
    return math.isfinite(value) and holds(criterion.comparison, value, criterion.threshold)


def holds(comparison: str, value: float, threshold: float) -> bool:
    """Whether `value comparison threshold` is true."""
    match comparison:
        case ">=":
            return value >= threshold
        case ">":
            return value > threshold
        case "<=":
            return value <= threshold
        case _:
            return value < threshold


def _sample(criterion: Criterion, rows: list[Record]) -> Sample:
    known = [row for row in rows if row[criterion.metric] is not None]
    numbers = _numbers(criterion, known)
    seeds = _seeds(criterion, known)
    counts = _counts(known, numbers) if seeds is None else None
    return Sample(
        values=numbers,
        counts=counts,
        clusters=None if counts is not None else _clusters(known),
        seeds=seeds,
        repeated=_bounded(criterion, numbers),
        without_value=len(rows) - len(known),
    )


def _bounded(criterion: Criterion, numbers: Floats) -> bool:
    """Whether looks are repeated; StepwellError where the values are then outside [0, 1]."""
    repeated = criterion.looks == "repeated"
    if repeated and numbers.size and (numbers.min() < 0 or numbers.max() > 1):
        cause = f"`looks: repeated` needs values in [0, 1], found {numbers.min():g} to {numbers.max():g}"
        raise _refuse(criterion, cause, "Use `looks: once`, or judge a bounded metric.")
    return repeated


def _counts(rows: list[Record], numbers: Floats) -> Floats | None:
    """The records' `n`, shape (R,), when every value times its n is a number of successes; otherwise None."""
    found = [row.get("n") for row in rows]
    if not rows or not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in found):
        return None
    counts = np.array(found, dtype=np.float64)
    successes = numbers * counts
    whole = np.abs(successes - np.round(successes)) <= COUNT_TOLERANCE
    return counts if (whole & (numbers >= 0) & (numbers <= 1)).all() else None


def _item(row: Record) -> Hashable:
    return row.get("set"), row["id"]


def _clusters(rows: list[Record]) -> tuple[Hashable, ...] | None:
    """Labels where any item has several records; a record without `id` stands for itself."""
    labels = tuple(_item(row) if row.get("id") is not None else ("record", index) for index, row in enumerate(rows))
    return labels if len(set(labels)) < len(labels) else None


def _seeds(criterion: Criterion, rows: list[Record]) -> tuple[Hashable, ...] | None:
    """The seed of each row, where the claim is about a mechanism; then every item must be there under every seed."""
    if criterion.claim != "mechanism" or not rows:
        return None
    if any(row.get("id") is None or row.get("seed") is None for row in rows):
        raise _refuse(criterion, "a mechanism is judged over items and seeds, which some records lack", "See `claim`.")
    cells = [(_item(row), row["seed"]) for row in rows]
    items, seeds = ({cell[place] for cell in cells} for place in (0, 1))
    if len(set(cells)) != len(cells) or len(cells) != len(items) * len(seeds):
        cause = (
            f"{len(items)} items under {len(seeds)} seeds make {len(items) * len(seeds)} records, found {len(cells)}"
        )
        raise _refuse(criterion, cause, "Evaluate every seed on the same items, and fix the other fields in `where`.")
    return tuple(row["seed"] for row in rows)


def _paired(criterion: Criterion, sides: Sequence[list[Record]]) -> Sample:
    """Two sides, or the four of a difference of differences, joined item by item."""
    paired = [_by_pair(criterion, side) for side in sides]
    first, whole = paired[0], set().union(*paired)
    lacking = len(whole - set.intersection(*map(set, paired)))
    if lacking:
        cause = f"{lacking} of {len(whole)} items lack a partner to be paired with"
        raise _refuse(criterion, cause, "Evaluate both sides on the same items and seeds.")
    keys = [key for key in first if all(_known(criterion, side[key]) for side in paired)]
    found = [_numbers(criterion, [side[key] for key in keys]) for side in paired]
    repeated = all([_bounded(criterion, numbers) for numbers in found])
    a, b = found if len(found) == 2 else (found[0] - found[1], found[2] - found[3])
    return Sample(
        values=a,
        partners=b,
        differences=len(found) // 2,
        clusters=_clusters([first[key] for key in keys]),
        seeds=_seeds(criterion, [first[key] for key in keys]),
        repeated=repeated,
        without_value=len(first) - len(keys),
    )


def _known(criterion: Criterion, row: Record) -> bool:
    return row[criterion.metric] is not None


def _by_pair(criterion: Criterion, rows: list[Record]) -> dict[Hashable, Record]:
    """Records by item and seed: what a pair shares."""
    replaced = {field for each in criterion.replaced for field in each}
    pairs: dict[Hashable, Record] = {}
    for row in rows:
        if row.get("id") is None:
            raise _refuse(criterion, "`minus` pairs records by `id`, which some lack", "Judge records of single items.")
        key = tuple(row.get(field) for field in ("set", "id", "seed") if field not in replaced)
        if key in pairs:
            cause = f"several records of one side for item {row['id']}, so pairs are ambiguous"
            raise _refuse(criterion, cause, "Fix the other fields in `where`.")
        pairs[key] = row
    return pairs
