"""What came of a fit, as records: restarts, targets, pairs, curves, and what is suspicious about all of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from stepwell.analysis.curves import conflict, conflicts, curve_health, is_zero, leak_check
from stepwell.fitting.result import Fitted, Record
from stepwell.stage import StageContext
from stepwell.studies.imprint.params import FitParams
from stepwell.tasks.base import QA

if TYPE_CHECKING:
    from stepwell.studies.imprint.asking import Asked

POINTS = 60
"""Of a curve, in its record."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One problem of a pair: its modes, its restarts, and the best of them (the first, where none came to an end)."""

    problem: str
    modes: Sequence[str]
    restarts: Sequence[Record]
    best: Record
    fault: str | None

    @property
    def detail(self) -> str | None:
        """Why it could not be fitted, if it could not."""
        return self.fault or self.best.detail

    def converged(self, bars: Mapping[str, Mapping[str, float]], modes: Sequence[str]) -> bool:
        """Whether there is a restart in which all these modes have converged."""
        mine = bars.get(self.problem, {})
        return any(all(converged(record, mode, mine) for mode in modes) for record in self.restarts)


def converged(record: Record, mode: str, bars: Mapping[str, float]) -> bool | None:
    """Below the bar, or exact: a fit retires the moment it is, often before its loss has come down to the bar.

    The bar is about the pair's own text, so of a mode with paraphrases its loss counts; exact is any of them.
    None where the mode was not measured, or has no bar and is not exact.
    """
    nats = (record.own or {}).get(mode)
    if nats is None:
        return None
    return bool((record.exact or {}).get(mode)) or (nats < bars[mode] if mode in bars else None)


@dataclass(kw_only=True)
class Outcomes:
    """Writes the records of a fit as its parts come; of these it keeps two numbers a pair, for the checks of them all.

    Attributes:
        params, ctx: of the job.
    """

    params: FitParams
    ctx: StageContext
    _zeros: list[bool] = field(default_factory=list)
    _against: list[float | None] = field(default_factory=list)

    def write(self, asked: Asked, found: Fitted) -> None:
        """The records of some pairs; one that failed has its records too, so that no denominator shrinks."""
        for item in asked.items:
            parts = list(_parts(self.params, asked, found, item))
            mine = [_target(self.ctx, asked, item.id, mode, part) for part in parts for mode in part.modes]
            # Modes of one pair are no independent witnesses.
            self._zeros += [any(known)] if (known := [zero for zero in mine if zero is not None]) else []
            self._against.append(_pair(self.ctx, asked, item.id, parts))

    def close(self) -> None:
        """The checks of all pairs. Where nothing can be said there is no record, and a gate on it is inconclusive."""
        if self._zeros:
            leak = leak_check(self._zeros, limit=self.params.most_zero)
            share = leak.share
            self.ctx.write(
                "leak", n=share.n, zero=sum(self._zeros), share=share.value, low=share.low, high=share.high,
                alarm=leak.alarm, fine=not leak.alarm,
            )  # fmt: skip
        pulled = conflicts(self._against)
        mean = pulled.correlation
        if self.params.together and mean.n:
            self.ctx.write(
                "conflict", n=mean.n, mean=mean.value, low=mean.low, high=mean.high, undefined=pulled.undefined,
                alarm=pulled.alarm, fine=not pulled.alarm,
            )  # fmt: skip


def _parts(params: FitParams, asked: Asked, found: Fitted, item: QA) -> Iterator[Part]:
    modes = list(item.targets())
    for name, some in {item.id: modes}.items() if params.together else [(f"{item.id}/{m}", [m]) for m in modes]:
        restarts = found.of(name)
        ended = any(record.nats is not None for record in restarts)
        best = found.best(name) if ended else restarts[0]
        yield Part(problem=name, modes=some, restarts=restarts, best=best, fault=asked.faults.get(name))


def _target(ctx: StageContext, asked: Asked, id: str, mode: str, part: Part) -> bool | None:
    """The records of one mode; whether its loss went to zero, None where there is no loss."""
    for record in part.restarts:
        curve = [nats for _, nats in (record.curve or {}).get(mode, ())]
        health = curve_health(curve) if curve else None
        nats = (record.nats or {}).get(mode)
        ctx.write(
            "restart", id=id, mode=mode, restart=record.restart, seed=record.seed, end=record.end,
            detail=part.fault or record.detail, steps=record.steps, nats=nats, exact=_of(record.exact, mode),
            held=_of(record.held, mode), tokens=_of(record.tokens, mode), lead=_of(record.lead, mode),
            converged=converged(record, mode, asked.bars.get(part.problem, {})), zero=_zero(nats),
            health=health and health.shape, health_why="not fitted" if health is None else health.why,
        )  # fmt: skip
    best, base = part.best, asked.baselines.get((id, mode), {})
    nats, own = (best.nats or {}).get(mode), (best.own or {}).get(mode)
    points = thinned((best.curve or {}).get(mode, ()))
    if points:
        ctx.write(
            "curve", id=id, mode=mode, restart=best.restart, steps=[step for step, _ in points],
            nats=[value for _, value in points],
        )  # fmt: skip
    health = curve_health([value for _, value in (best.curve or {}).get(mode, ())])
    against = base.get("full_context") if base.get("full_context") is not None else base.get("text_prompt")
    ctx.write(
        "target", id=id, mode=mode, restart=best.restart, converged=part.converged(asked.bars, (mode,)),
        exact=bool(_of(best.exact, mode)), nats=nats, tokens=_of(best.tokens, mode), held=_of(best.held, mode),
        steps=best.steps, own_nats=own, ratio_to_random=_ratio(own, base.get("random")),
        ratio_to_baseline=_ratio(own, against),
        zero=_zero(nats), health=health.shape, end=best.end, detail=part.detail,
    )  # fmt: skip
    return _zero(nats)


def _pair(ctx: StageContext, asked: Asked, id: str, parts: Sequence[Part]) -> float | None:
    """The record of a pair; the correlation of its two modes' losses."""
    best = parts[0].best
    together = len(parts) == 1
    found = opposition(best) if together else None
    ctx.write(
        "pair", id=id, restart=best.restart if together else None,
        converged=all(part.converged(asked.bars, part.modes) for part in parts),
        exact=all(part.best.all_exact for part in parts),
        steps=None if any(part.best.steps is None for part in parts) else sum(part.best.steps or 0 for part in parts),
        end=best.end if together else None, detail=next((part.detail for part in parts if part.detail), None),
        gradient_cosine=best.gradient_cosine if together else None, opposed=best.opposed if together else None,
        conflict=found,
    )  # fmt: skip
    return found


def opposition(record: Record) -> float | None:
    """The correlation of the losses of a restart's two modes, see `conflict`; None with one mode."""
    curves = list((record.curve or {}).values())
    if len(curves) != 2:
        return None
    length = min(map(len, curves))
    first, second = ([nats for _, nats in curve[:length]] for curve in curves)
    return conflict(first, second)


def _of(values: Mapping[str, Any] | None, mode: str) -> Any:
    return None if values is None else values.get(mode)


def _zero(nats: float | None) -> bool | None:
    return None if nats is None else is_zero([nats])


def _ratio(nats: float | None, base: float | None) -> float | None:
    return None if nats is None or not base else nats / base


def thinned(points: Sequence[tuple[int, float]]) -> Sequence[tuple[int, float]]:
    """At most `POINTS` of a curve, evenly spaced, the first and the last among them."""
    if len(points) <= POINTS:
        return points
    return [points[round(place * (len(points) - 1) / (POINTS - 1))] for place in range(POINTS)]
