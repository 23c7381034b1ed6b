"""One training on two processes against the same training on one, each process with one thread.

A from-scratch model with continuous thoughts, all of it trained, in the one loop: the plan's step is the same on both
sides, two processes each compute half of its rows and add up their gradients once. What is timed are the steps alone,
without the start of the processes. The limit is 2; what is missing to it are the sum of the gradients and what every
process does for itself (the optimizer). Aim: 1.6 on two cores.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import common

STEPS, WARM_UP = 8, 2


def worker(answer: Path, *, width: int, rows: int) -> None:
    """One process of a training; the first leaves its seconds and losses."""
    import torch
    from torch.nn import functional as F

    from stepwell.backbone import HFBackbone
    from stepwell.latents.thoughts import Batch, Thoughts
    from stepwell.objectives import cross_entropy, supervised
    from stepwell.ranks import Ranks
    from stepwell.recipe import Monitors, Recipe
    from stepwell.shapes import Shape
    from stepwell.stage import Memory, StageContext
    from stepwell.train import Training

    torch.set_num_threads(1)
    torch.manual_seed(0)
    shape = Shape(architecture="gpt2", vocabulary=512, width=width, layers=4, heads=4, max_positions=128)
    thoughts = Thoughts(HFBackbone.from_shape(shape, device="cpu"), "continuous")
    columns, first, latents = 64, 32, 4

    class Model:
        module = thoughts

        def objective(self, batch: Batch) -> tuple[torch.Tensor, int]:
            mask, targets = supervised(batch.labels, batch.first)
            return cross_entropy(thoughts.backbone.logits(thoughts(batch.inputs())[mask[:, :-1]]), targets)

        def supervised(self, batch: Batch) -> int:
            return int((batch.labels >= 0).sum())

        alike = False

        def parts(self, batch: Batch, count: int) -> list[Batch]:
            return batch.parts(count)

        def validate(self, stage: int) -> tuple[int, int]:
            return 0, 1

        def stepped(self, loss: float) -> None:
            losses.append(loss)
            times.append(time.perf_counter())

    class Stream:
        steps_per_epoch = STEPS + WARM_UP

        def batches(self, step: int, stages: Any) -> list[Batch]:
            ids = torch.randint(512, (rows, columns), generator=torch.Generator().manual_seed(step))
            latent = torch.zeros_like(ids, dtype=torch.bool)
            latent[:, first : first + latents] = True
            labels = F.pad(ids[:, first + latents :], (first + latents, 0), value=-100)
            return [Batch(ids=ids, mask=torch.ones_like(latent), latent=latent, labels=labels, first=first,
                          items=torch.arange(rows))]  # fmt: skip

    losses: list[float] = []
    times: list[float] = []
    job: Any = SimpleNamespace(id="b", stage="b", kind="b", axes={}, params={}, needs=())
    with Ranks.joined("cpu") as ranks:
        ctx = StageContext(job=job, folder=answer.parent, inputs={}, threads=1, seed=0, recorder=Memory(), ranks=ranks)
        recipe = Recipe(steps=STEPS + WARM_UP, lr=1e-3, batch_size=rows, checkpoint_every=STEPS + WARM_UP)
        off = Monitors(breakthrough="off", collapse="off")
        model: Any = Model()
        Training(model=model, stream=Stream(), recipe=recipe, curriculum=None, monitors=off, ctx=ctx, seed=0).run()
        if ranks.rank == 0:
            answer.write_text(json.dumps({"seconds": times[-1] - times[WARM_UP - 1], "losses": losses}))


def trained(processes: int, folder: Path, given: Sequence[str]) -> dict[str, Any]:
    """Seconds of the timed steps, and all losses, of a training in so many processes."""
    answer = folder / "answer.json"
    own = [str(Path(__file__).resolve()), "--worker", str(answer), *given]
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(common.SOURCE)}
    command = [sys.executable, *(several if processes > 1 else []), *own]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"a training ended with exit code {done.returncode}:\n{done.stderr[-2000:]}")
    return json.loads(answer.read_text())


def main(arguments: Sequence[str] | None = None) -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--worker", type=Path, help="be one of the processes")
    given = parser.parse_args(arguments)
    if given.worker:
        worker(given.worker, width=64 if given.quick else 384, rows=8 if given.quick else 32)
        return
    common.header("bench_devices", given, arguments)
    pairs, shape = given.pairs or (1 if given.quick else 3), ["--quick"] if given.quick else []
    one, two = [], []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(pairs):
            one.append(trained(1, Path(folder), shape))
            two.append(trained(2, Path(folder), shape))
    apart = max(
        abs(a - b) / a for x, y in zip(one, two, strict=True) for a, b in zip(x["losses"], y["losses"], strict=True)
    )
    common.same("losses", apart < 1e-3, f"the largest relative difference is {apart:.1g}")
    found = common.Pairs(a=tuple(x["seconds"] for x in one), b=tuple(x["seconds"] for x in two))
    common.show_pairs("one / two", ("one process", "two processes"), found)
    common.aim("one / two", found.ratio, ">=", 1.6, meant=not given.quick)


if __name__ == "__main__":
    main()
