"""The stages `wire.stage-a` and `wire.stage-b`: what is trained around a frozen model, and the proof that it is frozen.

A step is an optimizer step, never a micro-batch, and a pure function of the seed, its number and the checkpoint; so a
training that is killed and resumed writes the same records and weights as one that is not, on the same machine.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import torch

from stepwell.adapt.covering import GradientNorms, assert_covered, clip_gradients
from stepwell.adapt.frozen import Seal
from stepwell.errors import StageFailed, StepwellError
from stepwell.latents.contract import Contract
from stepwell.losses import Logged, LossWeights, Weighing, coins, gold_share
from stepwell.randomness import random_state, set_random_state
from stepwell.recipe import too_many_skipped
from stepwell.stage import Input, StageContext
from stepwell.studies.qa.data import read_split
from stepwell.studies.qa.models import loaded
from stepwell.studies.wire.held import Held
from stepwell.studies.wire.model import FOLDER, Wire, restore_states, states_of
from stepwell.studies.wire.objective import Objective, Rows
from stepwell.studies.wire.params import NORMS, TERMS, StageAParams, StageBParams, TrainingParams
from stepwell.tasks.base import QA

MEASURED = 8
"""Prompts on which a deep prefix is measured."""
TRAINED = ("wire.stage-a", "wire.stage-b")


def stage_a(params: StageAParams, ctx: StageContext) -> None:
    """Train encoder and adapter; the language model is frozen, and proved to be."""
    state, contract = ctx.restored(), loaded(ctx)
    name, train = str(ctx.job.axes["arm"]), _items(ctx, params)
    if name not in params.arms:
        raise StepwellError(f"there is no arm `{name}`; arms: {', '.join(params.arms)}", "name some in `axes.arm`")
    arm = params.arms[name]
    axis = ctx.job.axes.get("vectors")
    vectors = arm.encoder.vectors if axis is None else (int(axis),)
    restoring = "reconstruction" in params.losses.terms
    wire = Wire(contract, arm, vectors, texts=_texts(contract, train), restoring=restoring, seed=ctx.seed)
    _Loop(wire, params, params.losses, train, ctx).run(state)


def stage_b(params: StageBParams, ctx: StageContext) -> None:
    """Go on from the stage before, with LoRA on the language model and examples that are read as text among others."""
    state, contract, train = ctx.restored(), loaded(ctx), _items(ctx, params)
    folder = trained(ctx).folder / FOLDER
    texts = _texts(contract, train)
    wire = Wire.load(contract, folder, texts=texts)
    if wire.lora is None:
        wire.speak(params.lora, seed=ctx.seed)
    elif wire.lora != params.lora:
        raise StepwellError(
            "the stage before was trained with another LoRA than this one names", "give both the same `lora`",
            stage=ctx.job.id,
        )  # fmt: skip
    wire.restore_prompts("reconstruction" in params.losses.terms, seed=ctx.seed)
    _Loop(wire, params, params.weights(), train, ctx).run(state)


def trained(ctx: StageContext) -> Input:
    """The job whose artifact is gone on with, or asked.

    Raises:
        StepwellError: none is needed, or several are.
    """
    found = [made for inputs in ctx.inputs.values() for made in inputs if made.job.kind in TRAINED]
    if len(found) != 1:
        raise StepwellError(
            f"the stage needs one training, and has {len(found)}",
            "name one stage of the kinds `wire.stage-a` and `wire.stage-b` in its `needs`, on the same axes",
            stage=ctx.job.id,
        )
    return found[0]


def _items(ctx: StageContext, params: TrainingParams) -> list[QA]:
    (data,) = ctx.inputs["data"]
    return read_split(data.folder, "train", params.items)


def _texts(contract: Contract, items: Sequence[QA]) -> list[tuple[int, ...]]:
    return [contract.text(item) for item in items[:MEASURED]]


@dataclass
class _Progress:
    """Where a training stands; all of it is in the checkpoint.

    Attributes:
        step: optimizer steps done.
        skipped: of these, how many left the weights alone.
        peak, peak_step: the best first-token accuracy on held-out items, and when.
        final: the last one.
        largest: gradient norm, of those that are finite.
    """

    step: int = 0
    skipped: int = 0
    peak: float | None = None
    peak_step: int | None = None
    final: float | None = None
    largest: float = 0.0


class _Loop:
    """One stage's training: what is drawn, what is minimised, what is written, and everything a resume needs."""

    def __init__(
        self, wire: Wire, params: TrainingParams, losses: LossWeights, train: Sequence[QA], ctx: StageContext
    ) -> None:
        self.wire, self.params, self.recipe, self.ctx = wire, params, params.recipe, ctx
        self.mode = "b" if isinstance(params, StageBParams) else "a"
        self.train = train
        self.per_step = self.recipe.batch_size * self.recipe.accumulation
        self.steps_per_epoch = len(train) // self.per_step
        if not self.steps_per_epoch:
            raise StepwellError(
                f"a step takes {self.per_step} items, and the training set has {len(train)}",
                "lower `batch_size` or `accumulation`, or train on more items",
            )
        self.total = self.recipe.total_steps(self.steps_per_epoch)
        self.parts = wire.parts()
        self.seal = Seal.of(wire.backbone, but=[p for part in self.parts.values() for p in part.parameters()])
        self.weighing, self.progress = Weighing(losses), _Progress()
        trainable = [p for part in self.parts.values() for p in part.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            trainable, lr=self.recipe.lr, betas=self.recipe.betas, weight_decay=self.recipe.weight_decay
        )
        assert_covered([self.optimizer], self.parts, others=[wire.backbone])
        self.objective = Objective(wire, params, tuple(losses.terms), seed=ctx.seed)
        (data,) = ctx.inputs["data"]
        self.held = Held(wire, read_split(data.folder, "held"), train, params.held, ctx)
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
        wire, contract = self.wire, self.wire.contract
        if state is None:
            torch.manual_seed(self.ctx.seed)
            counted = {id(p): p.numel() for part in self.parts.values() for p in part.parameters() if p.requires_grad}
            total = sum(p.numel() for p in wire.backbone.parameters()) + sum(
                p.numel() for name, part in self.parts.items() if name not in ("reader", "speaker")
                for p in part.parameters()
            )  # fmt: skip
            self.ctx.write("parameters", trainable=sum(counted.values()), total=total, base=self.seal.sha256,
                           contract=contract.fingerprint())  # fmt: skip
        else:
            restore_states(wire, state["parts"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.weighing.restore(state["weighing"])
            self.progress, self.held.told = _Progress(**state["progress"]), state["told"]
        # Those of steps that are done too: the same batches, so the same bits, after a resume.
        used = [item for step in range(self.total) for item in self._items_of(step)]
        self.objective.learn_teacher(
            used, self.recipe.batch_size, lambda done: self.ctx.progress(0, self.total, teacher_items=done)
        )
        if state is not None:
            set_random_state(state["random"])
        wire.train()

    def _step(self) -> None:
        """One optimizer step with its record."""
        at, progress = self.progress.step, self.progress
        epoch, epochs = at / self.steps_per_epoch, self.total / self.steps_per_epoch
        keep, gold = self._keep(epoch, epochs), self._gold(epoch, epochs)
        vectors = random.Random(f"{self.ctx.seed}/{at}/vectors").choice(self.wire.vectors)
        batches, lr = self._batches(at, keep), self.recipe.lr_at(at, self.total)
        logged, norms = self._update(batches, vectors, at / self.total, gold, lr)
        sound = logged.finite and norms.finite
        progress.step += 1
        progress.skipped += not sound
        if norms.finite:
            progress.largest = max(progress.largest, norms.total)
        first = self.held.first(progress.step, progress.step == self.total)
        self._remember(first["first_acc"])
        if progress.step % self.recipe.log_every == 0 or progress.step == self.total or not sound:
            lengths = [len(self.objective.target(item)) for item in self._items_of(at)]
            self.ctx.write(
                "step", step=progress.step, epoch=int(epoch) + 1, mode=self.mode, keep=keep, gold=gold, lr=lr,
                vectors=vectors, items=self.per_step, micro_batches=len(batches), skipped=not sound,
                answer_tokens=sum(lengths) / len(lengths), scale=self.wire.scale, grad_norm=norms.total,
                **dict.fromkeys(sorted(TERMS)) | logged.fields(), **self._norms(norms), **first,
            )  # fmt: skip
        self._give_up()
        self.held.answer(progress.step, progress.step == self.total)

    def _update(
        self, batches: Sequence[Rows], vectors: int, share: float, gold: float, lr: float
    ) -> tuple[Logged, GradientNorms]:
        """Gradients of all micro-batches, one clip over all parts, one step of the optimizer where all is finite."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        weighed = self.weighing.step(share, self.objective.counts(batches, vectors))
        with self.wire.speaking():
            for rows in batches:
                terms = self.objective.terms(rows, vectors, step=self.progress.step, gold=gold)
                weighed.loss(terms).backward()
        norms, logged = clip_gradients(self.parts, self.recipe.clip), weighed.close()
        if logged.finite and norms.finite:
            self.optimizer.step()
        return logged, norms

    def _keep(self, epoch: float, epochs: float) -> float:
        """With which probability an example is read as latents."""
        return self.params.mixing.keep(epoch, epochs) if isinstance(self.params, StageBParams) else 1.0

    def _gold(self, epoch: float, epochs: float) -> float:
        sampling = self.params.sampling
        return 1.0 if sampling is None else gold_share(epoch, epochs, floor=sampling.floor)

    def _batches(self, step: int, keep: float) -> list[Rows]:
        """The micro-batches of an optimizer step, each split by how its examples are read."""
        items = self._items_of(step)
        latent = coins(keep, len(items), seed=self.ctx.seed, step=step, use="latent")
        drawn, size, found = list(zip(items, latent, strict=True)), self.recipe.batch_size, []
        for number, at in enumerate(range(0, len(drawn), size)):
            some = drawn[at : at + size]
            found.append(
                Rows(
                    latent=tuple(item for item, kept in some if kept),
                    text=tuple(item for item, kept in some if not kept), number=number,
                )
            )  # fmt: skip
        return found

    def _items_of(self, step: int) -> list[QA]:
        epoch, inside = divmod(step, self.steps_per_epoch)
        order = self._order(epoch)[inside * self.per_step : (inside + 1) * self.per_step]
        return [self.train[place] for place in order]

    def _drawn_order(self, epoch: int) -> list[int]:
        order = list(range(len(self.train)))
        random.Random(f"{self.ctx.seed}/{epoch}/order").shuffle(order)
        return order

    def _remember(self, first_acc: float | None) -> None:
        if first_acc is None:
            return
        progress = self.progress
        progress.final = first_acc
        if progress.peak is None or first_acc > progress.peak:
            progress.peak, progress.peak_step = first_acc, progress.step

    def _norms(self, norms: GradientNorms) -> dict[str, float | None]:
        named = {f"grad_norm_{name}": value for name, value in norms.parts.items()}
        return {name: named.get(name) for name in sorted(NORMS)}

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
            "weighing": self.weighing.state(), "progress": asdict(self.progress), "told": self.held.told,
            "random": random_state(),
        }  # fmt: skip

    def _finish(self) -> None:
        """Prove that the model is as it was, say how it ended, and save everything as one artifact."""
        self.seal.check()
        frozen = len(self.seal.hashes)
        self.ctx.write("check", name="frozen", passed=True, detail=f"{frozen} tensors of the model, by hash")
        progress = self.progress
        share = progress.final / progress.peak if progress.peak and progress.final is not None else None
        self.ctx.write(
            "outcome", n=len(self.held.items), peak_first_acc=progress.peak, peak_step=progress.peak_step,
            final_first_acc=progress.final, final_over_peak=share, majority_acc=self.held.majority_acc,
            max_grad_norm=progress.largest if math.isfinite(progress.largest) else None, steps=progress.step,
            skipped=progress.skipped,
        )  # fmt: skip
        self.wire.save(self.ctx.folder / FOLDER, stage=self.mode, step=progress.step, seed=self.ctx.seed)
