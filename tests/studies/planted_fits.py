"""Work of `imprint.fit` with faults planted at some pairs, as workers beside a job load it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

from stepwell.stage import StageContext
from stepwell.studies.imprint.fits import Fitter
from stepwell.studies.imprint.fits import work as honest
from stepwell.studies.imprint.params import FitParams

WORK = f"{__name__}:work"
KILLS_ONCE, RAISES = 1, 3
"""Pairs, by number."""


def work(params: FitParams, ctx: StageContext) -> Callable[[range], None]:
    """Fit, but die in the middle of one chunk the first time, and raise at another."""
    fit = honest(params, ctx)
    fitter: Fitter = fit.__self__  # pyright: ignore[reportFunctionMemberAccess]

    def faulty(chunk: range) -> None:
        raises(chunk)
        flag = ctx.folder / "killed-once"
        if KILLS_ONCE in chunk and not flag.exists():
            flag.touch()
            fitter.fit(chunk, told=lambda ended: os.kill(os.getpid(), signal.SIGKILL))
        fit(chunk)

    return faulty


def raises(chunk: range) -> None:
    """The planted error."""
    if RAISES in chunk:
        raise ArithmeticError(f"pair {RAISES} is planted")
