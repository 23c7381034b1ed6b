"""Estimates over pairs, and the cells that show them. Undefined is a dash with its reason, never a zero."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from stepwell.report import measures
from stepwell.report.cells import Cell, Column, Row, Series, dash, digits_of
from stepwell.report.folder import Record
from stepwell.report.imprint.reading import Group, group_name
from stepwell.report.measures import CONFIDENCE, share_cell

if TYPE_CHECKING:
    from stepwell.stats import Estimate

GROUP = Column(name="tier", note="model")
NEVER = "never"
NOT_BELOW_ZERO = (
    "nats", "tokens", "ratio_to_random", "ratio_to_baseline", "random", "full_context", "random_token", "text_prompt",
    "nothing", "bar", "text_bytes", "ids_bytes", "packed_bytes", "float32_bytes", "bfloat16_bytes", "int8_bytes",
    "int4_bytes", "bytes", "times", "distance", "norm", "barrier",
)  # fmt: skip
POSSIBLE = {
    **dict.fromkeys(NOT_BELOW_ZERO, (0.0, math.inf)),
    **dict.fromkeys(("gradient_cosine", "conflict", "cosine"), (-1.0, 1.0)),
    "opposed": (0.0, 1.0),
}
"""Ends of what a mean can be, by field; other fields can be anything."""


def portion(records: Sequence[Record], field: str) -> Estimate | None:
    """The share of records in which `field` holds: Wilson's interval over ids; drawn by id where these repeat.

    Where records hold shares of their own (over draws), their mean.
    """
    whole = all(record.get(field) in (None, 0, 1) for record in records)
    return within(measures.share(records, field) if whole else measures.mean(records, field), (0.0, 1.0))


def within(estimate: Estimate | None, ends: tuple[float, float]) -> Estimate | None:
    """The same with its interval cut to what is possible, which Student's interval of few pairs may leave."""
    if estimate is None or estimate.low is None or estimate.high is None:
        return estimate
    return replace(estimate, low=max(ends[0], estimate.low), high=min(ends[1], estimate.high))


def mean_of(records: Sequence[Record], field: str) -> Estimate | None:
    """The mean over the records that have the number, with a bootstrap interval that draws ids."""
    return within(measures.mean(records, field), POSSIBLE.get(field, (-math.inf, math.inf)))


def average(records: Sequence[Record], field: str) -> Estimate | None:
    """The mean of a number with a bootstrap interval that draws ids. None unless every record has the number.

    A mean over those that have one would flatter: what is missing failed, or was stopped.
    """
    if any(record.get(field) is None for record in records):
        return None
    return mean_of(records, field)


