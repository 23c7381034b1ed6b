"""The command about a plan on many GPUs: scale."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stepwell.cli.runs import Overrides, PlanName, Rung
from stepwell.errors import StepwellError

if TYPE_CHECKING:
    from stepwell.plan import Plan
    from stepwell.scale import Point, Scale


def add_to(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("scale")(scale)


def scale(
    name: PlanName,
    overrides: Overrides = None,
    rung: Rung = None,
    gpus: Annotated[str, typer.Option("--gpus", metavar="N,N,...", help="How many.")] = "1,8,64,512",
    device: Annotated[str, typer.Option("--device", help="h100, a100, l4, ...")] = "h100",
    hourly_price: Annotated[float | None, typer.Option("--hourly-price", min=0, help="Of one GPU.")] = None,
) -> None:
    """Show time, price, memory and efficiency of a plan on several numbers of GPUs. Runs nothing."""
    from stepwell.cli import show
    from stepwell.plan import load_plan
    from stepwell.scale import scale as scaled

    plan = load_plan(name, rung=rung, overrides=overrides or ())
    output = show.console()
    for piece in shown(plan, scaled(plan, _numbers(gpus), device, hourly_price)):
        output.print(piece)


def _numbers(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise StepwellError(f"--gpus {text}: expected numbers from 1 on", "For example: --gpus 1,8,64,512.")
    return [int(part) for part in parts]


def shown(plan: Plan, found: Scale) -> Iterable[Any]:
    """Everything the command prints, piece by piece."""
    from stepwell.cli import show
    from stepwell.scale.shares import A_MACHINE

    device = found.device
    basis = "measured matmul rate" if device.measured else "peak on the data sheet"
    yield (
        f"study {plan.study}, rung {plan.rung}, on {device.name} at {device.fraction:.0%} of its {basis}, "
        f"{A_MACHINE} in a machine"
    )
    if found.half is not None:
        columns = ("GPUs", "devices", "time", "held", "used", "price", "efficiency", "memory", "most is lost to")
        yield show.table(columns, [_row(point, found) for point in found.points], right=columns[:-1])
        if all(point.memory is None for point in found.points):
            yield "memory: no stage says what it holds"
        yield _stops(found.half)
    else:
        yield "no stage of this plan has an estimate"
    if found.unknown:
        named = [f"{stage} ({n} of {of} jobs)" if n < of else stage for stage, (n, of) in found.unknown.items()]
        yield f"without an estimate, and not in the table: {', '.join(named)}"
    if found.conditional:
        yield f"only where a gate leads there, and not in the table: {', '.join(found.conditional)}"


def _row(point: Point, found: Scale) -> tuple[str, ...]:
    from stepwell.cli import show

    cause, most = max(point.lost.items(), key=lambda pair: pair[1])
    lost = f"{cause}, {most / point.held:.0%}" if most > 0.005 * point.held else "-"
    memory, there = point.memory, found.device.memory_bytes
    fits = ": DOES NOT FIT" if memory is not None and there is not None and memory > there else ""
    return (
        str(point.devices),
        str(point.each),
        show.duration(point.hours * 3600),
        f"{point.held:.3g} h",
        f"{point.used:.3g} h",
        "-" if point.price is None else f"{point.price:.2f} {found.currency}",
        f"{point.efficiency:.0%}" if point.efficiency >= 0.01 else f"{point.efficiency:.1%}",
        "-" if memory is None else f"{show.size(memory)}{fits}",
        lost,
    )


def _stops(half: Point) -> str:
    """Where efficiency falls below one half, what the hours are lost to, and the longest chain there."""
    from stepwell.cli import show

    causes = sorted(half.lost.items(), key=lambda pair: -pair[1])
    lost = [f"{hours / half.held:.0%} {cause}" for cause, hours in causes if hours >= 0.005 * half.held]
    whole = sum(hours for _, hours in half.chain)
    chain = [f"{stage} {hours / whole:.0%}" for stage, hours in half.chain if hours >= 0.005 * whole]
    return (
        f"efficiency falls below one half at {half.devices} GPUs (devices {half.each}): {', '.join(lost)}\n"
        f"the longest chain of jobs there takes {show.duration(whole * 3600)} of "
        f"{show.duration(half.hours * 3600)}: {', '.join(chain)}"
    )
