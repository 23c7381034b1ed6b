"""Commands about plans and runs: plans, plan, run, status, report, gate, import-coconut, calibrate."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from stepwell.errors import StepwellError

if TYPE_CHECKING:
    from stepwell.plan import Plan
    from stepwell.plan.models import Decision

EXIT_CODES = {"go": 0, "no-go": 1, "inconclusive": 2}
SECONDS_BETWEEN_TABLES = 2.0

PlanName = Annotated[str, typer.Argument(metavar="PLAN", help="A shipped name (see `stepwell plans`) or a YAML file.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="E.g. train.lr=3e-4 workers=2.")]
Rung = Annotated[str | None, typer.Option("--rung", help="The size: demo, smoke, pilot, hero, ...")]
RunFolderArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]


def add_to(app: typer.Typer) -> None:
    """Add these commands to the application."""
    for name, command in (
        ("plans", plans),
        ("plan", plan),
        ("run", run),
        ("status", status),
        ("report", report),
        ("gate", gate),
        ("import-coconut", import_coconut),
        ("calibrate", calibrate),
    ):
        app.command(name)(command)


def plans() -> None:
    """List the plans that ship, with their rungs."""
    from stepwell.cli import show
    from stepwell.plan import rungs_of, shipped_plans
    from stepwell.plan.load import title_of

    rows = [(name, title_of(name), " ".join(rungs_of(name))) for name in shipped_plans()]
    show.console().print(show.table(("plan", "title", "rungs"), rows))


def plan(
    name: PlanName,
    overrides: Overrides = None,
    rung: Rung = None,
    device: Annotated[str | None, typer.Option("--device", help="For the estimate: h100, a100, cpu, ...")] = None,
    hourly_price: Annotated[float | None, typer.Option("--hourly-price", min=0, help="Of the device.")] = None,
) -> None:
    """Show stages, jobs, gates, FLOP, time, memory and price of a plan. Runs nothing."""
    from stepwell.cli import show
    from stepwell.estimate import estimate
    from stepwell.plan import load_plan

    loaded = load_plan(name, rung=rung, overrides=overrides or ())
    output = show.console()
    for piece in show.plan_and_cost(loaded, estimate(loaded, device, hourly_price)):
        output.print(piece)


def run(
    name: PlanName,
    overrides: Overrides = None,
    rung: Rung = None,
    out: Annotated[Path | None, typer.Option("--out", help="The run folder; by default runs/STUDY-RUNG.")] = None,
    override_gate: Annotated[
        list[str] | None,
        typer.Option("--override-gate", metavar="GATE=DECISION", help="Go where that decision leads."),
    ] = None,
    reason: Annotated[
        str | None, typer.Option("--reason", help="Why gates are changed after the run began; logged and shown.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the result alone.")] = False,
) -> int:
    """Run a plan, or go on with it.

    Exit code: 0 every gate says go, 1 any no-go, 2 any inconclusive, 3 usage error, 4 a stage failed.
    """
    from stepwell.cli import live, show
    from stepwell.plan import load_plan
    from stepwell.report import write_report
    from stepwell.runner import run as run_plan

    loaded = load_plan(name, rung=rung, overrides=overrides or ())
    folder = out or Path("runs") / f"{loaded.study}-{loaded.rung}"
    if override_gate or reason:
        loaded = _overridden(loaded, override_gate or [], reason, folder)
    with live.shown(folder, quiet=quiet):
        result = run_plan(loaded, folder, override=reason)
    output = show.console()
    if result.verdicts:
        output.print(show.verdicts([verdict.to_record() for verdict in result.verdicts]))
    output.print(f"decision: {result.decision}")
    page = write_report(folder)
    print(f"report: {page}")  # not through rich: a path is not to be wrapped
    return EXIT_CODES[result.decision]


def _overridden(plan: Plan, gates: list[str], reason: str | None, folder: Path) -> Plan:
    """The plan in which every decision of a gate leads where the wanted one leads. The verdict stays what it is."""
    if not reason or not reason.strip():
        raise StepwellError("a gate is overridden without a reason", "Say why: --reason TEXT.")
    if not (folder / "policy.json").exists():
        raise StepwellError(
            "no run has begun here, so there is no frozen gate to override",
            "For a new run set what you want, e.g. gates.NAME.threshold=.6",
            path=folder,
        )
    for given in gates:
        name, _, decision = given.partition("=")
        known = [each.name for each in plan.gates]
        if name not in known or decision not in EXIT_CODES:
            raise StepwellError(
                f"--override-gate {given}: expected GATE=DECISION",
                f"Gates: {', '.join(known) or 'none'}. Decisions: {', '.join(EXIT_CODES)}.",
            )
        spec = plan.gate(name)
        target = spec.routes[cast("Decision", decision)]
        bands = tuple(band.model_copy(update={"route": target}) for band in spec.bands)
        changed = spec.model_copy(update={"routes": dict.fromkeys(EXIT_CODES, target), "bands": bands})
        plan = plan.model_copy(update={"gates": tuple(changed if g.name == name else g for g in plan.gates)})
    return plan


def status(
    folder: RunFolderArgument,
    watch: Annotated[bool, typer.Option("--watch", help="Go on showing until the run ends.")] = False,
) -> None:
    """Show what a run is doing: one row a job, and the verdicts so far."""
    from rich.live import Live

    from stepwell.cli import show
    from stepwell.runner import spent_hours
    from stepwell.runner import status as status_of
    from stepwell.store import RunFolder

    rows, plan = status_of(folder), RunFolder(folder).read_plan()
    output = show.console()
    if watch and sys.stdout.isatty():
        with Live(show.jobs(rows, plan, spent_hours(folder)), console=output, auto_refresh=False) as live:
            while any(row.state == "running" for row in rows):
                time.sleep(SECONDS_BETWEEN_TABLES)
                rows = status_of(folder)
                live.update(show.jobs(rows, plan, spent_hours(folder)), refresh=True)
    else:
        output.print(show.jobs(rows, plan, spent_hours(folder)))
    if found := _verdicts(folder):
        output.print(show.verdicts(found))


def report(folder: RunFolderArgument) -> None:
    """Write RUN/report.html, one file that needs no network, and print its path; RUN/summary.json holds its figures."""
    from stepwell.report import write_report

    print(write_report(folder))


def gate(
    folder: RunFolderArgument,
    name: Annotated[str | None, typer.Argument(metavar="GATE", help="One gate; all of them where left out.")] = None,
) -> int:
    """Show verdicts. Exit code: 0 go, 1 no-go, 2 inconclusive or not yet decided, 3 no such gate, 4 a stage failed."""
    from stepwell.cli import show
    from stepwell.runner import status as status_of
    from stepwell.store import RunFolder

    rows = status_of(folder)
    frozen = [each.name for each in RunFolder(folder).read_plan().gates]
    if name is not None and name not in frozen:
        raise StepwellError(f"no gate `{name}` in this run", f"Gates: {', '.join(frozen) or 'none'}.", path=folder)
    asked = [name] if name else frozen
    found = {verdict["gate"]: verdict for verdict in _verdicts(folder) if verdict["gate"] in asked}
    if found:
        show.console().print(show.verdicts(list(found.values())))
    undecided = [each for each in asked if each not in found]
    if undecided:
        print(f"not decided: {', '.join(undecided)}")
    failed = any(row.state == "failed" for row in rows)
    decisions = {verdict["decision"] for verdict in found.values()}
    if "no-go" in decisions:
        return EXIT_CODES["no-go"]
    if undecided and failed:
        return 4
    return EXIT_CODES["inconclusive"] if undecided or "inconclusive" in decisions else EXIT_CODES["go"]


def _verdicts(folder: Path) -> list[dict[str, Any]]:
    from stepwell.store import RunFolder, read_records

    return list(read_records(RunFolder(folder).gates_path))


def import_coconut(
    arguments: Annotated[Path, typer.Argument(metavar="ARGS.yaml", help="An args file of Meta's COCONUT.")],
    out: Annotated[Path | None, typer.Option("--out", help="Write a whole plan here, instead of overrides.")] = None,
    rung: Annotated[str, typer.Option("--rung", help="Of the plan `thoughts` that is changed.")] = "hero",
    gpus: Annotated[int, typer.Option("--gpus", min=1, help="How many GPUs the file was made for.")] = 4,
) -> None:
    """Turn one of Meta's argument files into overrides of the plan `thoughts`, or into a plan."""
    from stepwell.coconut import import_args
    from stepwell.plan import dump_plan, load_plan

    imported = import_args(arguments, gpus=gpus)
    for note in imported.notes:
        print(f"note: {note}", file=sys.stderr)
    if out is None:
        print("\n".join(imported.overrides))
        return
    text = dump_plan(load_plan("thoughts", rung=rung, overrides=imported.overrides))
    out.write_text(text, encoding="utf-8")
    print(out)


def calibrate(
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Measure this machine's matmul rates and bandwidth, for `stepwell plan`."""
    from stepwell.calibrate import calibrate as measure

    found = measure(device)
    per = " a core" if found.cores else ""
    rates = {precision: f"{rate / 1e9:.3g} GFLOP/s{per}" for precision, rate in found.flop_per_second.items()}
    print(
        json.dumps({"device": found.name, **rates, "bandwidth": f"{found.bytes_per_second / 1e9:.3g} GB/s"}, indent=1)
    )
