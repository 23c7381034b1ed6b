"""The stage `tune.correct`: failures answered anew, by the model itself or by a teacher, and kept where they are right.

A model that is shown its own wrong answer and corrects it learns from words of its own (self-critique); a teacher's
answers are longer and better, if they are whole: how each of them ended is recorded, for the original's ran into the
limit in 84% of the cases and nobody knew.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from stepwell.chat import Message
from stepwell.grading.asking import ask_benchmark, asker, read_answers
from stepwell.grading.benchmarks import Benchmark, Question
from stepwell.grading.decoding import answer
from stepwell.grading.mining import Failure, read_failures, write_failures
from stepwell.grading.stops import Stops
from stepwell.stage import StageContext
from stepwell.studies.tune.data import Drawn, one_input
from stepwell.studies.tune.grading import opened
from stepwell.studies.tune.mining import FAILURES
from stepwell.studies.tune.params import CorrectParams, Recorded

CRITIQUE = (
    "This answer is wrong. Say in one sentence where it goes wrong, then write the whole solution anew. "
    "End with #### and the final number."
)


def correct(params: CorrectParams, ctx: StageContext) -> None:
    """One record a failure; those that are right now are written as the failures to train on."""
    ctx.keep_artifacts()  # what an endpoint has answered survives a kill
    failures = {one.id: one for one in read_failures(one_input(ctx, "tune.mine").folder / FAILURES)}
    pool = Drawn.of(ctx).pool()
    asked = tuple(
        _asked(question, failures[question.id], critique=params.critique)
        for question in pool.questions
        if question.id in failures
    )
    benchmark = replace(pool, questions=asked)
    texts, stops, why = _answered(params, benchmark, ctx)
    marks = benchmark.mark({(name, 0): text for name, text in texts.items()})
    kept: list[Failure] = []
    for question in asked:
        name, mark = question.id, marks[question.id, 0]
        if mark.status == "right":
            kept.append(replace(failures[name], reference=texts[name]))
        ctx.write("correction", id=name, category=failures[name].category, right=mark.status == "right",
                  status="unanswered" if name in why else mark.status, why=why.get(name) or mark.why,
                  stop=stops.get(name, ""), text=texts[name], wrong=failures[name].wrong)  # fmt: skip
    write_failures(ctx.folder / FAILURES, kept)
    ctx.write(
        "corrected", n=len(asked), right=len(kept), by=params.by if isinstance(params.by, str) else params.by.model
    )


def _asked(question: Question, failure: Failure, *, critique: bool) -> Question:
    if not critique:
        return question
    shown: tuple[Message, ...] = (
        {"role": "assistant", "content": failure.wrong or "(nothing)"}, {"role": "user", "content": CRITIQUE},
    )  # fmt: skip
    return replace(question, messages=(*question.messages, *shown))


def _answered(
    params: CorrectParams, benchmark: Benchmark, ctx: StageContext
) -> tuple[dict[str, str], Mapping[str, str], Mapping[str, str]]:
    """Texts by id, how they ended, and why there is none for some."""
    if params.by == "self":
        by, form = opened(params, ctx)
        found = answer(benchmark, form, params.decoding, by)
        told = Stops.of(list(found.written.values()))
        ctx.write("check", name="answers-whole", passed=not told.red_flag, detail=told.red_flag or "few were cut off")
        return {name: given[0] for name, given in found.texts.items()}, {k[0]: v for k, v in found.stops.items()}, {}
    if isinstance(params.by, Recorded):
        return read_answers(params.by.file, benchmark), {}, {}
    assert not isinstance(params.by, str)
    ask = asker(params.by, ctx.folder / "asked", device=ctx.device, between=ctx.stop_if_asked)
    texts, why = ask_benchmark(benchmark, ask)
    return texts, {}, why
