"""The stage `tune.lint`: what a training on this data, the first or a second, would learn that nobody meant."""

from __future__ import annotations

from collections.abc import Sequence

from stepwell.backbone import load_tokenizer
from stepwell.fingerprint import fingerprint
from stepwell.sft.conversations import Conversation
from stepwell.sft.linter import CODES, lint
from stepwell.sft.render import ChatFormat
from stepwell.stage import StageContext
from stepwell.studies.tune.base import base_of
from stepwell.studies.tune.data import Drawn
from stepwell.studies.tune.mining import trained_on
from stepwell.studies.tune.params import LintParams


def check(params: LintParams, ctx: StageContext) -> None:
    """One record a kind of fault, with an example; and a check that fails where a kind is not allowed."""
    data = Drawn.of(ctx)
    form = ChatFormat.of(load_tokenizer(base_of(ctx).folder))
    chosen, replayed = (data.train, 0) if params.replay is None else trained_on(data.train, params.replay, ctx)
    findings = lint(chosen, form, max_tokens=params.max_tokens, evaluation=data.graded())
    ctx.write("linted", n=len(chosen), replayed=replayed, sha256=set_sha256(chosen))
    for finding in findings:
        ctx.write("finding", code=finding.code, meaning=CODES[finding.code], count=finding.count, of=finding.of,
                  example=finding.example, allowed=finding.code in params.allow)  # fmt: skip
    bad = [finding for finding in findings if finding.code not in params.allow]
    told = ", ".join(f"{finding.code} ({finding.count} of {finding.of})" for finding in bad)
    ctx.write("check", name="lint", passed=not bad, detail=told or "no fault, or only such as the plan allows")


def set_sha256(conversations: Sequence[Conversation]) -> str:
    """Of all that is trained on, in its order, 64 hex digits: what was linted is told by it from what was not."""
    return fingerprint([[one.id, [dict(message) for message in one.messages]] for one in conversations])
