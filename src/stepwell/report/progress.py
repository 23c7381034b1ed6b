"""How the run went, from its log and done markers: the state of each job, what is missing, and what it cost.

The log holds wall-clock facts; no figure about a model is computed from it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from stepwell.report.cells import Cell, Column, Row, Section, Table, Tone, dash, digits_of, joined, number, plural
from stepwell.report.folder import Record, RunData
from stepwell.report.spending import spending_table, spent_hours
from stepwell.report.verdicts import verdict_rows

ENDS = {
    "job-done": "done",
    "job-failed": "failed",
    "job-stopped": "stopped",
    "job-skipped": "skipped",
    "job-blocked": "blocked",
}
SAID = {
    "failed": ("failed", "failed"),
    "stopped": ("was stopped before its end", "were stopped before their end"),
    "skipped": ("was not run", "were not run"),
    "blocked": ("could not run", "could not run"),
    "unfinished": ("did not finish", "did not finish"),
    "waiting": ("has not begun", "have not begun"),
}
TONES: dict[str, Tone] = {"done": "", "failed": "no-go", "skipped": "muted", "waiting": "muted"}


@dataclass(frozen=True, kw_only=True)
class JobFacts:
    """What the log says about one job.

    Args:
        state: done, failed, stopped, skipped, blocked, unfinished (began, no last word) or waiting.
        reason: why, where the log says so.
        seconds: on the wall, interrupted attempts included, work that was thrown away not; None where unknown.
        cpu_seconds: as the stage last told; None where it did not.
        rate, rate_unit: tokens (or else steps) a second, likewise.
    """

    state: str
    reason: str
    seconds: float | None
    cpu_seconds: float | None
    rate: float | None
    rate_unit: str


def job_facts(data: RunData) -> dict[str, JobFacts]:
    """Facts per job: those of the plan in its order, then any others that left something."""
    events: dict[str, list[Record]] = {}
    for event in data.events:
        if event.get("job") is not None:
            events.setdefault(str(event["job"]), []).append(event)
    names = dict.fromkeys([*data.planned_jobs(), *sorted(data.jobs), *sorted(data.records)])
    return {name: _facts(data, name, events.get(name, [])) for name in names}


def _facts(data: RunData, name: str, events: list[Record]) -> JobFacts:
    lasting = [event for event in events if event.get("event") in ENDS or event.get("event") == "job-started"]
    last = lasting[-1] if lasting else {}
    reason = str(last.get("cause") or last.get("reason") or "")
    if name in data.jobs:
        state, reason = "done", ""
    elif last.get("event") in ENDS:
        state = ENDS[str(last["event"])]
    else:
        state = "unfinished" if last or name in data.records else "waiting"
    if state == "done" and name not in data.jobs:
        state, reason = "unfinished", "its done marker is missing"
    tokens, steps = _last(events, "tokens_per_second"), _last(events, "steps_per_second")
    rate, unit = (tokens, "tokens/s") if tokens is not None else (steps, "steps/s")
    return JobFacts(
        state=state,
        reason=reason,
        seconds=_seconds(events),
        cpu_seconds=_last(events, "cpu_seconds"),
        rate=rate,
        rate_unit=unit,
    )


def _seconds(events: Iterable[Record]) -> float | None:
    """Sum over attempts; what a killed attempt took is known to its last sign of life. A rerun starts from nothing."""
    total: float | None = None
    began: float | None = None
    seen: float | None = None
    for event in events:
        name, time = event.get("event"), time_of(event)
        if name in ("job-rerun", "job-retired"):
            total, began = None, None
        elif name == "job-started":
            if began is not None and seen is not None:
                total = (total or 0.0) + seen - began
            began = seen = time
        elif name in ENDS and isinstance(event.get("seconds"), int | float):
            total, began = (total or 0.0) + event["seconds"], None
        elif time is not None:
            seen = time
    if began is not None and seen is not None and seen > began:
        total = (total or 0.0) + seen - began
    return total


def _last(events: list[Record], field: str) -> float | None:
    values = [event[field] for event in events if isinstance(event.get(field), int | float)]
    return float(values[-1]) if values else None


def time_of(event: Record) -> float | None:
    """An event's time in seconds since 1970; None where it has none that can be read."""
    value = event.get("time")
    if isinstance(value, int | float):
        return float(value)
    try:
        return datetime.fromisoformat(str(value)).timestamp()
    except ValueError:
        return None


def wall_seconds(data: RunData) -> float | None:
    """Time on the wall while a run was under way: pauses between sessions do not count. None where nothing tells."""
    total, began, last = 0.0, None, None
    for event in data.events:
        time = time_of(event)
        if time is None:
            continue
        if event.get("event") == "run-started" and began is not None and last is not None:
            total, began = total + last - began, time
        began = time if began is None else began
        last = time
    if began is None or last is None or total + last - began <= 0:
        return None
    return total + last - began


def missing_section(data: RunData) -> Section | None:
    """What a complete run would have and this one lacks; None where nothing is missing."""
    alike: dict[tuple[str, str], list[str]] = {}
    for job, facts in job_facts(data).items():
        if facts.state != "done":
            alike.setdefault((facts.state, facts.reason), []).append(f"`{job}`")
    lines = [_lacking(jobs, state, reason) for (state, reason), jobs in alike.items()]
    for row in verdict_rows(data):
        if row.decision == "not reached":
            why = f"could not be decided: {row.reason}" if row.reason else "was not reached"
            lines.append(f"Gate `{row.gate}` {why}.")
    lines += [f"{note}." for note in data.notes]
    return Section(key="missing", title="What is missing", lines=tuple(lines)) if lines else None


