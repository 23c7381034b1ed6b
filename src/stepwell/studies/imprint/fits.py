"""The stage `imprint.fit`: vectors for every pair of a tier, and what came of each.

Pairs are fitted in chunks, which are kept as they end: a run that was killed goes on with those that are not there, and
comes to the same numbers. Chunks are fitted in this process, or by workers beside it that have the model as well.
"""

from __future__ import annotations

import heapq
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor

from stepwell.engine.chunks import InOrder, Queue, run_chunks
from stepwell.engine.pool import LocalPool
from stepwell.errors import StepwellError
from stepwell.fitting.loop import fit
from stepwell.fitting.result import Fitted, Record
from stepwell.fitting.saving import saving
from stepwell.stage import Input, StageContext
from stepwell.studies.imprint.asking import Asked, Source
from stepwell.studies.imprint.kept import Ends, Kept, Watch
from stepwell.studies.imprint.models import loaded
from stepwell.studies.imprint.outcomes import Outcomes
from stepwell.studies.imprint.params import FitParams
from stepwell.tasks.base import QA

VECTORS = "fit"
"""The folder of a finished fit, among the job's artifacts."""
WORK = f"{__name__}:work"


@dataclass(frozen=True, kw_only=True)
class Fitter:
    """The model, and what it is fitted to: all that a chunk needs.

    Attributes:
        params, ctx: of the job.
        source: the pairs.
        modes: mode vectors (D,).
        kept: where chunks go.
    """

    params: FitParams
    ctx: StageContext
    source: Source
    modes: dict[str, Tensor]
    kept: Kept

    @classmethod
    def of(cls, params: FitParams, ctx: StageContext, device: str | None = None) -> Self:
        """Load the model, on the job's device or another, and read the inputs."""
        backbone, modes = loaded(ctx, device)
        kept = Kept(ctx.folder / "ended")
        return cls(params=params, ctx=ctx, source=Source.of(params, ctx, backbone), modes=modes, kept=kept)

    def fit(self, chunk: range, told: Callable[[int], None] = lambda ended: None) -> None:
        """Fit a chunk of pairs and keep it; `told` hears how many of its restarts have ended.

        Raises:
            Interrupted: a stop was asked for; nothing of the chunk is kept.
        """
        ended = 0

        def finished(*_: Any) -> None:
            nonlocal ended
            ended += 1
            told(ended)

        found = self.run(self.source.asked(chunk), Ends(), finished=finished, stop=self.ctx.stop_asked)
        self.ctx.stop_if_asked()
        self.kept.write(chunk, Ends(ended=tuple(found.ended())))

    def ended(self, asked: Asked, chunk: range, *, counts: bool) -> Fitted:
        """What came of a chunk that is kept; one that does not count, or is not there, is recorded as stopped."""
        return self.run(asked, self.kept.read(chunk) if counts else Ends(), stop=lambda: True)

    def run(self, asked: Asked, before: Ends, **options: Any) -> Fitted:
        """`fit`, as the parameters say, after what was done before."""
        return fit(
            self.source.backbone, asked.problems, slots=self.source.slots, recipe=self.params.recipe, modes=self.modes,
            seed=self.ctx.seed, columns=self.params.columns, bars=asked.whole_bars(), impossible="record",
            resume=before.ended, failed=before.failed, check=False, **options,
        )  # fmt: skip


def work(params: FitParams, ctx: StageContext) -> Callable[[range], None]:
    """What a worker beside the job does: load the model, then fit chunks."""
    return Fitter.of(params, ctx).fit


def fit_pairs(params: FitParams, ctx: StageContext) -> None:
    """Fit every pair; write one record a restart, a target and a pair, and the vectors as safetensors."""
    ctx.keep_artifacts()
    for torn in ctx.folder.glob(f".{VECTORS}-*"):
        shutil.rmtree(torn)  # a kill came while the fit was being saved
    # Where others fit, their devices are left to them.
    fitter = Fitter.of(params, ctx, None if ctx.pool is None else "cpu")
    course = Course.of(fitter)
    before = fitter.kept.chunks()
    for chunk in before:
        course.done(chunk)
    pool = LocalPool(lambda chunk: fitter.fit(chunk, course.told)) if ctx.pool is None else ctx.pool(WORK)
    run_chunks(
        pool, Queue(count=len(fitter.source.items), size=params.chunk, before=before), done=course.done,
        poisoned=course.poisoned, stop=lambda: course.watch.abandoned is not None or ctx.stop_asked(),
    )  # fmt: skip
    if course.watch.abandoned is None:
        ctx.stop_if_asked()
    for alert in course.watch.alerts:
        ctx.write("alert", monitor=alert.monitor, step=alert.step, message=alert.message, stopped=alert.stop)
    outcomes = Outcomes(params=params, ctx=ctx)
    with saving(ctx.folder / VECTORS) as saved:
        for chunk, counts in course.all():
            part = fitter.source.asked(chunk)
            found = fitter.ended(part, chunk, counts=counts)
            outcomes.write(part, found)
            saved.add(found)
    outcomes.close()
    fitter.kept.remove()


