"""From item records to estimates: which records count, what their n is, and which interval goes with them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, TypeVar

from stepwell.report.cells import TIMES, TO, Cell, Series, dash, percent, plural, times_100
from stepwell.report.folder import Record, RunData

if TYPE_CHECKING:
    from stepwell.stats import Estimate

CONFIDENCE = 0.95
Key = TypeVar("Key", bound=Hashable)


def grouped(records: Iterable[Record], key: Callable[[Record], Key]) -> dict[Key, list[Record]]:
    """Records by key, in the order in which they come."""
    groups: dict[Key, list[Record]] = defaultdict(list)
    for record in records:
        groups[key(record)].append(record)
    return dict(groups)


def is_clean(record: Record) -> bool:
    """Whether a record is of a model that nothing was done to; one that does not say is."""
    return (record.get("condition") or "clean") == "clean"


def share(records: Sequence[Record], field: str) -> Estimate | None:
    """The share of records in which `field` is true, with its interval; None where no record has the field.

    Records without a value do not count in n. Wilson's interval where every item was seen once; where an item was seen
    under several seeds those are not independent, and the bootstrap draws items, not records.
    """
    seen = [record for record in records if record.get(field) is not None]
    if not seen:
        return None
    items = tuple(record.get("id") for record in seen)
    clusters = None if len(set(items)) == len(items) else items
    return _proportion(tuple(float(bool(record[field])) for record in seen), clusters)


def mean(records: Sequence[Record], field: str) -> Estimate | None:
    """The mean of a number over records, with a bootstrap interval that draws items.

    None where no record has the field, or where a value is not finite: such a mean would hide it.
    """
    seen = [record for record in records if record.get(field) is not None]
    values = tuple(float(record[field]) for record in seen)
    if not values or not all(map(math.isfinite, values)):
        return None
    return _mean(values, tuple(record.get("id") for record in seen))


def counted(correct: float, n: int) -> Estimate:
    """Wilson's estimate from counts. A rule that is silent on an item counts half of a right answer."""
    from stepwell.stats import wilson

    return wilson(correct, n, CONFIDENCE)


# Kept, for charts and tables ask for the same numbers and a bootstrap takes a tenth of a second.
@lru_cache(maxsize=1024)
def _proportion(values: tuple[float, ...], clusters: tuple[Hashable, ...] | None) -> Estimate:
    from stepwell.stats import proportion

    return proportion(values, CONFIDENCE, clusters=clusters)


@lru_cache(maxsize=1024)
def _mean(values: tuple[float, ...], clusters: tuple[Hashable, ...]) -> Estimate:
    from stepwell.stats import bootstrap_mean

    return bootstrap_mean(values, CONFIDENCE, clusters=clusters)


def share_cell(estimate: Estimate | None, why: str, *, count: str = "") -> Cell:
    """A share as a percentage with its interval; a dash with the reason where there is none."""
    if estimate is None or estimate.value is None:
        return dash(why)
    low, high = estimate.low, estimate.high
    interval = "no interval" if low is None or high is None else f"{percent(low)}{TO}{percent(high)}"
    value, low, high = map(times_100, (estimate.value, low, high))
    return Cell(text=percent(estimate.value), interval=interval, count=count, value=value, low=low, high=high)


def count_text(records: Sequence[Record]) -> str:
    """`300` for items seen once, `300 × 3 seeds` for items under three seeds; otherwise the number of records."""
    items, seeds = {record.get("id") for record in records}, {record.get("seed") for record in records}
    if len(items) == len(records):
        return f"{len(records):,}"
    if len(items) * len(seeds) == len(records):
        return f"{len(items):,} {TIMES} {len(seeds)} seeds"
    return plural(len(records), "record")


def common_count(groups: Sequence[Sequence[Record]]) -> str:
    """The n of all groups where they agree, "" where they do not: then each cell must say its own."""
    counts = {count_text(group) for group in groups}
    return counts.pop() if len(counts) == 1 else ""


def own_count(records: Sequence[Record], common: str) -> str:
    """What a cell says about its n when the head of its column cannot."""
    return "" if common or not records else f"n {count_text(records)}"


def has_graphs(folder: RunData) -> bool:
    """Whether items have a graph and two options, as those of ProsQA; those of `data.format: steps` have neither."""
    return not any(record.get("format") == "steps" for record in folder.of_kind("dataset"))


def rules_on(folder: RunData, name: str) -> dict[str, dict[int | None, tuple[float, int]]]:
    """How each shortcut rule fared on a set: (right answers, items) for every number of hops, and over all at None."""
    return {
        str(record.get("rule")): {None: (float(record["correct"]), int(record["n"]))}
        | {int(hops): (float(correct), int(n)) for hops, correct, n in record.get("by_hops") or ()}
        for record in folder.of_kind("shortcut")
        if str(record.get("set")) == name and record.get("n")
    }


def rule_cell(found: tuple[float, int] | None, common: str, *, why: str = "not counted on this set") -> Cell:
    """A rule's share of right answers, with its n where that is not the number of items in the head of its column."""
    if found is None:
        return dash(why)
    n = f"{found[1]:,}"
    return share_cell(counted(*found), "", count="" if n == common.split(" ")[0] else f"n {n}")


def headed(count: str) -> str:
    """The n as a column's head says it."""
    return f"n {count}" if count else ""


def point(label: str, arm: str, estimate: Estimate, *, filled: bool = True) -> Series:
    """One estimate of a share as a point of a chart, in percent. `estimate` has a value."""
    assert estimate.value is not None
    low, high = estimate.low, estimate.high
    span = "" if low is None or high is None else f" ({percent(low)} to {percent(high)})"
    return Series(
        label=label,
        arm=arm,
        filled=filled,
        x=(100 * estimate.value,),
        low=(None if low is None else 100 * low,),
        high=(None if high is None else 100 * high,),
        hover=(f"{label}: {percent(estimate.value)} %{span}, n {estimate.n:,}",),
    )
