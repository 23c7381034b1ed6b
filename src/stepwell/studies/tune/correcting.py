"""The stage `tune.correct`: failures answered anew, by the model itself or by a teacher, and kept where they are right.

A model that is shown its own wrong answer and corrects it learns from words of its own (self-critique); a teacher's
answers are longer and better, if they are whole: how each of them ended is recorded, for the original's ran into the
limit in 84% of the cases and nobody knew.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from stepwell.chat import Message
from stepwell.grading.asking import Given, ask_benchmark, asker, read_answers
from stepwell.grading.benchmarks import Benchmark, Question
from stepwell.grading.decoding import Writer, answer
from stepwell.grading.mining import Failure, read_failures, write_failures
from stepwell.grading.stops import Stops
from stepwell.sft.render import ChatFormat
from stepwell.stage import StageContext
from stepwell.studies.tune.controls import control
from stepwell.studies.tune.data import Drawn, one_input
from stepwell.studies.tune.grading import opened
from stepwell.studies.tune.mining import FAILURES
from stepwell.studies.tune.params import CorrectParams, Recorded, Reference

WRONG = "This answer is wrong. Say in one sentence where it goes wrong, then write the whole"
CRITIQUE = {
    "maths": f"{WRONG} solution anew. End with #### and the final number.",
    "code": f"{WRONG} function anew, in one block of code.",
}
"""By category: what is asked of a model that is shown its wrong answer."""


def correct(params: CorrectParams, ctx: StageContext) -> None:
    """One record a failure; those that are right now are written as the failures to train on."""
    ctx.keep_artifacts()  # what an endpoint has answered survives a kill
    failures = {one.id: one for one in read_failures(one_input(ctx, "tune.mine").folder / FAILURES)}
    data, kept = Drawn.of(ctx), list[Failure]()
    control([one for one in data.pooled_code() if one.id in failures], ctx)
    writer = opened(params, ctx) if params.by == "self" else None
    for pool in data.pools():
        asked = tuple(
            _asked(question, failures[question.id], critique=params.critique)
            for question in pool.questions
            if question.id in failures
        )
        if asked:
            kept += _corrected(replace(pool, questions=asked), failures, writer, params, ctx)
    write_failures(ctx.folder / FAILURES, kept)
    by = params.by if isinstance(params.by, str) else params.by.model
    ctx.write("corrected", n=len(failures), right=len(kept), by=by)


def _asked(question: Question, failure: Failure, *, critique: bool) -> Question:
    if not critique:
        return question
    shown: tuple[Message, ...] = (
        {"role": "assistant", "content": failure.wrong or "(nothing)"},
        {"role": "user", "content": CRITIQUE[failure.category]},
    )
    return replace(question, messages=(*question.messages, *shown))


def _corrected(
    benchmark: Benchmark,
    failures: Mapping[str, Failure],
    writer: tuple[Writer, ChatFormat] | None,
    params: CorrectParams,
    ctx: StageContext,
) -> list[Failure]:
    """The failures of a pool that are right now; one record each."""
    given = _answered(params, benchmark, writer, ctx)
    texts, why, kept = given.texts, given.why, list[Failure]()
    marks = benchmark.mark({(name, 0): text for name, text in texts.items()})
    for question in benchmark.questions:
        name, mark = question.id, marks[question.id, 0]
        if mark.status == "right":
            kept.append(replace(failures[name], reference=texts[name]))
        ctx.write("correction", id=name, category=failures[name].category, right=mark.status == "right",
                  status="unanswered" if name in why else mark.status, why=why.get(name) or mark.why,
                  stop=given.stops.get(name, ""), text=texts[name], wrong=failures[name].wrong)  # fmt: skip
    return kept


def _answered(
    params: CorrectParams, benchmark: Benchmark, writer: tuple[Writer, ChatFormat] | None, ctx: StageContext
) -> Given:
    """The answers, by the model's own writer where there is one; and a check of how they ended, where that is known."""
    if writer is not None:
        by, form = writer
        found = answer(benchmark, form, params.decoding, by)
        first = {name: one for (name, number), one in found.written.items() if number == 0}
        given = Given(
            texts={name: one.text for name, one in first.items()},
            stops={name: one.stop for name, one in first.items()}, why={},
        )  # fmt: skip
        ends = Stops.of(list(found.written.values()))
    else:
        assert params.by != "self"
        given = _elsewhere(params.by, benchmark, ctx)
        ends = given.ends
    if ends is not None:
        unknown = len(given.texts) - len(given.stops)
        detail = (ends.red_flag or "few were cut off") + (f"; how {unknown} others ended is not known" * bool(unknown))
        ctx.write("check", name="answers-whole", passed=not ends.red_flag, detail=detail)
    return given


def _elsewhere(by: Reference, benchmark: Benchmark, ctx: StageContext) -> Given:
    if isinstance(by, Recorded):
        return read_answers(by.file, benchmark)
    return ask_benchmark(benchmark, asker(by, ctx.folder / "asked", device=ctx.device, between=ctx.stop_if_asked))
