"""What a fit has done so far: chunks that are kept, whether it is worth going on, and what is to be told at once."""

from __future__ import annotations

import heapq
import json
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from stepwell.analysis.curves import is_zero
from stepwell.errors import StepwellError
from stepwell.fitting.loop import Ended
from stepwell.fitting.recipe import FitRecipe
from stepwell.fitting.result import Record, best_of
from stepwell.monitor import Alert
from stepwell.store import write_atomically
from stepwell.studies.imprint.outcomes import converged, opposition
from stepwell.studies.imprint.params import Abandon

CONFIDENCE = 0.95
"""Of the alert on modes that pull apart, over all its looks together."""
NAMED = 3
"""Pairs that it names."""


@dataclass(frozen=True, kw_only=True)
class Ends:
    """What came of a chunk.

    Attributes:
        ended: its restarts that came to an end, in the problems' order.
        failed: problem id -> the error that ended every try.
    """

    ended: tuple[Ended, ...] = ()
    failed: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Kept:
    """Chunks that have ended, one file each, whole or not there.

    A chunk is kept as a whole: begun again after a kill it has the same batches, and the same numbers to the last
    digit.
    """

    folder: Path

    def write(self, chunk: range, part: Ends) -> None:
        """Keep one."""
        about = {"records": [record.to_record() for record, _ in part.ended], "failed": dict(part.failed)}
        # As a tensor: the header of a file, where metadata stand, may have 100 MB at most, and curves are long.
        text = torch.frombuffer(bytearray(json.dumps(about).encode()), dtype=torch.uint8)
        tensors = {str(place): vectors.contiguous() for place, (_, vectors) in enumerate(part.ended)}
        write_atomically(self._path(chunk), save({**tensors, "about": text}))

    def read(self, chunk: range) -> Ends:
        """One of `chunks`. Raises StepwellError for a file that is not whole."""
        path = self._path(chunk)
        try:
            with safe_open(path, framework="pt") as file:
                about = json.loads(bytes(file.get_tensor("about").numpy()))
                records = [Record.from_record(fields) for fields in about["records"]]
                ended = tuple((record, file.get_tensor(str(place))) for place, record in enumerate(records))
            return Ends(ended=ended, failed=dict(about["failed"]))
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise StepwellError(
                f"a kept chunk cannot be read: {error}", "Delete this file: its pairs are fitted again.", path=path
            ) from error

    def chunks(self) -> list[range]:
        """Those that are kept, in the order of their items."""
        names = (path.stem.split("-") for path in self.folder.glob("[0-9]*.safetensors"))
        found: list[range] = []
        for start, stop in sorted((int(first), -int(last)) for first, last in names):
            # A worker that was taken for dead may have kept a chunk that others have done in halves since.
            if not found or start >= found[-1].stop:
                found.append(range(start, -stop))
        return found

    def remove(self) -> None:
        """Drop them, when the fit is saved as a whole; and what a kill left half written."""
        if self.folder.exists():
            shutil.rmtree(self.folder)

    def _path(self, chunk: range) -> Path:
        return self.folder / f"{chunk.start:010}-{chunk.stop:010}.safetensors"


