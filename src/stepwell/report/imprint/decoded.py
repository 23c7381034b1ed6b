"""What greedy decoding wrote from the vectors: counts by verdict, and pairs to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from stepwell.report.cells import Browsed, Cell, Column, Section, Table, number, plural
from stepwell.report.folder import Record, RunData
from stepwell.report.imprint.numbers import GROUP, lines
from stepwell.report.imprint.reading import Group, checked_stage, group_name, grouped_by, modes_of, records_of
from stepwell.report.measures import counted, grouped, share_cell

VERDICTS = ("pass", "partial", "fail")
MOST_ITEMS, LONGEST = 40, 400
RIGHT, WRONG = "\u2713", "\u2717"
TOLD = (
    "Pass: the same text, the same after normalisation, or as like as the bar asks; partial: part of it; fail: "
    "anything else. Judged on what was written, whatever the loss."
)


def decoded_section(data: RunData) -> Section:
    """Counts by verdict with intervals; then the first pairs of each tier and model, with what was written for each."""
    spots = _spots(data)
    key, title = "decoded", "Decoded examples"
    if not spots:
        return Section(key=key, title=title, missing="Nothing was decoded.")
    by_group = grouped_by(data, spots)
    shown = _browsed(data, by_group)
    total = len({(record["group"], record["id"], record["fit"]) for record in spots})
    first = f"{len(shown)} of {plural(total, 'decoded pair')}, the first of each tier and model: not chosen by outcome."
    line = first if len(shown) < total else f"All {plural(total, 'decoded pair')}."
    return Section(key=key, title=title, lines=(TOLD, line), items=shown, tables=(_counts(by_group), _ways(by_group)))


def _spots(data: RunData) -> list[Record]:
    """The decoded texts, each with the fit whose vectors they were written from: several may have been checked."""
    spots = records_of(data, "spot")
    fits = {record["stage"] for record in records_of(data, "pair")}
    of = {stage: checked_stage(data, stage, sorted(fits)) for stage in {record["stage"] for record in spots}}
    return [{**record, "fit": of[record["stage"]]} for record in spots]


def _browsed(data: RunData, by_group: Mapping[Group, Sequence[Record]]) -> tuple[Browsed, ...]:
    each = max(1, MOST_ITEMS // len(by_group))
    examples = {(r["group"][0], r["id"]): r for r in records_of(data, "example")}
    found = []
    for group, records in by_group.items():
        for (id, fit), rows in list(grouped(records, lambda r: (r["id"], r["fit"])).items())[:each]:
            found.append(_item(group, id, fit, rows, examples.get((group[0], id), {})))
    return tuple(found[:MOST_ITEMS])


def _item(group: Group, id: str, fit: str, rows: Sequence[Record], example: Record) -> Browsed:
    """The pair, and for each mode the target, what was written and how it was judged."""
    about = "; ".join(f"{row['mode']} {_judged(row)}" for row in rows)
    texts = []
    for row in rows:
        texts.append((f"{row['mode']}, target", _clipped(row.get("target"))))
        texts.append((f"{row['mode']}, written", f"{_tick(row)} {_clipped(row.get('written'))}"))
    answers = example.get("answers")
    answer = example.get("answer") or (answers[0] if isinstance(answers, tuple) and answers else "")
    return Browsed(
        id=id,
        about=f"{group_name(group)}, {fit}: {about}",
        question=_clipped(example.get("question"), ""),
        answer=_clipped(answer, ""),
        graph=None,
        answers=tuple(texts),
        thoughts=(),
    )


def _tick(row: Record) -> str:
    exact = row.get("exact_decode")
    return "?" if exact is None else RIGHT if exact else WRONG


def _judged(row: Record) -> str:
    known = row.get("exact_decode")
    exact = "exactness not recorded" if known is None else "exact" if known else "not exact"
    how = f" ({row['how']})" if row.get("how") not in (None, "none", "exact") else ""
    return f"{row.get('verdict') or 'not judged'}{how}, {exact}"


def _clipped(text: object, otherwise: str = "nothing") -> str:
    """Line breaks kept visible, and a long text cut where it shows."""
    shown = str("" if text is None else text).strip().replace("\n", " ⏎ ")
    return (shown if len(shown) <= LONGEST else shown[: LONGEST - 1] + "…") or otherwise


def _counts(by_group: Mapping[Group, Sequence[Record]]) -> Table:
    rows: dict[Group, list[tuple[Cell, ...]]] = {}
    for group, records in by_group.items():
        for fit, mode in ((f, m) for f in dict.fromkeys(r["fit"] for r in records) for m in modes_of(records)):
            some = [record for record in records if (record["fit"], record["mode"]) == (fit, mode)]
            cells = [_share(some, sum(r.get("verdict") == verdict for r in some)) for verdict in VERDICTS]
            exact = _share(some, sum(r.get("exact_decode") is True for r in some))
            rows.setdefault(group, []).append((Cell(text=f"{fit}, {mode}"), number(len(some)), *cells, exact))
    columns = [GROUP, Column(name="part"), Column(name="n", note="decoded", numeric=True)]
    columns += [Column(name=name, note="%", numeric=True) for name in (*VERDICTS, "written exactly")]
    return Table(title="Verdicts", columns=tuple(columns), rows=lines(rows))


def _share(records: Sequence[Record], count: int) -> Cell:
    return share_cell(counted(count, len(records)), "", count=f"{count:,}")


def _ways(by_group: Mapping[Group, Sequence[Record]]) -> Table:
    """By what rule each verdict was reached."""
    rows: dict[Group, list[tuple[Cell, ...]]] = {}
    for group, records in by_group.items():
        ways = grouped(records, lambda r: (str(r.get("verdict") or "not judged"), str(r.get("how") or "not recorded")))
        for (verdict, how), same in ways.items():
            rows.setdefault(group, []).append((Cell(text=verdict), Cell(text=how), number(len(same))))
    columns = (GROUP, Column(name="verdict"), Column(name="by"), Column(name="decoded", numeric=True))
    return Table(title="How the verdicts were reached", columns=columns, rows=lines(rows), folded=True)
