"""From plain sections to one HTML file: figures by plotly, the page by jinja2, everything inside, nothing from outside.

plotly's script is embedded once, compressed (2 MB instead of 5), and unpacked by the browser; without JavaScript the
tables hold the same numbers. A content security policy allows the two scripts of this file by their hashes and no
connection, so that text from models or data could not act even if an escape were missing.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import math
import textwrap
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from plotly.offline import get_plotlyjs

from stepwell.report.cells import DASH, Chart, Heat, Series, Table
from stepwell.report.view import Report

HERE = Path(__file__).parent
# Okabe and Ito's colour-blind-safe hues (2008), in two lightnesses: on paper and on a dark screen.
PALETTE = (
    ("#0072b2", "#4fa3dc"),
    ("#d55e00", "#f0843f"),
    ("#009e73", "#2fbf98"),
    ("#b65c91", "#dd9dc0"),
    ("#c98600", "#f0b43c"),
    ("#3f9fd8", "#8ccbf0"),
)
GREY = ("#7a7f85", "#8d939a")
STROKES = ("solid", "dash", "dot", "dashdot")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "pentagon")
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'Liberation Sans', Arial, sans-serif"
ROW_PIXELS, LINES_PIXELS, POINTS_PIXELS = 30, 190, 320
SIDES = ("top", "bottom")


def page(report: Report) -> str:
    """The whole HTML file. The same report gives the same text."""
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"marked": marked, "footnotes": footnotes, "anchor": anchor, "by_group": by_group}
    charts = [chart for section in report.sections for chart in section.charts]
    figures = {anchor(chart.key): figure(chart, report.arms) for chart in charts if chart.series or chart.heat}
    plotly, packed = _plotly()
    script = (HERE / "report.js").read_text(encoding="utf-8")
    return environment.get_template("template.html.j2").render(
        report=report,
        figures=figures,
        css=Markup((HERE / "report.css").read_text(encoding="utf-8") + theme_css()),
        script=Markup(script),
        packed=Markup(packed),
        script_hashes=Markup(f"'{_csp_hash(script)}' '{_csp_hash(plotly)}'"),
        dash=DASH,
    )


@lru_cache(maxsize=1)
def _plotly() -> tuple[str, str]:
    """plotly's script, and the same gzipped in base64."""
    text = get_plotlyjs()
    return text, base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()


def _csp_hash(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def marked(text: str) -> Markup:
    """Escaped text in which `backticks` become code. The only markup that text from a plan may have."""
    parts = str(text).split("`")
    if len(parts) % 2 == 0:
        return escape(text)
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if index % 2 else escape(part) for index, part in enumerate(parts)
    )


def anchor(key: str) -> str:
    """An id for an element: letters, digits and hyphens, distinct for distinct keys."""
    plain = "".join(c if c.isascii() and c.isalnum() else "-" for c in key.lower()).strip("-")
    return plain if plain == key else f"{plain}-{hashlib.sha256(key.encode()).hexdigest()[:6]}"


def footnotes(table: Table) -> dict[str, str]:
    """Reason -> letter, for the dashes of a table in the order of reading."""
    reasons = dict.fromkeys(cell.why for row in table.rows for cell in row.cells if cell.text == DASH and cell.why)
    return {reason: _letter(index) for index, reason in enumerate(reasons)}


def by_group(charts: Sequence[Chart]) -> list[tuple[str, list[Chart]]]:
    """Charts by their group, groups in the order in which they come."""
    names = dict.fromkeys(chart.group for chart in charts)
    return [(name, [chart for chart in charts if chart.group == name]) for name in names]


def _letter(index: int) -> str:
    """a to z, then aa, ab and so on."""
    text = ""
    index += 1
    while index:
        index, rest = divmod(index - 1, 26)
        text = chr(ord("a") + rest) + text
    return text


def theme_css() -> str:
    """Rules that give each hue its lightness for dark screens. plotly writes colours into style attributes."""
    rules = []
    for light, dark in (*PALETTE, GREY):
        red, green, blue = (int(light[at : at + 2], 16) for at in (1, 3, 5))
        for what in ("stroke", "fill"):
            rules.append(f'.chart [style*="{what}: rgb({red}, {green}, {blue})"]{{{what}:{dark}!important}}')
    return "@media screen and (prefers-color-scheme: dark){" + "".join(rules) + "}"


