"""Both trainings: curves over optimizer steps, what they were made of, what went wrong, and what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from stepwell.report.cells import Cell, Chart, Column, Row, Section, Series, Table, dash, digits_of, number, plural
from stepwell.report.curves import binned_means
from stepwell.report.folder import Record, RunData
from stepwell.report.measures import grouped
from stepwell.report.progress import job_facts
from stepwell.report.tune.figures import plain_share
from stepwell.report.tune.meta import meta_charts, task_tables
from stepwell.report.tune.reading import Job, events_of, jobs_of, records_of, text_of

MOST, WIDE = 12, 10.0
"""Points of a chart's table for each line; from which ratio of its values on an axis is logarithmic."""
UNITS = {"lr": 1e-4}
"""What an axis counts in, where its numbers would have too many zeros."""
STROKES = ("solid", "dashed", "dotted", "dash-dotted")
GROUPS = {
    "loss": "Training loss, nats a learnt token", "held-out": "Held-out loss, nats a learnt token",
    "lr": "Learning rate, in 1e-4", "grad_norm": "Gradient norm, before it is clipped",
}  # fmt: skip
TOLD = (
    "Loss over the tokens of answers and of the end of a turn alone. Held out: conversations that are not trained on. "
    "Ticks: red flags and alerts."
)


@dataclass(frozen=True, kw_only=True)
class Trained:
    """One training.

    Attributes:
        job: its job.
        about: its record `training-set`; empty where there is none.
        steps, held: its records `step` and `held-out` that have a step.
        flags: (step, what), of events and alerts.
    """

    job: Job
    about: Record
    steps: Sequence[Record]
    held: Sequence[Record]
    flags: Sequence[tuple[int, str]]


def training_section(data: RunData) -> Section:
    """Charts side by side for each stage that trains, and the tables."""
    found = trainings_of(data)
    key, title = "training", "Training"
    if not found:
        return Section(key=key, title=title, missing="No training step was recorded.")
    by_stage: dict[str, list[Trained]] = {}
    for one in found:
        by_stage.setdefault(one.job.stage, []).append(one)
    charts = [_chart(what, stage, some) for what in GROUPS for stage, some in by_stage.items()]
    return Section(
        key=key, title=title, lines=(f"{TOLD}{_strokes(found)}",),
        charts=(*(chart for chart in charts if chart is not None), *meta_charts(data)),
        tables=(_sets(found), *task_tables(data), _went(data, found), *_flags(data)),
    )  # fmt: skip


def trainings_of(data: RunData) -> list[Trained]:
    """Every job that trained, in the plan's order."""
    names = ("training-set", "step", "held-out", "alert")
    kinds = {kind: grouped(records_of(data, kind), lambda one: one["job"].name) for kind in names}
    flags = grouped(events_of(data, "red-flag"), lambda one: one["job"])
    found = []
    for name, job in jobs_of(data).items():
        about, steps, held, alerts = (kinds[kind].get(name, []) for kind in names)
        if about or steps:
            told = [(one.get("step"), text_of(one, "monitor")) for one in (*alerts, *flags.get(name, ()))]
            found.append(
                Trained(
                    job=job, about=about[-1] if about else {}, steps=_placed(steps), held=_placed(held),
                    flags=tuple((step, what) for step, what in told if step is not None),
                )
            )  # fmt: skip
    return found


def _strokes(found: Sequence[Trained]) -> str:
    """Which line is which, where a chart has several."""
    details = list(dict.fromkeys(one.job.detail for one in found))
    if len(details) < 2:
        return ""
    return f" Lines: {', '.join(f'{one} {STROKES[at % len(STROKES)]}' for at, one in enumerate(details))}."


def _placed(records: Sequence[Record]) -> list[Record]:
    return [record for record in records if record.get("step") is not None]