def median(values: Sequence[float]) -> Estimate | None:
    """The smallest value that at least half of the values do not exceed, with the interval of order statistics.

    The interval is exact whatever the distribution (binomial; David & Nagaraja 2003, 7.1), and there is none for fewer
    than 6 values. Infinite values are allowed: they stand for what was never reached.
    """
    from stepwell.stats import Estimate

    n = len(values)
    if not n:
        return None
    ordered = sorted(values)
    # The largest k for which so few values on one side have a probability of at most (1 - confidence) / 2.
    k, tail = 0, 0.0
    while (tail := tail + math.comb(n, k) / 2**n) <= (1 - CONFIDENCE) / 2:
        k += 1
    low, high = (ordered[k - 1], ordered[n - k]) if k else (None, None)
    middle = ordered[(n - 1) // 2]
    return Estimate(value=middle, low=low, high=high, n=n, method="order statistics", confidence=CONFIDENCE)


def difference(
    first: Mapping[Any, Any], second: Mapping[Any, Any], clusters: Mapping[Any, Hashable] | None = None
) -> Estimate | None:
    """Mean of first - second over the keys that both have a value for; None where there are none."""
    from stepwell.stats import paired_difference

    common = [key for key in first if first[key] is not None and second.get(key) is not None]
    if not common:
        return None
    labels = None if clusters is None else [clusters[key] for key in common]
    if labels is not None and len(set(labels)) == len(labels):
        labels = None
    one, other = ([float(side[key]) for key in common] for side in (first, second))
    return paired_difference(one, other, CONFIDENCE, clusters=labels)


def portion_cell(records: Sequence[Record], field: str, why: str, n: int | None = None) -> Cell:
    """A share in percent with its interval; it says its n where that is not the row's."""
    estimate = portion(records, field)
    return share_cell(estimate, why, count=_count(estimate, n))


def average_cell(records: Sequence[Record], field: str, why: str, n: int | None = None) -> Cell:
    """A mean over the records that have the number, with its interval, and over how many where some have none.

    Records are targets, or pairs where each id occurs once; `n` is what the row says of its pairs.
    """
    estimate = mean_of(records, field)
    known = sum(record.get(field) is not None for record in records)
    if known < len(records):
        unit = "" if items(records) == len(records) else " values"
        return estimate_cell(estimate, why, count=f"{known:,} of {len(records):,}{unit}")
    return estimate_cell(estimate, why, count=_count(estimate, n))


def estimate_cell(estimate: Estimate | None, why: str, *, count: str = "", scale: float = 1.0) -> Cell:
    """A number with its interval: `0.412` over `0.31 to 0.52`. What is infinite was never reached."""
    if estimate is None or estimate.value is None:
        return dash(why)
    low, high = estimate.low, estimate.high
    interval = "no interval" if low is None or high is None else f"{_text(scale * low)} to {_text(scale * high)}"
    value, low, high = (None if end is None else scale * end for end in (estimate.value, low, high))
    return Cell(text=_text(scale * estimate.value), interval=interval, count=count, value=value, low=low, high=high)


def _text(value: float) -> str:
    return NEVER if value == math.inf else digits_of(value)


def _count(estimate: Estimate | None, n: int | None) -> str:
    return "" if estimate is None or n is None or estimate.n == n else f"n {estimate.n:,} of {n:,}"


def items(records: Iterable[Record]) -> int:
    """How many different pairs records are about."""
    return len({record["id"] for record in records})


def lines(body: Mapping[Group, Sequence[tuple[Cell, ...]]]) -> tuple[Row, ...]:
    """The rows of a table: tier and model once for each group, beside all its lines."""
    rows = []
    for group, members in body.items():
        for place, cells in enumerate(members):
            tier, model = group
            head = (Cell(text=tier or model or "not said", interval=model if tier else "", rows=len(members)),)
            rows.append(Row(cells=(*(head if place == 0 else ()), *cells), group=group_name(group)))
    return tuple(rows)


def value_point(label: str, arm: str, estimate: Estimate, *, filled: bool = True, unit: str = "") -> Series:
    """An estimate that is no share as a point of a chart with intervals. `estimate` has a finite value."""
    assert estimate.value is not None
    ends = [end if end is not None and math.isfinite(end) else None for end in (estimate.low, estimate.high)]
    span = (
        "" if estimate.low is None or estimate.high is None else f" ({_text(estimate.low)} to {_text(estimate.high)})"
    )
    return Series(
        label=label,
        arm=arm,
        filled=filled,
        x=(estimate.value,),
        low=(ends[0],),
        high=(ends[1],),
        hover=(f"{arm}, {label}: {_text(estimate.value)}{unit}{span}, n {estimate.n:,}",),
    )


def axis_of(series: Sequence[Series]) -> tuple[float, float]:
    """Ends of an axis that shows all points and intervals and zero, so that its four equal parts are round numbers."""
    values = [0.0, *(v for one in series for v in (*one.x, *one.low, *one.high) if v is not None)]
    low, high = min(values), max(values)
    if high - low <= 0:
        return 0.0, 1.0
    smallest = math.floor(math.log10((high - low) / 4))
    for part in (10.0**power * unit for power in (smallest, smallest + 1, smallest + 2) for unit in (1, 2, 2.5, 4, 5)):
        for below in range(5):
            # Rounding must not ask for the next size where a value lies on the end.
            if -below * part <= low * (1 - 1e-12) and high * (1 - 1e-12) <= (4 - below) * part:
                return -below * part, (4 - below) * part
    return low, high
