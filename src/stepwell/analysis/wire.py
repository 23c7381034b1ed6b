"""How trainings of study `wire` went, from their records alone: peaks, breakthroughs and regressions, with intervals.

A curve is looked at many times, and the largest of many noisy values lies above the truth. So the intervals of a curve
hold all together: each of K has a confidence of 1 - .05 / K (Bonferroni), the baseline's among them. A breakthrough is
a look whose interval lies wholly above that of the level before it, first that of the commonest first token; a
regression one that lies wholly below that of an earlier look. One or two hits more on a small set are neither.

Intervals are Wilson's (1927). F1 is a mean of numbers from 0 to 1, whose variance is at most that of hits and misses
with the same mean: the interval is then wider than it need be, and none that needs single items could be had here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from stepwell.stats import wilson

Record = Mapping[str, Any]

ERROR = 0.05
"""Of all intervals of a curve together."""
METRICS = {"first_acc": "first token", "first_acc_top5": "among five", "f1": "F1"}
"""Field -> what it is called: on held-out items, the last of whole answers."""
BASELINE = "majority_acc"


@dataclass(frozen=True, kw_only=True)
class Look:
    """A share at one step, of n items, with its interval.

    Attributes:
        step: optimizer steps done; 0 for a baseline, which no training moves.
    """

    step: int
    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, kw_only=True)
class Breakthrough:
    """The first look that is surely above a level, which it then is itself."""

    look: Look
    above: Look


@dataclass(frozen=True, kw_only=True)
class Regression:
    """Looks in a row that are surely below an earlier one.

    Attributes:
        best: the earlier look.
        start: the first of them.
        lowest: the lowest of them.
        end: step of the look that is no longer surely below; None where the curve ends before.
    """

    best: Look
    start: Look
    lowest: Look
    end: int | None


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One metric of one training; it has one look at least.

    Attributes:
        metric: a key of `METRICS`.
        looks: in the order of steps.
        baseline: the commonest first token's share; None where the metric has none.
    """

    metric: str
    looks: tuple[Look, ...]
    baseline: Look | None
    breakthroughs: tuple[Breakthrough, ...]
    regressions: tuple[Regression, ...]

    @property
    def peak(self) -> Look:
        """The first of the highest looks."""
        return max(self.looks, key=lambda look: look.value)

    @property
    def final(self) -> Look:
        """The last look."""
        return self.looks[-1]

    @property
    def final_over_peak(self) -> float | None:
        """None where the peak is 0."""
        return self.final.value / self.peak.value if self.peak.value else None

    def to_json(self) -> dict[str, Any]:
        """Everything as plain data."""
        made = {"peak": asdict(self.peak), "final": asdict(self.final), "final_over_peak": self.final_over_peak}
        return asdict(self) | made


@dataclass(frozen=True, kw_only=True)
class Training:
    """What the records of one job say.

    Attributes:
        job, stage: of the plan.
        axes: arm, vectors and seed, as far as the records have them.
        mode: "a" or "b"; "" where no step says.
        steps: optimizer steps that were recorded.
        skipped: how many of them left the weights alone.
        max_grad_norm: the largest; None where none is finite.
        finished: whether the training came to its end.
        curves: by metric; a metric that was never looked at is missing.
        first_f1_step: the first step at which any held-out answer had an F1 above 0; None where none had.
        alerts: (step, monitor, message).
    """

    job: str
    stage: str
    axes: Mapping[str, Any]
    mode: str
    steps: int
    skipped: int
    max_grad_norm: float | None
    finished: bool
    curves: Mapping[str, Curve]
    first_f1_step: int | None
    alerts: tuple[tuple[int, str, str], ...]

    def to_json(self) -> dict[str, Any]:
        """Everything as plain data."""
        alerts = [{"step": step, "monitor": monitor, "message": message} for step, monitor, message in self.alerts]
        return {**vars(self), "curves": {name: curve.to_json() for name, curve in self.curves.items()}} | {
            "axes": dict(self.axes),
            "alerts": alerts,
        }


