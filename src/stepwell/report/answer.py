"""What follows from the verdicts, and what does not: from verdicts alone, never from a point estimate.

The answer quotes what each gate asks and the side its interval took. It is silent on everything no gate asked.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from stepwell.report.cells import digits_of, joined, plural
from stepwell.report.folder import RunData, read_folder
from stepwell.report.verdicts import (
    DECISIONS,
    Finding,
    Tone,
    VerdictRow,
    is_interval,
    is_sound,
    leaves,
    tone_of,
    verdict_rows,
    wanted,
)

FEWEST_SEEDS = 3
"""As `stepwell.stats.FEWEST_SEEDS`, which is not imported here: `stepwell status` needs no scipy."""


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


def headline(folder: RunData | Path | str) -> Headline:
    """The study's answer from its verdicts: the gate that closed the run first, then the others."""
    data = folder if isinstance(folder, RunData) else read_folder(folder)
    rows = verdict_rows(data)
    decided = [row for row in rows if row.decision in DECISIONS]
    if not rows:
        return Headline(tone="muted", answer="This plan has no gate, so the run concludes nothing.", may=(), may_not=())
    may = tuple(text for row in decided if row.decision != "inconclusive" for text in _may(row))
    may_not = tuple(_may_not(row) for row in rows if row.decision not in ("go", "no-go") or not row.sure)
    may_not += tuple(
        f"That gate `{row.gate}` was set before the run: it was changed after the start (“{row.override}”)."
        for row in rows
        if row.override
    )
    may_not += _of_few_seeds(data, decided)
    if scope := str(data.plan.get("scope") or ""):
        may_not += (scope,)
    may_not += ("Nothing that no gate asked: other figures in this report describe this run, and decide nothing.",)
    if not decided:
        answer = f"There is no answer yet: none of {plural(len(rows), 'gate')} has been decided."
        return Headline(tone="muted", answer=answer, may=may, may_not=may_not)
    closing = next((row for row in decided if row.route == "stop"), decided[-1])
    # A gate that no other led to has nothing left to say.
    left = sum(row.decision not in (*DECISIONS, "not asked") for row in rows)
    if closing.route != "stop" and left:
        are = "is" if left == 1 else "are"
        answer = (
            f"There is no answer yet: {left} of the {len(rows)} gates {are} not decided; so far, {_counts(decided)}."
        )
        return Headline(tone="muted", answer=answer, may=may, may_not=may_not)
    return Headline(tone=tone_of(closing.decision), answer=_answer(closing, rows), may=may, may_not=may_not)


def _of_few_seeds(data: RunData, decided: Iterable[VerdictRow]) -> tuple[str, ...]:
    """Where arms were compared: fewer than three trainings of each tell of these models, and not of a mechanism."""
    comparing = {
        str(gate.get("name"))
        for gate in data.plan.get("gates") or ()
        for criterion in gate.get("criteria") or ()
        for replaced in _mappings(criterion.get("minus"))
        if "arm" in replaced
    }
    seeds = {record.get("seed") for kind in ("item", "intervention") for record in data.of_kind(kind)}
    if len(seeds) >= FEWEST_SEEDS or not any(row.gate in comparing for row in decided):
        return ()
    trained = "one seed" if len(seeds) == 1 else f"{len(seeds)} seeds"
    return (
        f"That a difference between arms is one between mechanisms: {trained} of each arm tell of these trained "
        f"models, and a mechanism takes {FEWEST_SEEDS} at least.",
    )


def _mappings(minus: object) -> list[dict[str, object]]:
    return [each for each in (minus if isinstance(minus, list) else [minus]) if isinstance(each, dict)]


def quoted(asks: str) -> str:
    """What a gate asks, in quotation marks and without its closing full stop."""
    return f"“{asks.strip().rstrip('.')}”"