@dataclass(kw_only=True)
class Watch:
    """Looks at a fit while it runs: gives it up where it is not worth its price, and tells of modes that pull apart.

    It is given up when too few pairs converge, or when too many have a loss of zero: that says that their texts can be
    read off. Modes whose losses move against each other are an alert, which names pairs and ways out, and stop nothing:
    what comes of it is a gate's to say, when the fit has ended.

    It sees the pairs in their order, so what it decides does not depend on who fitted them, or when. A pair whose modes
    have vectors of their own converges when all of them do; one that cannot be fitted, or was given up because of its
    errors, does not.

    Attributes:
        abandon: when to give up; None = never.
        recipe: of the fit.
        bars: problem id -> mode -> nats a token.
        pairs: problem id -> the id of its pair.
        total: restarts of all problems.
        most_zero: share of pairs with a loss of zero that is not suspected of a leak.
        alerts: what it has told: `convergence` or `leak` gave the fit up, `conflict` did not.
    """

    abandon: Abandon | None
    recipe: FitRecipe
    bars: Mapping[str, Mapping[str, float]]
    pairs: Mapping[str, str]
    total: int
    most_zero: float = 0.05
    ended: int = 0
    exact: int = 0
    alerts: list[Alert] = field(default_factory=list)
    _seen: dict[str, list[Record]] = field(default_factory=dict)
    _parts: dict[str, list[tuple[bool, bool]]] = field(default_factory=dict)
    _settled: int = 0
    _converged: int = 0
    _zero: int = 0
    _opposed: dict[str, float] = field(default_factory=dict)
    _next_look: int = 2

    @property
    def abandoned(self) -> str | None:
        """Why the fit was given up; None where it was not."""
        return next((alert.message for alert in self.alerts if alert.stop), None)

    def see(self, record: Record) -> None:
        """Count one restart that ended, and look."""
        self.ended += 1
        self.exact += record.all_exact
        mine = self._seen.setdefault(record.id, [])
        mine.append(record)
        if len(mine) < self.recipe.restarts and not (self.recipe.until_exact and record.all_exact):
            return
        best = best_of(mine) or mine[0]
        if (found := opposition(best)) is not None:
            self._opposed[record.id] = found
            self._look_at_conflict()
        bars = self.bars.get(record.id, {})
        good = any(e.nats and all(converged(e, mode, bars) for mode in e.nats) for e in mine)
        self._settle(record.id, good, any(is_zero([nats]) for nats in (best.nats or {}).values()))

    def lost(self, id: str) -> None:
        """Count a problem of which no restart ended, and look."""
        self._settle(id, False, False)

    def _settle(self, id: str, good: bool, zero: bool) -> None:
        self._seen.pop(id, None)  # with its curves: the memory of a long fit
        pair = self.pairs[id]
        parts = self._parts.setdefault(pair, [])
        parts.append((good, zero))
        if len(parts) < self._parts_of[pair]:
            return
        del self._parts[pair]
        self._settled += 1
        self._converged += all(good for good, _ in parts)
        self._zero += any(zero for _, zero in parts)
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
        zero = proportion_sequence(self._zero, self._settled, rule.confidence)
        if zero.low is not None and zero.low > self.most_zero:
            message = (
                f"{self._zero} of {self._settled} pairs have a loss of zero, at least {zero.low:.1%} at "
                f"{rule.confidence:.0%} over all looks; above {self.most_zero:.0%} a leak is suspected"
            )
            self._tell("leak", message, stop=True)
        elif found.high is not None and found.high < rule.below:
            message = (
                f"{self._converged} of {self._settled} pairs converged, at most {found.high:.1%} at "
                f"{rule.confidence:.0%} over all looks; below {rule.below:.0%} the fit is given up"
            )
            self._tell("convergence", message, stop=True)

    def _look_at_conflict(self) -> None:
        """Tell once when the mean correlation of the modes' losses lies below zero for sure, by a sequence.

        Each look costs as much as there are pairs, so the next is due when there are a twentieth more: the sequence
        holds at any of them.
        """
        n = len(self._opposed)
        if n < self._next_look or any(alert.monitor == "conflict" for alert in self.alerts):
            return
        from stepwell.stats import confidence_sequence

        self._next_look = n + max(1, n // 20)
        found = confidence_sequence(list(self._opposed.values()), CONFIDENCE, bounds=(-1.0, 1.0))
        if found.high is None or found.high >= 0:
            return
        worst = heapq.nsmallest(NAMED, self._opposed, key=self._opposed.__getitem__)
        named = ", ".join(f"`{id}` ({self._opposed[id]:.2f})" for id in worst)
        self._tell(
            "conflict",
            f"the losses of the modes move against each other: their correlation is {found.value:.2f} in the mean of "
            f"{n} pairs, at most {found.high:.2f} at {CONFIDENCE:.0%} over all looks; most in {named}. The fit goes "
            "on; a fit with `paraphrases: true` or `recipe.surgery: true` lets the modes get along",
            stop=False,
        )  # fmt: skip

    def _tell(self, monitor: str, message: str, *, stop: bool) -> None:
        self.alerts.append(Alert(monitor=monitor, step=self.ended, message=message, stop=stop))