def _chart(what: str, stage: str, some: Sequence[Trained]) -> Chart | None:
    series, rows, widest, lost, unit = [], [], 1, 0, UNITS.get(what, 1.0)
    for one in some:
        records, field = (one.held, "loss") if what == "held-out" else (one.steps, what)
        points, width = binned_means(records, field)
        if not points:
            continue
        marks = _marks(one) if what == "loss" else ()
        widest, lost = max(widest, width), lost + sum(record.get(field) is None for record in records)
        series.append(
            Series(
                label=one.job.label, arm=stage, seed=one.job.detail, x=tuple(step for step, _ in points), marks=marks,
                y=tuple(None if value is None else value / unit for _, value in points),
                hover=tuple(f"{one.job.label}, step {step:,.0f}: {_short(value)}" for step, value in points),
            )
        )  # fmt: skip
        for step, value in _spread(points):
            rows.append(Row(cells=(Cell(text=one.job.label), number(step), number(value, why="not finite"))))
    if not series:
        return None
    values = [value for one in series for value in one.y if value is not None]
    low, high, wide = _axis(values, what)
    columns = (Column(name="training"), Column(name="step", numeric=True), Column(name=what, numeric=True))
    notes = [f"Means over bins of {plural(widest, 'recorded step')}."] if widest > 1 else []
    notes += [f"{plural(lost, 'value is', 'values are')} not finite, and not drawn."] if lost else []
    return Chart(
        key=f"{what}-{stage}", title=f"`{stage}`", form="lines", x_title="optimizer step", series=tuple(series),
        group=GROUPS[what], log=wide, low=low, high=high,
        right=max(one.x[-1] for one in series), note=" ".join(notes),
        table=Table(title=f"At most {MOST} points a training", columns=columns, rows=tuple(rows)),
    )  # fmt: skip


def _axis(values: Sequence[float], what: str) -> tuple[float | None, float | None, bool]:
    """Ends of the axis of values, None where the drawing finds them, and whether it is logarithmic."""
    low, high = min(values, default=0.0), max(values, default=0.0)
    if low == high:  # the drawing would put half of its axis below zero
        return (0.0, 1.2 * high, False) if high > 0 else (None, None, False)
    return (low, high, True) if what != "lr" and 0 < WIDE * low < high else (None, None, False)


def _marks(one: Trained) -> tuple[tuple[float, str], ...]:
    return tuple((float(step), what) for step, what in one.flags)


def _short(value: float | None) -> str:
    return "not finite" if value is None else digits_of(value, 4)


def _spread(points: Sequence[tuple[float, float | None]]) -> list[tuple[float, float | None]]:
    """At most so many of the points, evenly spaced, first and last among them."""
    if len(points) <= MOST:
        return list(points)
    return [points[round(place * (len(points) - 1) / (MOST - 1))] for place in range(MOST)]


def _sets(found: Sequence[Trained]) -> Table:
    rows = []
    for one in found:
        about = one.about
        cells = (
            Cell(text=one.job.label, interval=f"on {text_of(about, 'base') or 'an unknown base'}"),
            number(about.get("n")), number(about.get("replayed")), number(about.get("left_out")),
            number(about.get("rows")), number(about.get("tokens")), number(about.get("supervised_tokens")),
            plain_share(about.get("padding_share")), number(about.get("trainable")),
        )  # fmt: skip
        rows.append(Row(cells=cells))
    columns = (
        Column(name="training", note="base"),
        Column(name="conversations", numeric=True),
        Column(name="replayed", note="of them", numeric=True),
        Column(name="left out", note="too long", numeric=True),
        Column(name="rows", note="packed", numeric=True),
        Column(name="tokens", note="all steps", numeric=True),
        Column(name="learnt", note="tokens", numeric=True),
        Column(name="padding", note="%", numeric=True),
        Column(name="trainable", note="weights", numeric=True),
    )
    return Table(title="What was trained on", columns=columns, rows=tuple(rows))