@dataclass(kw_only=True)
class Course:
    """How far a fit has come.

    Attributes:
        fitter: of the job.
        watch: over the pairs, in their order.
        seen: the chunks that the watch has seen, in that order; when it gives the fit up, no other one counts.
        pairs: that have ended.
    """

    fitter: Fitter
    watch: Watch
    seen: list[range]
    order: InOrder
    pairs: int = 0

    @classmethod
    def of(cls, fitter: Fitter) -> Self:
        """At the beginning of a fit."""
        recipe, asked = fitter.params.recipe, fitter.source.asked()
        watch = Watch(
            abandon=fitter.params.abandon, recipe=recipe, bars=asked.bars, pairs=asked.pairs(),
            total=len(asked.problems) * recipe.restarts, most_zero=fitter.params.most_zero,
        )  # fmt: skip
        return cls(fitter=fitter, watch=watch, seen=[], order=InOrder())

    def done(self, chunk: range) -> None:
        """A chunk is kept: the watch sees it when all before it have ended."""
        self.pairs += len(chunk)
        for each in self.order.add(chunk):
            if self.watch.abandoned is None:
                self._see(each)
        self.told(0)

    def all(self) -> Iterator[tuple[range, bool]]:
        """All pairs in chunks, in their order, and whether a chunk counts: it was seen."""
        size, count = self.fitter.params.chunk, len(self.fitter.source.items)
        rest = Queue(count=count, size=size, before=self.seen)
        others = [(chunk, False) for chunk in iter(rest.take, None)]
        return heapq.merge([(chunk, True) for chunk in self.seen], others, key=lambda each: each[0].start)

    def poisoned(self, item: int, cause: str) -> None:
        """A pair is given up: it is kept with its error."""
        chunk = range(item, item + 1)
        problems, faults = self.fitter.source.problems(chunk)
        self.fitter.kept.write(chunk, Ends(failed={p.id: cause for p in problems if p.id not in faults}))
        self.fitter.ctx.event("item-failed", item=self.fitter.source.items[item].id, cause=cause)
        self.done(chunk)

    def told(self, restarts: int) -> None:
        """Tell how far it is, with so many restarts of a chunk under way."""
        each = self.watch.total / max(1, len(self.fitter.source.items))
        done = min(self.watch.total, round(self.pairs * each) + restarts)
        self.fitter.ctx.progress(done, self.watch.total, exact=self.watch.exact)

    def _see(self, chunk: range) -> None:
        self.seen.append(chunk)
        ended: dict[str, list[Record]] = {}
        for record, _ in self.fitter.kept.read(chunk).ended:
            ended.setdefault(record.id, []).append(record)
        told, (problems, _) = len(self.watch.alerts), self.fitter.source.problems(chunk)
        for id in (problem.id for problem in problems):
            for record in ended.get(id, ()):
                if self.watch.abandoned is None:
                    self.watch.see(record)
            if id not in ended and self.watch.abandoned is None:
                self.watch.lost(id)
        for alert in self.watch.alerts[told:]:
            self.fitter.ctx.event("alert", monitor=alert.monitor, step=alert.step, message=alert.message)


def fit_input(ctx: StageContext) -> Input:
    """The job that a later stage reads its vectors from: `paraphrased` where there was one, else `joint`."""
    (made,) = ctx.inputs["paraphrased"] if "paraphrased" in ctx.inputs else ctx.inputs["joint"]
    if not made.job.params["together"]:
        raise StepwellError(
            f"{made.job.id} fitted each mode by itself, so no pair has a c of its own",
            f"Set {made.job.stage}.together=true.",
        )
    return made


def fitted(ctx: StageContext, backbone: Any = None) -> Fitted:
    """The fit of `fit_input`."""
    return Fitted.load(fit_input(ctx).folder / VECTORS, backbone)


def best_vectors(found: Fitted, items: Sequence[QA]) -> dict[str, Tensor]:
    """Pair -> the c (K, D) of its best restart; without the pairs that have none."""
    kept = {}
    for item in items:
        if any(record.nats is not None for record in found.of(item.id)):
            kept[item.id] = found.vectors[item.id][found.best(item.id).restart]
    return kept