def _lacking(jobs: list[str], state: str, reason: str) -> str:
    one, many = SAID[state]
    named = f"Job {jobs[0]} {one}" if len(jobs) == 1 else f"{len(jobs)} jobs {many}: {joined(jobs)}"
    return f"{named}{f' ({reason})' if reason else ''}."


def cost_section(data: RunData) -> Section:
    """Seconds and CPU seconds of each stage; the sum, the price, and the estimate made before, by stage too."""
    facts = job_facts(data)
    stages: dict[str, list[JobFacts]] = {}
    for job, told in facts.items():
        if told.state not in ("waiting", "skipped", "blocked"):
            stages.setdefault(job.split(".")[0], []).append(told)
    rows = tuple(
        Row(
            cells=(
                Cell(text=stage, code=True),
                number(len(jobs)),
                _total([told.seconds for told in jobs], "the log does not say how long it took"),
                _total([told.cpu_seconds for told in jobs], "the stage did not tell"),
            )
        )
        for stage, jobs in stages.items()
    )
    columns = (
        Column(name="stage"),
        Column(name="jobs", numeric=True),
        Column(name="time", note="s, summed", numeric=True),
        Column(name="CPU time", note="s, summed", numeric=True),
    )
    compared = spending_table(data) if rows else None
    return Section(
        key="cost",
        title="Cost",
        lines=tuple(_cost_lines(data, facts)) if rows else (),
        tables=(*((Table(title="", columns=columns, rows=rows),) if rows else ()), *((compared,) if compared else ())),
        missing="" if rows else "Nothing has run.",
    )


def _total(values: list[float | None], why: str) -> Cell:
    """A sum over jobs; where some are not known, the cell says of how many it is."""
    known = [value for value in values if value is not None]
    if not known:
        return dash(why)
    count = f"of {len(known)} of {len(values)} jobs" if len(known) < len(values) else ""
    return Cell(text=digits_of(sum(known)), count=count)


def _cost_lines(data: RunData, facts: dict[str, JobFacts]) -> Iterable[str]:
    known = [told.seconds for told in facts.values() if told.seconds is not None]
    unknown = sum(told.seconds is None and told.state == "done" for told in facts.values())
    wall, spent = wall_seconds(data), spent_hours(data)
    text = f"The jobs took {_span(sum(known))} in all" if known else "How long the jobs took is not known"
    text += f", the run {_span(wall)} on the wall" if wall is not None else ""
    text += f"; it held {digits_of(spent)} device hours" if spent is not None else ""
    text += f"; {plural(unknown, 'job')} without a known time left out of the sum" if unknown else ""
    price, currency = data.plan.get("hourly_price"), str(data.plan.get("currency") or "")
    if price is None:
        yield f"{text}. No hourly price was given."
    elif spent is None:
        yield f"{text}. The log does not say what was held, so there is no price."
    else:
        yield f"{text}. At {price:g} {currency} an hour that is {spent * float(price):.2f} {currency}."
    estimates = [event for event in data.events if event.get("event") == "estimate" and event.get("hours") is not None]
    if not estimates:
        yield "No estimate was logged before the run."
        return
    told = estimates[-1]
    ratio = f"; it came to {digits_of(spent / told['hours'], 2)} times that" if spent and told["hours"] else ""
    amount = f" and {told['price']:.2f} {currency}" if told.get("price") is not None else ""
    device = f" on {told['device']}" if told.get("device") else ""
    yield f"Estimated before the run: {_span(3600 * told['hours'])}{amount}{device}{ratio}."


def _span(seconds: float) -> str:
    """A stretch of time as a reader would say it: 42 s, 6.2 min, 3.4 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def jobs_section(data: RunData) -> Section:
    """Every job with its state, time, rate, fingerprint and what it left."""
    rows = []
    for job, facts in job_facts(data).items():
        marker = data.jobs.get(job, {})
        held = data.records.get(job)
        fingerprint = str(marker.get("fingerprint") or "")
        rows.append(
            Row(
                cells=(
                    Cell(text=job, code=True),
                    Cell(text=facts.state, tone=TONES.get(facts.state, "inconclusive"), why=facts.reason),
                    number(facts.seconds, why="not logged"),
                    Cell(text=digits_of(facts.rate), interval=facts.rate_unit)
                    if facts.rate is not None
                    else dash("the stage did not tell"),
                    number(len(held) if held is not None else None, why="no record file"),
                    number(len(marker["artifacts"]) if "artifacts" in marker else None, why="not done"),
                    Cell(text=fingerprint[:16], code=True) if fingerprint else dash("only a done job has one"),
                )
            )
        )
    columns = (
        Column(name="job"),
        Column(name="state"),
        Column(name="time", note="s", numeric=True),
        Column(name="rate", numeric=True),
        Column(name="records", numeric=True),
        Column(name="artifacts", numeric=True),
        Column(name="fingerprint"),
    )
    return Section(
        key="jobs",
        title="Jobs",
        tables=(Table(title="", columns=columns, rows=tuple(rows)),) if rows else (),
        missing="" if rows else "No job is known.",
    )
