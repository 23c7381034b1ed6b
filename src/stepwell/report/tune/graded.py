"""What was graded: each job's answers to each benchmark, with what it says of itself."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stepwell.report.cells import Cell, dash
from stepwell.report.folder import Record, RunData
from stepwell.report.measures import counted, grouped, share_cell
from stepwell.report.tune.reading import Job, jobs_of, records_of, text_of

if TYPE_CHECKING:
    from stepwell.stats import Estimate

REFERENCE, MINE = "tune.reference", "tune.mine"
CUT = frozenset({"length", "positions", "no room"})
"""Ways to end that cut an answer off."""
ELSEWHERE = "elsewhere"
"""The template of answers that another program's model wrote."""


@dataclass(frozen=True, kw_only=True)
class Graded:
    """One job's answers to one benchmark.

    Attributes:
        job: that graded.
        benchmark: its name.
        items: one record an answer, cleaned.
        result: the record of them all; empty where the job was ended before it wrote one.
    """

    job: Job
    benchmark: str
    items: tuple[Record, ...]
    result: Record

    @property
    def first(self) -> dict[str, Record]:
        """The first answer to each item, by id."""
        return {text_of(one, "id"): one for one in self.items if one.get("sample") in (0, None)}

    @property
    def statuses(self) -> Counter[str]:
        """First answers by mark."""
        return Counter(text_of(one, "status") or "not recorded" for one in self.first.values())

    @property
    def stops(self) -> Counter[str]:
        """Answers by the way they ended; what another program wrote does not say."""
        return Counter(stop for one in self.items if (stop := text_of(one, "stop")))

    @property
    def is_reference(self) -> bool:
        """Whether another program's model wrote the answers."""
        return self.job.kind == REFERENCE or self.result.get("template") == ELSEWHERE

    @property
    def is_pool(self) -> bool:
        """Whether these are training problems, asked to mine failures."""
        return self.job.kind == MINE or any(one.get("split") == "train" for one in self.items[:1])

    def accuracy(self) -> Estimate | None:
        """The recorded share of right first answers; Wilson's of the items where no result was written."""
        from stepwell.stats import Estimate

        value, low, high = (self.result.get(name) for name in ("accuracy", "low", "high"))
        n = self.result.get("n")
        if value is not None and n:
            ends = (
                (low, high) if low is not None and high is not None and 0 <= low <= value <= high <= 1 else (None,) * 2
            )
            return Estimate(value=value, low=ends[0], high=ends[1], n=n, method="wilson", confidence=0.95)
        marked = [one["correct"] for one in self.first.values() if one.get("correct") is not None]
        return counted(sum(marked), len(marked)) if marked else None

    def cell(self) -> Cell:
        """Accuracy with its interval and n."""
        found = self.accuracy()
        if found is None:
            return dash("ground truth marked no answer" if self.items else "not graded")
        told = f"n {found.n:,}" if self.result.get("n") else f"n {found.n:,}, unfinished"
        return share_cell(found, "", count=told)


def graded_of(data: RunData) -> list[Graded]:
    """Everything that was graded, training problems too, in the plan's order and then by benchmark."""
    items = grouped(records_of(data, "item"), lambda one: (one["job"].name, text_of(one, "benchmark")))
    results = {(one["job"].name, text_of(one, "benchmark")): one for one in records_of(data, "result")}
    jobs = jobs_of(data)
    order = {name: place for place, name in enumerate(jobs)}
    keys = sorted(dict.fromkeys([*results, *items]), key=lambda key: order[key[0]])
    return [
        Graded(job=jobs[key[0]], benchmark=key[1], items=tuple(items.get(key, ())), result=results.get(key, {}))
        for key in keys
    ]


def models_of(data: RunData) -> list[Graded]:
    """What was graded on benchmarks: training problems left out."""
    return [one for one in graded_of(data) if not one.is_pool]


def stage_names(data: RunData) -> tuple[str, ...]:
    """Stages that graded or trained, in the plan's order: their place gives each its colour."""
    graded = [one.job.stage for one in models_of(data)]
    trained = [one["job"].stage for kind in ("training-set", "step") for one in records_of(data, kind)]
    return tuple(dict.fromkeys([*graded, *trained]))
