"""Training as one line from stage A through stage B: accuracy and F1 on held-out items, loss and gradient norm.

Stages that begin where another ended stand behind it on the axis, so that a peak that decays again can be seen.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from stepwell.analysis.wire import METRICS, Look, Training
from stepwell.report.answered.reading import records_of
from stepwell.report.cells import TO, Cell, Chart, Column, Row, Section, Series, Table, dash, number, percent, plural
from stepwell.report.curves import binned_means
from stepwell.report.folder import Record, RunData
from stepwell.report.measures import grouped
from stepwell.report.wire.analysed import trainings_of

DRAWN = ("first_acc", "f1")
"""Metrics that are drawn and told of; `stepwell analyze --json` has the five likeliest too."""
MOST = 12
"""Rows of numbers below a chart, for each line."""
WIDE = 10.0
"""How many times the lowest value the highest is where an axis is logarithmic."""
GROUPS = {
    "first_acc": "First token right, % of held-out items", "f1": "F1 of held-out answers, %",
    "loss": "Weighed loss", "grad_norm": "Gradient norm, before it is clipped",
}  # fmt: skip
TOLD = (
    "Held-out items, of which none is trained on, by optimizer step; a stage that goes on from another stands behind "
    "it. Grey: the commonest first token of the training set, which takes no prompt to guess. Ticks: the peak, alerts."
)
SHORT = {"stage-a": "A", "stage-b": "B"}
LEVELS = (
    "A curve's intervals are Wilson's and hold at 95% all together, however many looks there are; F1 counts as hits of "
    "the same mean, which makes its interval wide. A breakthrough is a look whose interval lies wholly above that of "
    "the level before it, first the commonest token; a regression lies wholly below that of an earlier look."
)


@dataclass(frozen=True, kw_only=True)
class Placed:
    """A training, where it stands on the axis, and its cleaned steps."""

    training: Training
    start: int
    name: str
    detail: str
    steps: Sequence[Record]


def timeline_section(data: RunData) -> Section:
    """Charts for each arm, the table of peaks and final values, and what happened when."""
    trainings = trainings_of(data)
    if not trainings:
        return Section(key="training", title="Training", missing="No training step was recorded.")
    placed = _placed(data, trainings)
    arms = grouped_by_arm(placed)
    charts = [chart for metric in GROUPS for (arm, detail), some in arms.items()
              if (chart := _chart(metric, arm, detail, some)) is not None]  # fmt: skip
    skipped = sum(one.skipped for one in trainings)
    lost = f"{plural(skipped, 'step was', 'steps were')} skipped: a loss or the gradient was not finite."
    return Section(
        key="training", title="Training", lines=(TOLD, LEVELS, *((lost,) if skipped else ())), charts=tuple(charts),
        tables=(*_peaks(placed), *_happened(placed)),
    )  # fmt: skip


def _placed(data: RunData, trainings: Sequence[Training]) -> list[Placed]:
    """Each training behind the one that its stage needs; where the plan is lost, B behind A."""
    needs = {str(stage.get("name")): stage.get("needs") for stage in data.plan.get("stages") or ()}
    steps = grouped(records_of(data, "step"), lambda record: record["job"])
    found: dict[str, Placed] = {}
    for one in sorted(trainings, key=lambda one: one.mode):  # what is gone on with is of A, or comes before in the plan
        peers = [other for other in found.values() if other.training.axes == one.axes]
        wanted = needs.get(one.stage)
        before = [
            p for p in peers
            if (p.training.stage in wanted if isinstance(wanted, list) else (p.training.mode, one.mode) == ("a", "b"))
        ]  # fmt: skip
        own = [record for record in steps.get(one.job, ()) if record.get("step") is not None]
        found[one.job] = Placed(
            training=one, start=before[-1].start + before[-1].training.steps if before else 0, name=_name(one),
            detail=own[0]["detail"] if own else "", steps=own,
        )  # fmt: skip
    return [found[one.job] for one in trainings]


def _name(one: Training) -> str:
    seed = one.axes.get("seed")
    return one.stage if seed is None else f"{one.stage}, seed {seed}"


def grouped_by_arm(placed: Iterable[Placed]) -> dict[tuple[str, str], list[Placed]]:
    """Trainings by arm and what else tells them apart but the seed."""
    found: dict[tuple[str, str], list[Placed]] = {}
    for one in placed:
        found.setdefault((str(one.training.axes.get("arm", "")), one.detail), []).append(one)
    return found


def _chart(metric: str, arm: str, detail: str, some: Sequence[Placed]) -> Chart | None:
    points = {one.training.job: _points(metric, one) for one in some}
    lines = [_series(metric, arm, one, points[one.training.job]) for one in some if points[one.training.job]]
    if not lines:
        return None
    values = [y for line in lines for y in line.y if y is not None]
    base = _baseline(some) if metric == "first_acc" else None
    right = max(line.x[-1] for line in lines)
    shares = metric in DRAWN
    # Stages that begin at one step are the ways that gates lead from there.
    starts: dict[int, list[str]] = {}
    for one in some:
        starts.setdefault(one.start, []).append(SHORT.get(one.training.stage, one.training.stage))
    rows = [row for one in some for row in _rows(metric, one, points[one.training.job])]
    unit = "%" if shares else ""
    head = (Column(name="training"), Column(name="step", numeric=True), Column(name=metric, note=unit, numeric=True))
    logarithmic = not shares and bool(values) and 0 < WIDE * min(values) < max(values)
    return Chart(
        key=f"{metric}-{arm}-{detail}", title=f"`{', '.join(filter(None, (arm, detail))) or metric}`", form="lines",
        x_title="optimizer step", group=GROUPS[metric], right=right, log=logarithmic,
        series=(*lines, *([_level(base, right)] if base is not None else [])),
        rules=tuple((float(at), " / ".join(dict.fromkeys(names))) for at, names in sorted(starts.items())),
        low=-0.02 * _top(values) if shares else min(values, default=None) if logarithmic else None,
        high=_top(values) if shares else max(values, default=None) if logarithmic else None,
        table=Table(title=f"At most {MOST} points a training", columns=head, rows=tuple(rows)),
    )  # fmt: skip


def _points(metric: str, one: Placed) -> list[tuple[float, float | None]]:
    """Steps of the training itself, and values: shares in percent at each look, others as means over bins."""
    if metric in DRAWN:
        curve = one.training.curves.get(metric)
        return [] if curve is None else [(float(look.step), 100 * look.value) for look in curve.looks]
    return binned_means(one.steps, metric)[0]


def _series(metric: str, arm: str, one: Placed, points: Sequence[tuple[float, float | None]]) -> Series:
    unit = " %" if metric in DRAWN else ""
    marks = []
    curve = one.training.curves.get(metric)
    if curve is not None and curve.peak.value:
        marks.append((float(one.start + curve.peak.step), f"peak {percent(curve.peak.value)}"))
    if metric in DRAWN:
        marks += [(float(one.start + step), f"alert {monitor}") for step, monitor, _ in one.training.alerts]
    return Series(
        label=one.name, arm=arm, seed=str(one.training.axes.get("seed", "")), x=tuple(one.start + x for x, _ in points),
        y=tuple(y for _, y in points), marks=tuple(marks),
        hover=tuple(f"{one.name}, step {x:,.0f}: {number(y, why='').text}{unit}" for x, y in points),
    )  # fmt: skip


def _baseline(some: Sequence[Placed]) -> Look | None:
    curves = [curve for one in some if (curve := one.training.curves.get("first_acc")) is not None]
    return next((curve.baseline for curve in curves if curve.baseline is not None), None)


def _level(base: Look, right: float) -> Series:
    told = f"commonest first token: {percent(base.value)} %, n {base.n:,}"
    return Series(label="commonest token", arm="", x=(0.0, right), y=(100 * base.value,) * 2, hover=(told, told))


def _top(values: Sequence[float]) -> float:
    most = max(values, default=0.0)
    return float(next((end for end in (5, 10, 20, 50) if most < end), 104))


def _rows(metric: str, one: Placed, points: Sequence[tuple[float, float | None]]) -> list[Row]:
    every = max(1, math.ceil(len(points) / MOST))
    kept = [*points[: len(points) - 1 : every], *points[-1:]]
    curve = one.training.curves.get(metric)
    looks = {look.step: look for look in curve.looks} if curve is not None else {}
    return [
        Row(cells=(Cell(text=one.name), number(x), _look(looks[int(x)]) if looks else number(y, why="not finite")))
        for x, y in kept
    ]


def _look(look: Look, step: bool = False) -> Cell:
    """A share in percent with its interval, and the step where that is not in the row."""
    told = f"step {look.step:,}" if step else ""
    value, low, high = (100 * end for end in (look.value, look.low, look.high))
    interval = f"{percent(look.low)}{TO}{percent(look.high)}"
    return Cell(text=percent(look.value), interval=interval, count=told, value=value, low=low, high=high)


def _peaks(placed: Sequence[Placed]) -> tuple[Table, Table]:
    """A line for each training: of first tokens, and of whole answers with the training's health."""
    firsts, answers = [], []
    for one in placed:
        training, base = one.training, _baseline([one])
        hit = training.first_f1_step
        steps = Cell(text=f"{training.steps:,}", interval="" if training.finished else "unfinished")
        level = dash("not recorded") if base is None else _look(base)
        firsts.append(Row(cells=(_who(one), steps, *_ends(one, "first_acc"), level), group=training.stage))
        health = (
            dash("no answer had one") if hit is None else Cell(text=f"{hit:,}"),
            number(training.max_grad_norm, why="never finite"),
            number(training.skipped),
        )
        answers.append(Row(cells=(_who(one), *_ends(one, "f1"), *health), group=training.stage))
    ends = (Column(name="peak", note="%", numeric=True), Column(name="final", note="%", numeric=True))
    who, steps = Column(name="training"), Column(name="steps", numeric=True)
    told = (
        Column(name="first F1 > 0", note="step", numeric=True),
        Column(name="gradient", note="largest norm", numeric=True),
        Column(name="skipped", note="steps", numeric=True),
    )
    common = Column(name="commonest token", note="%", numeric=True)
    return (
        Table(title="First token: peak and end", columns=(who, steps, *ends, common), rows=tuple(firsts)),
        Table(title="F1 of held-out answers, and health", columns=(who, *ends, *told), rows=tuple(answers)),
    )


