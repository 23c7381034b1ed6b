"""Failures on training problems, what was trained on of them, and whether the second training may be kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from stepwell.report.cells import Cell, Column, Row, Section, Table, Tone, dash, number, percent, plural
from stepwell.report.folder import Record, RunData
from stepwell.report.measures import grouped
from stepwell.report.tune.figures import p_cell, part_cell, points_cell
from stepwell.report.tune.graded import CUT, Graded, graded_of
from stepwell.report.tune.reading import records_of, sides_of, text_of

TOLD = (
    "Failures: training problems that the model loses against their written solutions, by ground truth, never ties and "
    "never items of a benchmark. The gate of the second training: items that were right before, and are no longer."
)
RULE = "Kept only where the loss is shown to be below the margin; worse or inconclusive is rolled back."
TONES: dict[str, Tone] = {"pass": "go", "roll back": "no-go", "inconclusive": "inconclusive"}


def mined_section(data: RunData) -> Section:
    """What was mined, and what became of what was right before."""
    key, title = "mined", "Failures and regression"
    mined, pools = _mined(data), [one for one in graded_of(data) if one.is_pool]
    gates = records_of(data, "regression")
    if not pools and not mined and not gates:
        return Section(key=key, title=title, missing="No failure was mined, and no second training was judged.")
    tables = (*_pools(pools, mined), *_sorts(data), *_corrected(data), *_gates(data, gates))
    return Section(key=key, title=title, lines=(TOLD, *_kept(data)), tables=tables)


def _mined(data: RunData) -> dict[tuple[str, str], Record]:
    """By job and pool."""
    return {(one["job"].name, text_of(one, "benchmark")): one for one in records_of(data, "mined")}


def _pools(pools: Sequence[Graded], mined: dict[tuple[str, str], Record]) -> tuple[Table, ...]:
    rows = []
    for one in pools:
        found = mined.get((one.job.name, one.benchmark), {})
        n, failures = found.get("n"), found.get("failures")
        cells = (
            Cell(text=one.job.label, interval=text_of(one.result, "model"), count=one.benchmark),
            number(n, why="the job did not get to its end"), one.cell(),
            number(failures, why="the job did not get to its end"),
            part_cell(failures, n),
            *(number(found.get(name), why="the job did not get to its end")
              for name in ("ties", "contaminated", "without")),
        )  # fmt: skip
        rows.append(Row(cells=cells))
    columns = (
        Column(name="mined", note="model"),
        Column(name="asked", note="problems", numeric=True),
        Column(name="right", note="%", numeric=True),
        Column(name="failures", note="to train on", numeric=True),
        Column(name="of those asked", note="%", numeric=True),
        Column(name="ties", note="both wrong", numeric=True),
        Column(name="contaminated", note="left out", numeric=True),
        Column(name="no reference", note="left out", numeric=True),
    )
    return (Table(title="Mined failures", columns=columns, rows=tuple(rows)),) if rows else ()


def _sorts(data: RunData) -> tuple[Table, ...]:
    """Why the answers are wrong, by what marked them."""
    rows = []
    for name, same in grouped(records_of(data, "failure"), lambda one: one["job"].name).items():
        for category, mine in grouped(same, lambda one: text_of(one, "category")).items():
            cells = (Cell(text=same[0]["job"].label), Cell(text=category), number(len(mine)), Cell(text=_reasons(mine)))
            rows.append(Row(cells=cells, group=name))
    columns = (Column(name="mined"), Column(name="category"), Column(name="failures", numeric=True), Column(name="why"))
    return (Table(title="Why they are wrong", columns=columns, rows=tuple(rows)),) if rows else ()


def _corrected(data: RunData) -> tuple[Table, ...]:
    """Failures that were answered anew, by the model itself or by a teacher; only right answers are trained on."""
    totals = {one["job"].name: one for one in records_of(data, "corrected")}
    answers = grouped(records_of(data, "correction"), lambda one: one["job"].name)
    rows = []
    for name in dict.fromkeys([*totals, *answers]):
        total, mine = totals.get(name, {}), answers.get(name, [])
        stops = Counter(stop for one in mine if (stop := text_of(one, "stop")))
        why = "the job did not get to its end"
        cells = (
            Cell(text=(total or mine[0])["job"].label, interval=f"by {text_of(total, 'by') or 'an unknown model'}"),
            number(total.get("n"), why=why), number(total.get("right"), why=why),
            part_cell(total.get("right"), total.get("n"), why),
            part_cell(sum(stops[stop] for stop in CUT), sum(stops.values()), "nothing says how the answers ended"),
        )  # fmt: skip
        rows.append(Row(cells=cells))
    columns = (
        Column(name="corrected", note="by"),
        Column(name="failures", note="answered anew", numeric=True),
        Column(name="right", note="to train on", numeric=True),
        Column(name="of them", note="%", numeric=True),
        Column(name="cut off", note="% of answers", numeric=True),
    )
    return (Table(title="Corrections", columns=columns, rows=tuple(rows)),) if rows else ()


def _reasons(failures: Sequence[Record]) -> str:
    """The commonest reasons; one that a single answer has says little, and stands beside it below."""
    reasons = Counter(text_of(one, "why") or "no reason recorded" for one in failures)
    told = [f"{why} ({count:,})" for why, count in reasons.most_common(6) if count > 1]
    rest = len(reasons) - len(told)
    return "; ".join([*told, *([f"{plural(rest, 'other reason' if told else 'different reason')}"] if rest else [])])


def _gates(data: RunData, gates: Sequence[Record]) -> tuple[Table, ...]:
    rows = []
    for one in gates:
        after, before = sides_of(data, one["job"], ("after", "before"), ("after-b", "after"))
        right, lost, verdict = one.get("right_before"), one.get("lost"), text_of(one, "verdict")
        margin = one.get("margin")
        apart = points_cell(one.get("difference"), one.get("difference_low"), one.get("difference_high"))
        cells = (
            Cell(text=f"{after} against {before}", interval=text_of(one, "benchmark"), count=one["job"].detail),
            number(right), number(lost), number(one.get("gained")), number(one.get("left_out")),
            part_cell(lost, right),
            replace(apart, count="" if margin is None else f"margin {percent(margin)}"),
            number(one.get("n")), p_cell(one.get("p_value")),
            Cell(text=verdict, tone=TONES.get(verdict, ""), why=text_of(one, "reason"))
            if verdict else dash("not recorded"),
        )  # fmt: skip
        rows.append(Row(cells=cells))
    columns = (
        Column(name="judged", note="benchmark"),
        Column(name="right before", note="items", numeric=True),
        Column(name="lost", note="items", numeric=True),
        Column(name="gained", note="items", numeric=True),
        Column(name="left out", note="items", numeric=True),
        Column(name="lost", note="% of right", numeric=True),
        Column(name="difference", note="points", numeric=True),
        Column(name="n", note="items", numeric=True),
        Column(name="p", note="McNemar", numeric=True),
        Column(name="verdict"),
    )
    return (Table(title="Regression gate", columns=columns, rows=tuple(rows), note=RULE),) if rows else ()


def _kept(data: RunData) -> tuple[str, ...]:
    """Which model is left at the end."""
    told = []
    for one in records_of(data, "kept"):
        back, model = one.get("rolled_back"), text_of(one, "model") or "unknown"
        detail = f" ({one['job'].detail})" if one["job"].detail else ""
        how = "not recorded whether by a roll-back" if back is None else "rolled back" if back else "kept"
        told.append(f"Second training{detail}: {how}; the model at the end is that of `{model}`.")
    return tuple(told)
