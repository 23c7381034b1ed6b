"""What each model got right: accuracy with intervals, what was cut off or could not be marked, and paired gains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from stepwell.report.cells import Cell, Chart, Column, Row, Section, Table, dash, joined, number, percent, plural
from stepwell.report.folder import RunData
from stepwell.report.measures import counted, grouped, point, share_cell
from stepwell.report.tune.figures import hash_cell
from stepwell.report.tune.gains import gains_tables
from stepwell.report.tune.graded import CUT, Graded, models_of
from stepwell.report.tune.reading import text_of

TOLD = (
    "Share of items whose first answer ground truth calls right, with Wilson's 95% interval. What a time, memory or "
    "output limit ended, or the sandbox could not run, is no wrong answer: it is not in n, and counted below."
)
MARKS = ("right", "wrong", "silent", "timeout", "memory", "output", "sandbox-error")
UNKNOWN = "nothing says how the answers ended"


def results_section(data: RunData) -> Section:
    """Accuracy by model and benchmark, gains, and what lies behind them."""
    found = models_of(data)
    key, title = "results", "Results"
    if not found:
        return Section(key=key, title=title, missing="Nothing was graded.")
    return Section(
        key=key, title=title, lines=(TOLD, *_protocols(found), *_warnings(found)), charts=_charts(found),
        tables=(_accuracy(found), *gains_tables(data), _marks(found), *_samples(found)),
    )  # fmt: skip


def _charts(found: Sequence[Graded]) -> tuple[Chart, ...]:
    """One for each benchmark: a line for each model."""
    charts = []
    for benchmark, same in _by_benchmark(found).items():
        pairs = [(one, estimate) for one in same if (estimate := one.accuracy()) is not None]
        series = tuple(point(one.job.label, one.job.stage, estimate) for one, estimate in pairs)
        if series:
            charts.append(
                Chart(
                    key=f"accuracy-{benchmark}", title=f"`{benchmark}`", form="intervals", series=series,
                    x_title="right, %, with 95% intervals over items",
                )
            )  # fmt: skip
    return tuple(charts)


def _by_benchmark(found: Sequence[Graded]) -> dict[str, list[Graded]]:
    groups: dict[str, list[Graded]] = {}
    for one in found:
        groups.setdefault(one.benchmark, []).append(one)
    return groups


def _protocols(found: Sequence[Graded]) -> tuple[str, ...]:
    """Whether the results of a benchmark may be compared; another program's model has a template of its own."""
    told = []
    for benchmark, same in _by_benchmark(found).items():
        ours = [one for one in same if not one.is_reference]
        known = {text_of(one.result, "protocol"): one for one in ours}
        known.pop("", None)
        lacking = [f"`{one.job.label}`" for one in ours if not text_of(one.result, "protocol")]
        if len(known) > 1:
            each = joined(f"`{one.job.label}` {fingerprint[:12]}" for fingerprint, one in known.items())
            told.append(
                f"The protocols of the results on `{benchmark}` differ ({each}): template, decoding, scorer or items "
                "are not the same, so these numbers must not be compared."
            )
        elif known:
            told.append(f"All {plural(len(ours) - len(lacking), 'result')} of ours on `{benchmark}` have one protocol, "
                        f"`{next(iter(known))[:12]}`.")  # fmt: skip
        if lacking:
            told.append(f"Of {joined(lacking)} no protocol on `{benchmark}` is recorded.")
        if scorers := _other_scorers(same):
            told.append(f"A reference on `{benchmark}` was marked by another scorer ({scorers}): do not compare it.")
    return tuple(told)


def _other_scorers(same: Sequence[Graded]) -> str:
    names = dict.fromkeys(name for one in same if (name := text_of(one.result, "scorer")))
    return joined(names) if len(names) > 1 and any(one.is_reference for one in same) else ""


def _warnings(found: Sequence[Graded]) -> tuple[str, ...]:
    """What the grading itself found to be wrong."""
    told = []
    for one in found:
        for warning in dict.fromkeys(text_of(one.result, name) for name in ("warning", "stops_warning")):
            if warning:
                told.append(f"`{one.job.label}` on `{one.benchmark}`: {warning}.")
    return tuple(told)


