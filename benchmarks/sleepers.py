"""A stage whose chunks only sleep, for as long as fitting was measured to take; imported by workers as an extension."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable

from stepwell.kinds import Kind, known, register
from stepwell.spec import Spec
from stepwell.stage import StageContext

STEPS_OF_PAIRS = (27, 33, 27, 16, 19, 30, 30, 18, 11, 29, 23, 15, 22, 20, 22, 33)
"""Steps until exact of the 16 pairs of SQuAD in docs/results/imprint-cpu.md (K 8, SmolLM2-135M)."""
SECONDS_OF_A_STEP = 161.4 / (20 * 14)
"""Of one pair, in bench_fit.py on two CPU cores: 20 pairs, 14 steps each (docs/results/benchmarks-cpu.md)."""


class SleepParams(Spec):
    """How long items take.

    Attributes:
        faster: than on those two CPU cores.
        kills_once: items that kill their worker the first time.
    """

    faster: float = 1.0
    kills_once: tuple[int, ...] = ()


def seconds_of(chunk: range, faster: float) -> float:
    """Of all items of a chunk, each drawn from what was measured; the same whenever it is asked."""
    drawn = random.Random(chunk.start).choices(STEPS_OF_PAIRS, k=len(chunk))
    return sum(drawn) * SECONDS_OF_A_STEP / faster


def work(params: SleepParams, ctx: StageContext) -> Callable[[range], None]:
    """Sleep through a chunk; write when it began and ended, in a file of this process."""
    lines = ctx.folder / f"slept-{os.getpid()}.jsonl"

    def sleep(chunk: range) -> None:
        began = time.time()
        for item in params.kills_once:
            flag = ctx.folder / f"once-{item}"
            if item in chunk and not flag.exists():
                flag.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(seconds_of(chunk, params.faster))
        with lines.open("a", encoding="utf-8") as file:
            file.write(json.dumps([chunk.start, chunk.stop, began, time.time()]) + "\n")

    return sleep


# The benchmark deals the chunks out itself; no job of this kind is run. Tests import benchmarks more than once.
if "bench.sleep" not in known():
    register(Kind(name="bench.sleep", params=SleepParams, run=f"{__name__}:work", yields={}, parallel="chunks"))
