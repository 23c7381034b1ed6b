"""Where the vectors lie: beside tokens, beside one another, and on the way from one restart to another."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from stepwell.report.cells import Cell, Chart, Column, Series, Table, digits_of, number
from stepwell.report.folder import Record, RunData
from stepwell.report.imprint.numbers import GROUP, average_cell, estimate_cell, items, lines, mean_of, within
from stepwell.report.imprint.reading import Group, group_name, grouped_by, records_of
from stepwell.report.measures import CONFIDENCE

if TYPE_CHECKING:
    from stepwell.stats import Estimate

TOKENS = 8


def geometry_tables(data: RunData) -> list[Table]:
    """Distance to the nearest token, cosine and length, over vectors; cosines between pairs; the commonest tokens."""
    near = grouped_by(data, records_of(data, "geometry"))
    alike = grouped_by(data, records_of(data, "similarity"))
    if not near and not alike:
        return []
    rows = {
        group: [_place(near.get(group, []), alike.get(group, []))]
        for group in grouped_by(data, [r for some in (near, alike) for mine in some.values() for r in mine])
    }
    columns = (
        GROUP,
        Column(name="n", note="pairs", numeric=True),
        Column(name="vectors", numeric=True),
        Column(name="distance", note="to the nearest token", numeric=True),
        Column(name="cosine", note="the largest with any", numeric=True),
        Column(name="length", note="tokens' mean length = 1", numeric=True),
        Column(name="cosine", note="between pairs", numeric=True),
        Column(name="nearest tokens", note="how often"),
    )
    note = "Nearest is not near. Intervals are over pairs, whose vectors are not independent of one another."
    return [Table(title="Geometry", columns=columns, rows=lines(rows), note=note)]


def _place(near: Sequence[Record], alike: Sequence[Record]) -> tuple[Cell, ...]:
    n = len({r["id"] for r in near} | {r["id"] for r in alike} | {str(r.get("other")) for r in alike})
    cells = [average_cell(near, field, "not recorded", items(near)) for field in ("distance", "cosine", "norm")]
    common = Counter(str(r["nearest"]) for r in near if r.get("nearest") is not None).most_common(TOKENS)
    tokens = ", ".join(f"{token.strip() or repr(token)} {count:,}" for token, count in common)
    between = estimate_cell(within(between_pairs(alike), (-1.0, 1.0)), "fewer than two pairs")
    return number(n), number(len(near)), *cells, between, Cell(text=tokens)


def between_pairs(records: Sequence[Record]) -> Estimate | None:
    """The mean cosine between two different pairs, with an interval for new pairs.

    Each pair takes part in many of the values, so these are not independent: the mean is a U-statistic of order 2,
    whose variance is 4 / n times that of the pairs' own means (Hoeffding 1948).
    """
    from stepwell.stats import Estimate, StandardError

    values = {
        frozenset((r["id"], str(r.get("other")))): r["cosine"]
        for r in records
        if r.get("cosine") is not None and r["id"] != str(r.get("other"))
    }
    if not values:
        return None
    of: dict[str, list[float]] = {}
    for pair, value in values.items():
        for name in pair:
            of.setdefault(name, []).append(value)
    n, value = len(of), sum(values.values()) / len(values)
    own = [sum(some) / len(some) for some in of.values()]
    middle = sum(own) / n
    spread = sum((one - middle) ** 2 for one in own) / (n - 1)
    low, high = None, None
    # With two or three pairs every pair's own mean is nearly the same sum, and its spread says nothing.
    if n > 3 and spread > 0:
        error = StandardError(value=value, error=2 * math.sqrt(spread / n), freedom=n - 1)
        low, high = error.interval(CONFIDENCE)
    return Estimate(value=value, low=low, high=high, n=n, method="u-statistic", confidence=CONFIDENCE)


def line_tables(data: RunData) -> list[Table]:
    """The barrier on the way between restarts."""
    rows: dict[Group, list[tuple[Cell, ...]]] = {}
    for group, mine in grouped_by(data, records_of(data, "line")).items():
        n = items(mine)
        known = [record["barrier"] for record in mine if record.get("barrier") is not None]
        highest = number(max(known, default=None), why="no barrier recorded")
        cells = (number(len(mine)), average_cell(mine, "barrier", "not recorded", n), highest)
        rows[group] = [(number(n), *cells)]
    columns = (
        GROUP,
        Column(name="n", note="pairs", numeric=True),
        Column(name="lines", numeric=True),
        Column(name="barrier", note="mean, nats a token", numeric=True),
        Column(name="highest barrier", note="nats a token", numeric=True),
    )
    note = "Barrier: the largest excess of the loss over the straight line between its values at the two restarts."
    return [Table(title="Lines between restarts", columns=columns, rows=lines(rows), note=note)] if rows else []


def line_charts(data: RunData) -> list[Chart]:
    """The mean loss along the lines of each group, at the fractions that all of them have."""
    series = []
    for group, mine in grouped_by(data, records_of(data, "line")).items():
        one = _along(group_name(group), [r for r in mine if _points(r)])
        series += [one] if one is not None else []
    chart = Chart(
        key="lines",
        title="Loss on the way from one restart to another, nats a token",
        form="lines",
        x_title="fraction of the way",
        series=tuple(series),
        note=f"Mean over lines, 95% intervals over pairs. {'; '.join(one.label for one in series)}.",
    )
    return [chart] if series else []


def _points(record: Record) -> dict[float, float]:
    fractions, nats = record.get("fractions"), record.get("nats")
    if not isinstance(fractions, tuple) or not isinstance(nats, tuple):
        return {}
    both = zip(fractions, nats, strict=False)
    return {round(x, 9): y for x, y in both if isinstance(x, float) and isinstance(y, float)}


def _along(name: str, records: Sequence[Record]) -> Series | None:
    found = [(record["id"], _points(record)) for record in records]
    common = sorted(set.intersection(*(set(points) for _, points in found))) if found else []
    estimates = [mean_of([{"id": id, "nats": points[x]} for id, points in found], "nats") for x in common]
    known = [(x, e) for x, e in zip(common, estimates, strict=True) if e is not None and e.value is not None]
    if not known:
        return None
    return Series(
        label=name,
        arm=name,
        x=tuple(x for x, _ in known),
        y=tuple(e.value for _, e in known),
        low=tuple(e.low for _, e in known),
        high=tuple(e.high for _, e in known),
        hover=tuple(f"{name}, {x:g}: {digits_of(e.value or 0.0)} nats, n {e.n:,}" for x, e in known),
    )
