"""Commands about data, runs and models: audit data, audit run, data prosqa, models pull."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from stepwell.errors import StepwellError


def add_to(app: typer.Typer) -> None:
    """Add these commands to the application."""
    for name, text, commands in (
        ("audit", "Find faults before they cost money.", {"data": audit_data, "run": audit_run}),
        ("data", "Generate data.", {"prosqa": prosqa}),
        ("models", "Fetch models.", {"pull": pull}),
    ):
        group = typer.Typer(help=text, no_args_is_help=True, rich_markup_mode=None)
        group.callback()(lambda: None)  # a group of one command stays a group
        for command, function in commands.items():
            group.command(command)(function)
        app.add_typer(group, name=name)


def audit_data(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Files of items (JSON).")],
    form: Annotated[
        str, typer.Option("--format", help="prosqa, or steps: any questions with written steps and an answer.")
    ] = "prosqa",
    as_json: Annotated[bool, typer.Option("--json", help="Print {file, n, ok, findings, shortcuts} of each.")] = False,
) -> int:
    """Audit data files: items that cannot be solved or are wrong, and rules that solve them without reasoning.

    Exit code: 0 clean, 1 findings.
    """
    from stepwell.audit.data import audit_files
    from stepwell.audit.written import audit_written
    from stepwell.cli import show

    if form not in (known := {"prosqa": audit_files, "steps": audit_written}):
        raise StepwellError(f"unknown format `{form}`", f"Formats: {', '.join(known)}.")
    audits = known[form](files)
    if as_json:
        print(json.dumps([audit.to_json() for audit in audits], indent=1, ensure_ascii=False))
    else:
        output = show.console()
        for audit in audits:
            for piece in show.audit(audit):
                output.print(piece)
    return 0 if all(audit.ok for audit in audits) else 1


def audit_run(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print {run, ok, faults: [{code, count, example}]}.")] = False,
) -> int:
    """Audit the analyses of a run: wrong denominators, misaligned rows, claims its records do not carry, and more.

    Exit code: 0 clean, 1 findings.
    """
    from stepwell.audit.run import CODES
    from stepwell.audit.run import audit_run as audit
    from stepwell.cli import show
    from stepwell.report.audits import audits_of, evidence
    from stepwell.report.folder import read_folder

    data = read_folder(folder)
    codes = audits_of(data)
    faults = audit(evidence(data), codes)
    if as_json:
        found = {"run": str(folder), "ok": not faults, "faults": [vars(fault) for fault in faults]}
        print(json.dumps(found, indent=1, ensure_ascii=False))
        return 1 if faults else 0
    output = show.console()
    output.print(f"{folder}: {len(codes)} audits, {f'{len(faults)} kinds of fault' if faults else 'clean'}")
    if faults:
        rows = [(fault.code, fault.count, CODES[fault.code], fault.example) for fault in faults]
        output.print(show.table(("fault", "found", "what it is", "example"), rows, right=("found",)))
    return 1 if faults else 0


def prosqa(
    family: Annotated[str, typer.Option("--family", help="id, 7hop, 8hop, dag, dense, no-shortcut or mini.")],
    n: Annotated[int, typer.Option("--n", min=1, help="How many items.")],
    seed: Annotated[int, typer.Option("--seed", min=0)],
    out: Annotated[Path, typer.Option("--out", help="The JSON file to write.")],
) -> None:
    """Generate ProsQA items in the official format."""
    from stepwell.tasks.prosqa import generate_items, write_items

    write_items(out, generate_items(family, n, seed))
    print(f"{n} items of family {family}, seed {seed}: {out}")


def pull(
    name: Annotated[str, typer.Argument(help="A short name (smollm2-135m) or a hub id.")],
    to: Annotated[Path | None, typer.Option("--to", help="The folder to write; by default the user's cache.")] = None,
) -> None:
    """Fetch a model, check its hashes, and print the folder it lies in."""
    from stepwell.models import pull as pull_model

    print(pull_model(name, to))
