"""What a pair cost: the seconds of its jobs, from the log, over the pairs that they fitted."""

from __future__ import annotations

from dataclasses import dataclass, field

from stepwell.report.cells import Cell, Column, Section, Table, dash, digits_of, number, plural
from stepwell.report.folder import RunData
from stepwell.report.imprint.numbers import GROUP, lines
from stepwell.report.imprint.reading import FIT, Group, cleaned, grouped_by, ordered_stages, stage_kinds
from stepwell.report.measures import counted
from stepwell.report.progress import JobFacts, job_facts

TOLD = (
    "Seconds on the wall of the jobs that fitted, over the pairs in their records; interrupted attempts count. Exact "
    "pairs share all seconds, those of the pairs that failed as well. The time is one measurement of one machine: its "
    "interval is that of the share of exact pairs alone."
)


@dataclass(kw_only=True)
class Spent:
    """The jobs of one group, stage and K: ids of pairs and of exact ones, and what the log says of each job."""

    pairs: set[str] = field(default_factory=set)
    exact: set[str] = field(default_factory=set)
    jobs: list[JobFacts] = field(default_factory=list)

    @property
    def seconds(self) -> float | None:
        """None where the log is silent about a job that fitted pairs."""
        known = [job.seconds for job in self.jobs if job.seconds is not None]
        return sum(known) if known and len(known) == len(self.jobs) else None


def price_section(data: RunData) -> Section:
    """Seconds a pair and an exact pair, by stage and K."""
    spent = spent_by(data)
    rows = {
        group: [_cells(stage, slots, one) for (stage, slots), one in stages.items()] for group, stages in spent.items()
    }
    columns = (
        GROUP,
        Column(name="part"),
        Column(name="pairs", numeric=True),
        Column(name="exact", note="pairs", numeric=True),
        Column(name="time", note="s", numeric=True),
        Column(name="a pair", note="s", numeric=True),
        Column(name="an exact pair", note="s", numeric=True),
    )
    return Section(
        key="price",
        title="Cost of a pair",
        lines=(TOLD,) if rows else (),
        tables=(Table(title="", columns=columns, rows=lines(rows)),) if rows else (),
        missing="" if rows else "No pair was fitted.",
    )


def spent_by(data: RunData) -> dict[Group, dict[tuple[str, float | None], Spent]]:
    """By group, then by stage and K. A job that fitted no pair is known by the plan's axes alone, and left out."""
    facts, kinds = job_facts(data), stage_kinds(data)
    found: dict[tuple[Group, str, float | None], Spent] = {}
    heads = []
    for job, records in data.records.items():
        pairs = [cleaned(record, job) for record in records if record.get("kind") == "pair"]
        if not pairs or kinds.get(pairs[0]["stage"], FIT) != FIT:
            continue
        first = pairs[0]
        heads.append(first)
        one = found.setdefault((first["group"], first["stage"], first.get("slots")), Spent())
        one.pairs |= {record["id"] for record in pairs}
        one.exact |= {record["id"] for record in pairs if record.get("exact") is True}
        one.jobs += [facts[job]] if job in facts else []
    by: dict[Group, dict[tuple[str, float | None], Spent]] = {}
    for group, mine in grouped_by(data, heads).items():
        for stage in ordered_stages(data, mine):
            for slots in sorted({r.get("slots") for r in mine if r["stage"] == stage}, key=lambda k: k or 0.0):
                by.setdefault(group, {})[stage, slots] = found[group, stage, slots]
    return by


def _cells(stage: str, slots: float | None, spent: Spent) -> tuple[Cell, ...]:
    seconds, n, exact = spent.seconds, len(spent.pairs), len(spent.exact)
    why = "the log does not say how long it took"
    unfinished = [job for job in spent.jobs if job.state != "done"]
    told = f"{plural(len(unfinished), 'job')} not finished" if unfinished else ""
    return (
        Cell(text=stage if slots is None else f"{stage}, K = {slots:g}", count=told),
        number(n),
        number(exact),
        number(seconds, why=why),
        dash(why) if seconds is None else Cell(text=digits_of(seconds / n), value=seconds / n),
        dash(why) if seconds is None else _each_exact(seconds, n, exact),
    )


def _each_exact(seconds: float, n: int, exact: int) -> Cell:
    """Seconds an exact pair; its interval follows from that of the share of exact pairs."""
    if not exact:
        return dash("no pair is exact")
    rate = counted(exact, n)
    assert rate.low is not None and rate.high is not None
    low, high = seconds / n / rate.high, seconds / n / rate.low
    value = seconds / exact
    return Cell(
        text=digits_of(value), interval=f"{digits_of(low)} to {digits_of(high)}", value=value, low=low, high=high
    )
