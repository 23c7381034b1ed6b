"""What a gate says: a verdict and the findings it rests on, as flat JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Side = Literal["go", "no-go"]
Decision = Literal["go", "no-go", "inconclusive"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one criterion found.

    Args:
        metric, stage, statistic, mode, comparison, threshold: as the criterion says.
        about: which records, e.g. `arm=cot`, `arm=continuous minus arm=shared`, `seed=0`.
        decision: of this criterion alone, at the confidence given here.
        value, low, high: estimate and interval; None where undefined, and for facts and points (no interval).
        n: independent units (items, pairs, clusters); for facts the number of records.
        method: how the interval was found; `fact` or `point` where there is none.
        confidence: of the interval shown: the criterion's own, or the stricter one that Holm asked for.
        n_to_decide: units in total that would decide at this estimate; None when decided, or when none would.
        reason: one clause for the reader.
        parts: with `per`, the findings of its values; the criterion itself then has no value of its own.
    """

    metric: str
    stage: str
    about: str
    statistic: str
    mode: str
    comparison: str
    threshold: float
    decision: Decision
    value: float | None
    low: float | None
    high: float | None
    n: int
    method: str
    confidence: float
    n_to_decide: int | None
    reason: str
    parts: tuple[Finding, ...] = ()

    def to_record(self) -> dict[str, Any]:
        """JSON values only; `parts` (a list of the same) is there only where the criterion has `per`."""
        fields = asdict(self)
        del fields["parts"]
        return fields | ({"parts": [part.to_record() for part in self.parts]} if self.parts else {})


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a gate decided, and why.

    Args:
        decision: of the gate. With bands: `no-go` where the band's route is `stop`, `go` for any other band.
        route: where the decision leads: `next`, `stop` or a label.
        reason: one sentence.
        mode: `point` when any criterion decided from a point estimate, otherwise `interval`.
        criteria: one finding per criterion, in the order of the plan.
        n_to_decide: units in total at which the gate would be decided, at the present estimates; None when it is
            decided, or when no number of units would.
        override: who changed the gate or its verdict and why; None where nobody did.
    """

    gate: str
    decision: Decision
    route: str
    reason: str
    mode: Literal["interval", "point"]
    criteria: tuple[Finding, ...]
    n_to_decide: int | None = None
    override: dict[str, Any] | None = None

    def to_record(self) -> dict[str, Any]:
        """One record of kind `verdict`, JSON values only."""
        return {
            "kind": "verdict",
            "gate": self.gate,
            "decision": self.decision,
            "route": self.route,
            "reason": self.reason,
            "mode": self.mode,
            "n_to_decide": self.n_to_decide,
            "override": self.override,
            "criteria": [finding.to_record() for finding in self.criteria],
        }
