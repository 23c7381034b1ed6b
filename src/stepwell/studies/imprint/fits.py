"""The stage `imprint.fit`: vectors for every pair of a tier, and what came of each.

Each restart is kept as soon as it ends: a run that was killed goes on with those that had not. What a restart gives
does not depend on what is fitted beside it but for rounding, so a run that was resumed has the same pairs and the same
denominators, and numbers that differ in their last digits.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from stepwell.errors import StepwellError
from stepwell.fingerprint import fingerprint
from stepwell.fitting.loop import fit
from stepwell.fitting.result import Fitted, Record
from stepwell.latents.prompt import Problem, problem_of
from stepwell.stage import Input, StageContext
from stepwell.store import write_atomically
from stepwell.studies.imprint.baselines import bars_of
from stepwell.studies.imprint.models import loaded
from stepwell.studies.imprint.outcomes import write_outcomes
from stepwell.studies.imprint.pairs import examples
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
        bars: problem id -> mode -> nats a token.
        baselines: (pair, mode) -> its baseline record.
    """

    items: Sequence[QA]
    problems: Sequence[Problem]
    faults: Mapping[str, str]
    bars: Mapping[str, Mapping[str, float]]
    baselines: Mapping[tuple[str, str], Mapping[str, Any]]


def fit_pairs(params: FitParams, ctx: StageContext) -> None:
    """Fit every pair; write one record a restart, a target and a pair, and the vectors as safetensors."""
    state = ctx.restored()
    if state is None:
        ctx.save({"begun": True})  # from here on, what is kept of each restart survives a kill
    backbone, modes = loaded(ctx)
    asked = asked_of(params, ctx, backbone)
    slots = int(ctx.job.axes.get("slots", params.slots))
    kept = Kept(ctx.folder / "ended")
    before = list(kept.read())
    watch = Watch(abandon=params.abandon, params=params, total=len(asked.problems) * params.recipe.restarts)
    for record, _ in before:
        watch.see(record)

    def finished(record: Record, vectors: Tensor) -> None:
        kept.write(record, vectors)
        watch.see(record)
        ctx.progress(watch.ended, watch.total, exact=watch.exact)

    found = fit(
        backbone, asked.problems, slots=slots, recipe=params.recipe, modes=modes, seed=ctx.seed, columns=params.columns,
        bars=asked.bars, impossible="record", resume=before, finished=finished,
        stop=lambda: watch.abandoned is not None or ctx.stop_asked(), check=False,
    )  # fmt: skip
    ctx.stop_if_asked()
    if watch.abandoned is not None:
        ctx.write("alert", monitor="convergence", step=watch.ended, message=watch.abandoned, stopped=True)
    write_outcomes(params, ctx, asked, found)
    found.save(ctx.folder / VECTORS)
    kept.remove()


def asked_of(params: FitParams, ctx: StageContext, backbone: Any) -> Asked:
    """The problems of a job, with their bars."""
    (measured,) = ctx.inputs["baselines"]
    rows = list(measured.records("baseline"))
    items = examples(ctx, params.items)
    more = _paraphrases(ctx) if params.paraphrases else {}
    problems, faults = [], {}
    for item in items:
        texts = {mode: (text, *more.get(item.id, {}).get(mode, ())) for mode, text in item.targets().items()}
        parts = {item.id: texts} if params.together else {f"{item.id}/{mode}": {mode: texts[mode]} for mode in texts}
        for name, wanted in parts.items():
            try:
                problems.append(weighted(problem_of(backbone, name, wanted)))
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


def _paraphrases(ctx: StageContext) -> Mapping[str, Mapping[str, tuple[str, ...]]]:
    found: dict[str, dict[str, tuple[str, ...]]] = {}
    for given in ctx.inputs["paraphrase"]:
        for row in given.records("paraphrase"):
            found.setdefault(row["id"], {})[row["mode"]] = tuple(row["texts"])
    return found


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
        """Drop them, when the fit is saved as a whole."""
        for path in self.folder.glob("*.safetensors"):
            path.unlink()
        if self.folder.exists():
            self.folder.rmdir()


@dataclass(kw_only=True)
class Watch:
    """Counts what ends, and gives a fit up when too few problems converge.

    Problems that are exact end first, so the share seen so far is rather too high: it never gives up too early.
    """

    abandon: Abandon | None
    params: FitParams
    total: int
    ended: int = 0
    exact: int = 0
    abandoned: str | None = None
    _seen: dict[str, list[Record]] = field(default_factory=dict)
    _settled: int = 0
    _converged: int = 0

    def see(self, record: Record) -> None:
        """Count one restart that ended."""
        self.ended += 1
        self.exact += record.all_exact
        mine = self._seen.setdefault(record.id, [])
        mine.append(record)
        recipe = self.params.recipe
        if len(mine) < recipe.restarts and not (recipe.until_exact and record.all_exact):
            return
        self._settled += 1
        self._converged += any(each.converged or each.all_exact for each in mine)
        if self.abandon is not None and self._settled >= self.abandon.after and self.abandoned is None:
            self._look(self.abandon)

    def _look(self, rule: Abandon) -> None:
        from stepwell.stats import proportion_sequence

        found = proportion_sequence(self._converged, self._settled, rule.confidence)
        if found.high is not None and found.high < rule.below:
            self.abandoned = (
                f"{self._converged} of {self._settled} problems converged, at most {found.high:.1%} at "
                f"{rule.confidence:.0%} over all looks; below {rule.below:.0%} the fit is given up"
            )


def fit_input(ctx: StageContext) -> Input:
    """The job that a later stage reads its vectors from: `paraphrased` where there was one, else `joint`."""
    (made,) = ctx.inputs["paraphrased"] if "paraphrased" in ctx.inputs else ctx.inputs["joint"]
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
