"""The ladder of study `wire`: what each training came to after how many examples, over one run or several.

A run holds the rungs that its gates led to; a rung of its own (`smoke`, `extended`, `sweep`, `sampling`) is a run of
its own. Either way each training of stage B is a point, and the plan's stage `hero` is what is foretold.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from stepwell.analysis.wire import Record, analyse_training, count_of, number_of, of_kind
from stepwell.analysis.wire_forecast import Forecast, Point, forecast

HERO, TRAINING, ANSWER, LATENT = "hero", "wire.stage-b", "wire.answer", "latent"
METRICS = {"f1": "F1", "first_acc": "first token"}
"""F1 of the test items' answers; the last accuracy of the first token on held-out items."""
DEEPEST = 16
"""So many stages of B that go on from one another; more are a circle in a damaged plan."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What of a run folder is needed: plan.yaml, and the records by job, as they are."""

    plan: Mapping[str, Any]
    records: Mapping[str, Sequence[Record]]


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """The forecast of one arm and metric.

    Attributes:
        arm, vectors: M; None where one encoder serves several at once and the metric is over them all.
        metric: a key of `METRICS`.
        forecast: from trainings shorter than the hero.
        measured: mean over seeds of what the hero came to, where it has been trained.
    """

    arm: str
    vectors: int | None
    metric: str
    forecast: Forecast
    measured: float | None

    def to_json(self) -> dict[str, Any]:
        """Everything as plain data."""
        return asdict(self)


def outlooks(runs: Sequence[Run], examples: int | None = None) -> list[Outlook]:
    """The forecast of the hero for each arm, M and metric that any training of stage B has been measured in.

    Args:
        runs: rungs of one ladder, of the same model, contract and items.
        examples: that the long training sees; None = as the plan of the first run that has a stage `hero` says.
    """
    examples = examples if examples is not None else next(filter(None, map(hero_examples, runs)), None)
    found: dict[tuple[str, int | None, str], list[tuple[str, Point]]] = {}
    for run in runs:
        for key, stage, point in points_of(run):
            found.setdefault(key, []).append((stage, point))
    made = []
    for (arm, vectors, metric), points in sorted(found.items(), key=lambda pair: (pair[0][2] != "f1", str(pair[0]))):
        heroes = [point.value for stage, point in points if stage == HERO]
        made.append(
            Outlook(
                arm=arm, vectors=vectors, metric=metric,
                forecast=forecast([point for stage, point in points if stage != HERO], examples),
                measured=fmean(heroes) if heroes else None,
            )
        )  # fmt: skip
    return made


def hero_examples(run: Run) -> int | None:
    """How many examples the plan's stage `hero` sees; None where the plan has none, or is damaged."""
    stage = stages_of(run).get(HERO, {})
    params = _mapping(stage.get("params"))
    recipe = _mapping(params.get("recipe"))
    per_step = (count_of(recipe.get("batch_size")) or 0) * (count_of(recipe.get("accumulation")) or 0)
    if stage.get("kind") != TRAINING or not per_step:
        return None
    if steps := count_of(recipe.get("steps")):
        return steps * per_step
    sizes = [count_of(r.get("n")) for r in _records(run, "dataset") if r.get("set") == "train"]
    size, most = next(filter(None, sizes), None), count_of(params.get("items"))
    items = min(size, most) if size and most else size
    return (count_of(recipe.get("epochs")) or 0) * (items // per_step) * per_step or None if items else None


def points_of(run: Run) -> Iterator[tuple[tuple[str, int | None, str], str, Point]]:
    """(arm, vectors, metric), stage and point of each training of stage B that came to its end."""
    stages, seen = stages_of(run), examples_by_job(run)
    items = {str(r.get("set")): str(r.get("sha256")) for r in _records(run, "dataset")}
    for job, examples in seen.items():
        records, stage = run.records[job], job.partition(".")[0]
        training = analyse_training(job, records)
        assert training is not None
        about = next(iter(of_kind(records, "parameters")), {})
        setting = [str(about.get(name)) for name in ("contract", "base")]
        arm, vectors = str(training.axes.get("arm", "")), count_of(training.axes.get("vectors"))
        if (curve := training.curves.get("first_acc")) is not None:
            point = Point(
                examples=examples, value=curve.final.value, n=curve.final.n, job=job,
                setting=_digest(*setting, items.get("held", "")),
            )  # fmt: skip
            yield (arm, vectors, "first_acc"), stage, point
        for answering in (name for name, one in stages.items() if one.get("kind") == ANSWER and stage in _needs(one)):
            answered = run.records.get(job.replace(stage, answering, 1), ())
            for m, values in _latent_f1(answered).items():
                point = Point(
                    examples=examples, value=fmean(values), n=len(values), job=job,
                    setting=_digest(*setting, items.get("test", ""), str(len(values))),
                )  # fmt: skip
                yield (arm, m, "f1"), stage, point


def examples_by_job(run: Run) -> dict[str, int]:
    """Job -> examples seen in stage B, those of the trainings that it went on from among them; finished jobs only."""
    stages, own = stages_of(run), {}
    for job, records in run.records.items():
        steps, ended = of_kind(records, "step"), of_kind(records, "outcome")
        if stages.get(job.partition(".")[0], {}).get("kind") != TRAINING or not steps or not ended:
            continue
        total, per_step = count_of(ended[-1].get("steps")), count_of(steps[-1].get("items"))
        if total and per_step and analyse_training(job, records) is not None:
            own[job] = total * per_step
    found = {}
    for job in own:
        chain = [job]
        while (before := _before(chain[-1], stages)) is not None and len(chain) < DEEPEST:
            chain.append(before)
        if all(one in own for one in chain):
            found[job] = sum(own[one] for one in chain)
    return found


def stages_of(run: Run) -> dict[str, Mapping[str, Any]]:
    """The plan's stages by name."""
    stages = run.plan.get("stages")
    return {str(one.get("name")): one for one in stages if isinstance(one, Mapping)} if isinstance(stages, list) else {}


def _before(job: str, stages: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The job of stage B that a job went on from, which has the same axes; None where it began from stage A."""
    stage = job.partition(".")[0]
    needed = (name for name in _needs(stages[stage]) if stages.get(name, {}).get("kind") == TRAINING)
    name = next(needed, None)
    return None if name is None else job.replace(stage, name, 1)


def _latent_f1(records: Sequence[Record]) -> dict[int | None, list[float]]:
    """F1 of the items answered from latents as they are, by M."""
    found: dict[int | None, list[float]] = {}
    for record in of_kind(records, "item"):
        f1 = number_of(record.get("f1"))
        if record.get("condition") == LATENT and f1 is not None and 0 <= f1 <= 1:
            found.setdefault(count_of(record.get("vectors")), []).append(f1)
    return found


def _records(run: Run, kind: str) -> list[Record]:
    return [record for records in run.records.values() for record in of_kind(records, kind)]


def _needs(stage: Mapping[str, Any]) -> list[str]:
    needs = stage.get("needs")
    return [str(need) for need in needs] if isinstance(needs, list) else []


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _digest(*parts: str) -> str:
    return hashlib.sha256("/".join(parts).encode()).hexdigest()[:16]
