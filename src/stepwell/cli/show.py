"""What the commands print: tables and numbers, made from plans, estimates, verdicts and the state of a run."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from stepwell import kinds

if TYPE_CHECKING:
    from stepwell.audit.data import FileAudit
    from stepwell.estimate import Estimate
    from stepwell.plan import Criterion, GateSpec, Plan
    from stepwell.runner import JobStatus

WIDTH_OF_A_PIPE = 160
STYLES = {
    "go": "green",
    "no-go": "red",
    "inconclusive": "yellow",
    "done": "green",
    "running": "cyan",
    "failed": "red",
    "stopped": "yellow",
    "waiting": "dim",
    "skipped": "dim",
    "blocked": "dim",
}


def console(out: TextIO | None = None) -> Console:
    """Standard output, or `out`, on which texts from plans and data are shown as they are: no markup, no emoji."""
    width = None if (out or sys.stdout).isatty() else WIDTH_OF_A_PIPE
    return Console(file=out, markup=False, emoji=False, highlight=False, width=width, soft_wrap=False)


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], right: Sequence[str] = ()) -> Table:
    """A plain table; columns named in `right` are aligned to the right."""
    made = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        made.add_row(*(cell if isinstance(cell, Text) else str(cell) for cell in row))
    return made


def state(name: str) -> Text:
    """A state or decision in its colour."""
    return Text(name, style=STYLES.get(name, ""))


def number(value: float | None, form: str = ".3g") -> str:
    """A number, or `unknown`: undefined is never shown as zero."""
    return "unknown" if value is None else format(value, form)


def duration(seconds: float | None) -> str:
    """`45 s`, `3.5 min`, `28 h`; `unknown` where undefined."""
    if seconds is None:
        return "unknown"
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 10 or seconds == 0 else f"{seconds:.2g} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def size(held: float | None) -> str:
    """`3.1 GB` (1e9 bytes, as makers count); `unknown` where undefined."""
    if held is None:
        return "unknown"
    return f"{held / 1e9:.3g} GB" if held >= 1e8 else f"{held / 1e6:.3g} MB"


def criterion(asked: Criterion) -> str:
    """A criterion as one line: `accuracy of train (kind=validation, arm=cot, epoch<=10) >= 0.7, 95%`."""
    where = [f"{key}={'|'.join(map(str, v)) if isinstance(v, tuple) else v}" for key, v in asked.where.items()]
    where += [f"{key}<={value:g}" for key, value in asked.at_most.items()]
    where += [asked.pick] if asked.pick != "all" else []
    text = f"{'every ' if asked.statistic == 'every' else ''}{asked.metric} of {asked.stage}"
    text += f" ({', '.join(where)})" if where else ""
    for replaced in asked.replaced:
        text += f" minus {', '.join(f'{key}={value}' for key, value in replaced.items())}"
    text += f" {asked.comparison} {asked.threshold:g}"
    if asked.per:
        text += f" per {asked.per}" + (f" at any {asked.any_of}" if asked.any_of else "")
        text += f", at least {asked.need} of them" if asked.need else ""
        text += f", at least {asked.share:.0%} of them" if asked.share else ""
    how = "point" if asked.mode == "point" else "" if asked.statistic == "every" else f"{asked.confidence:.0%}"
    return text + (f", {how}" if how else "") + (", repeated looks" if asked.looks == "repeated" else "")


def gates(plan: Plan) -> Table:
    """The gates of a plan: what each asks, of what, and where it leads."""

    def row(gate: GateSpec) -> tuple[str, ...]:
        after = ", ".join(dict.fromkeys(selector.stage for selector in gate.after))
        asked = f"\n{gate.combine.replace('all', 'and').replace('any', 'or')} ".join(map(criterion, gate.criteria))
        bands = [f"[{band.low:g}, {band.high:g}] -> {band.route}" for band in gate.bands]
        routes = bands or [f"{decision} -> {route}" for decision, route in gate.routes.items()]
        after += f" (on {gate.on})" if gate.on else ""
        after += f" (given {', '.join(f'{key}={value}' for key, value in gate.given.items())})" if gate.given else ""
        return gate.name, after, f"{gate.asks}\n{asked}", "\n".join(routes)

    return table(("gate", "after", "asks", "routes"), [row(gate) for gate in plan.gates])


def plan_and_cost(plan: Plan, cost: Estimate) -> Iterable[Any]:
    """Everything `stepwell plan` prints, piece by piece."""
    yield f"{plan.title}\n{plan.question}\n"
    axes = "  ".join(f"{name}: {', '.join(map(str, given))}" for name, given in plan.axes.items())
    yield f"study {plan.study}, rung {plan.rung}, seed {plan.seed}, {plan.workers} at a time" + (
        f"\n{axes}" * bool(axes)
    )
    rows = []
    for stage, each in zip(plan.stages, cost.stages, strict=True):
        needs = ", ".join(stage.needs) + (f" (on {stage.on})" if stage.on else "")
        time = duration(None if each.hours is None else each.hours * 3600)
        held = size(None if each.memory is None else each.memory.device)
        rows.append((each.stage, each.kind, each.jobs, needs, number(each.flop), number(each.tokens), time, held))
    columns = ("stage", "kind", "jobs", "needs", "FLOP", "tokens", "time", "memory")
    yield table(columns, rows, right=("jobs", "FLOP", "tokens", "time", "memory"))
    if plan.gates:
        yield gates(plan)
    yield totals(cost)


def totals(cost: Estimate) -> str:
    """The sums, on which device, by which arithmetic, and what they leave out."""
    device = cost.device
    basis = "measured matmul rate" if device.measured else "peak on the data sheet"
    price = "unknown (--hourly-price)" if cost.price is None else f"{cost.price:.2f} {cost.currency}"
    if cost.price is not None and 0 < cost.price < 0.01:
        price = f"less than 0.01 {cost.currency}"
    hours = duration(None if cost.hours is None else cost.hours * 3600)
    lines = [
        f"FLOP   {number(cost.flop)}",
        f"time   {hours} on {device.name}, at {device.fraction:.0%} of its {basis}",
        f"price  {price}",
        *_memory(cost),
    ]
    if cost.unknown:
        lines.append(f"without an estimate, and not in the sums: {', '.join(cost.unknown)}")
    return "\n".join(lines)


def _memory(cost: Estimate) -> list[str]:
    """The stage that holds most, by parts, against what the device has; nothing where no stage says it."""
    known = [(each.memory, each.stage) for each in cost.stages if each.memory is not None]
    if not known:
        return []
    most, stage = max(known, key=lambda pair: pair[0].device)
    parts = {"weights": most.weights, "training": most.training, "activations": most.activations,
             "logits": most.logits}  # fmt: skip
    held = ", ".join(f"{name} {size(value)}" for name, value in parts.items() if value)
    there = cost.device.memory_bytes
    fits = "" if there is None else f", of {size(there)} on {cost.device.name}"
    if there is not None and most.device > there:
        fits += ": DOES NOT FIT"
    host = f"; {size(most.host)} of the machine's own" if most.host else ""
    return [f"memory {size(most.device)} at most, by one job of {stage}{fits} ({held}{host})"]


def jobs(rows: Sequence[JobStatus], plan: Plan, spent_hours: float | None) -> Table:
    """The live table: one row a job, and below it the time, the device hours and the price so far, and the budget.

    What is left of a job, in time and price, follows from the steps that it has done.
    """

    def row(job: JobStatus) -> tuple[Any, ...]:
        total = f"{job.done}/{job.total}" if job.total else ""
        left = ""
        if job.state == "running" and job.done and job.total and job.seconds is not None:
            seconds = job.seconds * (job.total - job.done) / job.done
            left = duration(seconds) + _price(seconds, job, plan)
        fields = "  ".join(f"{key} {_short(value)}" for key, value in job.fields.items())
        told = fields or job.message.partition("\n")[0]
        if job.alert:
            told = Text.assemble(told, "\n" if told else "", (job.alert, "bold yellow"))
        took = "" if job.seconds is None else duration(job.seconds)
        return job.job, state(job.state), total, took, left, told

    made = table(("job", "state", "steps", "time", "left", ""), map(row, rows), right=("steps", "time", "left"))
    made.caption, made.caption_justify = _so_far(rows, plan, spent_hours), "left"
    return made


def _price(seconds: float, job: JobStatus, plan: Plan) -> str:
    """What the devices of a job cost in so much time, where the plan has a price."""
    if plan.hourly_price is None:
        return ""
    devices = kinds.kind(plan.stage(job.stage).kind).holds(plan.devices)
    return f", {seconds / 3600 * devices * plan.hourly_price:.2f} {plan.currency}"


def _so_far(rows: Sequence[JobStatus], plan: Plan, spent_hours: float | None) -> str:
    seconds = sum(job.seconds or 0.0 for job in rows)
    text = f"{sum(job.state == 'done' for job in rows)} of {len(rows)} jobs done, {duration(seconds)} of job time"
    if spent_hours is None:
        return text
    price = "" if plan.hourly_price is None else f", {spent_hours * plan.hourly_price:.2f} {plan.currency}"
    budget = plan.budget
    hours = f"{budget.hours:g} device hours" if budget and budget.hours is not None else ""
    amount = f"{budget.price:g} {plan.currency}" if budget and budget.price is not None else ""
    limit = " and ".join(part for part in (hours, amount) if part)
    return f"{text}, {spent_hours:.3g} device hours{price} so far" + (f" of a budget of {limit}" if limit else "")


def _short(value: Any) -> str:
    return format(value, ".4g") if isinstance(value, float) else str(value)


def verdicts(records: Sequence[dict[str, Any]]) -> Table:
    """Gates with decision, estimate, interval, n and reason."""
    rows = []
    for verdict in records:
        override = verdict.get("override")
        reason = verdict["reason"] + (f"\noverridden: {override['reason']}" if override else "")
        rows.append((verdict["gate"], state(verdict["decision"]), verdict["route"], reason))
    return table(("gate", "decision", "route", "reason"), rows)


def audit(found: FileAudit) -> Iterable[Any]:
    """What an audit found in one file, and the rules that solve its items without reasoning."""
    yield f"{found.file}: {found.n} items, {'clean' if found.ok else f'{len(found.findings)} kinds of fault'}"
    if found.findings:
        rows = [(each.code, each.count, each.of, each.example) for each in found.findings]
        yield table(("finding", "items", "of", "example"), rows, right=("items", "of"))
    if found.shortcuts:
        rules = [(rule.rule, _percent(rule.value), _interval(rule.low, rule.high), rule.n) for rule in found.shortcuts]
        yield table(("rule without reasoning", "right", "95% interval", "n"), rules, right=("right", "n"))


def _percent(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.1%}"


def _interval(low: float | None, high: float | None) -> str:
    return "undefined" if low is None or high is None else f"[{low:.1%}, {high:.1%}]"
