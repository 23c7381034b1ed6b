"""Criteria put to their evidence: each answers for a side at a given share of the error level."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from stepwell.gate.evidence import Facts, Sample, holds
from stepwell.gate.verdict import Decision, Finding, Side
from stepwell.stats import FEWEST_SEEDS, MOST_ITEMS, Estimate

if TYPE_CHECKING:
    from stepwell.plan import Criterion

SIDES: tuple[Side, Side] = ("go", "no-go")
Divisors = Mapping[Side, int]
"""By how much the error level 1 - confidence is divided for a claim on each side; 1 = not at all."""
Lean = tuple[Side | None, int | None]
"""The side that an undecided question leans to, and the n at which it would decide."""


class Unit:
    """One question with one answer: a criterion, or with `per` a criterion at one value."""

    def __init__(self, criterion: Criterion, found: Sample | Facts, about: str) -> None:
        self.criterion, self.found, self.about = criterion, found, about
        self._estimates: dict[int, Estimate] = {}

    def _confidence(self, divisor: int) -> float:
        return 1 - (1 - self.criterion.confidence) / divisor

    def estimate(self, divisor: int) -> Estimate:
        """The estimate at the error level divided by `divisor`; computed once for each."""
        if divisor not in self._estimates:
            self._estimates[divisor] = self._estimate(self._confidence(divisor))
        return self._estimates[divisor]

    def _estimate(self, confidence: float) -> Estimate:
        if isinstance(self.found, Facts):
            return Estimate(value=None, low=None, high=None, n=self.found.n, method="fact", confidence=confidence)
        if self.criterion.mode == "interval":
            return self.found.estimate(confidence)
        value = self.found.value
        return Estimate(value=value, low=None, high=None, n=self.found.n, method="point", confidence=confidence)

    @property
    def exact(self) -> bool:
        """Whether the answer claims no error level."""
        return isinstance(self.found, Facts) or self.criterion.mode == "point"

    def _on(self, side: Side, estimate: Estimate) -> bool:
        """Whether the interval lies wholly on this side."""
        if estimate.low is None or estimate.high is None:
            return False
        at_ends = [
            holds(self.criterion.comparison, end, self.criterion.threshold) for end in (estimate.low, estimate.high)
        ]
        return all(at_ends) if side == "go" else not any(at_ends)

    @property
    def lean(self) -> Side | None:
        """The side the data lie on, whether or not they suffice."""
        if isinstance(self.found, Facts):
            return None if not self.found.n else "go" if self.found.true == self.found.n else "no-go"
        estimate = self.estimate(1)
        if estimate.value is None:
            return None
        # A confidence sequence that has decided stays decided, even if the running value wanders back.
        for side in SIDES:
            if self._on(side, estimate):
                return side
        return "go" if holds(self.criterion.comparison, estimate.value, self.criterion.threshold) else "no-go"

    def _too_few(self, side: Side | None) -> bool:
        # One false record refutes `every`, however few there are.
        refuted = isinstance(self.found, Facts) and side == "no-go"
        return 0 < self.found.n < self.criterion.smallest_n and not refuted

    def supports(self, side: Side, divisor: int) -> bool:
        """Whether the data decide for this side, at the error level divided by `divisor`."""
        if self.lean != side or self._too_few(side):
            return False
        return self.exact or self._on(side, self.estimate(divisor))

    def finding(self, divisors: Divisors) -> Finding:
        """The decision, with the interval at the level at which it was made (or tried)."""
        lean = self.lean
        divisor = divisors[lean] if lean else 1
        decision: Decision = lean if lean and self.supports(lean, divisor) else "inconclusive"
        estimate, n = self.estimate(divisor), None
        if decision == "inconclusive":
            n = self._n_to_decide(divisor)
        reason = self.reason(estimate, self._conclusion(decision, n))
        return _finding(self.criterion, self.about, decision, estimate, n, reason)

    def _n_to_decide(self, divisor: int) -> int | None:
        if isinstance(self.found, Facts) or self.exact:
            return self.criterion.smallest_n if 0 < self.found.n < self.criterion.smallest_n else None
        return self.n_to_exclude(self.criterion.threshold, divisor)

    def n_to_exclude(self, threshold: float, divisor: int) -> int | None:
        """Units in total that would put the interval on one side of the threshold, and at least the smallest n."""
        if isinstance(self.found, Facts):
            return None
        needed = self.found.n_to_decide(threshold, self._confidence(divisor))
        return None if needed is None else max(needed, self.criterion.smallest_n)

    def reason(self, estimate: Estimate, conclusion: str) -> str:
        """One clause: what was found, what follows from it, and what to bear in mind."""
        text = f"{self.criterion.metric}{f' ({self.about})' if self.about else ''} {self._found_text(estimate)}"
        if self._too_few(self.lean):
            text += f", below the smallest n of {self.criterion.smallest_n}"
        elif estimate.method == "point" and estimate.value is not None:
            text += f", {conclusion} (a point estimate, not an interval)"
        elif estimate.low is not None:
            text += f", {conclusion}"
        return text + self._caveats()

    def _conclusion(self, decision: Decision, n: int | None) -> str:
        asked = f"{self.criterion.comparison} {self.criterion.threshold:.4g}"
        if self.criterion.mode == "point":
            return f"{'meets' if decision == 'go' else 'misses'} {asked}"
        if decision == "inconclusive":
            by_seeds = self.criterion.claim == "mechanism"
            return f"does not settle {asked}" + ("; more seeds would tell more" if by_seeds else more(n))
        return f"lies wholly on the {'right' if decision == 'go' else 'wrong'} side of {asked}"

    def _found_text(self, estimate: Estimate) -> str:
        found = self.found
        if isinstance(found, Facts):
            if not found.n:
                return "has no records"
            if found.true == found.n:
                return f"is true in all {found.n} records"
            null = f", null (undefined or not finite) in {found.null}" if found.null else ""
            return f"is true in {found.true} of {found.n} records{null}"
        if estimate.value is None:
            return f"is null in all {found.without_value} records" if found.without_value else "has no records"
        if estimate.low is None or estimate.high is None:
            why = "" if estimate.method == "point" else f", {_no_interval(estimate)}"
            return f"is {estimate.value:.4g} (n {estimate.n}{why})"
        interval = f"[{estimate.low:.4g}, {estimate.high:.4g}] at {100 * estimate.confidence:.4g}%"
        return f"is {estimate.value:.4g} {interval} (n {estimate.n}, {estimate.method})"

    def _caveats(self) -> str:
        text = ""
        if self.criterion.pick == "best" and self.found.n:
            text += " (the best step, selected on these same records: optimistic)"
        if isinstance(self.found, Sample) and self.found.n and self.found.without_value:
            text += f" ({self.found.without_value} records without a value left out)"
        return text


class Group:
    """Units of which `need` must go: one of a plain criterion, with `per` one for each value.

    With `any_of` the units of `per` are groups themselves, of which one unit is enough.
    """

    def __init__(self, criterion: Criterion, units: Sequence[Unit | Group], field: str | None, need: int) -> None:
        self.criterion, self.units, self.field, self.need = criterion, units, field, need
        self.about = about_of(criterion)
        # Values without any record may still come: they count as undecided.
        self.total = max(len(units), need)

    @classmethod
    def of(cls, criterion: Criterion, found: Mapping[Any, Sample | Facts]) -> Group:
        """The criterion put to what `evidence` found."""
        if criterion.per is None:
            empty = Facts(true=0, n=0, null=0) if criterion.statistic == "every" else Sample(values=np.empty(0))
            return cls(criterion, [Unit(criterion, found.get(None, empty), about_of(criterion))], None, 1)
        units = _any_of(criterion, found) if criterion.any_of else _units(criterion, criterion.per, found)
        needed = math.ceil(criterion.share * len(units) - 1e-9) if criterion.share else criterion.need
        return cls(criterion, units, criterion.per, max(1, needed or len(units)))

    @property
    def exact(self) -> bool:
        """Whether the answer claims no error level."""
        return all(unit.exact for unit in self.units)

    @property
    def lean(self) -> Side | None:
        """The side the data lie on."""
        leans = [unit.lean for unit in self.units]
        return next((side for side in SIDES if leans.count(side) >= self._needed(side)), None)

    def _needed(self, side: Side) -> int:
        return self.need if side == "go" else self.total - self.need + 1

    def _divisor(self, side: Side) -> int:
        return self.total - self._needed(side) + 1

    def supports(self, side: Side, divisor: int) -> bool:
        """Whether enough units decide for this side, at the error level divided by `divisor`."""
        return sum(unit.supports(side, divisor * self._divisor(side)) for unit in self.units) >= self._needed(side)

    @property
    def found(self) -> Sample | Facts | None:
        """What the one unit of a plain criterion rests on; None where there are several."""
        return self.units[0].found if self.field is None else None

    def finding(self, divisors: Divisors) -> Finding:
        """The decision; with `per` the findings of the values are its parts."""
        scaled: Divisors = {side: divisors[side] * self._divisor(side) for side in SIDES}
        parts = [unit.finding(scaled) for unit in self.units]
        if self.field is None:
            return parts[0]
        needed: dict[Side, int] = {side: self._needed(side) for side in SIDES}
        decision = settled([part.decision for part in parts], needed)
        n = None
        if decision == "inconclusive":
            leans: list[Lean] = [(unit.lean, part.n_to_decide) for unit, part in zip(self.units, parts, strict=True)]
            n = n_settling(parts, leans, needed)
        total, confidence = sum(part.n for part in parts), self.criterion.confidence
        counts = Estimate(value=None, low=None, high=None, n=total, method="per", confidence=confidence)
        reason = self._reason(parts, n)
        return _finding(self.criterion, self.about, decision, counts, n, reason, tuple(parts))

    def _reason(self, parts: Sequence[Finding], n: int | None) -> str:
        name = f"{self.criterion.metric}{f' ({self.about})' if self.about else ''}"
        if not parts:
            return f"{name} has no records"
        going = sum(part.decision == "go" for part in parts)
        text = f"{name} goes for {going} of {len(parts)} values of {self.field}, {self.need} needed"
        if self.criterion.any_of is None:
            text += f": {', '.join(part.reason for part in parts)}"
        elif self.field == self.criterion.per:
            # Each value has a reason for each layer (or whatever it is): those stand in the parts.
            text += f" (at any {self.criterion.any_of}): {', '.join(f'{part.about} {part.decision}' for part in parts)}"
        return text + (more(n) if n else "")


def _units(criterion: Criterion, field: str, found: Mapping[Any, Sample | Facts]) -> list[Unit | Group]:
    return [Unit(criterion, part, f"{field}={value}") for value, part in found.items()]


def _any_of(criterion: Criterion, found: Mapping[Any, Sample | Facts]) -> list[Unit | Group]:
    """One group for each value of `per`: a unit for each value of `any_of`, of which one is enough."""
    groups: list[Unit | Group] = []
    for value in dict.fromkeys(key[0] for key in found):
        parts = {key[1]: part for key, part in found.items() if key[0] == value}
        group = Group(criterion, _units(criterion, str(criterion.any_of), parts), criterion.any_of, 1)
        group.about = f"{criterion.per}={value}"
        groups.append(group)
    return groups


def settled(decisions: Sequence[Decision], needed: Mapping[Side, int]) -> Decision:
    """The side with as many decisions as it needs; inconclusive where neither has."""
    for side in SIDES:
        if decisions.count(side) >= needed[side]:
            return side
    return "inconclusive"


def n_settling(findings: Sequence[Finding], leans: Sequence[Lean], needed: Mapping[Side, int]) -> int | None:
    """The smallest n at which enough of the undecided, each turning to its side at its own n, settle the whole."""
    counts: dict[Side, int] = {side: sum(finding.decision == side for finding in findings) for side in SIDES}
    coming: list[tuple[int, Side]] = sorted(
        (n, side)
        for finding, (side, n) in zip(findings, leans, strict=True)
        if finding.decision == "inconclusive" and side is not None and n is not None
    )
    for n, side in coming:
        counts[side] += 1
        if counts[side] >= needed[side]:
            return n
    return None


def _finding(
    criterion: Criterion,
    about: str,
    decision: Decision,
    estimate: Estimate,
    n_to_decide: int | None,
    reason: str,
    parts: tuple[Finding, ...] = (),
) -> Finding:
    return Finding(
        metric=criterion.metric,
        stage=criterion.stage,
        about=about,
        statistic=criterion.statistic,
        mode=criterion.mode,
        comparison=criterion.comparison,
        threshold=criterion.threshold,
        decision=decision,
        value=estimate.value,
        low=estimate.low,
        high=estimate.high,
        n=estimate.n,
        method=estimate.method,
        confidence=estimate.confidence,
        n_to_decide=n_to_decide,
        reason=reason,
        parts=parts,
    )


def about_of(criterion: Criterion) -> str:
    """Which records a criterion is about, for the reader: `arm=cot, epoch at most 10`."""
    parts = [f"{key}={_listed(value)}" for key, value in criterion.where.items() if key != "kind"]
    parts += [f"{key} at most {most:g}" for key, most in criterion.at_most.items()]
    text = ", ".join(parts)
    for join, replaced in zip(("minus", "less the same of"), criterion.replaced, strict=False):
        text += f" {join} {', '.join(f'{key}={value}' for key, value in replaced.items())}"
    return text.strip()


def _listed(value: Any) -> str:
    return "|".join(str(item) for item in value) if isinstance(value, tuple | list) else str(value)


def more(n: int | None) -> str:
    """How many items would decide, as the end of a reason."""
    return f"; about {n} in all would decide" if n else f"; no n up to {MOST_ITEMS} would decide at this estimate"


def _no_interval(estimate: Estimate) -> str:
    if estimate.method == "betting":
        return "no interval: the values drift"
    if estimate.method == "crossed":
        return f"no interval: a claim about a mechanism needs {FEWEST_SEEDS} seeds or more, and values that vary"
    return "no interval from a single value" if estimate.n < 2 else "no interval: the values do not vary"
