"""The command about fine-tuning data: audit sft."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def add_to(app: typer.Typer) -> None:
    """Add `sft` to the group `audit`, which is there already."""
    (group,) = (each.typer_instance for each in app.registered_groups if each.name == "audit")
    assert group is not None
    group.command("sft")(audit_sft)


def audit_sft(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Conversations or instructions (JSONL).")],
    model: Annotated[str, typer.Option("--model", help="Whose chat template: a folder, a pulled name or a hub id.")],
    evaluation: Annotated[
        list[Path] | None, typer.Option("--eval", help="A set that must not be in it (JSON or JSONL); may be repeated.")
    ] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=2, help="Of an example.")] = 2048,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print {file, n, ok, findings: [{code, count, of, items, example}]}.")
    ] = False,
) -> int:
    """Audit fine-tuning data as it would be trained on: what is learnt, what is cut, what is there twice.

    Exit code: 0 clean, 1 findings.
    """
    from stepwell.backbone import load_tokenizer
    from stepwell.cli import show
    from stepwell.sft.conversations import read_conversations
    from stepwell.sft.evaluation import read_evaluation
    from stepwell.sft.linter import CODES, lint
    from stepwell.sft.render import ChatFormat

    conversations = read_conversations(file)
    texts = {name: text for path in evaluation or () for name, text in read_evaluation(path).items()}
    form = ChatFormat.of(load_tokenizer(model))
    findings = lint(conversations, form, max_tokens=max_tokens, evaluation=texts)
    if as_json:
        told = [{**vars(finding), "items": list(finding.items)} for finding in findings]
        print(json.dumps({"file": str(file), "n": len(conversations), "ok": not findings, "findings": told},
                         indent=1, ensure_ascii=False))  # fmt: skip
        return 1 if findings else 0
    output = show.console()
    summary = f"{len(findings)} kinds of fault" if findings else "clean"
    output.print(f"{file}: {len(conversations)} conversations, {summary}")
    if findings:
        rows = [(each.code, each.count, CODES[each.code], each.example) for each in findings]
        output.print(show.table(("finding", "found", "what it is", "example"), rows, right=("found",)))
    return 1 if findings else 0