def figure(chart: Chart, arms: Sequence[str]) -> dict[str, Any]:
    """The figure as plotly's JSON: {data, layout}. Every text is escaped, for plotly reads tags and entities."""
    drawn = _heat(chart, chart.heat) if chart.heat is not None else DRAWN[chart.form](chart, arms)
    drawn.update_layout(
        template=go.layout.Template(),
        font={"family": FONT, "size": 12},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        showlegend=False,
        dragmode=False,
        hoverlabel={"font": {"family": FONT, "size": 12}},
        hovermode="closest",
    )
    drawn.update_xaxes(zeroline=False, fixedrange=True, ticks="", title_standoff=6, automargin=True)
    drawn.update_yaxes(zeroline=False, fixedrange=True, ticks="", automargin=True)
    return drawn.to_plotly_json()


def _colour(arm: str, arms: Sequence[str]) -> str:
    return PALETTE[list(arms).index(arm) % len(PALETTE)][0] if arm in arms else GREY[0]


def _symbol(arm: str, arms: Sequence[str]) -> str:
    return SYMBOLS[list(arms).index(arm) % len(SYMBOLS)] if arm in arms else "line-ns"


def _intervals(chart: Chart, arms: Sequence[str]) -> go.Figure:
    """Points with intervals on 0 to 100 percent, one line a label; several points of one label lie close together."""
    labels = list(dict.fromkeys(series.label for series in chart.series))
    drawn = go.Figure()
    for series in chart.series:
        same = [other for other in chart.series if other.label == series.label]
        place = labels.index(series.label) + 0.26 * (same.index(series) - (len(same) - 1) / 2)
        drawn.add_trace(_interval_trace(series, place, arms))
    for value, text in chart.rules:
        drawn.add_vline(x=value, line={"color": GREY[0], "width": 1, "dash": "dot"})
        place = {"x": value, "y": 1, "yref": "paper", "yanchor": "bottom", "showarrow": False}
        drawn.add_annotation(text=html.escape(text), font={"size": 11}, **place)
    drawn.update_layout(height=ROW_PIXELS * len(labels) + 74, margin={"l": 10, "r": 14, "t": 22, "b": 44})
    low, high = 0 if chart.low is None else chart.low, 100 if chart.high is None else chart.high
    ticks = [low + part * (high - low) / 4 for part in range(5)]
    margin = 0.008 * (high - low)
    left = low if low == 0 else low - margin
    drawn.update_xaxes(range=[left, high + margin], tickvals=ticks, title_text=html.escape(chart.x_title))
    drawn.update_xaxes(title_font_size=11, tickfont_size=11)
    drawn.update_yaxes(
        tickvals=list(range(len(labels))),
        ticktext=[_wrapped(label) for label in labels],
        range=[len(labels) - 0.5, -0.5],
        showgrid=False,
    )
    return drawn


def _interval_trace(series: Series, place: float, arms: Sequence[str]) -> go.Scatter:
    value, low, high = series.x[0], series.low[0], series.high[0]
    colour = _colour(series.arm, arms)
    bars = None
    if low is not None and high is not None:
        ends = {"array": [high - value], "arrayminus": [value - low]}
        bars = {"type": "data", "symmetric": False, **ends, "color": colour, "thickness": 1.4, "width": 0}
    symbol = _symbol(series.arm, arms)
    is_arm = series.arm in arms
    return go.Scatter(
        x=[value],
        y=[place],
        mode="markers",
        # A point at the end of the axis is drawn whole.
        cliponaxis=False,
        error_x=bars,
        marker={
            "color": colour,
            "size": 9 if is_arm else 12,
            "symbol": symbol if series.filled and is_arm else f"{symbol}-open",
            "line": {"color": colour, "width": 1.6 if not series.filled else 2 if not is_arm else 0},
        },
        hoverinfo="text",
        hovertext=[html.escape(text) for text in series.hover],
    )


