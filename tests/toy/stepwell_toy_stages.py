"""What the toy kinds do; imported where they run, and without torch."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time

from stepwell_toy import SumParams, WalkParams

from stepwell.devices import Work
from stepwell.randomness import random_state, set_random_state
from stepwell.stage import StageContext


def walk(params: WalkParams, ctx: StageContext) -> None:
    print(f"walking {ctx.job.id}")
    ctx.event("folder", path=ctx.folder, event_number=1)
    random.seed(ctx.seed)
    step, value = 0, params.start
    state = ctx.restored()
    if state is not None:
        step, value = state["step"], state["value"]
        set_random_state(state["random"])
    while step < params.steps:
        step += 1
        value += random.gauss(0, 1)
        ctx.write("step", step=step, value=value)
        ctx.progress(step, params.steps, value=value)
        time.sleep(float(os.environ.get("TOY_SECONDS_PER_STEP", 0)))  # no parameter: it changes no record
        if step == params.fail_at:
            print("about to fail", file=sys.stderr)
            raise ZeroDivisionError("the planted fault")
        if step == params.die_at and deaths_so_far(ctx) < params.deaths:
            ctx.event("planted-death")
            os.kill(os.getpid(), signal.SIGKILL)
        if params.fill_bytes and step == params.steps // 2:
            with (ctx.folder / "big.bin").open("wb") as file:
                for _ in range(params.fill_bytes >> 16):
                    file.write(bytes(1 << 16))
        if step % params.save_every == 0:
            ctx.save({"step": step, "value": value, "random": random_state()})
            ctx.stop_if_asked()
    (ctx.folder / "final.json").write_text(json.dumps({"value": value}))


def walk_hours(params: WalkParams, axes: object, inputs: object) -> Work:
    """An hour for each ten steps, and for each seed: seed 1 takes twice as long as seed 0."""
    assert isinstance(axes, dict)
    return Work(seconds=360.0 * params.steps * (1 + int(axes.get("seed", 0))))


def deaths_so_far(ctx: StageContext) -> int:
    path = ctx.folder.parents[1] / "events.jsonl"
    return sum(
        json.loads(line)["event"] == "planted-death" and json.loads(line)["job"] == ctx.job.id
        for line in path.read_text().splitlines()
    )


def total(params: SumParams, ctx: StageContext) -> None:
    for source in (given for stage in ctx.inputs.values() for given in stage):
        final = json.loads((source.folder / "final.json").read_text())
        for record in source.records("step"):
            ctx.write("item", id=f"{source.job.id}-{record['step']}", correct=record["value"] > params.threshold)
        assert final["value"] == record["value"]
