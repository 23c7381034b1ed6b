"""What a fit is asked for: the pairs of a tier as problems, with the bars below which they count as converged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import torch

from stepwell.errors import StepwellError
from stepwell.latents.prompt import Problem, fault_of, problem_of
from stepwell.stage import StageContext
from stepwell.studies.imprint.baselines import bars_of
from stepwell.studies.imprint.pairs import context_of, examples
from stepwell.studies.imprint.params import FitParams
from stepwell.tasks.base import QA


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


def slots_of(params: FitParams, ctx: StageContext) -> int:
    """K of a job."""
    return int(ctx.job.axes.get("slots", params.slots))


@dataclass(frozen=True, kw_only=True)
class Source:
    """The inputs of a fit, read once; the problems of some of its pairs are made of them.

    Attributes:
        params: of the fit.
        backbone: whose tokens the problems are made of.
        slots: K.
        items: the pairs.
        baselines: the records of the stage `baselines`.
        more: pair -> mode -> its paraphrases.
        shown: pair -> what stands before its mode vector.
    """

    params: FitParams
    backbone: Any
    slots: int
    items: Sequence[QA]
    baselines: Sequence[Mapping[str, Any]]
    more: Mapping[str, Mapping[str, tuple[str, ...]]]
    shown: Callable[[QA], str]

    @classmethod
    def of(cls, params: FitParams, ctx: StageContext, backbone: Any) -> Self:
        """Read the inputs of a job. Raises StepwellError where two pairs have one id."""
        (measured,) = ctx.inputs["baselines"]
        items = examples(ctx, params.items)
        twice = next((id for id, count in Counter(item.id for item in items).items() if count > 1), None)
        if twice is not None:
            raise StepwellError(f"two pairs have the id `{twice}`", "give each its own: seeds come from it")
        return cls(
            params=params, backbone=backbone, slots=slots_of(params, ctx), items=items,
            baselines=list(measured.records("baseline")), more=wordings(ctx) if params.paraphrases else {},
            shown=context_of(ctx),
        )  # fmt: skip

    @cached_property
    def bars(self) -> Mapping[str, Mapping[str, float]]:
        """Problem -> mode -> nats a token."""
        known = bars_of(self.baselines)
        if self.params.together:
            return known
        return {f"{name}/{mode}": {mode: bar} for name, each in known.items() for mode, bar in each.items()}

    def asked(self, chunk: range | None = None) -> Asked:
        """The problems of all pairs, or of a chunk of them, with what their results are held against."""
        chunk = range(len(self.items)) if chunk is None else chunk
        problems, faults = self.problems(chunk)
        return Asked(
            items=self.items[chunk.start : chunk.stop], problems=problems, faults=faults,
            bars={problem.id: self.bars[problem.id] for problem in problems if problem.id in self.bars},
            baselines=self._measured,
        )  # fmt: skip

    @cached_property
    def _measured(self) -> Mapping[tuple[str, str], Mapping[str, Any]]:
        return {(row["id"], row["mode"]): row for row in self.baselines}

    def problems(self, chunk: range) -> tuple[list[Problem], dict[str, str]]:
        """The problems of some pairs, and why those that have no tokens have none."""
        problems, faults = [], {}
        for item in self.items[chunk.start : chunk.stop]:
            for name, wanted in self._wanted(item).items():
                try:
                    problems.append(weighted(problem_of(self.backbone, name, wanted, context=self.shown(item))))
                except StepwellError as error:
                    problems.append(Problem(id=name, targets=()))
                    faults[name] = error.cause
        return problems, faults

    def _wanted(self, item: QA) -> dict[str, dict[str, tuple[str, ...]]]:
        """Problem -> mode -> texts, of one pair."""
        usable = _usable(self.backbone, self.more.get(item.id, {}), self.shown(item), self.slots)
        texts = {mode: (text, *usable.get(mode, ())) for mode, text in item.targets().items()}
        if self.params.together:
            return {item.id: texts}
        return {f"{item.id}/{mode}": {mode: each} for mode, each in texts.items()}


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