def _accuracy(found: Sequence[Graded]) -> Table:
    rows = []
    for benchmark, same in _by_benchmark(found).items():
        for one in same:
            cells = (
                Cell(text=benchmark), Cell(text=one.job.label, interval=text_of(one.result, "model")), one.cell(),
                _unmarked(one), _cut(one), number(one.result.get("looping"), why=UNKNOWN),
                _protocol(one), _named(text_of(one.result, "scorer"), "not recorded"),
                _named(text_of(one.result, "by"), "another program wrote" if one.is_reference else "not recorded"),
            )  # fmt: skip
            rows.append(Row(cells=cells, group=benchmark))
    columns = (
        Column(name="benchmark"),
        Column(name="graded", note="model"),
        Column(name="right", note="%", numeric=True),
        Column(name="not marked", note="items", numeric=True),
        Column(name="cut off", note="% of answers", numeric=True),
        Column(name="looping", note="answers", numeric=True),
        Column(name="protocol"),
        Column(name="scorer"),
        Column(name="written by"),
    )
    note = "Cut off: ended by the limit of tokens. Looping: cut off while it repeated itself."
    return Table(title="Accuracy, with 95% intervals over items", columns=columns, rows=tuple(rows), note=note)


def _unmarked(one: Graded) -> Cell:
    found = one.result.get("unmarked")
    if found is None:
        return dash("not recorded")
    return Cell(text=f"{found:,}", tone="alert" if text_of(one.result, "warning") else "")


def _cut(one: Graded) -> Cell:
    stops = one.stops
    total = sum(stops.values())
    tone = "alert" if text_of(one.result, "stops_warning") else ""
    if total:
        cell = share_cell(counted(sum(stops[name] for name in CUT), total), UNKNOWN, count=f"n {total:,}")
        return replace(cell, tone=tone)
    share = one.result.get("cut")
    return dash(UNKNOWN) if share is None else Cell(text=percent(share), interval="no interval", tone=tone)


def _protocol(one: Graded) -> Cell:
    cell = hash_cell(one.result.get("protocol"))
    return Cell(text=cell.text, code=cell.code, why=cell.why, interval="template of its own" * one.is_reference)


def _named(text: str, why: str) -> Cell:
    return Cell(text=text) if text else dash(why)


def _marks(found: Sequence[Graded]) -> Table:
    """What every first answer was called, and how every answer ended."""
    counts, stops = [one.statuses for one in found], [one.stops for one in found]
    marks = [*MARKS, *sorted({name for each in counts for name in each} - set(MARKS))]
    marks = [name for name in marks if any(each[name] for each in counts)]
    ends = list(dict.fromkeys(name for each in stops for name in sorted(each)))
    rows = []
    for one, mark, stop in zip(found, counts, stops, strict=True):
        cells = (
            Cell(text=one.job.label, interval=one.benchmark),
            *(number(mark[name] if mark else None, why="no item was recorded") for name in marks),
            *(number(stop[name] if stop else None, why=UNKNOWN) for name in ends),
        )
        rows.append(Row(cells=cells, group=one.benchmark))
    columns = (
        Column(name="graded", note="benchmark"),
        *(Column(name=name, note="items", numeric=True) for name in marks),
        *(Column(name=f"ended: {name}", note="answers", numeric=True) for name in ends),
    )
    note = "Silent: no ground truth; only a judge can decide. Ended: by the end of turn, a stop text, or a limit."
    return Table(title="Marks and ends of all answers", columns=columns, rows=tuple(rows), note=note, folded=True)


def _samples(found: Sequence[Graded]) -> tuple[Table, ...]:
    """pass@k, where several answers to each item were drawn (Chen et al. 2021, equation 1)."""
    from stepwell.grading.passk import pass_at_k
    from stepwell.stats import bootstrap_mean

    rows = []
    for one in found:
        known = [item for item in one.items if item.get("correct") is not None]
        groups = list(grouped(known, lambda item: text_of(item, "id")).values())
        k = min((len(same) for same in groups), default=0)
        if k < 2:
            continue
        values = [pass_at_k(len(same), sum(item["correct"] for item in same), k) for same in groups]
        cells = (Cell(text=one.benchmark), Cell(text=one.job.label), number(k))
        rows.append(Row(cells=(*cells, share_cell(bootstrap_mean(values), "", count=f"n {len(groups):,}"))))
    columns = (Column(name="benchmark"), Column(name="graded"), Column(name="k", numeric=True),
               Column(name="pass@k", note="%", numeric=True))  # fmt: skip
    return (Table(title="One of k answers is right", columns=columns, rows=tuple(rows)),) if rows else ()
