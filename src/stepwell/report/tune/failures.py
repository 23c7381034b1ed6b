"""Items to look at: what was not right at the end, and the mined failures, with every model's answer."""

from __future__ import annotations

from collections.abc import Sequence

from stepwell.report.cells import Browsed, Section, plural
from stepwell.report.folder import Record, RunData
from stepwell.report.tune.graded import Graded, models_of
from stepwell.report.tune.reading import records_of, text_of

MOST_ITEMS, MOST_MINED = 40, 20
HEAD, TAIL = 500, 300
"""Characters of a long text that are shown: the end of an answer decides, so it is never what is cut."""
TICKS = {True: "\u2713", False: "\u2717", None: "?"}
Asked = tuple[str, str]
"""Benchmark and id of an item."""


def failures_section(data: RunData) -> Section:
    """Items that the last model does not get right, those that it lost first; then training problems it failed on."""
    key, title = "browser", "Failures to look at"
    graded = models_of(data)
    if not any(one.items for one in graded) and not records_of(data, "failure"):
        return Section(key=key, title=title, missing="No answer was recorded.")
    failed = _failed(graded)
    chosen = failed[:MOST_ITEMS]
    mined = records_of(data, "failure")
    lines = ["The last model got every graded item right."]
    if failed:
        some = _told(len(chosen), len(failed), "graded item")
        lines = [f"{some} that the last model did not get right; those that an earlier one got right come first."]
    lines += [f"{_told(min(MOST_MINED, len(mined)), len(mined), 'mined failure')}."] if mined else []
    anew: dict[str, list[Record]] = {}
    for one in records_of(data, "correction"):
        anew.setdefault(text_of(one, "id"), []).append(one)
    items = (
        *(_item(asked, graded) for asked in chosen),
        *(_mined(one, anew.get(text_of(one, "id"), ())) for one in mined[:MOST_MINED]),
    )
    return Section(key=key, title=title, lines=tuple(lines), items=items)


def _told(shown: int, of: int, what: str) -> str:
    return f"The first {shown:,} of {plural(of, what)}" if shown < of else f"All {plural(of, what)}"


def _failed(graded: Sequence[Graded]) -> list[Asked]:
    """Lost items first, by benchmark and in the order in which they were asked; references lose nothing."""
    ours = [one for one in graded if not one.is_reference]
    lost: list[Asked] = []
    wrong: list[Asked] = []
    for name in dict.fromkeys(one.benchmark for one in ours):
        same = [one.first for one in ours if one.benchmark == name and one.items]
        for item in same[-1] if same else ():
            marks = [each[item].get("correct") for each in same if item in each]
            if marks[-1] is not True:
                (lost if True in marks else wrong).append((name, item))
    return [*lost, *wrong]


def _item(asked: Asked, graded: Sequence[Graded]) -> Browsed:
    name, item = asked
    found = [(one, one.first[item]) for one in graded if one.benchmark == name and item in one.first]
    first = found[0][1]
    return Browsed(
        id=item, about="; ".join(f"{one.job.label} {TICKS[record.get('correct')]}" for one, record in found),
        question=shown(first.get("question")), answer=shown(first.get("reference")), graph=None, thoughts=(),
        answers=tuple((one.job.label, _answer(record)) for one, record in found),
    )  # fmt: skip


def _mined(one: Record, anew: Sequence[Record]) -> Browsed:
    """A failure with what it was answered anew under the same axes."""
    wrong = f"{TICKS[False]} {shown(one.get('prediction'))}{_in_brackets(text_of(one, 'why'))}"
    corrected = [
        (each["job"].label, _answer(each, "right", "text")) for each in anew if each["job"].detail == one["job"].detail
    ]
    return Browsed(
        id=text_of(one, "id"), about=f"{one['job'].label}: a training problem {TICKS[False]}", graph=None, thoughts=(),
        question=shown(one.get("question")), answer=shown(one.get("reference")),
        answers=((one["job"].label, wrong), *corrected),
    )  # fmt: skip


def _answer(record: Record, mark: str = "correct", text: str = "prediction") -> str:
    status, stop = text_of(record, "status"), text_of(record, "stop")
    told = [
        status if status not in ("right", "wrong") else "",
        text_of(record, "why"),
        f"ended: {stop}" if stop not in ("", "end") else "",
    ]
    return f"{TICKS[record.get(mark)]} {shown(record.get(text))}{_in_brackets(*told)}"


def _in_brackets(*told: str) -> str:
    known = "; ".join(part for part in told if part)
    return f" ({known})" if known else ""


def shown(text: object) -> str:
    """Line breaks kept visible; a long text with its middle left out."""
    full = str("" if text is None else text).strip().replace("\n", " \u23ce ")
    if len(full) <= HEAD + TAIL:
        return full or "nothing"
    return f"{full[:HEAD]} \u2026 {full[-TAIL:]}"
