"""What the hero rung would come to, foretold from the rungs of this run, or why it cannot be."""

from __future__ import annotations

from stepwell.analysis.wire_ladder import METRICS, Outlook
from stepwell.report.cells import Cell, Column, Row, Section, Table, dash, number, percent
from stepwell.report.folder import RunData
from stepwell.report.wire.analysed import outlooks_of

TOLD = (
    "What the stage `hero` would come to, from the shorter trainings of stage B in this run; `stepwell analyze` takes "
    "several runs. Two curves are fitted to the number of examples seen: one goes on as before, one levels off; the "
    "interval is the hull of both 95% prediction intervals. It is of one training of the same model, contract, data "
    "and stage A, and decides nothing."
)


def outlook_section(data: RunData) -> Section:
    """One line for each arm and metric."""
    found = outlooks_of([data])
    columns = (
        Column(name="arm"),
        Column(name="metric"),
        Column(name="trainings", numeric=True),
        Column(name="examples", note="they saw"),
        Column(name="examples", note="of the hero", numeric=True),
        Column(name="forecast", note="%"),
        Column(name="measured", note="%", numeric=True),
    )
    rows = tuple(Row(cells=_cells(each), group=METRICS[each.metric]) for each in found)
    return Section(
        key="forecast",
        title="Forecast of the hero rung",
        lines=(TOLD,) if rows else (),
        tables=(Table(title="", columns=columns, rows=rows),) if rows else (),
        missing="" if rows else "No training of stage B has come to its end, so there is nothing to forecast from.",
    )


def _cells(each: Outlook) -> tuple[Cell, ...]:
    made = each.forecast
    told = Cell(text="cannot be forecast", why=made.refused)
    if made.value is not None and made.low is not None and made.high is not None:
        checked = "the longest training was foretold from the others" if made.checked else ""
        value, low, high = (100 * end for end in (made.value, made.low, made.high))
        interval = f"{percent(made.low)} to {percent(made.high)}"
        told = Cell(text=percent(made.value), interval=interval, why=checked, value=value, low=low, high=high)
    return (
        Cell(text=each.arm, interval="" if each.vectors is None else f"vectors {each.vectors}"),
        Cell(text=METRICS[each.metric]),
        number(made.points),
        Cell(text=", ".join(f"{size:,}" for size in made.sizes)),
        number(made.examples, why="the plan does not say"),
        told,
        dash("not trained") if each.measured is None else Cell(text=percent(each.measured)),
    )
