"""The stage `tune.mine`: what the model gets wrong of its own training problems, to be trained on again."""

from __future__ import annotations

from stepwell.grading.benchmarks import grade
from stepwell.grading.mining import mine, write_failures
from stepwell.grading.versus import versus
from stepwell.sft.overlap import Overlap
from stepwell.stage import StageContext
from stepwell.studies.tune.data import Drawn
from stepwell.studies.tune.grading import answered, opened
from stepwell.studies.tune.params import MineParams

FAILURES = "failures.jsonl"
"""Among the artifacts: category, prompt, wrong output, reference."""


def mine_failures(params: MineParams, ctx: StageContext) -> None:
    """Ask the model its training problems; keep what it loses against the written solutions, and nothing graded."""
    data = Drawn.of(ctx)
    pool = data.pool(params.items)
    ours = answered(pool, *opened(params, ctx), params, ctx)
    written = {question.id: question.reference for question in pool.questions}
    solutions = grade(pool, written, model="the written solutions", protocol=ours.protocol)
    mined = mine(versus(ours, solutions), ours, pool, Overlap.of(data.graded()))
    write_failures(ctx.folder / FAILURES, mined.failures)
    for failure in mined.failures:
        ctx.write("failure", id=failure.id, category=failure.category, question=failure.prompt,
                  prediction=failure.wrong, reference=failure.reference, why=failure.why)  # fmt: skip
    ctx.write("mined", n=len(ours.first_answers), failures=len(mined.failures), ties=mined.ties,
              contaminated=len(mined.contaminated), without=len(mined.without))  # fmt: skip
