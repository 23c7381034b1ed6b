"""The stage `imprint.fit`: vectors for every pair of a tier, and what came of each.

Each restart is kept as soon as it ends: a run that was killed goes on with those that had not. What a restart gives
does not depend on what is fitted beside it but for rounding, so a run that was resumed has the same pairs and the same
denominators, and numbers that differ in their last digits.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from stepwell.errors import StepwellError
from stepwell.fingerprint import fingerprint
from stepwell.fitting.loop import fit
from stepwell.fitting.recipe import FitRecipe
from stepwell.fitting.result import Fitted, Record
from stepwell.latents.prompt import Problem, fault_of, problem_of
from stepwell.stage import Input, StageContext
from stepwell.store import write_atomically
from stepwell.studies.imprint.baselines import bars_of
from stepwell.studies.imprint.models import loaded
from stepwell.studies.imprint.outcomes import converged, write_outcomes
from stepwell.studies.imprint.pairs import context_of, examples
from stepwell.studies.imprint.params import Abandon, FitParams
from stepwell.tasks.base import QA

VECTORS = "fit"
"""The folder of a finished fit, among the job's artifacts."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a fit is asked for.

    Attributes:
        items: the pairs.
        problems: what is fitted: one a pair, or one a pair and mode (`apart`).
        faults: problem id -> why its text has no tokens that the model could write.
        bars: problem id -> mode -> nats a token; a mode that could not be measured has none.
        baselines: (pair, mode) -> its baseline record.
    """

    items: Sequence[QA]
    problems: Sequence[Problem]
    faults: Mapping[str, str]
    bars: Mapping[str, Mapping[str, float]]
    baselines: Mapping[tuple[str, str], Mapping[str, Any]]

    def whole_bars(self) -> dict[str, Mapping[str, float]]:
        """Those of the problems that have one for each mode: whether the others converge is not known."""
        modes = {problem.id: {target.mode for target in problem.targets} for problem in self.problems}
        return {id: bars for id, bars in self.bars.items() if modes.get(id, set()) <= bars.keys()}

    def pairs(self) -> dict[str, str]:
        """Problem id -> the id of its pair."""
        known = {item.id for item in self.items}
        return {p.id: p.id if p.id in known else p.id.rpartition("/")[0] for p in self.problems}


def fit_pairs(params: FitParams, ctx: StageContext) -> None:
    """Fit every pair; write one record a restart, a target and a pair, and the vectors as safetensors."""
    ctx.keep_artifacts()
    backbone, modes = loaded(ctx)
    asked = asked_of(params, ctx, backbone)
    for torn in ctx.folder.glob(f".{VECTORS}-*"):
        shutil.rmtree(torn)  # a kill came while the fit was being saved
    kept = Kept(ctx.folder / "ended")
    before = list(kept.read())
    watch = Watch(
        abandon=params.abandon, recipe=params.recipe, bars=asked.bars, pairs=asked.pairs(),
        total=len(asked.problems) * params.recipe.restarts,
    )  # fmt: skip
    for record, _ in before:
        watch.see(record, look=False)
    watch.look()

    def finished(record: Record, vectors: Tensor) -> None:
        kept.write(record, vectors)
        watch.see(record)
        ctx.progress(watch.ended, watch.total, exact=watch.exact)

    found = fit(
        backbone, asked.problems, slots=slots_of(params, ctx), recipe=params.recipe, modes=modes, seed=ctx.seed,
        columns=params.columns, bars=asked.whole_bars(), impossible="record", resume=before, finished=finished,
        stop=lambda: watch.abandoned is not None or ctx.stop_asked(), check=False,
    )  # fmt: skip
    ctx.stop_if_asked()
    if watch.abandoned is not None:
        ctx.write("alert", monitor="convergence", step=watch.ended, message=watch.abandoned, stopped=True)
    write_outcomes(params, ctx, asked, found)
    found.save(ctx.folder / VECTORS)
    kept.remove()


def slots_of(params: FitParams, ctx: StageContext) -> int:
    """K of a job."""
    return int(ctx.job.axes.get("slots", params.slots))


def asked_of(params: FitParams, ctx: StageContext, backbone: Any) -> Asked:
    """The problems of a job, with their bars."""
    (measured,) = ctx.inputs["baselines"]
    rows = list(measured.records("baseline"))
    items = examples(ctx, params.items)
    more = wordings(ctx) if params.paraphrases else {}
    problems, faults, shown = [], {}, context_of(ctx)
    for item in items:
        usable = _usable(backbone, more.get(item.id, {}), shown(item), slots_of(params, ctx))
        texts = {mode: (text, *usable.get(mode, ())) for mode, text in item.targets().items()}
        parts = {item.id: texts} if params.together else {f"{item.id}/{mode}": {mode: texts[mode]} for mode in texts}
        for name, wanted in parts.items():
            try:
                problems.append(weighted(problem_of(backbone, name, wanted, context=shown(item))))
            except StepwellError as error:
                problems.append(Problem(id=name, targets=()))
                faults[name] = error.cause
    known = bars_of(rows)
    bars = known if params.together else {
        f"{name}/{mode}": {mode: bar} for name, each in known.items() for mode, bar in each.items()
    }  # fmt: skip
    return Asked(
        items=items, problems=problems, faults=faults, bars=bars,
        baselines={(row["id"], row["mode"]): row for row in rows},
    )  # fmt: skip


def weighted(problem: Problem) -> Problem:
    """The paraphrases of a mode share its weight of 1."""
    counts = Counter(target.mode for target in problem.targets)
    return replace(
        problem, targets=tuple(replace(target, weight=1 / counts[target.mode]) for target in problem.targets)
    )


Wordings = dict[str, dict[str, tuple[str, ...]]]


def wordings(ctx: StageContext) -> Wordings:
    """Pair -> mode -> paraphrases, where the job has a stage `paraphrase` among its inputs."""
    found: Wordings = {}
    for given in ctx.inputs.get("paraphrase", ()):
        for row in given.records("paraphrase"):
            found.setdefault(row["id"], {})[row["mode"]] = tuple(row["texts"])
    return found


def _usable(
    backbone: Any, given: Mapping[str, tuple[str, ...]], context: str, slots: int
) -> dict[str, tuple[str, ...]]:
    """The wordings of a pair that the model can write: the others must not cost the pair its own texts."""

    def fits(mode: str, text: str) -> bool:
        try:
            problem = problem_of(backbone, "", {mode: text}, context=context)
        except StepwellError:
            return False
        return fault_of(backbone, problem, {mode: torch.zeros(0)}, slots) is None

    return {mode: tuple(text for text in texts if fits(mode, text)) for mode, texts in given.items()}


@dataclass(frozen=True)
class Kept:
    """Restarts that have ended, one file each, whole or not there."""

    folder: Path

    def write(self, record: Record, vectors: Tensor) -> None:
        """Keep one."""
        self.folder.mkdir(exist_ok=True)
        data = save({"vectors": vectors.contiguous()}, metadata={"record": json.dumps(record.to_record())})
        name = fingerprint([record.id, record.restart])[:32]
        write_atomically(self.folder / f"{name}.safetensors", data)

    def read(self) -> Iterator[tuple[Record, Tensor]]:
        """All of them, in a fixed order."""
        for path in sorted(self.folder.glob("*.safetensors")):
            try:
                with safe_open(path, framework="pt") as file:
                    yield Record.from_record(json.loads(file.metadata()["record"])), file.get_tensor("vectors")
            except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
                raise StepwellError(
                    f"a kept restart cannot be read: {error}", "Delete this file: its pair is fitted again.", path=path
                ) from error

    def remove(self) -> None:
        """Drop them, when the fit is saved as a whole; and what a kill left half written."""
        if self.folder.exists():
            shutil.rmtree(self.folder)


@dataclass(kw_only=True)
class Watch:
    """Counts what ends, and gives a fit up when too few pairs converge.

    Pairs that are exact end first, so the share seen so far is rather too high: it never gives up too early. A pair
    whose modes have vectors of their own converges when all of them do.

    Attributes:
        abandon: when to give up; None = never.
        recipe: of the fit.
        bars: problem id -> mode -> nats a token.
        pairs: problem id -> the id of its pair.
        total: restarts of all problems.
    """

    abandon: Abandon | None
    recipe: FitRecipe
    bars: Mapping[str, Mapping[str, float]]
    pairs: Mapping[str, str]
    total: int
    ended: int = 0
    exact: int = 0
    abandoned: str | None = None
    _seen: dict[str, list[Record]] = field(default_factory=dict)
    _parts: dict[str, list[bool]] = field(default_factory=dict)
    _settled: int = 0
    _converged: int = 0

    def see(self, record: Record, *, look: bool = True) -> None:
        """Count one restart that ended, and look. Restarts that a resumed run has kept are counted before a look."""
        self.ended += 1
        self.exact += record.all_exact
        mine = self._seen.setdefault(record.id, [])
        mine.append(record)
        if len(mine) < self.recipe.restarts and not (self.recipe.until_exact and record.all_exact):
            return
        pair = self.pairs[record.id]
        parts = self._parts.setdefault(pair, [])
        bars = self.bars.get(record.id, {})
        parts.append(any(e.nats and all(converged(e, mode, bars) for mode in e.nats) for e in mine))
        if len(parts) < self._parts_of[pair]:
            return
        self._settled += 1
        self._converged += all(parts)
        if look:
            self.look()

    @cached_property
    def _parts_of(self) -> Counter[str]:
        return Counter(self.pairs.values())

    def look(self) -> None:
        """Give up, where the sequence says so."""
        rule = self.abandon
        if rule is None or self._settled < rule.after or self.abandoned is not None:
            return
        from stepwell.stats import proportion_sequence

        found = proportion_sequence(self._converged, self._settled, rule.confidence)
        if found.high is not None and found.high < rule.below:
            self.abandoned = (
                f"{self._converged} of {self._settled} pairs converged, at most {found.high:.1%} at "
                f"{rule.confidence:.0%} over all looks; below {rule.below:.0%} the fit is given up"
            )


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
