"""What the gates decided: one row a gate, its criteria below it. Read from verdict records; nothing is recomputed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from stepwell.report.cells import DASH, Cell, Column, Row, Section, Table, dash, digits_of, number
from stepwell.report.folder import Record, RunData, read_folder

DECISIONS = ("go", "no-go", "inconclusive")
SIGNS = {">=": "≥", "<=": "≤", ">": ">", "<": "<"}
Tone = Literal["go", "no-go", "inconclusive", "muted"]
Finding = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class VerdictRow:
    """One gate as the report and the terminal show it.

    Args:
        gate, asks: its name and its question.
        decision: go, no-go, inconclusive, "not asked" or "not reached".
        route: where the decision led; "" where there is none.
        reason: one sentence from the gate, or why it was not asked or could not be decided; "" where there is none.
        mode: `interval`, `point`, or "".
        n_to_decide: units in total that would decide; None where decided, or where none would.
        combine: whether `all` or `any` of the criteria are needed for go.
        findings: what each criterion found; with `parts`, one for each value it was decided for.
        override: the reason given for changing the gate after the run began; "" where nobody did.
        changes: what was changed then.
    """

    gate: str
    asks: str
    decision: str
    route: str
    reason: str
    mode: str
    n_to_decide: int | None
    combine: str = "all"
    findings: tuple[Finding, ...] = ()
    override: str = ""
    changes: tuple[str, ...] = ()

    @property
    def telling(self) -> tuple[Finding, ...]:
        """The criteria that decided: those that say what the gate says."""
        return tuple(finding for finding in self.findings if finding.get("decision") == self.decision)

    @property
    def sure(self) -> bool:
        """Whether the decision rests on intervals and facts. One such criterion is enough where one is enough."""
        if self.mode != "point" or not self.telling:
            return self.mode != "point"
        needs_each = self.decision == ("no-go" if self.combine == "any" else "go")
        return (all if needs_each else any)(is_sound(finding) for finding in self.telling)


def verdict_rows(folder: RunData | Path | str) -> tuple[VerdictRow, ...]:
    """Every gate of the plan in its order, decided or not, then verdicts of gates the plan does not know.

    A gate decided several times (a run taken up again) shows its last verdict.
    """
    data = folder if isinstance(folder, RunData) else read_folder(folder)
    planned = {str(gate.get("name")): gate for gate in data.plan.get("gates") or data.policy.get("gates") or ()}
    last = {str(record.get("gate")): record for record in data.verdicts}
    failed = {str(e.get("gate")): str(e.get("cause") or "") for e in data.events if e.get("event") == "gate-failed"}
    spared = {str(e.get("gate")): str(e.get("reason") or "") for e in data.events if e.get("event") == "gate-spared"}
    names = dict.fromkeys([*planned, *last])
    ended = any(event.get("event") == "run-done" for event in data.events)
    points = {name: gate.get("at") or {} for name, gate in planned.items()}
    taken = [(str(record.get("route")), points.get(name, {})) for name, record in last.items()] if ended else None
    rows = (
        _row(name, planned.get(name, {}), last.get(name), failed.get(name, ""), spared.get(name), taken)
        for name in names
    )
    return tuple(rows)


def _row(
    name: str, planned: Mapping[str, Any], record: Record | None, failed: str, spared: str | None,
    taken: Sequence[tuple[str, Mapping[str, Any]]] | None,
) -> VerdictRow:  # fmt: skip
    """One gate.

    Args:
        name, planned, record, failed: of the gate.
        spared: why the run did not ask it; None where it did not say so.
        taken: the routes of a run that has ended, with their gates' points; None where it goes on.
    """
    asks, combine, on = str(planned.get("asks") or name), str(planned.get("combine") or "all"), planned.get("on")
    if record is None:
        mine = planned.get("at") or {}
        here = [route for route, at in taken or () if all(at[axis] == mine[axis] for axis in at.keys() & mine.keys())]
        if spared is None and on is not None and taken is not None and on not in here:
            spared = f"No gate led to `{on}`."
        decision, reason = ("not reached", failed) if spared is None else ("not asked", spared)
        return VerdictRow(gate=name, asks=asks, decision=decision, route="", reason=reason, mode="", n_to_decide=None)
    override = record.get("override") or {}
    return VerdictRow(
        gate=name,
        asks=asks,
        decision=str(record.get("decision")),
        route=str(record.get("route") or ""),
        reason=str(record.get("reason") or "").removeprefix(f"{record.get('decision')}: "),
        mode=str(record.get("mode") or "interval"),
        n_to_decide=record.get("n_to_decide"),
        combine=combine,
        findings=tuple(record.get("criteria") or ()),
        override=str(override.get("reason") or ""),
        changes=tuple(map(str, override.get("changes") or ())),
    )


def tone_of(decision: str) -> Tone:
    """The colour of a decision."""
    return decision if decision in ("go", "no-go", "inconclusive") else "muted"


def leaves(findings: tuple[Finding, ...]) -> Iterator[Finding]:
    """The findings with an estimate of their own: parts stand for the criterion they belong to, and say so."""
    for finding in findings:
        parts = finding.get("parts")
        if not parts:
            yield finding
        for part in parts or ():
            about = [str(text) for text in (finding.get("about"), part.get("about")) if text]
            yield {**part, "about": ", ".join(dict.fromkeys(about))}


def is_interval(finding: Finding) -> bool:
    """Whether a finding has an interval with a confidence."""
    return finding.get("method") not in ("fact", "point") and isinstance(finding.get("confidence"), int | float)


def is_sound(finding: Finding) -> bool:
    """Whether a criterion compared no point estimate."""
    return all(leaf.get("method") == "fact" or is_interval(leaf) for leaf in leaves((finding,)))


def wanted(leaf: Finding) -> str:
    """What a criterion asks for: `≥ 0.7`, `all true`."""
    if leaf.get("statistic") == "every":
        return "all true"
    threshold = leaf.get("threshold")
    return DASH if threshold is None else f"{SIGNS.get(str(leaf.get('comparison')), '')} {threshold:g}".strip()


def verdict_section(data: RunData) -> Section:
    """One line a gate; its criteria below it."""
    rows = verdict_rows(data)
    columns = (
        Column(name="decision"),
        Column(name="asked and measured"),
        Column(name="estimate", numeric=True),
        Column(name="wanted", numeric=True),
        Column(name="n", numeric=True),
        Column(name="n to decide", numeric=True),
    )
    body = tuple(line for row in rows for line in _lines(row))
    return Section(
        key="verdicts",
        title="Verdicts",
        tables=(Table(title="", columns=columns, rows=body),) if rows else (),
        missing="" if rows else "This plan has no gate.",
    )


def _lines(row: VerdictRow) -> Iterator[Row]:
    """The question and the reason on one line, then a line for each criterion or part of one, beside the decision."""
    found = list(leaves(row.findings))
    route = {"next": "", "stop": "the run stops", "": ""}.get(row.route, f"goes to {row.route}")
    why = [row.reason.rstrip(".")]
    if row.mode == "point":
        why.append("Where the mode is point, the estimate alone was compared: that carries no confidence")
    if row.override:
        why.append(f"Overridden after the start: {row.override}")
    decision = Cell(text=row.decision, tone=tone_of(row.decision), interval=row.gate, count=route, rows=1 + len(found))
    asked = Cell(text=row.asks, why=" ".join(f"{text}." for text in why if text), columns=5)
    yield Row(cells=(decision, asked), group=row.gate)
    for leaf in found:
        yield Row(cells=_finding(leaf, several=len(found) > 1), group=row.gate)


def _finding(leaf: Finding, *, several: bool) -> tuple[Cell, ...]:
    decision = str(leaf.get("decision"))
    mode = "" if leaf.get("method") == "fact" else f"mode {leaf.get('mode') or 'interval'}"
    needed = dash("decided" if decision in ("go", "no-go") else "no n would decide at this estimate")
    return (
        Cell(text=str(leaf.get("metric", "")), count=str(leaf.get("about") or leaf.get("stage") or ""), code=True),
        _estimate(leaf, tone_of(decision) if several else ""),
        Cell(text=wanted(leaf), interval=mode),
        number(leaf.get("n"), why="no records"),
        needed if leaf.get("n_to_decide") is None else number(leaf["n_to_decide"]),
    )


def _estimate(leaf: Finding, tone: Tone | Literal[""]) -> Cell:
    """The estimate with its interval. Among several criteria each also says its own decision, in colour and word."""
    value, low, high, level = (leaf.get(key) for key in ("value", "low", "high", "confidence"))
    said = str(leaf.get("decision")) if tone else ""
    if leaf.get("method") == "fact":
        text = {"go": "all true", "no-go": "not all true"}.get(str(leaf.get("decision")))
        return Cell(text=text, interval="a fact", tone=tone) if text else dash(str(leaf.get("reason") or "no record"))
    if value is None:
        return dash(str(leaf.get("reason") or "undefined"))
    if low is None or high is None:
        kind = "a point" if leaf.get("method") == "point" else "no interval"
        return Cell(text=digits_of(value), interval=kind, count=said, tone=tone)
    share = f" at {digits_of(100 * level)}%" if level is not None else ""
    return Cell(text=digits_of(value), interval=f"{digits_of(low)} to {digits_of(high)}{share}", count=said, tone=tone)
