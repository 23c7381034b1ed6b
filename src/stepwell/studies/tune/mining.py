"""The stage `tune.mine`: what the model gets wrong of its own training problems; and what is trained on of that."""

from __future__ import annotations

from stepwell.errors import StepwellError
from stepwell.grading.benchmarks import grade
from stepwell.grading.mining import Failure, mine, read_failures, with_replay, write_failures
from stepwell.grading.versus import versus
from stepwell.sft.conversations import Conversation
from stepwell.sft.overlap import Overlap
from stepwell.stage import StageContext
from stepwell.studies.tune.controls import control
from stepwell.studies.tune.data import Drawn
from stepwell.studies.tune.grading import answered, opened
from stepwell.studies.tune.params import MineParams

FAILURES = "failures.jsonl"
"""Among the artifacts: category, prompt, wrong output, reference."""


def mine_failures(params: MineParams, ctx: StageContext) -> None:
    """Ask the model its training problems; keep what it loses against the written solutions, and nothing graded."""
    data, failures = Drawn.of(ctx), list[Failure]()
    pools = data.pools(params.items)
    control(data.pooled_code(params.items), ctx)
    by, form = opened(params, ctx)
    for pool in pools:
        ours = answered(pool, by, form, params, ctx)
        written = {question.id: question.reference for question in pool.questions}
        solutions = grade(pool, written, model="the written solutions", protocol=ours.protocol)
        mined = mine(versus(ours, solutions), ours, pool, Overlap.of(data.graded()))
        failures += mined.failures
        for failure in mined.failures:
            ctx.write("failure", id=failure.id, category=failure.category, question=failure.prompt,
                      prediction=failure.wrong, reference=failure.reference, why=failure.why)  # fmt: skip
        ctx.write("mined", benchmark=pool.name, n=len(ours.first_answers), failures=len(mined.failures),
                  ties=mined.ties, contaminated=len(mined.contaminated), without=len(mined.without))  # fmt: skip
        ctx.stop_if_asked()
    write_failures(ctx.folder / FAILURES, failures)


def trained_on(first: list[Conversation], replay: float, ctx: StageContext) -> tuple[list[Conversation], int]:
    """What a stage trains on, and how many of that are replayed: the training set, or failures with a share of it.

    Every stage that needs the same failures draws the same replay, whatever its own seed is.

    Raises:
        StepwellError: no failure was left, or the training set is too small for the share.
    """
    # Corrected failures, where a stage corrected them, take the place of the written solutions.
    mined = [*ctx.made_by("tune.correct"), *ctx.made_by("tune.mine")]
    if not mined:
        return first, 0
    failures = read_failures(mined[0].folder / FAILURES)
    if not failures:
        raise StepwellError(
            f"{mined[0].job.id} left no failures to train on",
            "mine more items, or put a gate on `failures` (`right` of corrected ones) before this stage",
            stage=ctx.job.id,
        )
    chosen = with_replay(failures, first, share=replay, seed=mined[0].job.axes.get("seed", 0))
    return chosen, len(chosen) - len(failures)
