"""The one training loop of the study: what is drawn, updated, written, and everything that a resume needs.

A step is an optimizer step, never a micro-batch, and a pure function of the seed, its number and the checkpoint; so a
training that is killed and resumed writes the same records and weights as one that is not, on the same machine.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Protocol

import torch

from stepwell.adapt.covering import GradientNorms, assert_covered, clip_gradients
from stepwell.adapt.frozen import Seal
from stepwell.errors import StageFailed, StepwellError
from stepwell.losses import Logged, LossWeights, Summed, Weighing
from stepwell.randomness import random_state, set_random_state
from stepwell.recipe import too_many_skipped
from stepwell.sharding import shard
from stepwell.stage import StageContext
from stepwell.studies.wire.kinds import NORMS
from stepwell.studies.wire.model import FOLDER, Wire, restore_states, states_of
from stepwell.studies.wire.objective import Rows
from stepwell.studies.wire.params import WireRecipe
from stepwell.tasks.base import QA


@dataclass(frozen=True, kw_only=True)
class Moment:
    """When a step is made.

    Attributes:
        step: optimizer steps done before it.
        epoch, epochs: passes done before it, and in all; both may be broken numbers.
        last: whether it is the last one.
    """

    step: int
    epoch: float
    epochs: float
    last: bool


class Lesson(Protocol):
    """What a loop teaches; it holds what its records and looks need beside the loop's own."""

    @property
    def mode(self) -> str:
        """Of the records."""
        ...

    @property
    def weights(self) -> LossWeights:
        """Of its losses."""
        ...

    def prepare(self, items: Sequence[QA], batch_size: int, told: Callable[[int], None]) -> None:
        """What has to be known of all items before the first step; `told` takes how many are done."""
        ...

    def rows(self, items: Sequence[QA], batch_size: int, moment: Moment) -> list[Rows]:
        """The micro-batches of a step."""
        ...

    def counts(self, batches: Sequence[Rows], vectors: int) -> dict[str, int]:
        """Elements of every loss in all micro-batches of a step together."""
        ...

    def terms(self, rows: Rows, vectors: int, moment: Moment) -> dict[str, Summed]:
        """The losses of a micro-batch."""
        ...

    def look(self, moment: Moment) -> dict[str, Any]:
        """After a step: fields of its record that are measured on held-out items."""
        ...

    def fields(self, items: Sequence[QA], moment: Moment) -> dict[str, Any]:
        """Fields of a step's record that are about its items."""
        ...

    def after(self, moment: Moment) -> None:
        """After a step's record: records of its own."""
        ...

    def outcome(self) -> dict[str, Any]:
        """Fields of the record that says how the training ended."""
        ...

    def state(self) -> dict[str, Any]:
        """What of it belongs into a checkpoint."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`."""
        ...


@dataclass
class _Progress:
    """Where a training stands; all of it is in the checkpoint.

    Attributes:
        step: optimizer steps done.
        skipped: of these, how many left the weights alone.
        largest: gradient norm, of those that are finite.
    """

    step: int = 0
    skipped: int = 0
    largest: float = 0.0


