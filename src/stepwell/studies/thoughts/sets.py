"""Which sets of the data stage a stage asks about."""

from __future__ import annotations

from collections.abc import Sequence

from stepwell.errors import StepwellError
from stepwell.stage import Input

UNREPORTED = ("train", "steer")


def chosen_sets(wanted: Sequence[str], data: Input) -> list[str]:
    """The sets wanted, or all but training and steering.

    Raises:
        StepwellError: a set that the data stage did not make.
    """
    made = [record["set"] for record in data.records("dataset")]
    if unknown := [name for name in wanted if name not in made]:
        raise StepwellError(
            f"there is no set `{unknown[0]}`; sets: {', '.join(made)}",
            "name some of them in `sets`, or leave it empty for all but training and steering",
        )
    return list(wanted) or [name for name in made if name not in UNREPORTED]