def analyse_training(job: str, records: Sequence[Record]) -> Training | None:
    """One job's records, finished or not; None where they have no step. What a field cannot hold counts as missing."""
    steps = [record for record in of_kind(records, "step") if count_of(record.get("step")) is not None]
    if not steps:
        return None
    answers = of_kind(records, "validation")
    curves = {name: curve_of(name, answers if name == "f1" else steps) for name in METRICS}
    hits = [count_of(r.get("step")) for r in answers if (number_of(r.get("best_f1")) or 0.0) > 0]
    norms = [norm for record in steps if (norm := number_of(record.get("grad_norm"))) is not None]
    first = steps[0]
    return Training(
        job=job,
        stage=job.partition(".")[0],
        axes={name: first[name] for name in ("arm", "vectors", "seed") if _is_plain(first.get(name))},
        mode=str(first.get("mode") or ""),
        steps=max(count_of(record["step"]) or 0 for record in steps),
        skipped=sum(record.get("skipped") is True for record in steps),
        max_grad_norm=max(norms, default=None),
        finished=bool(of_kind(records, "outcome")),
        curves={name: curve for name, curve in curves.items() if curve is not None},
        first_f1_step=min((hit for hit in hits if hit is not None), default=None),
        alerts=tuple(
            (count_of(alert.get("step")) or 0, str(alert.get("monitor") or ""), str(alert.get("message") or ""))
            for alert in of_kind(records, "alert")
        ),
    )


def curve_of(metric: str, records: Sequence[Record]) -> Curve | None:
    """The looks at one metric, each with its interval at the confidence that all of them together ask for."""
    found = [(step, *seen) for record in records if (step := count_of(record.get("step"))) is not None
             and (seen := _share(record, metric)) is not None]  # fmt: skip
    if not found:
        return None
    base = next((seen for r in reversed(records) if (seen := _share(r, BASELINE)) is not None), None)
    base = base if metric == "first_acc" else None
    confidence = 1 - ERROR / (len(found) + (base is not None))
    looks = tuple(_look(step, value, n, confidence) for step, value, n in sorted(found))
    baseline = None if base is None else _look(0, *base, confidence)
    return Curve(
        metric=metric, looks=looks, baseline=baseline, breakthroughs=breakthroughs(looks, baseline),
        regressions=regressions(looks),
    )  # fmt: skip


def breakthroughs(looks: Sequence[Look], baseline: Look | None) -> tuple[Breakthrough, ...]:
    """Each look that lies surely above the level before it; the first level is the baseline, or else the first look."""
    level, found = baseline or looks[0], []
    for look in looks:
        if look.low > level.high:
            found.append(Breakthrough(look=look, above=level))
            level = look
    return tuple(found)


def regressions(looks: Sequence[Look]) -> tuple[Regression, ...]:
    """Stretches of looks that lie surely below the best earlier one, which has the highest lower end."""
    found: list[Regression] = []
    best, fallen = looks[0], []
    for look in looks:
        if look.high < best.low:
            fallen.append(look)
            continue
        if fallen:
            found.append(_regression(best, fallen, look.step))
            fallen = []
        best = max(best, look, key=lambda one: one.low)
    return (*found, *([_regression(best, fallen, None)] if fallen else []))


def _regression(best: Look, fallen: Sequence[Look], end: int | None) -> Regression:
    return Regression(best=best, start=fallen[0], lowest=min(fallen, key=lambda look: look.value), end=end)


def _look(step: int, value: float, n: int, confidence: float) -> Look:
    found = wilson(min(value * n, n), n, confidence)
    assert found.low is not None and found.high is not None
    return Look(step=step, value=value, low=found.low, high=found.high, n=n)


def _share(record: Record, field: str) -> tuple[float, int] | None:
    """A share and its n; None where either is missing or impossible."""
    value, n = number_of(record.get(field)), count_of(record.get("n"))
    return (value, n) if value is not None and 0 <= value <= 1 and n else None


def of_kind(records: Sequence[Record], kind: str) -> list[Record]:
    """The records of one kind."""
    return [record for record in records if record.get("kind") == kind]


def number_of(value: Any) -> float | None:
    """A finite number, or None: true, false and texts are none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def count_of(value: Any) -> int | None:
    """A whole number from 0 up, of less than 2^53, or None."""
    number = number_of(value)
    return int(number) if number is not None and 0 <= number < 2**53 and number.is_integer() else None


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)


def label_of(axes: Mapping[str, Any], but: Callable[[str], bool] = lambda name: False) -> str:
    """`bytes, 16 vectors, seed 0`: what tells trainings of one stage apart."""
    told = {"vectors": "{} vectors", "seed": "seed {}"}
    return ", ".join(told.get(name, "{}").format(value) for name, value in axes.items() if not but(name))
