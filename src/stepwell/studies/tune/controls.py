"""Controls before generated code is executed: nothing gets out of the sandbox, and right solutions pass in it."""

from __future__ import annotations

from collections.abc import Sequence

from stepwell.errors import StageFailed, StepwellError
from stepwell.sandbox.check import negative_control, positive_control
from stepwell.stage import StageContext
from stepwell.tasks.code import CodeProblem, references

NAMED = 10
"""Reference solutions that do not pass, and are named in a record."""


def control(problems: Sequence[CodeProblem], ctx: StageContext) -> None:
    """Both controls, once a job, where it executes answers to problems: a record `check` of each.

    A reference solution that does not pass is told and stops nothing: the other items still say something.

    Raises:
        StageFailed: a probe got out, or there is no sandbox: then nothing is executed.
    """
    if not problems:
        return
    try:
        found = negative_control()
    except StepwellError as error:
        ctx.write("check", name="sandbox-holds", passed=False, detail=error.cause)
        raise StageFailed(error.cause, error.way_out, stage=ctx.job.id) from error
    ctx.write("check", name="sandbox-holds", passed=True, detail=f"{len(found.findings)} probes, none got out")
    wrong = positive_control(references(problems))
    detail = f"{len(problems) - len(wrong)} of {len(problems)} reference solutions pass"
    if wrong:
        detail += "; not " + "; ".join(f"{one.id} ({one.status}: {one.detail})" for one in wrong[:NAMED])
        detail += f"; and {len(wrong) - NAMED} more" if len(wrong) > NAMED else ""
    ctx.write("check", name="references-pass", passed=not wrong, detail=detail)