def _answer(closing: VerdictRow, rows: Iterable[VerdictRow]) -> str:
    """`“Does it?”: yes, at 95% confidence; of the other 3 gates, 2 say go and 1 is inconclusive.`"""
    side = {"go": "yes", "no-go": "no", "inconclusive": "not decided"}[closing.decision]
    how = _how(closing) if closing.decision != "inconclusive" else ""
    text = f"{quoted(closing.asks)}: {side}{how}"
    if closing.route == "stop":
        text += ", and there the run stopped"
    others = [row for row in rows if row is not closing]
    kinds = {row.decision for row in others}
    if len(others) == 1:
        text += f"; the other gate {_said(1, others[0].decision)}"
    elif len(kinds) == 1:
        text += f"; the other {len(others)} gates {_said(len(others), others[0].decision)}"
    elif others:
        text += f"; of the other {len(others)} gates, {_counts(others)}"
    return text + "."


def _counts(rows: Iterable[VerdictRow]) -> str:
    """`2 say go and 1 is inconclusive`."""
    found = [row.decision for row in rows]
    counts = [(found.count(word), word) for word in (*DECISIONS, "not asked", "not reached")]
    return joined(f"{count} {_said(count, word)}" for count, word in counts if count)


def _said(count: int, word: str) -> str:
    be = "is" if count == 1 else "are"
    return f"{'says' if count == 1 else 'say'} {word}" if word in ("go", "no-go") else f"{be} {word}"


def _how(row: VerdictRow) -> str:
    """The strength of a decision: facts are certain, intervals have a confidence, points have none."""
    levels = [leaf["confidence"] for leaf in leaves(row.telling or row.findings) if is_interval(leaf)]
    if not levels:
        return ", by a point estimate without confidence" if row.mode == "point" else ", as a fact of the records"
    partly = "" if row.sure else ", in part by a point estimate without confidence"
    return f", at {digits_of(100 * min(levels))}% confidence{partly}"


def _may(row: VerdictRow) -> Iterable[str]:
    """What a decided gate allows; where it rests on points as well, only its parts with an interval, and its facts."""
    asked = f"{quoted(row.asks)} (gate `{row.gate}`"
    told = joined(_shown(leaf) for finding in row.telling if is_sound(finding) for leaf in leaves((finding,)))
    if row.sure:
        yield f"{'Yes' if row.decision == 'go' else 'No'} to {asked}{_how(row)}){f': {told}' if told else ''}."
    elif told:
        yield f"Of {asked}) this part only: {told}."


def _shown(leaf: Finding) -> str:
    """`accuracy` (arm=cot) lies in 0.917 to 0.976, wanted ≥ 0.75. The interval, not the estimate."""
    about = f" ({leaf['about']})" if leaf.get("about") else ""
    low, high = leaf.get("low"), leaf.get("high")
    if leaf.get("method") == "per" and (parts := leaf.get("parts")):
        field = str(parts[0].get("about") or "").partition("=")[0]
        goes = f"at one value of {field} at least" if leaf.get("decision") == "go" else f"at no value of {field}"
        return f"`{leaf.get('metric')}`{about} {wanted(leaf)} {goes} (n {leaf.get('n')})"
    if leaf.get("method") == "fact" or low is None or high is None:
        side = "" if leaf.get("decision") == "go" else "not "
        return (
            f"`{leaf.get('metric')}`{about} is {side}true in every record of `{leaf.get('stage')}` (n {leaf.get('n')})"
        )
    return f"`{leaf.get('metric')}`{about} lies in {digits_of(low)} to {digits_of(high)} (wanted {wanted(leaf)})"


def _may_not(row: VerdictRow) -> str:
    asked = f"{quoted(row.asks)} (gate `{row.gate}`)"
    if row.decision == "inconclusive":
        n = row.n_to_decide
        more = "no number of units would decide it" if n is None else f"{n:,} units in all would decide it"
        open_ones = joined(_shown(leaf) for leaf in leaves(row.telling) if leaf.get("low") is not None)
        return f"Neither yes nor no to {asked}{f': {open_ones}' if open_ones else ''}; at this estimate {more}."
    if row.decision in DECISIONS:
        return f"A sure {row.decision} to {asked}: a point estimate was compared, which carries no confidence."
    if row.decision == "not asked":
        return f"Anything about {asked}: it was not asked. {row.reason}"
    return f"Anything about {asked}: it was not decided{f', for {row.reason}' if row.reason else ''}."
