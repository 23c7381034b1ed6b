"""Win, tie, loss and what is undecided against another model: who decided, the success bands, how far to trust it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from stepwell.report.cells import (
    TO,
    Cell,
    Chart,
    Column,
    Row,
    Section,
    Series,
    Table,
    Tone,
    dash,
    number,
    percent,
    plural,
    times_100,
)
from stepwell.report.folder import Record, RunData
from stepwell.report.measures import counted, grouped, point
from stepwell.report.tune.figures import part_cell, plain_share
from stepwell.report.tune.reading import OUTCOMES, records_of, sides_of, text_of

TOLD = (
    "Both right is a tie, both wrong is a tie, else who is right wins; a judge decides only where there is no ground "
    "truth. What nobody could decide is an outcome of its own: shares are of all items, with Wilson's 95% interval."
)
TRUST = (
    "Each pair is shown in both orders; a judge that changes its mind has called a tie. Took first: of single verdicts "
    "other than ties, 50% is fair. Took longer: of decided pairs of different lengths. By length: the outcomes if the "
    "longer answer always won."
)
BANDS = "Bands of the original, an 8B model against GPT-4. Inside, below, above: where the whole interval lies."
TONES: dict[str, Tone] = {
    "inside": "go", "below": "no-go", "inconclusive": "inconclusive",
}  # fmt: skip
UNJUDGED = "no pair was decided by it"


def versus_section(data: RunData) -> Section:
    """Outcomes, bands and the judge, for each comparison and benchmark."""
    key, title = "versus", "Win, tie, loss"
    found = records_of(data, "versus")
    if not found:
        return Section(key=key, title=title, missing="No model was compared with another item by item.")
    bands = records_of(data, "band")
    return Section(
        key=key, title=title, lines=(TOLD, *_alike(data)), charts=tuple(_chart(data, one, bands) for one in found),
        tables=(_outcomes(data, found), *_deciders(data), *_bands(bands), *_judges(data)),
    )  # fmt: skip


def _alike(data: RunData) -> tuple[str, ...]:
    """Said where every answer is that of the other model: then nothing was compared."""
    jobs = {one["job"].name for one in records_of(data, "versus")}
    failed = [one for one in records_of(data, "check") if one.get("passed") is False and one["job"].name in jobs]
    return tuple(f"Red flag: {text_of(one, 'detail')}." for one in failed)


def _names(data: RunData, one: Record) -> tuple[str, str]:
    """The two stages; the models' own names are in the table."""
    return sides_of(data, one["job"], ("ours", "theirs"), ("after", "before"))


def _share(one: Record, outcome: str) -> Cell:
    count = one.get(outcome)
    return part_cell(count, one.get("n"), count="" if count is None else plural(count, "item"))


def _outcomes(data: RunData, found: Sequence[Record]) -> Table:
    rows = []
    for one in found:
        ours, theirs = _names(data, one)
        models = f"{text_of(one, 'ours')} and {text_of(one, 'theirs')}"
        cells = (
            Cell(text=f"{ours} against {theirs}", interval=models, count=one["job"].detail),
            Cell(text=text_of(one, "benchmark"), interval=text_of(one, "category")),
            number(one.get("n")), *(_share(one, outcome) for outcome in OUTCOMES),
        )  # fmt: skip
        rows.append(Row(cells=cells))
    columns = (
        Column(name="comparison", note="models"),
        Column(name="benchmark"),
        Column(name="n", note="items", numeric=True),
        *(Column(name=outcome, note="%", numeric=True) for outcome in OUTCOMES),
    )
    return Table(title="Outcomes, with 95% intervals over items", columns=columns, rows=tuple(rows))


def _chart(data: RunData, one: Record, bands: Sequence[Record]) -> Chart:
    ours, theirs = _names(data, one)
    n, series = one.get("n"), []
    for outcome in OUTCOMES:
        count = one.get(outcome)
        # Where nothing is undecided, there is nothing to draw of it.
        if n and count is not None and count <= n and (count or outcome != "undecided"):
            series.append(point(outcome, ours, counted(count, n)))
            series += [_band_point(band) for band in bands if _of(band, one, outcome) and _known(band)]
    detail = f", {one['job'].detail}" if one["job"].detail else ""
    return Chart(
        key=f"versus-{one['job'].name}-{one.get('benchmark')}", title=f"`{ours}` against `{theirs}`{detail}: "
        f"`{text_of(one, 'benchmark')}`", form="intervals", x_title="% of all items, with 95% intervals",
        series=tuple(series),
        note="Grey: the success band." if any(not each.arm for each in series) else "",
    )  # fmt: skip


def _of(band: Record, one: Record, outcome: str) -> bool:
    same = band["job"].name == one["job"].name and band.get("benchmark") == one.get("benchmark")
    return same and band.get("outcome") == outcome


def _known(band: Record) -> bool:
    low, high = band.get("low"), band.get("high")
    return low is not None and high is not None and 0 <= low <= high <= 1


def _band_point(band: Record) -> Series:
    low, high, outcome = 100 * band["low"], 100 * band["high"], text_of(band, "outcome")
    told = f"band of {outcome}: {low:.0f} to {high:.0f} %"
    return Series(label=outcome, arm="", x=((low + high) / 2,), low=(low,), high=(high,), hover=(told,))


