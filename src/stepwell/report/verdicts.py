"""What the gates decided, and what follows from it: computed from verdicts alone, never from a point estimate.

The answer quotes what each gate asks and the side its interval took. It is silent on everything no gate asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from stepwell.report.cells import DASH, Cell, Column, Row, Section, Table, dash, digits_of, joined, number, plural
from stepwell.report.folder import Record, RunData, read_folder

WORDS = {"go": "go", "no-go": "no-go", "inconclusive": "inconclusive"}
SIGNS = {">=": "≥", "<=": "≤", ">": ">", "<": "<"}
Tone = Literal["go", "no-go", "inconclusive", "muted"]


@dataclass(frozen=True, kw_only=True)
class VerdictRow:
    """One gate as the report and the terminal show it.

    Args:
        gate, asks: its name and its question.
        decision: go, no-go, inconclusive, or "not reached".
        route: where the decision led; "" where the gate was not reached.
        reason: one sentence from the gate, or why it could not be decided; "" where it was not reached.
        mode: `interval`, `point`, or "".
        n_to_decide: units in total that would decide; None where decided, or where none would.
        findings: what each criterion found, `parts` of a criterion after it.
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
    findings: tuple[Mapping[str, Any], ...] = ()
    override: str = ""
    changes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Headline:
    """The answer in one sentence, and its limits.

    Args:
        tone: of the deciding gate, for the colour; "muted" where none has decided.
        answer: one sentence.
        may: what may be concluded, a sentence each.
        may_not: what may not, a sentence each.
    """

    tone: Tone
    answer: str
    may: tuple[str, ...]
    may_not: tuple[str, ...]


def verdict_rows(folder: RunData | Path | str) -> tuple[VerdictRow, ...]:
    """Every gate of the plan in its order, decided or not, then verdicts of gates the plan does not know.

    A gate decided several times (a run taken up again) shows its last verdict.
    """
    data = folder if isinstance(folder, RunData) else read_folder(folder)
    planned = {str(gate.get("name")): gate for gate in data.plan.get("gates") or data.policy.get("gates") or ()}
    last = {str(record.get("gate")): record for record in data.verdicts}
    failed = {str(e.get("gate")): str(e.get("cause") or "") for e in data.events if e.get("event") == "gate-failed"}
    names = dict.fromkeys([*planned, *last])
    return tuple(_row(name, planned.get(name, {}), last.get(name), failed.get(name, "")) for name in names)


def headline(folder: RunData | Path | str) -> Headline:
    """The study's answer from its verdicts: the gate that closed the run first, then the others."""
    data = folder if isinstance(folder, RunData) else read_folder(folder)
    rows = verdict_rows(data)
    decided = [row for row in rows if row.decision in WORDS]
    if not rows:
        return Headline(tone="muted", answer="This plan has no gate, so the run concludes nothing.", may=(), may_not=())
    may = tuple(text for row in decided if row.decision != "inconclusive" for text in _may(row))
    may_not = tuple(_may_not(row) for row in rows if row.decision not in ("go", "no-go") or row.mode == "point")
    may_not += tuple(_overridden(row) for row in rows if row.override)
    may_not += ("Nothing that no gate asked: other figures in this report describe this run, and decide nothing.",)
    if not decided:
        answer = f"There is no answer yet: none of {plural(len(rows), 'gate')} has been decided."
        return Headline(tone="muted", answer=answer, may=may, may_not=may_not)
    closing = next((row for row in decided if row.route == "stop"), decided[-1])
    if closing.route != "stop" and closing is not rows[-1]:
        open_ones = len(rows) - len(decided)
        answer = f"There is no answer yet: {_of_all(open_ones, len(rows))} not decided; so far, {_counts(decided)}."
        return Headline(tone="muted", answer=answer, may=may, may_not=may_not)
    return Headline(tone=_tone(closing.decision), answer=_answer(closing, rows), may=may, may_not=may_not)


