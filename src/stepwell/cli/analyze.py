"""The command that says how trainings went: analyze."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from stepwell.analysis.wire import Curve, Look, Training
    from stepwell.analysis.wire_ladder import Outlook
    from stepwell.report.wire.analysed import Analysed

METRICS = ("first_acc", "f1")
"""What the text tells of; the JSON has all."""
_LINES = "\n"


def add_to(app: typer.Typer) -> None:
    """Add this command to the application."""
    app.command("analyze")(analyze)


def analyze(
    folders: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Run folders of study `wire`; several rungs.")
    ],
    examples: Annotated[
        int | None,
        typer.Option("--examples", min=1, help="Of the training to be forecast; by default the plan's stage `hero`."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print {runs: [{run, trainings}], forecasts}.")] = False,
) -> None:
    """Show peaks, breakthroughs and regressions of trainings, finished or not, and a forecast of the hero rung.

    Exit code: 0 shown, 3 no run of study `wire`, or no training in it.
    """
    from stepwell.cli import show
    from stepwell.report.wire.analysed import analysed

    found = analysed(folders, examples=examples)
    if as_json:
        print(json.dumps(found.to_json(), indent=1, ensure_ascii=False))
        return
    output = show.console()
    for piece in shown(found):
        output.print(piece)


def shown(found: Analysed) -> Iterable[Any]:
    """What the command prints, piece by piece."""
    from stepwell.analysis.wire import METRICS as NAMES
    from stepwell.cli import show

    for folder, trainings in found.runs:
        yield f"{folder}: {len(trainings)} trainings, {sum(one.finished for one in trainings)} of them finished"
        heads = [f"{NAMES[name]}\n{what}" for name in METRICS for what in ("peak", "final")]
        columns = ["job", "steps", *heads, "commonest\ntoken", "first F1\nabove 0", "largest\ngradient", "skipped"]
        yield show.table(columns, [_training(one) for one in trainings], right=columns[1:])
        events = [row for one in trainings for row in _events(one)]
        if events:
            yield show.table(("job", "metric", "step", "what", "from", "to"), events, right=("step",))
        else:
            yield "No breakthrough, no regression and no alert.\n"
    yield "Intervals: Wilson's, all of a curve together at 95%.\n"
    yield from _forecasts(found.outlooks)


def _training(one: Training) -> list[str]:
    cells = [one.job, f"{one.steps:,}" + ("" if one.finished else "\nunfinished")]
    for name in METRICS:
        curve = one.curves.get(name)
        if curve is None:
            cells += ["not measured", ""]
            continue
        ratio = curve.final_over_peak
        share = "" if ratio is None else f"\n{ratio:.0%} of peak"
        cells += [f"{_look(curve.peak, _LINES)}\nstep {curve.peak.step:,}", f"{_look(curve.final, _LINES)}{share}"]
    first = one.curves.get("first_acc")
    baseline = "unknown" if first is None or first.baseline is None else _look(first.baseline, _LINES)
    hit = "never" if one.first_f1_step is None else f"step {one.first_f1_step:,}"
    norm = "unknown" if one.max_grad_norm is None else f"{one.max_grad_norm:.3g}"
    return [*cells, baseline, hit, norm, str(one.skipped)]


def _events(one: Training) -> Iterable[tuple[Any, ...]]:
    from stepwell.analysis.wire import METRICS as NAMES

    for metric in METRICS:
        if (curve := one.curves.get(metric)) is not None:
            yield from ((one.job, NAMES[metric], *rest) for rest in _changes(curve))
    for step, monitor, message in one.alerts:
        yield one.job, "", f"{step:,}", f"alert {monitor}: {message}", "", ""


def _changes(curve: Curve) -> Iterable[tuple[str, str, str, str]]:
    for up in curve.breakthroughs:
        yield f"{up.look.step:,}", "breakthrough", _look(up.above), _look(up.look)
    for down in curve.regressions:
        end = "to the end" if down.end is None else f"until step {down.end:,}"
        yield f"{down.start.step:,}", f"regression {end}", _look(down.best), _look(down.lowest)


def _look(look: Look, between: str = " ") -> str:
    """`12.5% [4.3, 31.0]`"""
    return f"{look.value:.1%}{between}[{100 * look.low:.1f}, {100 * look.high:.1f}]"


def _forecasts(outlooks: Iterable[Outlook]) -> Iterable[Any]:
    from stepwell.analysis.wire_ladder import METRICS as NAMES
    from stepwell.cli import show

    rows = []
    for each in outlooks:
        made = each.forecast
        told = f"cannot be forecast: {made.refused}"
        if made.value is not None and made.low is not None and made.high is not None:
            told = f"{made.value:.1%} [{100 * made.low:.1f}, {100 * made.high:.1f}]"
        arm = each.arm if each.vectors is None else f"{each.arm}, {each.vectors} vectors"
        sizes = ", ".join(f"{size:,}" for size in made.sizes)
        examples = "unknown" if made.examples is None else f"{made.examples:,}"
        measured = "" if each.measured is None else f"{each.measured:.1%}"
        rows.append((arm, NAMES[each.metric], f"{made.points}: {sizes}", examples, told, measured))
    if rows:
        columns = ("arm", "metric", "trainings: examples", "examples of hero", "forecast, 95%", "measured")
        yield show.table(columns, rows, right=("examples of hero",))
    else:
        yield "No training of stage B has come to its end: there is nothing to forecast from."