def _went(data: RunData, found: Sequence[Trained]) -> Table:
    facts, price, currency = job_facts(data), data.plan.get("hourly_price"), str(data.plan.get("currency") or "")
    rates = grouped(events_of(data, "throughput"), lambda one: one["job"])
    trained = {one["job"]: one for one in events_of(data, "trained")}
    rows = []
    for one in found:
        losses = [record["loss"] for record in one.steps if record.get("loss") is not None]
        known = [record for record in one.held if record.get("loss") is not None]
        seconds = facts[one.job.name].seconds if one.job.name in facts else None
        rate, ran = (
            [each.get("tokens_per_second") for each in rates.get(one.job.name, ())],
            trained.get(one.job.name, {}),
        )
        best = min(known, key=lambda record: record["loss"]) if known else None
        rows.append(Row(cells=(
            Cell(text=one.job.label), _steps(one), number(losses[0] if losses else None, why="never finite"),
            number(losses[-1] if losses else None, why="never finite"), _held(known[-1] if known else None, best),
            _right(known[-1] if known else None), number(seconds, why="not logged"),
            _rate([each for each in rate if each], ran), _price(seconds, price, currency),
        )))  # fmt: skip
    columns = (
        Column(name="training"),
        Column(name="steps", note="of planned", numeric=True),
        Column(name="first loss", note="nats", numeric=True),
        Column(name="last loss", note="nats", numeric=True),
        Column(name="held out", note="last, nats", numeric=True),
        Column(name="held-out tokens right", note="last, %", numeric=True),
        Column(name="time", note="s", numeric=True),
        Column(name="rate", note="tokens/s", numeric=True),
        Column(name="price", numeric=True),
    )
    note = (
        "Tokens of one answer are not independent, so their share has no interval. Rate: the median of what the "
        "training measured of itself, or all tokens over its time. Time: of the whole job, from the log."
    )
    return Table(title="How it went", columns=columns, rows=tuple(rows), note=note)


def _steps(one: Trained) -> Cell:
    if not one.steps:
        return dash("no step was recorded")
    done, planned = one.steps[-1]["step"], one.about.get("steps")
    if planned is None:
        return Cell(text=f"{done:,}")
    return Cell(text=f"{done:,} of {planned:,}", interval="unfinished" if done < planned else "")


def _held(last: Record | None, best: Record | None) -> Cell:
    if last is None or best is None:
        return dash("no conversation was held out, or none was looked at yet")
    told = "" if best is last else f"lowest {digits_of(best['loss'])} at step {best['step']:,}"
    return Cell(text=digits_of(last["loss"]), interval=told)


def _right(last: Record | None) -> Cell:
    right, n = (None, None) if last is None else (last.get("right"), last.get("tokens"))
    if right is None or not n or right > n:
        return dash("not recorded")
    return plain_share(right / n, count=f"n {n:,}")


def _rate(measured: Sequence[float], ran: Record) -> Cell:
    if measured:
        return Cell(text=digits_of(median(measured)), count=f"n {len(measured):,}")
    tokens, seconds = ran.get("tokens"), ran.get("seconds")
    return number(tokens / seconds if tokens and seconds else None, why="not measured")


def _price(seconds: float | None, price: object, currency: str) -> Cell:
    if not isinstance(price, int | float):
        return dash("no hourly price was given")
    return dash("not logged") if seconds is None else Cell(text=f"{seconds / 3600 * price:.2f} {currency}".strip())


def _flags(data: RunData) -> tuple[Table, ...]:
    """What the trainings said of themselves; alerts of monitors, which can stop one, have a section of their own."""
    told = [
        (one["job"], one.get("step"), text_of(one, "monitor"), text_of(one, "message"))
        for one in events_of(data, "red-flag")
    ]
    told += [
        (one["job"], one.get("step"), "oom",
         f"memory ran out: from here on {text_of(one, 'rows')} rows at a time, in {text_of(one, 'pieces')} pieces")
        for one in events_of(data, "oom")
    ]  # fmt: skip
    jobs = jobs_of(data)
    rows = [
        Row(cells=(Cell(text=jobs[job].label if job in jobs else job), number(step), Cell(text=what, code=True),
                   Cell(text=message)), group=job)
        for job, step, what, message in sorted(told, key=lambda each: (each[0], each[1] or 0))
    ]  # fmt: skip
    columns = (Column(name="training"), Column(name="step", numeric=True), Column(name="flag"), Column(name="message"))
    return (Table(title="Red flags", columns=columns, rows=tuple(rows)),) if rows else ()
