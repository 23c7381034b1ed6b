"""A study of the chaos suite: its plan, where it runs, and what it comes to when it is left alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from stepwell.plan import Plan


@dataclass(frozen=True, kw_only=True)
class Study:
    """A plan, a run of it that was left alone, and its jobs with the seconds they took, in the order of starts.

    All its runs take place in one folder, and are moved away: what names its inputs by path is then the same as well.
    """

    plan: Plan
    place: Path
    whole: Path
    seconds: dict[str, float]

    @property
    def all_seconds(self) -> float:
        return sum(self.seconds.values())

    def stages(self) -> set[str]:
        """The stages that ran."""
        return {job.partition(".")[0] for job in self.seconds}

    def fresh(self) -> Path:
        """The folder of all runs, empty."""
        if self.place.exists():
            self.place.rename(self.place.with_name(f"old{len(list(self.place.parent.glob('old*')))}"))
        return self.place