class Loop:
    """One stage's training.

    Args:
        wire: what is trained.
        lesson: what it is taught.
        recipe: how it is optimised.
        train: the items.
        ctx: of the job.

    Raises:
        StepwellError: fewer items than a step takes, or a trained part that is in no optimizer.
    """

    def __init__(self, wire: Wire, lesson: Lesson, recipe: WireRecipe, train: Sequence[QA], ctx: StageContext) -> None:
        self.wire, self.lesson, self.recipe, self.train, self.ctx = wire, lesson, recipe, train, ctx
        self.per_step = recipe.batch_size * recipe.accumulation
        self.steps_per_epoch = len(train) // self.per_step
        if not self.steps_per_epoch:
            raise StepwellError(
                f"a step takes {self.per_step} items, and the training set has {len(train)}",
                "lower `batch_size` or `accumulation`, or train on more items",
            )
        self.total = recipe.total_steps(self.steps_per_epoch)
        self.parts, self.seal = wire.parts(), sealed(wire)
        self.weighing, self.progress = Weighing(lesson.weights), _Progress()
        self._trainable = [p for part in self.parts.values() for p in part.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self._trainable, lr=recipe.lr, betas=recipe.betas, weight_decay=recipe.weight_decay
        )
        assert_covered([self.optimizer], self.parts, others=[wire.backbone])
        # An epoch's order is asked for at every step of it.
        self._order = lru_cache(maxsize=2)(self._drawn_order)

    def run(self, state: dict[str, Any] | None) -> None:
        """Train to the end, from a checkpoint where there is one, and save the artifact."""
        self._begin(state)
        began, began_at = time.perf_counter(), self.progress.step
        while self.progress.step < self.total:
            self._step()
            step = self.progress.step
            rate = (step - began_at) / (time.perf_counter() - began)
            self.ctx.progress(step, self.total, steps_per_second=round(rate, 3))
            if step % self.recipe.checkpoint_every == 0 or step == self.total:
                self.seal.check_gradients()
                self.ctx.save(self._state())
                self.ctx.stop_if_asked()
        self._finish()

    def _begin(self, state: dict[str, Any] | None) -> None:
        if state is None:
            torch.manual_seed(self.ctx.seed)
            counted(self.wire, self.seal, self.ctx)
        else:
            restore_states(self.wire, state["parts"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.weighing.restore(state["weighing"])
            self.lesson.restore(state["lesson"])
            self.progress = _Progress(**state["progress"])
        # Those of steps that are done too: the same batches, so the same bits, after a resume.
        used = [item for step in range(self.total) for item in self._items_of(step)]
        self.lesson.prepare(
            used, self.recipe.batch_size, lambda done: self.ctx.progress(0, self.total, teacher_items=done)
        )
        if state is not None:
            set_random_state(state["random"])
        self.wire.train()

    def _step(self) -> None:
        """One optimizer step with its record."""
        progress, moment = self.progress, self._moment()
        vectors = random.Random(f"{self.ctx.seed}/{moment.step}/vectors").choice(self.wire.vectors)
        items, lr = self._items_of(moment.step), self.recipe.lr_at(moment.step, self.total)
        batches = self.lesson.rows(items, self.recipe.batch_size, moment)
        logged, norms = self._update(batches, vectors, moment, lr)
        sound = logged.finite and norms.finite
        progress.step += 1
        progress.skipped += not sound
        if norms.finite:
            progress.largest = max(progress.largest, norms.total)
        seen = self.lesson.look(moment)
        if progress.step % self.recipe.log_every == 0 or moment.last or not sound:
            self.ctx.write(
                "step", step=progress.step, epoch=int(moment.epoch) + 1, mode=self.lesson.mode, lr=lr,
                vectors=self.wire.vectors[-1], drawn=vectors, items=self.per_step, micro_batches=len(batches),
                skipped=not sound, scale=self.wire.scale, grad_norm=norms.total, **_named(norms),
                **{**self.lesson.fields(items, moment), **logged.fields()}, **seen,
            )  # fmt: skip
        self._give_up()
        self.lesson.after(moment)

    def _update(self, batches: Sequence[Rows], vectors: int, moment: Moment, lr: float) -> tuple[Logged, GradientNorms]:
        """Gradients of all micro-batches, one clip over all parts, one step of the optimizer where all is finite."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        weighed, ranks = (
            self.weighing.step(moment.step / self.total, self.lesson.counts(batches, vectors)),
            self.ctx.ranks,
        )
        ranks.seed(self.ctx.seed, moment.step)
        with self.wire.speaking():
            if ranks.size > 1 and not weighed.is_weighed:
                with torch.no_grad():
                    weighed.measure(self.lesson.terms(batches[0], vectors, moment))
            for rows in ranks.share(batches, self._parts, equally=self.ctx.shard, alike=False):
                weighed.loss(self.lesson.terms(rows, vectors, moment)).backward()
        ranks.add_up(self._trainable)
        norms, logged = clip_gradients(self.parts, self.recipe.clip), weighed.close(ranks)
        if logged.finite and norms.finite:
            self.optimizer.step()
        return logged, norms

    def _parts(self, rows: Rows, count: int) -> list[Rows]:
        return rows.parts(count, alike=self.ctx.shard)

    def _moment(self) -> Moment:
        at = self.progress.step
        return Moment(
            step=at, epoch=at / self.steps_per_epoch, epochs=self.total / self.steps_per_epoch,
            last=at + 1 == self.total,
        )  # fmt: skip

    def _items_of(self, step: int) -> list[QA]:
        epoch, inside = divmod(step, self.steps_per_epoch)
        order = self._order(epoch)[inside * self.per_step : (inside + 1) * self.per_step]
        return [self.train[place] for place in order]

    def _drawn_order(self, epoch: int) -> list[int]:
        order = list(range(len(self.train)))
        random.Random(f"{self.ctx.seed}/{epoch}/order").shuffle(order)
        return order

    def _give_up(self) -> None:
        step, skipped = self.progress.step, self.progress.skipped
        if too_many_skipped(skipped, step, self.recipe.most_skipped):
            raise StageFailed(
                f"{skipped} of {step} optimizer steps were skipped: a loss or the gradient is not finite",
                "Lower `lr`, or look for damaged items; `recipe.most_skipped` says how many steps may be skipped.",
                stage=self.ctx.job.id,
            )

    def _state(self) -> dict[str, Any]:
        """Everything that the rest of the training depends on."""
        return {
            "parts": states_of(self.wire), "optimizer": self.optimizer.state_dict(),
            "weighing": self.weighing.state(), "progress": asdict(self.progress), "lesson": self.lesson.state(),
            "random": random_state(),
        }  # fmt: skip

    def _finish(self) -> None:
        """Prove that the model is as it was, say how it ended, and save everything as one artifact."""
        proved(self.seal, self.ctx)
        progress = self.progress
        self.ctx.write(
            "outcome", **self.lesson.outcome(), steps=progress.step, skipped=progress.skipped,
            max_grad_norm=progress.largest if math.isfinite(progress.largest) else None,
        )  # fmt: skip
        save(self.wire, self.lesson.mode, progress.step, self.ctx)


def placed(wire: Wire, ctx: StageContext) -> Wire:
    """A complete wire on the device: its model in parts, where the job's processes hold it so."""
    if ctx.shard:
        trained = wire.parts().values()
        own = [parameter for part in trained for parameter in part.parameters()]
        ctx.event("sharded", **shard(wire.backbone, ctx.ranks, ctx.device, but=own))
        for part in trained:
            part.to(ctx.device)
    return wire


def sealed(wire: Wire) -> Seal:
    """The seal on all of the language model but its LoRAs."""
    return Seal.of(wire.backbone, but=[p for part in wire.parts().values() for p in part.parameters()])


def counted(wire: Wire, seal: Seal, ctx: StageContext) -> None:
    """Write how many parameters there are, of which model, under which contract."""
    parts = wire.parts()
    trained = {id(p): p.numel() for part in parts.values() for p in part.parameters() if p.requires_grad}
    total = sum(p.numel() for p in wire.backbone.parameters()) + sum(
        p.numel() for name, part in parts.items() if name not in ("reader", "speaker") for p in part.parameters()
    )
    ctx.write("parameters", trainable=sum(trained.values()), total=total, base=seal.sha256,
              contract=wire.contract.fingerprint())  # fmt: skip


def proved(seal: Seal, ctx: StageContext) -> None:
    """Prove that the model is as it was, and write it. Raises StepwellError where it is not."""
    seal.check()
    ctx.write("check", name="frozen", passed=True, detail=f"{len(seal.hashes)} tensors of the model, by hash")


def save(wire: Wire, mode: str, step: int, ctx: StageContext) -> None:
    """The artifact that later stages go on from."""
    wire.save(ctx.folder / FOLDER, stage=mode, step=step, seed=ctx.seed)


def _named(norms: GradientNorms) -> dict[str, float | None]:
    named = {f"grad_norm_{name}": value for name, value in norms.parts.items()}
    return {name: named.get(name) for name in sorted(NORMS)}
