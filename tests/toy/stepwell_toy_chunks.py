"""Items that are squared in chunks, by this process or by workers beside it; without torch."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable

from stepwell_toy import ChunkParams

from stepwell.engine.chunks import InOrder, Queue, run_chunks
from stepwell.engine.pool import LocalPool
from stepwell.errors import StepwellError
from stepwell.stage import StageContext
from stepwell.store import write_atomically

WORK = f"{__name__}:work"


def work(params: ChunkParams, ctx: StageContext) -> Callable[[range], None]:
    """Load nothing, then square; where it is planted, raise or die with half a chunk done."""
    if params.loads == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if params.loads == "fails":
        raise StepwellError("the model is gone", "Pull it again.")

    def square(chunk: range) -> None:
        found = {}
        for item in chunk:
            time.sleep(params.seconds)
            flag = ctx.folder / f"once-{item}"
            if item in params.kills or (item in params.kills_once and not flag.exists()):
                flag.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            if item in params.raises:
                raise ZeroDivisionError(f"item {item} is planted")
            found[item] = item * item
        ctx.event("worked", worker=os.getpid(), first=chunk.start)
        write_atomically(ctx.folder / "kept" / f"{chunk.start:06}-{chunk.stop:06}.json", json.dumps(found))

    return square


def deal(params: ChunkParams, ctx: StageContext) -> None:
    """Square all items; one record each, in their order, with the error of those that are given up."""
    ctx.keep_artifacts()
    lost: dict[int, str] = {}
    order, passed = InOrder(), list[range]()
    before = [range(*map(int, path.stem.split("-"))) for path in sorted((ctx.folder / "kept").glob("[0-9]*.json"))]

    def done(chunk: range) -> None:
        passed.extend(order.add(chunk))

    def poisoned(item: int, cause: str) -> None:
        lost[item] = cause
        done(range(item, item + 1))

    for chunk in before:
        done(chunk)
    pool = LocalPool(work(params, ctx)) if ctx.pool is None else ctx.pool(WORK)
    queue = Queue(count=params.items, size=params.chunk, before=before)
    run_chunks(pool, queue, done=done, poisoned=poisoned, stop=ctx.stop_asked)
    ctx.stop_if_asked()
    assert [item for chunk in passed for item in chunk] == list(range(params.items))
    known = {}
    for path in (ctx.folder / "kept").glob("[0-9]*.json"):
        known |= {int(item): value for item, value in json.loads(path.read_text()).items()}
    for item in range(params.items):
        ctx.write("square", item=item, value=known.get(item), why=lost.get(item))
