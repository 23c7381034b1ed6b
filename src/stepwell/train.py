"""The one visible training loop.

A step is a pure function of the seed, the step's number and the state in the checkpoint; so a run that is killed and
resumed writes the same records, byte for byte, as one that is not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from stepwell.errors import StageFailed, StepwellError
from stepwell.monitor import Alert, Watch
from stepwell.randomness import random_state, set_random_state
from stepwell.ranks import Ranks
from stepwell.recipe import Curriculum, Monitors, Recipe, StageMix
from stepwell.sharding import Trained, whole_state
from stepwell.stage import StageContext


class Stream(Protocol):
    """Training data by number: the same number gives the same batches."""

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one pass over the items."""
        ...

    def batches(self, step: int, stages: Callable[[torch.Generator], int]) -> Sequence[Any]:
        """The micro-batches of one optimizer step; `stages` draws the curriculum stage of a batch or an item."""
        ...


class Model(Protocol):
    """What the loop trains and asks.

    `objective` returns the sum of nats and their number. `parts` cuts a micro-batch by its rows into so many at most,
    for as many processes. `alike` says whether every micro-batch runs the layers equally often. `stepped` hears the
    mean loss of each optimizer step that was made.
    """

    @property
    def module(self) -> nn.Module: ...  # noqa: D102
    @property
    def alike(self) -> bool: ...  # noqa: D102
    def objective(self, batch: Any) -> tuple[Tensor, int]: ...  # noqa: D102
    def supervised(self, batch: Any) -> int: ...  # noqa: D102
    def validate(self, stage: int) -> tuple[int, int]: ...  # noqa: D102
    def parts(self, batch: Any, count: int) -> Sequence[Any]: ...  # noqa: D102
    def stepped(self, loss: float) -> None: ...  # noqa: D102


@dataclass
class Progress:
    """Where a training stands; all of it is in the checkpoint.

    Attributes:
        step: optimizer steps done.
        stage: curriculum stage.
        stage_began: the step at which the stage began.
        best: share of the steering split right at the best validation of the last stage; None before one.
        off_the_ground: whether stage 0 has reached the bar of `restart`.
    """

    step: int = 0
    stage: int = 0
    stage_began: int = 0
    best: float | None = None
    off_the_ground: bool = False


class Stuck(Exception):
    """A training that has not come off the ground, and may begin again with other weights.

    Args:
        step: when it was given up.
        reason: in one sentence.
    """

    def __init__(self, step: int, reason: str) -> None:
        self.step, self.reason = step, reason
        super().__init__(reason)


