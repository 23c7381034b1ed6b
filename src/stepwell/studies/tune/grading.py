"""The stages `tune.grade` and `tune.reference`: answers to the benchmarks, marked, under a protocol that is kept."""

from __future__ import annotations

from pathlib import Path

from stepwell.backbone import load_tokenizer
from stepwell.errors import StepwellError
from stepwell.grading.asking import ask_benchmark, asker, read_answers
from stepwell.grading.benchmarks import Benchmark, grade
from stepwell.grading.decoding import OwnWriter, Writer, answer
from stepwell.grading.protocol import Decoding
from stepwell.grading.records import Result, read_result, unmarked_warning, write_result
from stepwell.grading.stops import Stops
from stepwell.grading.vllm import writer
from stepwell.sft.render import ChatFormat
from stepwell.stage import Input, StageContext
from stepwell.studies.tune.base import base_of
from stepwell.studies.tune.controls import control
from stepwell.studies.tune.data import Drawn
from stepwell.studies.tune.params import AnsweringParams, GradeParams, Recorded, ReferenceParams

ELSEWHERE = "elsewhere"
"""The template of answers that another program's model wrote: nobody here knows it."""


def grade_model(params: GradeParams, ctx: StageContext) -> None:
    """Let the model that the stage stands on answer, one record an item, and one a benchmark."""
    control(Drawn.of(ctx).code_problems(params.benchmarks), ctx)
    by, form = opened(params, ctx)
    for name, benchmark in Drawn.of(ctx).benchmarks(params.benchmarks).items():
        result = answered(benchmark, by, form, params, ctx)
        write_result(ctx.folder / f"{name}.jsonl", result)
        ctx.stop_if_asked()


def grade_reference(params: ReferenceParams, ctx: StageContext) -> None:
    """The answers of a reference model, marked: from an endpoint, a model on this machine, or a file."""
    source = params.source
    ctx.keep_artifacts()  # what an endpoint has answered survives a kill
    control(Drawn.of(ctx).code_problems(params.benchmarks), ctx)
    for name, benchmark in Drawn.of(ctx).benchmarks(params.benchmarks).items():
        if isinstance(source, Recorded):
            given = read_answers(source.file, benchmark)
        else:
            ask = asker(source, ctx.folder / "asked", device=ctx.device, between=ctx.stop_if_asked)
            given = ask_benchmark(benchmark, ask)
        protocol, why = benchmark.protocol(ELSEWHERE, Decoding()), given.why
        stops = {(item, 0): stop for item, stop in given.stops.items()}
        result = grade(
            benchmark, given.texts, model=source.model, protocol=protocol, stops=stops, unanswered=why
        )  # fmt: skip
        write_result(ctx.folder / f"{name}.jsonl", result)
        _write_records(ctx, benchmark, result, by=None, stops=given.ends)
        detail = f"{len(why)} of {len(given.texts)} items have no answer" + (
            f": {next(iter(why.values()))}" if why else ""
        )
        ctx.write("check", name=f"answered-{name}", passed=not why, detail=detail)


def opened(params: AnsweringParams, ctx: StageContext) -> tuple[Writer, ChatFormat]:
    """The model that the stage stands on, ready to answer in its own chat format."""
    base = base_of(ctx)
    form = ChatFormat.of(load_tokenizer(base.folder))

    def own() -> OwnWriter:
        backbone = base.load(ctx.device, params.decoding.precision)
        backbone.eval()
        return OwnWriter(backbone=backbone, form=form, batch_size=params.batch_size, between=ctx.stop_if_asked)

    by, why = writer(base.folder, form, params.decoding, own, vllm=params.vllm)
    if why:
        ctx.event("writer", by=by.name, why=why)
    return by, form


def answered(benchmark: Benchmark, by: Writer, form: ChatFormat, params: AnsweringParams, ctx: StageContext) -> Result:
    """Let the model answer a benchmark, mark what it says, and write the records."""
    found = answer(benchmark, form, params.decoding, by)
    protocol = benchmark.protocol(form.fingerprint(), params.decoding)
    result = grade(benchmark, found.texts, model=base_of(ctx).name, protocol=protocol, stops=found.stops)
    _write_records(ctx, benchmark, result, by=found.by, stops=Stops.of(list(found.written.values())))
    return result


def _write_records(
    ctx: StageContext, benchmark: Benchmark, result: Result, *, by: str | None, stops: Stops | None
) -> None:
    """One record an answer, and one of them all."""
    asked = {question.id: question for question in benchmark.questions}
    for record in result.records:
        question = asked[record.id]
        ctx.write(
            "item", benchmark=benchmark.name, category=benchmark.category, split=benchmark.split, id=record.id,
            sample=record.sample, correct=record.right, status=record.status, partial=record.partial, why=record.why,
            stop=record.stop, question=question.bare, prediction=record.text, reference=question.reference,
        )  # fmt: skip
    accuracy = result.accuracy()
    ctx.write(
        "result", benchmark=benchmark.name, category=benchmark.category, model=result.model, n=accuracy.n,
        accuracy=accuracy.value, low=accuracy.low, high=accuracy.high, protocol=result.protocol.fingerprint(),
        template=result.protocol.template, scorer=result.protocol.scorer,
        unmarked=len(result.first_answers) - accuracy.n, warning=unmarked_warning(result),
        by=by, cut=None if stops is None else stops.cut.value,
        looping=None if stops is None else stops.looping, stops_warning=None if stops is None else stops.red_flag,
    )  # fmt: skip


def results_of(made: Input) -> dict[str, Result]:
    """The results of a job that graded, by benchmark.

    Raises:
        StepwellError: it graded nothing.
    """
    found = {path.stem: read_result(path) for path in sorted(Path(made.folder).glob("*.jsonl"))}
    if not found:
        raise StepwellError(f"{made.job.id} graded nothing", "name a stage of the kind `tune.grade`")
    return found
