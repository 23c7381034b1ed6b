"""Commands about the sandbox: sandbox check."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def add_to(app: typer.Typer) -> None:
    """Add these commands to the application."""
    group = typer.Typer(help="Where generated code is executed.", no_args_is_help=True, rich_markup_mode=None)
    group.callback()(lambda: None)  # a group of one command stays a group
    group.command("check")(sandbox_check)
    app.add_typer(group, name="sandbox")


def sandbox_check(
    as_json: Annotated[bool, typer.Option("--json", help="Print {user, ok, refused, findings, ...}.")] = False,
) -> int:
    """Try to get out of the sandbox in every way that is known here, and say what isolation this machine gives.

    Exit code: 0 it holds, 1 something got out, 3 there is no sandbox here.
    """
    from stepwell.cli import show
    from stepwell.sandbox.check import check

    found = check()
    if as_json:
        print(json.dumps(found.to_json(), indent=1, ensure_ascii=False))
        return 3 if found.refused else int(not found.ok)
    output = show.console()
    filtered = "system calls filtered" if found.system_calls_filtered else "system calls not filtered"
    kind = {"root": "as root, who becomes nobody inside", "user": "as a user, in a user namespace"}[found.user]
    output.print(f"{found.bubblewrap or 'no bubblewrap'}, Linux {found.kernel}, {filtered}, {kind}")
    if found.refused:
        output.print(f"no sandbox: {found.refused}")
        return 3
    rows = [("held" if one.held else "OUT", one.probe, one.what, one.status, one.detail) for one in found.findings]
    output.print(show.table(("", "probe", "what it tries", "status", "detail"), rows))
    out = sum(not one.held for one in found.findings)
    output.print(f"{len(rows)} probes, {f'{out} got out: execute nothing here' if out else 'none got out'}")
    return int(not found.ok)
