"""Stage kinds for tests of plans and the command line: importing this module registers them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, PositiveInt

from stepwell.devices import Work
from stepwell.kinds import Kind, register
from stepwell.spec import DataFile, Spec
from stepwell.stage import StageContext


class Shape(Spec):
    width: PositiveInt = 4


class Horse(Spec):
    kind: Literal["horse"] = "horse"
    legs: PositiveInt = 4


class Steam(Spec):
    kind: Literal["steam"] = "steam"
    pressure: PositiveInt = 1


class DataParams(Spec):
    n: PositiveInt = 10
    valid: DataFile | None = None


class TrainParams(Spec):
    lr: float = 0.1
    steps: PositiveInt = 3
    shape: Shape = Shape()
    sizes: tuple[int, ...] = (1,)
    mode: Literal["fast", "slow"] = "fast"
    amsgrad: bool = False
    accuracy: float = 0.9
    engine: Horse | Steam = Field(default=Horse(), discriminator="kind")


def make_data(params: DataParams, ctx: StageContext) -> None:
    ctx.write("dataset", set="toy", n=params.n)


def train(params: TrainParams, ctx: StageContext) -> None:
    for step in range(params.steps):
        ctx.write("validation", step=step, epoch=step, accuracy=params.accuracy, n=1000, loss=1.0)
        ctx.progress(step + 1, params.steps)


def train_work(params: TrainParams, axes: Mapping[str, Any], inputs: Mapping[str, Spec]) -> Work:
    """2 FLOP x width x steps x items x (arm `shared`: twice): easily checked by hand."""
    items = inputs["data"]
    assert isinstance(items, DataParams)
    flop = 2.0 * params.shape.width * params.steps * items.n * (2 if axes.get("arm") == "shared" else 1)
    return Work(flop=flop, tokens=params.steps * items.n)


VALIDATION = frozenset({"step", "epoch", "accuracy", "n", "loss"})
HERE = __name__

register(
    Kind(name="mock.data", params=DataParams, run=f"{HERE}:make_data", yields={"dataset": frozenset({"set", "n"})})
)
register(
    Kind(
        name="mock.train",
        params=TrainParams,
        run=f"{HERE}:train",
        yields={"validation": VALIDATION, "step": frozenset({"step", "loss"})},
        estimate=f"{HERE}:train_work",
    )
)

PLAN = """\
study: toy
title: A toy
question: Does it work?
axes:
  arm: [cot, shared]
  seed: [0, 1]
stages:
  - name: data
    kind: mock.data
    params: {n: 10}
  - name: train
    kind: mock.train
    needs: [data]
    each: {arm: arm, seed: seed}
    params: {lr: 1e-3, shape: {width: 8}}
  - name: evaluate
    kind: mock.train
    needs: [train, data]
    each: {arm: arm}
  - name: more
    kind: mock.train
    on: phase2
    needs: [evaluate, data]
gates:
  - name: early
    asks: Does it learn?
    after: [train]
    criteria:
      - metric: accuracy
        stage: train
        where: {kind: validation, arm: cot}
        at_most: {epoch: 10}
        pick: last
        comparison: ">="
        threshold: .7
    routes: {inconclusive: phase2}
rungs:
  demo: {}
  hero:
    train.lr: 3e-4
    axes.seed: [0, 1, 2]
"""