def _heat(chart: Chart, heat: Heat) -> go.Figure:
    """A field of values in one hue, from the paper's own colour to the full one; what is undefined stays empty."""
    full = PALETTE[0][0]
    red, green, blue = (int(full[at : at + 2], 16) for at in (1, 3, 5))
    drawn = go.Figure(
        go.Heatmap(
            x=list(range(len(heat.x))),
            y=list(range(len(heat.y))),
            z=[list(row) for row in heat.values],
            zmin=heat.low,
            zmax=heat.high,
            colorscale=[[0, f"rgba({red},{green},{blue},0.04)"], [1, f"rgba({red},{green},{blue},0.75)"]],
            showscale=False,
            xgap=1,
            ygap=1,
            text=[[html.escape(text) for text in row] for row in heat.text],
            texttemplate="%{text}",
            textfont={"size": 10},
            hoverinfo="text",
            hovertext=[[html.escape(text) for text in row] for row in heat.hover],
            hoverongaps=False,
        )
    )
    # Long names stand at an angle, and need room below.
    below = max(60, 34 + 3 * max((len(name) for name in heat.x), default=0))
    drawn.update_layout(height=24 * len(heat.y) + 40 + below, margin={"l": 8, "r": 8, "t": 8, "b": below})
    names = [[html.escape(name) for name in axis] for axis in (heat.x, heat.y)]
    drawn.update_xaxes(tickvals=list(range(len(heat.x))), ticktext=names[0], title_text=html.escape(chart.x_title))
    drawn.update_xaxes(title_font_size=11, tickfont_size=10, showgrid=False)
    drawn.update_yaxes(tickvals=list(range(len(heat.y))), ticktext=names[1], title_text=html.escape(chart.y_title))
    drawn.update_yaxes(title_font_size=11, tickfont_size=10, showgrid=False)
    return drawn


def _lines(chart: Chart, arms: Sequence[str]) -> go.Figure:
    """Small lines over steps; a tick marks where a stage began, numbered where there is one line only."""
    drawn = go.Figure()
    for index, series in enumerate(chart.series):
        colour = _colour(series.arm, arms)
        drawn.add_trace(
            go.Scatter(
                x=list(series.x),
                y=list(series.y),
                mode="markers" if len(series.x) == 1 else "lines+markers" if series.low else "lines",
                error_y=_bars(series, colour),
                line={"color": colour, "width": 1.6, "dash": STROKES[index % len(STROKES)]},
                marker={"color": colour, "size": 6},
                hoverinfo="text",
                hovertext=[html.escape(text) for text in series.hover],
                connectgaps=False,
            )
        )
        if series.marks:
            drawn.add_trace(_marks_trace(series, colour, numbered=len(chart.series) == 1))
    _steps_marked(drawn, chart)
    drawn.update_layout(height=LINES_PIXELS, margin={"l": 8, "r": 10, "t": 20 if chart.rules else 8, "b": 30})
    ticks: dict[str, Any] = {"dtick": 1} if any(series.low for series in chart.series) else {"nticks": 5}
    drawn.update_xaxes(range=[0, 1.02 * chart.right] if chart.right else None, **ticks, title_text=chart.x_title)
    drawn.update_xaxes(title_font_size=11, tickfont_size=11)
    drawn.update_yaxes(tickfont_size=11, **_y_axis(chart))
    return drawn


def _steps_marked(drawn: go.Figure, chart: Chart) -> None:
    """A dotted line at each step at which something began, with what it was above it."""
    for step, text in chart.rules:
        drawn.add_vline(x=step, line={"color": GREY[0], "width": 1, "dash": "dot"})
        place = {"x": step, "y": 1, "yref": "paper", "yanchor": "bottom", "xanchor": "left", "showarrow": False}
        drawn.add_annotation(text=html.escape(text), font={"size": 11}, **place)


