"""What answers begin with: tokens predicted on held-out items while training, and words of the answers, beside gold."""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Mapping, Sequence

from stepwell.analysis.wire import count_of
from stepwell.report.answered.reading import TEXT, Line, lines_of, records_of
from stepwell.report.cells import Cell, Chart, Column, Heat, Row, Section, Table, dash, percent, plural
from stepwell.report.folder import Record, RunData
from stepwell.report.measures import grouped

MOST = 8
"""Tokens, words and looks that a field shows."""
NOTHING = "\u2205"
GOLD = "gold"
NO_GOLD = "the first tokens of the gold answers were not recorded"
TOLD = (
    "A model that has learnt nothing of the items begins every answer alike. Each field: how often, in %, a token was "
    "the likeliest first one on the held-out items, by optimizer step, seeds together; a star marks the commonest "
    "first token of the training set, which takes no prompt to guess."
)
SAID = (
    f"Words: how often, in %, the answers to the test items begin with one of the {MOST} words that are commonest "
    f"there among all answers, the gold ones too. {NOTHING} is an answer without a word."
)

Shares = Mapping[str, float]


def tokens_section(data: RunData) -> Section:
    """A field for each training's first tokens, and one of the answers' first words."""
    looked, words = _looked(data), _words(data)
    lines = tuple(text for text, charts in ((TOLD, looked), (SAID, words)) if charts)
    charts = (*looked, *words)
    missing = "" if charts else "No first token was recorded."
    return Section(key="tokens", title="Tokens predicted", lines=lines, charts=charts, missing=missing)


def _looked(data: RunData) -> list[Chart]:
    jobs = grouped(_looks(data), lambda record: (record["stage"], record["arm"], record["detail"]))
    charts = []
    for (stage, arm, detail), records in jobs.items():
        common = records[-1]["majority"]
        columns = [(f"{step:,.0f}", _share(same, "said")) for step, same in _spread(records)]
        gold = None if any(record["gold"] is None for record in records) else _share(records, "gold")
        name = ", ".join(filter(None, (arm, detail))) or stage
        charts.append(
            _chart(f"first-{stage}-{name}", name, [(GOLD, gold), *columns], x_title="optimizer steps",
                   group=f"{stage}: likeliest first token, % of held-out items", star=common)
        )  # fmt: skip
    return charts


def _looks(data: RunData) -> list[Record]:
    """Records of first tokens with their counts by token; those that hold something else are left out."""
    found = []
    for record in records_of(data, "first_tokens"):
        said, n = _counted(record, "tokens", "counts"), count_of(record.get("n"))
        if said is not None and n and record.get("step") is not None:
            gold = _counted(record, "gold_tokens", "gold_counts")
            found.append({**record, "said": said, "gold": gold, "n": n, "majority": str(record.get("majority") or "")})
    return found


def _counted(record: Record, tokens: str, counts: str) -> Counter[str] | None:
    named, numbers = record.get(tokens), record.get(counts)
    if not isinstance(named, tuple) or not isinstance(numbers, tuple) or len(named) != len(numbers):
        return None
    found = Counter[str]()
    for token, count in zip(named, map(count_of, numbers), strict=True):
        found[str(token)] += count or 0
    return found


def _spread(records: Sequence[Record]) -> list[tuple[float, list[Record]]]:
    """At most so many of the steps looked at, evenly spaced, first and last among them."""
    steps = grouped(records, lambda record: record["step"])
    order = sorted(steps)
    if len(order) > MOST:
        order = [order[round(place * (len(order) - 1) / (MOST - 1))] for place in range(MOST)]
    return [(step, steps[step]) for step in order]


def _share(records: Sequence[Record], field: str) -> Shares:
    total = sum(record["n"] for record in records)
    counts = sum((record[field] for record in records), Counter[str]())
    return {token: count / total for token, count in counts.items()}


def _words(data: RunData) -> list[Chart]:
    """First words of the answers by condition, beside gold, a field for each stage's arm."""
    lines = [line for line in lines_of(data) if line.main]
    texts = [line for line in lines if line.condition == TEXT]
    charts = []
    for stage, arm, detail in dict.fromkeys((line.stage, line.arm, line.detail) for line in lines if line.arm):
        some = [line for line in lines if (line.stage, line.arm, line.detail) == (stage, arm, detail)]
        golds = [record for record in some[0].records if record.get("answers") is not None]
        gold = _first_words([str((record["answers"] or ("",))[0]) for record in golds]) if golds else None
        columns = [(line.condition, _said(line)) for line in (*texts, *some)]
        name = ", ".join(filter(None, (arm, detail)))
        charts.append(
            _chart(f"words-{stage}-{name}", name, [(GOLD, gold), *columns], x_title="",
                   group=f"{stage}: first word of the answer, % of test items")
        )  # fmt: skip
    return charts


def _said(line: Line) -> Shares:
    return _first_words([str(record.get("prediction") or "") for record in line.records])


def _first_words(texts: Sequence[str]) -> Shares:
    counts = Counter(first_word(text) for text in texts)
    return {word: count / len(texts) for word, count in counts.items()}


def first_word(text: str) -> str:
    """In lower case and without punctuation, articles too, for "the" is what collapse looks like; "" without a word."""
    words = (word.strip(string.punctuation) for word in text.lower().split())
    return next(filter(None, words), "")


def _chart(
    key: str, name: str, columns: Sequence[tuple[str, Shares | None]], *, x_title: str, group: str, star: str = ""
) -> Chart:
    sums = Counter[str]()
    for _, shares in columns:
        sums.update(shares or {})
    # Gold's own come first, so that what is wanted is seen beside what is said.
    wanted = [token for token, _ in Counter(columns[0][1] or {}).most_common(MOST // 2)]
    tokens: list[str] = list(
        dict.fromkeys([*wanted, *(token for token, _ in sums.most_common(MOST)), *([star] if star else [])])
    )
    rows = [(_shown(token) + (" *" if token == star else ""), token) for token in reversed(tokens)]
    values = tuple(tuple(None if shares is None else shares.get(t, 0.0) for _, shares in columns) for _, t in rows)
    return Chart(
        key=key, title=f"`{name}`", form="heat", x_title=x_title, group=group,
        heat=Heat(
            x=tuple(text for text, _ in columns), y=tuple(text for text, _ in rows), values=values, low=0, high=1,
            text=tuple(tuple("" if not v else f"{100 * v:.0f}" for v in row) for row in values),
            hover=tuple(
                tuple(f"{text}, {column}: {'not recorded' if v is None else f'{percent(v)} %'}"
                      for (column, _), v in zip(columns, row, strict=True))
                for (text, _), row in zip(rows, values, strict=True)
            ),
        ),
        table=_table(columns, [(text, token) for text, token in reversed(rows)]),
    )  # fmt: skip


def _table(columns: Sequence[tuple[str, Shares | None]], tokens: Sequence[tuple[str, str]]) -> Table:
    rows = tuple(
        Row(cells=(Cell(text=text, code=True),
                   *(dash(NO_GOLD) if s is None else Cell(text=percent(s.get(token, 0.0))) for _, s in columns)))
        for text, token in tokens
    )  # fmt: skip
    heads = (Column(name="begins with"), *(Column(name=text, note="%", numeric=True) for text, _ in columns))
    return Table(title=plural(len(rows), "beginning"), columns=heads, rows=rows)


def _shown(token: str) -> str:
    """As a reader can see it: blanks and line breaks marked."""
    visible = token.replace(" ", "\u2423").replace("\n", "\u23ce")
    return "".join(c if c.isprintable() else "\ufffd" for c in visible) or NOTHING