def _deciders(data: RunData) -> tuple[Table, ...]:
    """Items by what decided them and how."""
    matches = [one for one in records_of(data, "match") if one.get("outcome") in OUTCOMES]
    rows = []
    for (job, benchmark), same in grouped(matches, lambda one: (one["job"].name, text_of(one, "benchmark"))).items():
        ours, theirs = _names(data, same[0])
        for by in dict.fromkeys(
            text_of(one, "by") for one in sorted(same, key=lambda one: text_of(one, "by") != "truth")
        ):
            mine = [one for one in same if text_of(one, "by") == by]
            counts = Counter(text_of(one, "outcome") for one in mine)
            cells = (
                Cell(text=f"{ours} against {theirs}", interval=benchmark, count=same[0]["job"].detail),
                Cell(text={"truth": "ground truth", "none": "nobody"}.get(by, by)),
                *(number(counts[outcome]) for outcome in OUTCOMES), Cell(text=_reasons(mine)),
            )  # fmt: skip
            rows.append(Row(cells=cells, group=f"{job} {benchmark}"))
    columns = (
        Column(name="comparison", note="benchmark"),
        Column(name="decided by"),
        *(Column(name=outcome, note="items", numeric=True) for outcome in OUTCOMES),
        Column(name="why"),
    )
    return (Table(title="Who decided", columns=columns, rows=tuple(rows)),) if rows else ()


def _reasons(matches: Sequence[Record]) -> str:
    """The commonest reasons. A judge's own words are many, and stand in no table."""
    common = Counter(why for one in matches if (why := text_of(one, "why")))
    told = [f"{why} ({count:,})" for why, count in common.most_common(4) if count > 1 or len(common) <= 4]
    short = [one for one in told if len(one) <= 60]
    return "; ".join(short)


def _bands(bands: Sequence[Record]) -> tuple[Table, ...]:
    rows = []
    for one in bands:
        share, verdict, flag = one.get("share"), text_of(one, "verdict"), text_of(one, "red_flag")
        low, high = one.get("share_low"), one.get("share_high")
        interval = "no interval" if low is None or high is None else f"{percent(low)}{TO}{percent(high)}"
        value, least, most = map(times_100, (share, low, high))
        band = f"{100 * one['low']:.0f}{TO}{100 * one['high']:.0f}" if _known(one) else ""
        needed = one.get("needed")
        decided = "no number would decide" if verdict == "inconclusive" else "decided"
        cells = (
            Cell(text=text_of(one, "benchmark"), interval=one["job"].label), Cell(text=text_of(one, "outcome")),
            dash("no item was compared") if share is None
            else Cell(text=percent(share), interval=interval, value=value, low=least, high=most),
            number(one.get("n")), Cell(text=band) if band else dash("not recorded"),
            Cell(text=verdict, tone=TONES.get(verdict, "")) if verdict else dash("not recorded"),
            dash(decided) if needed is None else number(needed),
            Cell(text="yes", tone="alert", why=flag) if flag else Cell(text="no"),
        )  # fmt: skip
        rows.append(Row(cells=cells))
    columns = (
        Column(name="benchmark"),
        Column(name="outcome"),
        Column(name="share", note="%", numeric=True),
        Column(name="n", note="items", numeric=True),
        Column(name="band", note="%", numeric=True),
        Column(name="verdict"),
        Column(name="would decide", note="items", numeric=True),
        Column(name="red flag"),
    )
    return (Table(title="Success bands", columns=columns, rows=tuple(rows), note=BANDS),) if rows else ()


def _judges(data: RunData) -> tuple[Table, ...]:
    rows = []
    for one in records_of(data, "judge"):
        pairs, lost = one.get("pairs"), one.get("unparsed")
        parsed = None if pairs is None or lost is None or lost > pairs else pairs - lost
        low, high = one.get("flips_low"), one.get("flips_high")
        flips = plain_share(one.get("flips"), "no verdict could be read")
        told = "no interval" if low is None or high is None else f"{percent(low)}{TO}{percent(high)}"
        count = "" if parsed is None else f"n {parsed:,}"
        wins, losses = one.get("length_wins"), one.get("length_losses")
        cells = (
            Cell(text=text_of(one, "model"), interval=text_of(one, "benchmark"), count=one["job"].detail),
            number(pairs), number(lost),
            flips if one.get("flips") is None else Cell(text=percent(one["flips"]), interval=told, count=count),
            plain_share(one.get("took_first"), "it preferred neither answer of any pair"),
            plain_share(one.get("took_longer"), UNJUDGED),
            number(wins), number(losses),
        )  # fmt: skip
        rows.append(Row(cells=cells))
    columns = (
        Column(name="judge", note="benchmark"),
        Column(name="pairs", numeric=True),
        Column(name="unreadable", note="pairs", numeric=True),
        Column(name="flips", note="%", numeric=True),
        Column(name="took first", note="%", numeric=True),
        Column(name="took longer", note="%", numeric=True),
        Column(name="wins by length", note="pairs", numeric=True),
        Column(name="losses by length", note="pairs", numeric=True),
    )
    return (
        (Table(title="How far the judge can be believed", columns=columns, rows=tuple(rows), note=TRUST),)
        if rows
        else ()
    )