def _who(one: Placed) -> Cell:
    return Cell(text=one.name, interval=", ".join(filter(None, (str(one.training.axes.get("arm", "")), one.detail))))


def _ends(one: Placed, metric: str) -> tuple[Cell, Cell]:
    """Peak and final value."""
    curve = one.training.curves.get(metric)
    if curve is None:
        return dash("never looked at"), dash("never looked at")
    ratio, final = curve.final_over_peak, _look(curve.final)
    told = "" if ratio is None else f"{100 * ratio:.0f}% of the peak"
    return _look(curve.peak, step=True), replace(final, count=told)


def _happened(placed: Sequence[Placed]) -> list[Table]:
    """Breakthroughs and regressions in the order of steps; no table where nothing happened."""
    rows = [row for one in placed for _, row in sorted(_events(one), key=lambda pair: pair[0])]
    columns = (
        Column(name="training"),
        Column(name="step", numeric=True),
        Column(name="what"),
        Column(name="from", note="%", numeric=True),
        Column(name="to", note="%", numeric=True),
    )
    return [Table(title="Breakthroughs and regressions", columns=columns, rows=tuple(rows))] if rows else []


def _events(one: Placed) -> Iterable[tuple[int, Row]]:
    group = one.training.job
    for metric in DRAWN:
        curve = one.training.curves.get(metric)
        if curve is None:
            continue
        for up in curve.breakthroughs:
            told = Cell(text=f"breakthrough, {METRICS[metric]}", tone="go")
            cells = (_who(one), number(up.look.step), told, _look(up.above), _look(up.look))
            yield up.look.step, Row(cells=cells, group=group)
        for down in curve.regressions:
            end = "to the end" if down.end is None else f"until step {down.end:,}"
            told = Cell(text=f"regression, {METRICS[metric]}, {end}", tone="no-go")
            cells = (_who(one), number(down.start.step), told, _look(down.best), _look(down.lowest))
            yield down.start.step, Row(cells=cells, group=group)
