"""What the framework costs: a training run through plan, runner and records, against the bare loop.

The arm `cot` of the shipped demo, whose steps are the shortest there are. Both sides build the same model and draw the
same batches; the bare loop has forward, backward, clipping, AdamW, and the validation at the end. Compared: the weights
at the end. Aim: less than 5% more seconds in the training loop (records, events, monitors, checkpoints). What a run
takes besides its loop (plan, locks, fingerprints, building the model, reading data, saving and rescoring) does not grow
with the steps, and is given in seconds.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

import common
from stepwell.engine.worker import seed_of
from stepwell.plan import Plan, jobs, load_plan
from stepwell.runner import run
from stepwell.studies.thoughts.build import build
from stepwell.studies.thoughts.params import ModelParams, TrainParams
from stepwell.studies.thoughts.streams import ThoughtStream
from stepwell.studies.thoughts.training import ThoughtModel
from stepwell.train import Training


def plans(steps: int) -> tuple[Plan, Plan]:
    """The demo's data and model stages, and the same with the training; no gates, in this process."""
    small = ["data.n_train=4000", "data.audited=100", "data.n_steer=200", "data.n_test=50", "model.selftest_steps=1"]
    short = [f"train.steps={steps}", f"train.validate_every={steps}", "train.restart=null", "engine=inline"]
    demo = load_plan("thoughts", rung="demo", overrides=[*small, *short, "workers=1"])
    axes = {**demo.axes, "arm": ("cot",)}
    chosen = [tuple(stage for stage in demo.stages if stage.name in names)
              for names in (("data", "model"), ("data", "model", "train"))]  # fmt: skip
    before, whole = (demo.model_copy(update={"axes": axes, "gates": (), "stages": stages}) for stages in chosen)
    return before, whole


class BareLoop:
    """The same training without plan, runner or records."""

    def __init__(self, plan: Plan, data: Path) -> None:
        (job,) = (job for job in jobs(plan) if job.stage == "train")
        self.params = TrainParams.model_validate(plan.stage("train").params)
        seed = seed_of(plan.seed, job)
        built = build(ModelParams.model_validate(plan.stage("model").params), "cot", seed=seed, device="cpu")
        train, steer = (built.reader(data, name) for name in ("train", "steer"))
        size = {"batch_size": self.params.batch_size, "accumulation": self.params.accumulation}
        self.stream = ThoughtStream(train, "cot", **size, seed=seed)
        self.model, self.seed = ThoughtModel(built=built, steer=steer, seed=seed), seed

    def train(self) -> None:
        """Every step, and one validation at the end."""
        params, module = self.params, self.model.module
        torch.manual_seed(self.seed)
        optimizer = torch.optim.AdamW(
            module.parameters(), lr=params.lr, betas=params.betas, weight_decay=params.weight_decay
        )
        total = params.total_steps(self.stream.steps_per_epoch)
        module.train()
        for step in range(total):
            optimizer.param_groups[0]["lr"] = params.lr * params.lr_factor(step, total)
            optimizer.zero_grad(set_to_none=True)
            for batch in self.stream.batches(step, lambda generator: 0):
                nats, tokens = self.model.objective(batch)
                (nats / tokens).backward()
            nn.utils.clip_grad_norm_(module.parameters(), params.clip or float("inf"))
            optimizer.step()
        module.eval()
        self.model.validate(0)


def framed(plan: Plan, template: Path, folder: Path, kind: str) -> tuple[float, float]:
    """Seconds of the training loop within a run, and of the run's rest; data and model stage are done already."""
    shutil.copytree(template, folder)
    inside: list[float] = []
    loop = Training.run

    def timed_loop(self: Training, state: Any = None) -> Any:
        began = common.clock(kind)
        try:
            return loop(self, state)
        finally:
            inside.append(common.clock(kind) - began)

    Training.run = timed_loop
    try:
        whole = common.timed(lambda: run(plan, folder), kind)
    finally:
        Training.run = loop
    return inside[0], whole - inside[0]


def differing(trained: Path, model: nn.Module) -> list[str]:
    """Weights of the run that are not, bit for bit, those of the bare loop."""
    ours, theirs = load_file(str(trained)), model.state_dict()
    return [name for name, weight in ours.items() if not torch.equal(weight, theirs[name])]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--steps", type=int, help="optimizer steps (400)")
    parser.set_defaults(threads=1)  # as the demo has it
    given = parser.parse_args(arguments)
    common.header("bench_overhead", given, arguments)
    steps, pairs = given.steps or (30 if given.quick else 400), given.pairs or (1 if given.quick else 5)
    before, plan = plans(steps)
    loops, bare, rest, wrong = [], [], [], []
    with tempfile.TemporaryDirectory() as place, common.threads(plan.threads_per_job):
        template = Path(place) / "template"
        run(before, template)
        for pair in range(pairs + 1):
            folder = Path(place) / f"run-{pair}"
            loop, other = framed(plan, template, folder, given.clock)
            alone = BareLoop(plan, template / "artifacts" / "data")
            seconds = common.timed(alone.train, given.clock)
            (trained,) = folder.glob("artifacts/train*/last.safetensors")
            wrong += differing(trained, alone.model.module)
            if pair:  # the first pair warms up
                loops.append(loop)
                rest.append(other)
                bare.append(seconds)
    common.same("weights at the end", not wrong, f"{steps} steps, {len(wrong)} tensors differ")
    found = common.Pairs(a=tuple(loops), b=tuple(bare))
    common.show_pairs("loop in a run / bare loop", ("loop in a run", "bare loop"), found)
    print(f"  a run besides its loop: median {median(rest):.2f} s, whatever the number of steps")
    common.aim("loop in a run / bare loop", found.ratio, "<=", 1.05, meant=not given.quick)


if __name__ == "__main__":
    main()
