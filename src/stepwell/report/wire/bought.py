"""What latents buy for their bytes: F1 against bytes on the wire, and each latent arm against every control."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean

from stepwell.report.answered.reading import LATENT, TEXT, Line, lines_of
from stepwell.report.answered.scores import by_item, f1_of
from stepwell.report.cells import Cell, Chart, Column, Row, Section, Series, Table, Tone, dash, number, percent, plural
from stepwell.report.folder import RunData
from stepwell.report.imprint.numbers import difference, estimate_cell
from stepwell.report.measures import share_cell

CONTROLS = ("zeros", "other", "mean")
"""Prefixes that say nothing of the item: zeros, another item's, the mean one."""
TOLD = (
    "Bytes of one item on the wire: M x d_z numbers with their scales, or UTF-8 of context and question. Prefixes of "
    "zeros and the mean one send nothing. Up and to the left is better; a latent arm below the cut text of as many "
    "bytes has bought nothing."
)
ABOVE = (
    "A latent arm works only where it is above all four: the text cut to M tokens, a prefix of zeros, of another item, "
    "and the mean prefix. Differences are paired by item; those in colour have their whole interval on one side of 0."
)
NO_TEXT = "not measured"
SAME = "The text: the largest that was measured of at most as many bytes as the latents take, whole or cut."


def bought_section(data: RunData) -> Section:
    """One chart for each stage's arm, and the table of controls."""
    lines = lines_of(data)
    latents = [line for line in lines if line.condition == LATENT]
    texts = [line for line in lines if not line.arm]
    charts = []
    for latent in latents:
        charts.append(_chart(latent, [*texts, *(one for one in lines if _together(one, latent))]))
    return Section(
        key="bytes",
        title="F1 against bytes, and controls",
        lines=(TOLD, ABOVE) if latents else (),
        charts=tuple(chart for chart in charts if chart is not None),
        tables=(_controls(lines, latents, texts), _same_bytes(lines, latents, texts)) if latents else (),
        missing="" if latents else "Nothing was answered from latents.",
    )


def bytes_of(line: Line) -> float | None:
    """Mean bytes of an item; None where no item has them."""
    sizes = by_item(line.records, "bytes")
    return fmean(sizes.values()) if sizes else None


def _chart(latent: Line, lines: Sequence[Line]) -> Chart | None:
    series, rows = [], []
    for line in lines:
        size, estimate = bytes_of(line), f1_of(line.records)
        if size is None or estimate is None or estimate.value is None:
            continue
        low, high = (None if end is None else 100 * end for end in (estimate.low, estimate.high))
        span = "no interval" if low is None or high is None else f"{low:.1f} to {high:.1f}"
        own = line.condition.startswith(LATENT)
        series.append(
            Series(
                label=line.condition, arm=latent.arm if line.arm else "", x=(size,), y=(100 * estimate.value,),
                low=(low,), high=(high,), filled=own,
                hover=(f"{line.label}: {percent(estimate.value)} % ({span}), {size:,.0f} bytes",),
            )
        )  # fmt: skip
        rows.append(Row(cells=(Cell(text=line.condition), number(round(size)), share_cell(estimate, ""))))
    if not series:
        return None
    series = _named_once(series)
    several = f" ({latent.stage})" if latent.name.endswith(")") else ""
    title = f"`{', '.join(filter(None, (latent.arm, latent.detail)))}`{several}"
    head = (Column(name="condition"), Column(name="bytes", numeric=True), Column(name="F1", note="%", numeric=True))
    return Chart(
        key=f"bytes-{latent.stage}-{latent.arm}-{latent.detail}", title=title, form="points", log=True,
        x_title="bytes an item", y_title="F1, %", series=tuple(series), low=0, high=_top(series),
        table=Table(title=plural(len(rows), "condition"), columns=head, rows=tuple(rows)),
    )  # fmt: skip


def _named_once(series: Sequence[Series]) -> list[Series]:
    """Points of texts that lie on one another bear all their names once, since names would too."""
    found: list[Series] = []
    for one in series:
        same = next((at for at, other in enumerate(found) if not one.arm and _near(one, other)), None)
        if same is None:
            found.append(one)
        else:
            other = found[same]
            found[same] = replace(
                other, label=f"{other.label}, {one.label}", hover=(f"{other.hover[0]}; {one.hover[0]}",)
            )
    return found


