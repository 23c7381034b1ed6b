"""From what the records show to a decision. Pure: the same gate and records give the same verdict."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from stepwell.errors import StepwellError
from stepwell.gate.evidence import Facts, evidence, matches
from stepwell.gate.units import Group, Lean, Unit, more, n_settling, settled
from stepwell.gate.verdict import Decision, Finding, Side, Verdict
from stepwell.stats import Estimate

if TYPE_CHECKING:
    from stepwell.plan import Band, GateSpec


def decide(gate: GateSpec, records: Mapping[str, Iterable[Mapping[str, Any]]]) -> Verdict:
    """The gate's verdict on the records of its stages (by stage name; the records of all jobs of a stage together).

    A criterion is go when its interval lies wholly on the right side of the threshold, no-go when wholly on the wrong
    side, else inconclusive, with the n that would decide. No records, no interval or too few items: inconclusive.

    Several criteria: `all` is go when each is go, and no-go as soon as one is; `any` the reverse. A decision that needs
    every criterion may test each at its own level (intersection-union). One that needs a single criterion has as many
    chances to err as there are criteria, so those claims are Holm-adjusted (Holm 1979), written as a step-down on the
    level of the intervals: with m undecided criteria each interval is taken at 1 - (1 - confidence) / m; those that
    decide leave the family, and the rest is tried again with what m is then, until none decides. This is Holm on the
    p-values that the intervals invert. Facts and point estimates claim no error level and do not count in m.

    `per` with `need` k of m values: go needs k values that go, no-go needs m - k + 1 that do not. For a claim that
    needs j of m, each interval is taken at 1 - (1 - confidence) / (m - j + 1) (Benjamini & Heller 2008, Bonferroni).

    Raises StepwellError where the records cannot answer the question; see `evidence`.
    """
    at_hand = {criterion.stage: list(records.get(criterion.stage, ())) for criterion in gate.criteria}
    groups = [Group.of(criterion, evidence(criterion, at_hand[criterion.stage])) for criterion in gate.criteria]
    return _banded(gate, groups[0]) if gate.bands else _combined(gate, groups)


def spared(gate: GateSpec, records: Mapping[str, Iterable[Mapping[str, Any]]]) -> str | None:
    """Why a gate is not asked: none of the records it reads is what it is given; None where it is asked."""
    if not gate.given or any(matches(record, gate.given) for some in records.values() for record in some):
        return None
    wanted = ", ".join(f"{field}={value}" for field, value in gate.given.items())
    return f"No record of {', '.join(f'`{stage}`' for stage in records)} has {wanted}."


def _verdict(
    gate: GateSpec,
    decision: Decision,
    route: str,
    telling: Sequence[Finding],
    findings: Sequence[Finding],
    n: int | None,
) -> Verdict:
    return Verdict(
        gate=gate.name,
        decision=decision,
        route=route,
        reason=f"{decision}: {'; '.join(finding.reason for finding in telling)}",
        mode="point" if any(criterion.mode == "point" for criterion in gate.criteria) else "interval",
        criteria=tuple(findings),
        n_to_decide=n,
    )


def _combined(gate: GateSpec, groups: Sequence[Group]) -> Verdict:
    every, single = ("go", "no-go") if gate.combine == "all" else ("no-go", "go")
    needed: dict[Side, int] = {every: len(groups), single: 1}
    stepped = _step_down(groups, single)
    findings = [group.finding({every: 1, single: divisor}) for group, divisor in zip(groups, stepped, strict=True)]
    decision = settled([finding.decision for finding in findings], needed)
    n = None
    if decision == "inconclusive":
        leans: list[Lean] = [(group.lean, finding.n_to_decide) for group, finding in zip(groups, findings, strict=True)]
        n = n_settling(findings, leans, needed)
    telling = [finding for finding in findings if finding.decision == decision]
    return _verdict(gate, decision, gate.routes[decision], telling, findings, n)


def _step_down(groups: Sequence[Group], side: Side) -> list[int]:
    """Holm's divisor of the error level for each group's claim on this side: where it passed, or failed at last."""
    divisors = [1] * len(groups)
    family = {index for index, group in enumerate(groups) if not group.exact}
    while family:
        for index in family:
            divisors[index] = len(family)
        decided = {index for index in family if groups[index].supports(side, len(family))}
        if not decided:
            break
        family -= decided
    return divisors


def _banded(gate: GateSpec, group: Group) -> Verdict:
    """The route of the band in which the interval (or the point) lies; inconclusive where it lies in none wholly."""
    criterion, unit = group.criterion, group.units[0] if group.units else None
    if group.field is not None or not isinstance(unit, Unit) or isinstance(unit.found, Facts):
        cause = (
            f"gate {gate.name}: bands route one estimate, not {'facts' if criterion.per is None else 'one per value'}"
        )
        raise StepwellError(cause, "Use a threshold, or drop `per` and `statistic: every`.", stage=criterion.stage)
    estimate = unit.estimate(1)
    ends = (estimate.value, estimate.value) if estimate.method == "point" else (estimate.low, estimate.high)
    band = _band(gate.bands, ends) if unit.found.n >= criterion.smallest_n else None
    found = unit.finding({"go": 1, "no-go": 1})
    if band is not None:
        decision: Decision = "no-go" if band.route == "stop" else "go"
        text = f"lies in the band [{band.low:.4g}, {band.high:.4g}], which routes to {band.route}"
        finding = replace(found, decision=decision, n_to_decide=None, reason=unit.reason(estimate, text))
        return _verdict(gate, decision, band.route, [finding], [finding], None)
    n = _n_for_band(gate.bands, unit, estimate)
    text = "lies in no band" if estimate.method == "point" else f"lies wholly in no band{more(n)}"
    finding = replace(found, decision="inconclusive", n_to_decide=n, reason=unit.reason(estimate, text))
    return _verdict(gate, "inconclusive", gate.routes["inconclusive"], [finding], [finding], n)


def _band(bands: Iterable[Band], ends: tuple[float | None, float | None]) -> Band | None:
    low, high = ends
    if low is None or high is None:
        return None
    return next((band for band in bands if band.low <= low and high <= band.high), None)


def _n_for_band(bands: Iterable[Band], unit: Unit, estimate: Estimate) -> int | None:
    """Units in total at which the interval would fit into the band that holds the estimate."""
    band = _band(bands, (estimate.value, estimate.value))
    if band is None or estimate.low is None or estimate.high is None:
        return None
    # An end that the interval already keeps to costs nothing: [0, .5] has no proportion below it.
    crossed = [edge for edge in (band.low, band.high) if estimate.low < edge < estimate.high]
    needed = [unit.n_to_exclude(edge, 1) for edge in crossed]
    return max([n for n in needed if n is not None] + [unit.criterion.smallest_n]) if None not in needed else None
