"""The command that compares two runs or arms: compare."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from stepwell.compare import Comparison, SetComparison
    from stepwell.stats import Estimate

Selection = Annotated[str, typer.Argument(metavar="RUN[:AXIS=VALUE,...]", help="E.g. runs/a:arm=cot,seed=0")]

SHORT = {"cohens_h": "h", "discordant_odds": "odds", "cohens_dz": "d_z"}


def add_to(app: typer.Typer) -> None:
    """Add this command to the application."""
    app.command("compare")(compare)


def compare(
    first: Selection,
    second: Selection,
    only: Annotated[str | None, typer.Option("--set", help="One set; by default all that both were asked.")] = None,
    condition: Annotated[str, typer.Option("--condition", help="What was done to the thoughts.")] = "clean",
    metric: Annotated[
        str, typer.Option("--metric", help="A field of the records: correct, forced_correct, margin.")
    ] = "correct",
    margin: Annotated[
        float | None,
        typer.Option("--margin", help="Test equivalence within it; the frozen gates of both runs must name it."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Compare two runs, or two arms of one, item by item. What is not comparable is refused, with the reason.

    Exit code: 0 compared, 3 refused.
    """
    from stepwell.cli import show
    from stepwell.compare import compare as compare_runs

    found = compare_runs(first, second, only=only, condition=condition, metric=metric, margin=margin)
    if as_json:
        print(json.dumps(found.to_json(), indent=1, ensure_ascii=False))
        return
    output = show.console()
    for piece in shown(found):
        output.print(piece)


def shown(found: Comparison) -> Iterable[Any]:
    """What the command prints, piece by piece."""
    from stepwell.cli import show

    yield f"{found.metric}, condition {found.condition}\nfirst   {found.first}\nsecond  {found.second}"
    several = len(found.sets) > 1
    columns = ["set", "items", "seeds", "first", "second", "difference", "only first/second", "p"]
    columns += ["p (Holm)"] * several + ["effect"] + ["equivalent"] * (found.margin is not None)
    yield show.table(columns, [_row(each, several, found.margin is not None) for each in found.sets], right=columns[1:])
    for each in found.sets:
        yield f"{each.set}: {each.found.conclusion}."
    yield from found.notes


def _row(each: SetComparison, several: bool, tested: bool) -> list[str]:
    from stepwell.stats import p_text

    found = each.found
    table = found.table
    row = [each.set, f"{found.items:,}", str(found.seeds), _estimate(found.first), _estimate(found.second)]
    row += [_estimate(found.difference), f"{table.only_first}/{table.only_second}" if table else ""]
    row.append(f"{p_text(found.p_value)} ({found.test})")
    row += [p_text(each.p_adjusted)] * several
    row.append("\n".join(f"{SHORT[name]} {_estimate(effect)}" for name, effect in found.effects.items()))
    if tested and found.equivalence is not None:
        verdict = {True: "yes", False: "not shown", None: "undefined"}[found.equivalence.equivalent]
        row.append(f"{verdict}, p {p_text(found.equivalence.p_value)}")
    return row


def _estimate(estimate: Estimate) -> str:
    """`0.12 [0.08, 0.16]`; an end that is missing is named."""
    if estimate.value is None and estimate.low is None:
        return "undefined"
    value = "unbounded" if estimate.value is None else f"{estimate.value:.3g}"
    if estimate.low is None:
        return f"{value} [no interval]"
    return f"{value} [{estimate.low:.3g}, {'unbounded' if estimate.high is None else f'{estimate.high:.3g}'}]"
