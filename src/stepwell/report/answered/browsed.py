"""Items to look at: the question, its gold answers, and what was answered under each condition."""

from __future__ import annotations

from collections.abc import Sequence

from stepwell.report.answered.reading import CEILING, LATENT, TEXT, Line, lines_of
from stepwell.report.cells import Browsed, Section, digits_of, plural
from stepwell.report.folder import Record, RunData

MOST_ITEMS, LONGEST = 40, 400
RIGHT, WRONG = "\u2713", "\u2717"


def browsed_section(data: RunData) -> Section:
    """The first items, not chosen by outcome, each with every answer to it."""
    key, title, lines = "browser", "Items", lines_of(data)
    ids = list(dict.fromkeys(record["id"] for line in lines for record in line.records if record["id"]))
    if not ids:
        return Section(key=key, title=title, missing="Nothing was answered.")
    by_id: dict[str, list[tuple[Line, Record]]] = {id: [] for id in ids[:MOST_ITEMS]}
    for line in lines:
        for record in line.records:
            if record["id"] in by_id:
                by_id[record["id"]].append((line, record))
    some = f"The first {plural(len(by_id), 'item')} of {len(ids):,}: not chosen by outcome."
    told = some if len(by_id) < len(ids) else f"All {plural(len(ids), 'item')}."
    return Section(key=key, title=title, lines=(told,), items=tuple(_item(id, found) for id, found in by_id.items()))


def _item(id: str, found: Sequence[tuple[Line, Record]]) -> Browsed:
    first = found[0][1]
    golds = first.get("answers")
    answer = "; ".join(map(clipped, golds)) if isinstance(golds, tuple) and golds else "no answer"
    main = [(line, record) for line, record in found if line.condition in (TEXT, CEILING, LATENT, line.arm)]
    return Browsed(
        id=id,
        about="; ".join(f"{line.label} {_tick(record)}" for line, record in main),
        question=clipped(first.get("question")),
        answer="not recorded" if golds is None else answer,
        graph=None,
        answers=tuple(_answer(line, record) for line, record in found),
        thoughts=(),
    )


def _answer(line: Line, record: Record) -> tuple[str, str]:
    seed = f", seed {record['seed']}" if record["seed"] and len({r["seed"] for r in line.records}) > 1 else ""
    f1, mode = record.get("f1"), record.get("error_mode")
    told = ["F1 not recorded" if f1 is None else f"F1 {digits_of(100 * f1)}%", *([mode] if mode else [])]
    return f"{line.label}{seed}", f"{_tick(record)} {clipped(record.get('prediction'))} ({', '.join(told)})"


def _tick(record: Record) -> str:
    right = record.get("em")
    return "?" if right is None else RIGHT if right else WRONG


def clipped(text: object) -> str:
    """Line breaks kept visible, and a long text cut where it shows."""
    shown = str("" if text is None else text).strip().replace("\n", " \u23ce ")
    return (shown if len(shown) <= LONGEST else shown[: LONGEST - 1] + "\u2026") or "nothing"
