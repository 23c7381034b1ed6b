"""The stage `tune.mine`: what the model gets wrong of its own training problems, to be trained on again."""

from __future__ import annotations

from stepwell.grading.benchmarks import grade
from stepwell.grading.decoding import answer
from stepwell.grading.mining import mine, write_failures
from stepwell.grading.versus import versus
from stepwell.sft.overlap import Overlap
from stepwell.stage import StageContext
from stepwell.studies.tune.base import base_of, data_of
from stepwell.studies.tune.data import benchmarks_of, pool_of
from stepwell.studies.tune.grading import opened, write_records
from stepwell.studies.tune.params import MineParams, TuneDataParams

FAILURES = "failures.jsonl"
"""Among the artifacts: category, prompt, wrong output, reference."""


def mine_failures(params: MineParams, ctx: StageContext) -> None:
    """Ask the model its training problems; keep what it loses against the written solutions, and nothing graded."""
    data = data_of(ctx)
    made = TuneDataParams.model_validate(dict(data.job.params))
    pool = pool_of(data.folder, made, params.items)
    by, form = opened(ctx, params.decoding, params.batch_size, vllm=params.vllm)
    found = answer(pool, form, params.decoding, by)
    protocol = pool.protocol(form.fingerprint(), params.decoding)
    ours = grade(pool, found.texts, model=base_of(ctx).name, protocol=protocol, stops=found.stops)
    write_records(ctx, pool, ours, found)
    written = {question.id: question.reference for question in pool.questions}
    solutions = grade(pool, written, model="the written solutions", protocol=protocol)
    graded = {
        question.id: question.bare
        for benchmark in benchmarks_of(data.folder, made).values()
        for question in benchmark.questions
    }
    mined = mine(versus(ours, solutions), ours, pool, Overlap.of(graded))
    write_failures(ctx.folder / FAILURES, mined.failures)
    for failure in mined.failures:
        ctx.write("failure", id=failure.id, category=failure.category, question=failure.prompt,
                  prediction=failure.wrong, reference=failure.reference, why=failure.why)  # fmt: skip
    ctx.write("mined", n=len(ours.first_answers), failures=len(mined.failures), ties=mined.ties,
              contaminated=len(mined.contaminated), without=len(mined.without))  # fmt: skip