def _points(chart: Chart, arms: Sequence[str]) -> go.Figure:
    """Points by two numbers, named beside them; what is 0 stands left of a logarithmic axis, with a tick of its own."""
    sizes = [series.x[0] for series in chart.series]
    some = [size for size in sizes if size > 0] or [1.0]
    zero = min(some) / 4
    ends = [zero if 0 in sizes else min(some), max(some)]
    middle = math.sqrt(ends[0] * ends[1])
    drawn = go.Figure()
    # Neighbours by size are named above and below in turn, so that the names of two at one place are apart.
    for place, series in enumerate(sorted(chart.series, key=lambda series: series.x[0])):
        colour, (y, low, high) = _colour(series.arm, arms), (series.y[0] or 0.0, series.low[0], series.high[0])
        drawn.add_trace(
            go.Scatter(
                x=[series.x[0] or zero],
                y=[y],
                mode="markers+text",
                cliponaxis=False,
                error_y=_bars(series, colour) if low is not None and high is not None else None,
                marker={"color": colour, "size": 9, "symbol": "circle" if series.filled else "circle-open"},
                text=[html.escape(series.label)],
                # Away from the nearer edge: names stay within the figure.
                textposition=f"{SIDES[place % 2]} {'left' if (series.x[0] or zero) > middle else 'right'}",
                textfont={"size": 11},
                hoverinfo="text",
                hovertext=[html.escape(text) for text in series.hover],
            )
        )
    ticks = _log_ticks(min(some) / 2, max(some) * 2)
    named = [*([(zero, "0")] if 0 in sizes else []), *((tick, f"{tick:,.0f}") for tick in ticks if tick > 2 * zero)]
    span = [math.log10(ends[0]) - 0.25, math.log10(ends[1]) + 0.25]
    drawn.update_layout(height=POINTS_PIXELS, margin={"l": 10, "r": 20, "t": 16, "b": 44})
    drawn.update_xaxes(type="log", range=span, tickvals=[at for at, _ in named], ticktext=[text for _, text in named])
    drawn.update_xaxes(title_text=html.escape(chart.x_title), title_font_size=11, tickfont_size=11)
    drawn.update_yaxes(range=[-0.02 * (chart.high or 1), chart.high], nticks=6, title_text=html.escape(chart.y_title))
    drawn.update_yaxes(title_font_size=11, tickfont_size=11, rangemode="nonnegative")
    return drawn


def _bars(series: Series, colour: str) -> dict[str, Any] | None:
    """Intervals of the points of a line, where it has them."""
    if not series.low:
        return None
    spans = list(zip(series.y, series.low, series.high, strict=True))
    above = [0.0 if y is None or high is None else high - y for y, _, high in spans]
    below = [0.0 if y is None or low is None else y - low for y, low, _ in spans]
    ends = {"array": above, "arrayminus": below}
    return {"type": "data", "symmetric": False, **ends, "color": colour, "thickness": 1.2, "width": 0}


def _y_axis(chart: Chart) -> dict[str, Any]:
    if chart.log and chart.low is not None and chart.high is not None:
        low, high = math.log10(chart.low), math.log10(chart.high)
        pad = max(0.06, 0.05 * (high - low))
        ticks = _log_ticks(10 ** (low - pad), 10 ** (high + pad))
        return {
            "type": "log",
            "range": [low - pad, high + pad],
            "tickvals": ticks,
            "ticktext": [f"{t:g}" for t in ticks],
        }
    if chart.low is not None and chart.high is not None:
        return {
            "range": [chart.low, chart.high],
            **({"tickvals": [0, 25, 50, 75, 100]} if chart.high > 50 else {"nticks": 5}),
        }
    return {}


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten within the ends, with 2 and 5 between them where these are few."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    few = len(decades) <= 4
    ticks = [float(f"{digit}e{decade}") for decade in decades for digit in ((1, 2, 5) if few else (1,))]
    return [tick for tick in ticks if low <= tick <= high]


def _marks_trace(series: Series, colour: str, *, numbered: bool) -> go.Scatter:
    """A tick at each mark, at the height of the last value before it."""
    heights = []
    for at, _ in series.marks:
        before = [y for x, y in zip(series.x, series.y, strict=True) if x <= at and y is not None]
        later = [y for y in series.y if y is not None]
        heights.append(before[-1] if before else later[0] if later else None)
    return go.Scatter(
        x=[at for at, _ in series.marks],
        y=heights,
        mode="markers+text" if numbered else "markers",
        text=[html.escape(text.removeprefix("stage ")) for _, text in series.marks] if numbered else None,
        textposition="bottom right",
        textfont={"size": 10},
        marker={"symbol": "line-ns-open", "size": 11, "color": colour, "line": {"width": 1.6, "color": colour}},
        hoverinfo="text",
        hovertext=[html.escape(f"{series.label}, step {at:,.0f}: {text}") for at, text in series.marks],
    )


def _wrapped(label: str, width: int = 26) -> str:
    """An axis label on at most three lines, escaped line by line. The break is plotly's."""
    lines = textwrap.wrap(label, width, max_lines=3, placeholder=" …") or [""]
    return "<br>".join(html.escape(line) for line in lines)


DRAWN = {"intervals": _intervals, "lines": _lines, "points": _points}