@dataclass(kw_only=True)
class Training:
    """A model, its data and its recipe, ready to `run`.

    Args:
        model: what is trained.
        stream: its data.
        recipe, curriculum, monitors: how. `curriculum` is None for arms without stages.
        ctx: where records, events and checkpoints go.
        seed: of data order and dropout.
        attempt: how often this training has begun again.
        restart: (bar, steps): `Stuck` is raised when stage 0 has not reached that accuracy by then; None = never.
        on_best: called when the steering accuracy of the last stage is better than before.
    """

    model: Model
    stream: Stream
    recipe: Recipe
    curriculum: Curriculum | None
    monitors: Monitors
    ctx: StageContext
    seed: int
    attempt: int = 0
    restart: tuple[float, int] | None = None
    on_best: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        self.total_steps = self.recipe.total_steps(self.stream.steps_per_epoch)
        self.progress, self.watch = Progress(), Watch(self.monitors)
        self.trained = Trained(self.model.module, self.ctx.ranks)
        self.optimizers = self._new_optimizers()

    def run(self, state: dict[str, Any] | None = None) -> Progress:
        """Train to the end, from the checkpoint `state` where there is one.

        Raises:
            Stuck: see `restart`.
            StageFailed: a monitor asked to stop.
            Interrupted: the user or the system asked to stop, right after a checkpoint.
        """
        self._restore(state)
        # Whole runs of a job share its process: dropout must not depend on what ran before.
        self.model.module.train()
        began, began_at = time.perf_counter(), self.progress.step
        while self.progress.step < self.total_steps:
            loss, grad_norm, lr = self._update()
            self.progress.step += 1
            step = self.progress.step
            self._act(self.watch.loss(step, loss, grad_norm))
            if step % self.recipe.log_every == 0 or step == self.total_steps:
                self.ctx.write("step", **self._where(), loss=loss, lr=lr, grad_norm=grad_norm)
            rate = (step - began_at) / (time.perf_counter() - began)
            self.ctx.progress(step, self.total_steps, loss=round(loss, 4), steps_per_second=round(rate, 3),
                              curriculum_stage=self.progress.stage)  # fmt: skip
            if step % (self.recipe.validate_every or self.stream.steps_per_epoch) == 0 or step == self.total_steps:
                self._validate()
            self._end_of_epoch()
            if step % self.recipe.checkpoint_every == 0 or step == self.total_steps:
                self.save()
                self.ctx.stop_if_asked()
        return self.progress

    def _update(self) -> tuple[float, float, float]:
        """One optimizer step: loss in nats a supervised token, gradient norm before clipping, learning rate."""
        step, module = self.progress.step, self.model.module
        factor = self.recipe.lr_factor(step, self.total_steps)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = factor * optimizer.defaults["lr"]
        batches = self.stream.batches(step, self._draw_stage)
        # The mean is over the tokens of the whole step, so that accumulation equals one large batch.
        tokens = sum(self.model.supervised(batch) for batch in batches)
        total = 0.0
        module.zero_grad(set_to_none=True)
        ranks = self.ctx.ranks
        ranks.seed(self.seed, step)
        for batch in ranks.share(batches, self.model.parts, equally=self.ctx.shard, alike=self.model.alike):
            device = next(module.parameters()).device
            with torch.autocast(device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16"):
                nats, _ = self.model.objective(batch)
            (nats / tokens).backward()
            total += float(nats.detach())
        (total,) = self.trained.add_up([total])
        grad_norm = self.trained.clip(float("inf") if self.recipe.clip is None else self.recipe.clip)
        if grad_norm == grad_norm and grad_norm != float("inf"):
            for optimizer in self.optimizers:
                optimizer.step()
        self.model.stepped(total / tokens)
        return total / tokens, grad_norm, factor * self.recipe.lr

    def _draw_stage(self, generator: torch.Generator) -> int:
        """The present stage, or with the mix's share one of the mixture."""
        stage = self.progress.stage
        return stage if self.curriculum is None else draw_stage(self.curriculum, stage, generator)

    def _validate(self) -> None:
        """Ask the steering split, tell the monitors, and move the curriculum on where it goes by accuracy."""
        self.model.module.eval()
        right, n = self.model.validate(self.progress.stage)
        self.model.module.train()
        accuracy = right / n if n else None
        self.ctx.write("validation", **self._where(), accuracy=accuracy, n=n)
        self._act(self.watch.accuracy(self.progress.step, right, n))
        self._give_up(accuracy)
        last = self.curriculum is None or self.progress.stage == self.curriculum.stages
        if last and accuracy is not None and (self.progress.best is None or accuracy > self.progress.best):
            self.progress.best = accuracy
            self.on_best()
        if self.curriculum is None or self.curriculum.advance != "accuracy" or last:
            return
        if self.progress.step >= self.total_steps:
            return  # a stage that no step is trained in must not be the one that is evaluated
        inside = self.progress.step - self.progress.stage_began
        if inside >= self.curriculum.min_steps and accuracy is not None and accuracy >= self.curriculum.bar:
            self._advance(f"accuracy {accuracy:.3f} reached {self.curriculum.bar:g}")
        elif self.curriculum.max_steps is not None and inside >= self.curriculum.max_steps:
            self._advance(f"{inside} steps in the stage, the most it is given")

    def _give_up(self, accuracy: float | None) -> None:
        """Raise `Stuck` where stage 0 stays below the bar; a bar once reached is not asked for again."""
        if self.restart is None or self.progress.off_the_ground or self.progress.stage > 0:
            return
        bar, steps = self.restart
        if accuracy is not None and accuracy >= bar:
            self.progress.off_the_ground = True
        elif self.progress.step >= steps:
            raise Stuck(self.progress.step, f"accuracy {accuracy} in stage 0, below {bar:g} after {steps} steps")

    def _end_of_epoch(self) -> None:
        epoch, inside = divmod(self.progress.step, self.stream.steps_per_epoch)
        if inside:
            return
        if self.recipe.reset_optimizer == "epoch":
            self.optimizers = self._new_optimizers()
        curriculum = self.curriculum
        if curriculum is None or curriculum.advance != "epochs" or self.progress.step >= self.total_steps:
            return
        if min(epoch // curriculum.epochs_per_stage, curriculum.stages) > self.progress.stage:
            self._advance(f"{curriculum.epochs_per_stage} epochs in the stage")

    def _advance(self, reason: str) -> None:
        self.progress.stage += 1
        self.progress.stage_began = self.progress.step
        self.watch.new_stage()
        if self.recipe.reset_optimizer == "stage":
            self.optimizers = self._new_optimizers()
        self.ctx.write("advance", step=self.progress.step, curriculum_stage=self.progress.stage, reason=reason)

    def _new_optimizers(self) -> list[torch.optim.Optimizer]:
        return new_optimizers(self.model.module, self.recipe, self.trained)

    def _where(self) -> dict[str, Any]:
        stage, step = self.progress.stage, self.progress.step
        # The step that ends an epoch belongs to it: epoch 1 is the first.
        epoch = (step - 1) // self.stream.steps_per_epoch + 1
        return {"step": step, "epoch": epoch, "curriculum_stage": stage if self.curriculum else None}

    def _act(self, alerts: Sequence[Alert]) -> None:
        for alert in alerts:
            self.ctx.write("alert", monitor=alert.monitor, step=alert.step, message=alert.message, stopped=alert.stop)
            if alert.stop:
                raise StageFailed(
                    f"monitor `{alert.monitor}` stopped the training at step {alert.step}: {alert.message}",
                    f"Look at the curves; a lower lr or a gradient clip often helps. `monitors.{alert.monitor}: alert` "
                    "in the stage's params lets it go on.",
                    stage=self.ctx.job.id,
                )

    def save(self) -> None:
        """Replace the checkpoint by everything the rest of the training depends on."""
        self.ctx.save({
            "model": self.trained.state(),
            "optimizers": [self.trained.state_of(optimizer) for optimizer in self.optimizers],
            "progress": asdict(self.progress),
            "watch": self.watch.state(),
            "random": random_state(),
            "attempt": self.attempt,
        })  # fmt: skip

    def _restore(self, state: dict[str, Any] | None) -> None:
        if state is None:
            torch.manual_seed(self.seed)
            return
        self.trained.restore(state["model"])
        for optimizer, held in zip(self.optimizers, state["optimizers"], strict=True):
            self.trained.restore_optimizer(optimizer, held)
        self.progress = Progress(**state["progress"])
        self.watch = Watch.from_state(self.monitors, state["watch"])
        set_random_state(state["random"])


def new_optimizers(module: nn.Module, recipe: Recipe, trained: Trained | None = None) -> list[torch.optim.Optimizer]:
    """Fresh optimizers over what is trainable: AdamW, after Muon for the layers' matrices where the recipe says so.

    AdamW decays vectors too (norms, biases, the shared latent), as in the original.

    Args:
        module: what is trained.
        recipe: how.
        trained: what this process holds of it, where others hold the rest.

    Raises:
        StepwellError: Muon, which needs whole matrices, where a process has parts of them.
    """
    trained = trained or Trained(module, Ranks())
    trainable = trained.parameters
    adamw = {"lr": recipe.lr, "betas": recipe.betas, "weight_decay": recipe.weight_decay}
    if recipe.optimizer == "adamw":
        return [torch.optim.AdamW(trainable, **adamw)]
    assert recipe.muon_lr is not None
    if trained.in_parts:
        raise StepwellError("Muon needs whole matrices, and `shard` gives each process a part of them",
                            "set the recipe's `optimizer` to adamw, or leave `shard` out")  # fmt: skip
    tables = {id(part.weight): len(part.weight) for part in module.modules() if isinstance(part, nn.Embedding)}
    vocabulary = max(tables.values(), default=0)

    def of_a_layer(p: Tensor) -> bool:
        # A head that is not tied to the embedding is a table too: one row a token.
        is_head = p.shape[0] == vocabulary > p.shape[-1]
        return p.ndim == 2 and id(p) not in tables and not is_head

    matrices = [p for p in trainable if of_a_layer(p)]
    others = [p for p in trainable if not of_a_layer(p)]
    muon = torch.optim.Muon(
        matrices, lr=recipe.muon_lr, weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw"
    )
    return [muon, torch.optim.AdamW(others, **adamw)]


def draw_stage(curriculum: Curriculum, stage: int, generator: torch.Generator) -> int:
    """The stage of a batch or an item: `stage`, or with the mix's share one of the mixture (see `StageMix`)."""
    mix: StageMix = curriculum.mix
    many = stage if mix.over == "earlier" else curriculum.stages + 1
    if mix.share == 0 or many == 0 or float(torch.rand((), generator=generator)) >= mix.share:
        return stage
    weights = torch.ones(many) if mix.weights == "uniform" else torch.arange(1.0, many + 1)
    return int(torch.multinomial(weights, 1, generator=generator))


def save_weights(module: nn.Module, path: Path) -> None:
    """The weights as safetensors; tied weights once, as the module shares them.

    Where processes hold the module in parts, all of them must call it.
    """
    from safetensors.torch import save_model

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_model(cast("nn.Module", _Whole(module)), str(partial))
    partial.replace(path)


class _Whole:
    """A module as `save_model` asks for it, with its parts gathered."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def state_dict(self) -> dict[str, Any]:
        """By name."""
        return whole_state(self.module)


def load_weights(module: nn.Module, path: Path) -> None:
    """Read weights that `save_weights` wrote into a module of the same shape; missing or spare ones are an error."""
    from safetensors.torch import load_model

    load_model(module, path)