def _near(one: Series, other: Series) -> bool:
    """Within 3% of the bytes and a point of F1."""
    return (
        one.arm == other.arm
        and abs(one.x[0] - other.x[0]) <= 0.03 * one.x[0]
        and abs((one.y[0] or 0) - (other.y[0] or 0)) <= 1
    )


def _top(series: Sequence[Series]) -> float:
    """The end of the axis: a round number above all intervals."""
    most = max(value for one in series for value in (*one.y, *one.high) if value is not None)
    return float(next((end for end in (5, 10, 20, 40, 60, 80) if most <= end), 100))


def _controls(lines: Sequence[Line], latents: Sequence[Line], texts: Sequence[Line]) -> Table:
    rows = []
    for latent in latents:
        same = {one.condition: one for one in lines if _together(one, latent)}
        f1, m = by_item(latent.records, "f1"), {record.get("vectors") for record in latent.records}
        cut = next((one for one in texts if len(m) == 1 and one.condition == f"tokens-{next(iter(m))}"), None)
        cells = [_apart(f1, one) for one in (cut, *(same.get(name) for name in CONTROLS))]
        above = sum(cell.tone == "go" for cell in cells)
        verdict = Cell(text=f"{above} of {len(cells)}", tone="go" if above == len(cells) else "")
        rows.append(Row(cells=(_named(latent), share_cell(f1_of(latent.records), "no F1 recorded"), *cells, verdict)))
    columns = (
        Column(name="latents"),
        Column(name="F1", note="%", numeric=True),
        Column(name="minus text cut to M", note="points", numeric=True),
        *(Column(name=f"minus {name}", note="points", numeric=True) for name in CONTROLS),
        Column(name="surely above", numeric=True),
    )
    return Table(title="Against the four controls, with 95% intervals over items", columns=columns, rows=tuple(rows))


def _same_bytes(lines: Sequence[Line], latents: Sequence[Line], texts: Sequence[Line]) -> Table:
    rows = []
    for latent in latents:
        for one in lines:
            size = bytes_of(one)
            if not _together(one, latent) or not one.condition.startswith(LATENT) or size is None:
                continue
            other = _as_large(size, texts)
            f1 = by_item(one.records, "f1")
            cells = (
                _named(latent), Cell(text=one.condition), number(round(size)),
                share_cell(f1_of(one.records), "no F1 recorded"),
                dash(NO_TEXT) if other is None else Cell(text=other.condition),
                dash(NO_TEXT) if other is None else share_cell(f1_of(other.records), "no F1 recorded"),
                _apart(f1, other),
            )  # fmt: skip
            rows.append(Row(cells=cells, group=latent.label))
    columns = (
        Column(name="latents"),
        Column(name="sent as"),
        Column(name="bytes", note="an item", numeric=True),
        Column(name="F1", note="%", numeric=True),
        Column(name="text"),
        Column(name="its F1", note="%", numeric=True),
        Column(name="difference", note="points", numeric=True),
    )
    return Table(title="Against the text of as many bytes", columns=columns, rows=tuple(rows), note=SAME)


def _as_large(size: float, texts: Sequence[Line]) -> Line | None:
    """The largest text of at most so many bytes: the whole one, or one cut to bytes."""
    cut = [one for one in texts if one.condition == TEXT or one.condition.startswith("bytes-")]
    fits = [(most, one) for one in cut if (most := bytes_of(one)) is not None and most <= size]
    return max(fits, key=lambda pair: pair[0])[1] if fits else None


def _together(one: Line, latent: Line) -> bool:
    return (one.stage, one.arm, one.detail) == (latent.stage, latent.arm, latent.detail)


def _named(latent: Line) -> Cell:
    return Cell(text=latent.arm or latent.name, interval=", ".join(filter(None, (latent.detail, latent.stage))))


def _apart(f1: Mapping[Hashable, float], other: Line | None) -> Cell:
    """The paired difference; in colour where its whole interval is on one side of 0."""
    if other is None:
        return dash(NO_TEXT)
    apart = difference(f1, by_item(other.records, "f1"))
    cell = estimate_cell(apart, "no item in common", scale=100)
    if apart is None or apart.low is None or apart.high is None:
        return cell
    tone: Tone = "go" if apart.low > 0 else "no-go" if apart.high < 0 else ""
    return replace(cell, tone=tone)