def verdict_section(data: RunData) -> Section:
    """One line a gate; its criteria below it."""
    rows = verdict_rows(data)
    columns = (
        Column(name="decision"),
        Column(name="asked"),
        Column(name="measured"),
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


def quoted(asks: str) -> str:
    """What a gate asks, in quotation marks and without its closing full stop."""
    return f"“{asks.strip().rstrip('.')}”"


def _row(name: str, planned: Mapping[str, Any], record: Record | None, failed: str) -> VerdictRow:
    asks = str(planned.get("asks") or name)
    if record is None:
        return VerdictRow(
            gate=name, asks=asks, decision="not reached", route="", reason=failed, mode="", n_to_decide=None
        )
    override = record.get("override") or {}
    return VerdictRow(
        gate=name,
        asks=asks,
        decision=str(record.get("decision")),
        route=str(record.get("route") or ""),
        reason=str(record.get("reason") or "").removeprefix(f"{record.get('decision')}: "),
        mode=str(record.get("mode") or "interval"),
        n_to_decide=record.get("n_to_decide"),
        findings=tuple(record.get("criteria") or ()),
        override=str(override.get("reason") or "") if isinstance(override, dict) else str(override),
        changes=tuple(map(str, override.get("changes") or ())) if isinstance(override, dict) else (),
    )


def _tone(decision: str) -> Tone:
    return decision if decision in ("go", "no-go", "inconclusive") else "muted"


def _answer(closing: VerdictRow, rows: tuple[VerdictRow, ...]) -> str:
    """`“Does it?”: yes, at 95% confidence; of the other 3 gates, 2 say go and 1 is inconclusive.`"""
    side = {"go": "yes", "no-go": "no", "inconclusive": "not decided"}[closing.decision]
    how = _how(closing) if closing.decision != "inconclusive" else ""
    text = f"{quoted(closing.asks)}: {side}{how}"
    if closing.route == "stop":
        text += ", and there the run stopped"
    others = [row for row in rows if row is not closing]
    if len(others) == 1:
        text += f"; the other gate {_said(1, others[0].decision)}"
    elif others:
        text += f"; of the other {len(others)} gates, {_counts(others)}"
    return text + "."


def _counts(rows: Iterable[VerdictRow]) -> str:
    """`2 say go and 1 is inconclusive`."""
    found = [row.decision for row in rows]
    counts = [(found.count(word), word) for word in (*WORDS, "not reached")]
    return joined(f"{count} {_said(count, word)}" for count, word in counts if count)


def _of_all(count: int, total: int) -> str:
    return f"{count} of the {total} gates {'is' if count == 1 else 'are'}"


def _said(count: int, word: str) -> str:
    be = "is" if count == 1 else "are"
    return f"{'says' if count == 1 else 'say'} {word}" if word in ("go", "no-go") else f"{be} {word}"


def _how(row: VerdictRow) -> str:
    """The strength of a decision: facts are certain, intervals have a confidence, points have none."""
    leaves = list(_leaves(row.findings))
    levels = [leaf["confidence"] for leaf in leaves if _is_interval(leaf)]
    if row.mode == "point" and not levels:
        return ", by a point estimate without confidence"
    if not levels:
        return ", as a fact of the records"
    partly = ", in part by a point estimate without confidence" if row.mode == "point" else ""
    return f", at {digits_of(100 * min(levels))}% confidence{partly}"


def _is_interval(leaf: Mapping[str, Any]) -> bool:
    return leaf.get("method") not in ("fact", "point") and isinstance(leaf.get("confidence"), int | float)


def _leaves(findings: tuple[Mapping[str, Any], ...]) -> Iterator[Mapping[str, Any]]:
    for finding in findings:
        parts = finding.get("parts")
        yield from parts if parts else (finding,)


def _may(row: VerdictRow) -> Iterator[str]:
    """What a decided gate allows; where it compared points as well, only its parts with an interval, and its facts."""
    asked = f"{quoted(row.asks)} (gate `{row.gate}`"
    if row.mode != "point":
        yield f"{'Yes' if row.decision == 'go' else 'No'} to {asked}{_how(row)}): {row.reason.rstrip('.')}."
        return
    sound = [leaf for leaf in _leaves(row.findings) if leaf.get("method") == "fact" or _is_interval(leaf)]
    told = [str(leaf.get("reason") or "") for leaf in sound if leaf.get("decision") in ("go", "no-go")]
    if any(told):
        yield f"Of {asked}) only this: {'; '.join(filter(None, told))}."


def _may_not(row: VerdictRow) -> str:
    asked = f"{quoted(row.asks)} (gate `{row.gate}`)"
    if row.decision == "inconclusive":
        more = (
            f"{row.n_to_decide:,} units in all would decide at the present estimate"
            if row.n_to_decide is not None
            else "no number of units would decide it at the present estimate"
        )
        return f"Neither yes nor no to {asked}: {row.reason.rstrip('.')}; {more}."
    if row.mode == "point" and row.decision in WORDS:
        return f"A sure {row.decision} to {asked}: a point estimate was compared, which carries no confidence."
    return f"Anything about {asked}: it was not decided{f', for {row.reason}' if row.reason else ''}."


def _overridden(row: VerdictRow) -> str:
    return f"That gate `{row.gate}` was set before the run: it was changed after the start (“{row.override}”)."


def _lines(row: VerdictRow) -> Iterator[Row]:
    """One line for each criterion (or part of one); decision and question span them."""
    leaves = list(_leaves(row.findings))
    route = {"next": "", "stop": "the run stops", "": ""}.get(row.route, f"goes to {row.route}")
    why = row.reason
    if row.mode == "point":
        why += " Where the mode is point, the estimate alone was compared: such a decision carries no confidence."
    if row.override:
        why += f" Overridden after the start: {row.override}"
    height = max(1, len(leaves))
    head = (
        Cell(text=row.decision, tone=_tone(row.decision), interval=row.gate, count=route, rows=height),
        Cell(text=row.asks, why=why.strip(), rows=height),
    )
    if not leaves:
        yield Row(cells=(*head, *[dash("not decided") for _ in range(5)]), group=row.gate)
    for index, leaf in enumerate(leaves):
        several = len(leaves) > 1
        yield Row(cells=(*(head if index == 0 else ()), *_finding(leaf, several=several)), group=row.gate)


def _finding(leaf: Mapping[str, Any], *, several: bool) -> tuple[Cell, ...]:
    decision = str(leaf.get("decision"))
    every = leaf.get("statistic") == "every"
    threshold = leaf.get("threshold")
    wanted = "all true" if every else SIGNS.get(str(leaf.get("comparison")), "")
    limit = "" if every or threshold is None else f" {threshold:g}"
    needed = dash("decided" if decision in ("go", "no-go") else "no n would decide at this estimate")
    return (
        Cell(text=str(leaf.get("metric", "")), count=str(leaf.get("about") or ""), code=True),
        _estimate(leaf, _tone(decision) if several else ""),
        Cell(text=f"{wanted}{limit}".strip() or DASH, interval=f"mode {leaf.get('mode') or 'interval'}"),
        number(leaf.get("n"), why="no records"),
        needed if leaf.get("n_to_decide") is None else number(leaf["n_to_decide"]),
    )


def _estimate(leaf: Mapping[str, Any], tone: Tone | Literal[""]) -> Cell:
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
