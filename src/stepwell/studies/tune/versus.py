"""The stages `tune.versus` and `tune.regress`: win, tie or loss; and whether a second training may be kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stepwell.errors import StepwellError
from stepwell.grading.asking import asker
from stepwell.grading.benchmarks import Benchmark
from stepwell.grading.judge import Judged, Pair, judge, trust
from stepwell.grading.protocol import PARTS, Part, comparable
from stepwell.grading.records import Result
from stepwell.grading.regression import Verdict, overall, regression
from stepwell.grading.versus import (
    BANDS,
    OF_A_REFERENCE,
    Match,
    Versus,
    against_before,
    banded,
    same_as_before,
    versus,
)
from stepwell.stage import Input, StageContext
from stepwell.studies.tune.data import Drawn
from stepwell.studies.tune.grading import results_of
from stepwell.studies.tune.params import RegressParams, VersusParams


def compare(params: VersusParams, ctx: StageContext) -> None:
    """One record an item, one a benchmark, one of the judge, one of each band; and what looks wrong."""
    ctx.keep_artifacts()  # what a judge has said survives a kill
    benchmarks = Drawn.of(ctx).benchmarks()
    sides = _named(ctx, params.ours), _named(ctx, params.theirs)
    ours, theirs = (results_of(side) for side in sides)
    parts = _same_parts(*sides)
    for name in ours:
        _need(name, theirs, params.theirs, ctx)
        comparable(ours[name].protocol, theirs[name].protocol, parts=parts)  # before a judge is paid
        judged = _judged(params, ours[name], theirs[name], benchmarks[name], ctx)
        found = versus(ours[name], theirs[name], {one.pair.id: one.match() for one in judged}, parts=parts)
        _write(found, ours[name], benchmarks[name], params, ctx)
        _checks(ours[name], theirs[name], params, ctx)


def regress(params: RegressParams, ctx: StageContext) -> None:
    """For each benchmark, and for all that was graded: keep the new model, or roll back."""
    before, after = results_of(_named(ctx, params.before)), results_of(_named(ctx, params.after))
    verdicts: list[Verdict] = []
    for name, old in before.items():
        _need(name, after, params.after, ctx)
        found = regression(after[name], old, margin=params.margin, alpha=params.alpha)
        verdicts.append(found.verdict)
        ctx.write(
            "regression", benchmark=name, right_before=found.right_before, lost=len(found.lost),
            gained=len(found.gained), left_out=len(found.left_out), loss=found.loss.value, loss_low=found.loss.low,
            loss_high=found.loss.high, difference=found.difference.value, difference_low=found.difference.low,
            difference_high=found.difference.high, n=found.difference.n, p_value=float(found.p_value),
            margin=found.margin, verdict=found.verdict, passed=found.keep, needed=found.needed,
            reason=found.reason,
        )  # fmt: skip
        moved = dict.fromkeys(found.lost, -1) | dict.fromkeys(found.gained, 1)
        for item in old.first_answers:
            if item not in found.left_out:
                ctx.write("change", benchmark=name, id=item, difference=moved.get(item, 0))
    verdict = overall(verdicts)
    keep = verdict == "pass"
    ctx.write(
        "kept", model=params.after if keep else params.before, rolled_back=not keep, verdict=verdict, passed=keep
    )  # fmt: skip


def _named(ctx: StageContext, stage: str) -> Input:
    found = ctx.inputs.get(stage, ())
    if len(found) != 1:
        raise StepwellError(
            f"the stage compares `{stage}`, and has {len(found)} jobs of it",
            "name it in `needs`, on the same axes", stage=ctx.job.id,
        )  # fmt: skip
    return found[0]


def _same_parts(*sides: Input) -> Sequence[Part]:
    """Of the protocols: all between checkpoints of ours, or a longer limit would count as a gain of the training."""
    return OF_A_REFERENCE if any(side.job.kind == "tune.reference" for side in sides) else PARTS


def _need(benchmark: str, results: Mapping[str, Result], stage: str, ctx: StageContext) -> None:
    if benchmark not in results:
        raise StepwellError(
            f"{stage} has not graded {benchmark}", "grade both on the same benchmarks", stage=ctx.job.id
        )


def _judged(
    params: VersusParams, ours: Result, theirs: Result, benchmark: Benchmark, ctx: StageContext
) -> list[Judged]:
    """What a judge says of the items without ground truth."""
    mine, other = ours.first_answers, theirs.first_answers
    silent = [question for question in benchmark.questions if mine[question.id].status == "silent"]
    if params.judge is None or not silent:
        return []
    pairs = [
        Pair(id=one.id, prompt=one.prompt, ours=mine[one.id].text, theirs=other[one.id].text)
        for one in silent if one.id in other and other[one.id].status == "silent"
    ]  # fmt: skip
    ask = asker(params.judge, ctx.folder / "judged", device=ctx.device, between=ctx.stop_if_asked)
    found = judge(pairs, ask)
    told = trust(found)
    ctx.write(
        "judge", benchmark=benchmark.name, model=params.judge.model, pairs=told.pairs, unparsed=told.unparsed,
        flips=told.flips.value, flips_low=told.flips.low, flips_high=told.flips.high,
        took_first=told.took_first.value, took_longer=told.took_longer.value,
        length_wins=told.by_length["win"], length_losses=told.by_length["loss"],
    )  # fmt: skip
    return found


def _write(found: Versus, ours: Result, benchmark: Benchmark, params: VersusParams, ctx: StageContext) -> None:
    for match in found.matches:
        ctx.write("match", benchmark=benchmark.name, category=benchmark.category, id=match.id, outcome=match.outcome,
                  by=match.by, why=match.why, **_flags(match))  # fmt: skip
    shares = {f"{outcome}_share": found.share(outcome).value for outcome in ("win", "tie", "loss", "undecided")}
    ctx.write("versus", benchmark=benchmark.name, category=benchmark.category, ours=found.ours, theirs=found.theirs,
              n=len(found.matches), **found.counts, **shares)  # fmt: skip
    for band in BANDS.get(ours.category, ()) if params.bands else ():
        seen = banded(found, band)
        ctx.write(
            "band", benchmark=benchmark.name, outcome=band.outcome, low=band.low, high=band.high, n=seen.share.n,
            share=seen.share.value, share_low=seen.share.low, share_high=seen.share.high, verdict=seen.verdict,
            needed=seen.needed, red_flag=seen.red_flag,
        )  # fmt: skip


def _flags(match: Match) -> dict[str, Any]:
    """For gates: 1 for a win, -1 for a loss; a tie has gained nothing, and of what is undecided nobody knows."""
    flags: dict[str, Any] = {one: match.outcome == one for one in ("win", "tie", "loss", "undecided")}
    return flags | {"gained": None if match.outcome == "undecided" else flags["win"] - flags["loss"]}


def _checks(ours: Result, theirs: Result, params: VersusParams, ctx: StageContext) -> None:
    same = same_as_before(ours, theirs)
    ctx.write("check", name=f"differs-{ours.benchmark}", passed=not same, detail=same or "the answers differ")
    if ours.protocol != theirs.protocol:
        return  # of a reference, which is no earlier checkpoint of ours: others are refused before they come here
    found = against_before(ours, theirs)
    if found is not None:
        ctx.write(
            "gain", benchmark=ours.benchmark, n=found.items, difference=found.difference.value,
            low=found.difference.low, high=found.difference.high,
            p_value=None if found.p_value is None else float(found.p_value), conclusion=found.conclusion,
        )  # fmt: skip
