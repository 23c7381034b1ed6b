"""The stages `wire.stage-a` and `wire.stage-b`: answers are taught around a frozen model, in `loop.Loop`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from stepwell.errors import StepwellError
from stepwell.latents.contract import Contract
from stepwell.losses import LossWeights, Summed, coins, gold_share
from stepwell.stage import Input, StageContext
from stepwell.studies.qa.data import read_split
from stepwell.studies.qa.models import loaded
from stepwell.studies.wire.held import Held
from stepwell.studies.wire.kinds import TERMS
from stepwell.studies.wire.loop import Loop, Moment, placed
from stepwell.studies.wire.model import FOLDER, Wire
from stepwell.studies.wire.objective import Objective, Rows
from stepwell.studies.wire.params import StageAParams, StageBParams, TrainingParams
from stepwell.tasks.base import QA

MEASURED = 8
"""Prompts on which a deep prefix is measured."""
BUILT = ("wire.encoder",)
TRAINED = (*BUILT, "wire.stage-a", "wire.stage-b")


def stage_a(params: StageAParams, ctx: StageContext) -> None:
    """Train encoder and adapter; the language model is frozen, and proved to be."""
    state, contract, train = ctx.restored(), loaded(ctx), items_of(ctx, params.items)
    wire = _gone_on(contract, trained(ctx, BUILT), train)
    wire.restore_prompts("reconstruction" in params.losses.terms, seed=ctx.seed)
    placed(wire, ctx)
    Loop(wire, Answering(wire, params, params.losses, train, ctx), params.recipe, train, ctx).run(state)


def stage_b(params: StageBParams, ctx: StageContext) -> None:
    """Go on from the stage before, with LoRA on the language model and examples that are read as text among others."""
    train = items_of(ctx, params.items)
    # The plan's check knows this only where it knows how many items there are.
    if (text := params.warmup_problem(len(train))) is not None:
        raise StepwellError(text, "change `mixing.warmup_epochs`, `recipe` or `items`", stage=ctx.job.id)
    state, contract = ctx.restored(), loaded(ctx)
    wire = _gone_on(contract, trained(ctx), train)
    if wire.lora is None:
        wire.speak(params.lora, seed=ctx.seed)
    elif wire.lora != params.lora:
        raise StepwellError(
            "the stage before was trained with another LoRA than this one names", "give both the same `lora`",
            stage=ctx.job.id,
        )  # fmt: skip
    wire.restore_prompts("reconstruction" in params.losses.terms, seed=ctx.seed)
    placed(wire, ctx)
    Loop(wire, Answering(wire, params, params.weights(), train, ctx), params.recipe, train, ctx).run(state)


def trained(ctx: StageContext, kinds: Sequence[str] = TRAINED) -> Input:
    """The job whose artifact is gone on with, or asked.

    Args:
        ctx: of the stage that goes on.
        kinds: of stages that it may go on from.

    Raises:
        StepwellError: none is needed, or several are.
    """
    found = ctx.made_by(*kinds)
    if len(found) != 1:
        raise StepwellError(
            f"the stage goes on from one stage before it, and needs {len(found)} such",
            f"name one stage of the kind {' or '.join(f'`{kind}`' for kind in kinds)} in its `needs`, on the same axes",
            stage=ctx.job.id,
        )
    return found[0]


def items_of(ctx: StageContext, count: int) -> list[QA]:
    """The first `count` of the training split; 0 = all."""
    (data,) = ctx.inputs["data"]
    return read_split(data.folder, "train", count)


def texts_of(contract: Contract, items: Sequence[QA]) -> list[tuple[int, ...]]:
    """Tokens of the prompts on which a deep prefix is measured."""
    return [contract.text(item) for item in items[:MEASURED]]


def _gone_on(contract: Contract, before: Input, train: Sequence[QA]) -> Wire:
    return Wire.load(contract, before.folder / FOLDER, texts=texts_of(contract, train))


class Answering:
    """Answers from latents, and in stage B from text: a `Lesson`.

    Args:
        wire: what is trained.
        params: of the stage.
        weights: of its losses, over the stage.
        train: the items.
        ctx: of the job.
    """

    def __init__(
        self, wire: Wire, params: TrainingParams, weights: LossWeights, train: Sequence[QA], ctx: StageContext
    ) -> None:
        self.params, self.weights, self.seed = params, weights, ctx.seed
        self.mode = "b" if isinstance(params, StageBParams) else "a"
        self.objective = Objective(wire, params, tuple(weights.terms), seed=ctx.seed)
        (data,) = ctx.inputs["data"]
        self.held = Held(wire, read_split(data.folder, "held"), train, params.held, ctx)
        self._peak: float | None = None
        self._peak_step: int | None = None
        self._final: float | None = None

    def prepare(self, items: Sequence[QA], batch_size: int, told: Callable[[int], None]) -> None:
        """Ask the teacher, where a loss does."""
        self.objective.learn_teacher(items, batch_size, told)

    def rows(self, items: Sequence[QA], batch_size: int, moment: Moment) -> list[Rows]:
        """The micro-batches, each split by how its examples are read."""
        latent = coins(self._keep(moment), len(items), seed=self.seed, step=moment.step, use="latent")
        drawn, found = list(zip(items, latent, strict=True)), []
        for number, at in enumerate(range(0, len(drawn), batch_size)):
            some = drawn[at : at + batch_size]
            found.append(
                Rows(
                    latent=tuple(item for item, kept in some if kept),
                    text=tuple(item for item, kept in some if not kept), number=number,
                )
            )  # fmt: skip
        return found

    def counts(self, batches: Sequence[Rows], vectors: int) -> dict[str, int]:
        """As of the objective."""
        return self.objective.counts(batches, vectors)

    def terms(self, rows: Rows, vectors: int, moment: Moment) -> dict[str, Summed]:
        """As of the objective."""
        return self.objective.terms(rows, vectors, step=moment.step, gold=self._gold(moment))

    def look(self, moment: Moment) -> dict[str, Any]:
        """First tokens of held-out items."""
        step = moment.step + 1
        first = self.held.first(step, moment.last)
        if (accuracy := first["first_acc"]) is not None:
            self._final = accuracy
            if self._peak is None or accuracy > self._peak:
                self._peak, self._peak_step = accuracy, step
        return first

    def fields(self, items: Sequence[QA], moment: Moment) -> dict[str, Any]:
        """How the step was drawn; null for losses that the stage does not have."""
        lengths = [len(self.objective.target(item)) for item in items]
        return {
            **dict.fromkeys(sorted(TERMS)), "keep": self._keep(moment), "gold": self._gold(moment),
            "answer_tokens": sum(lengths) / len(lengths),
        }  # fmt: skip

    def after(self, moment: Moment) -> None:
        """Whole answers to held-out items, now and then."""
        self.held.answer(moment.step + 1, moment.last)

    def outcome(self) -> dict[str, Any]:
        """The best and the last first-token accuracy, beside the commonest token's."""
        peak, final, majority = self._peak, self._final, self.held.majority_acc
        return {
            "n": len(self.held.items), "peak_first_acc": peak, "peak_step": self._peak_step, "final_first_acc": final,
            "final_over_peak": final / peak if peak and final is not None else None,
            "majority_acc": self.held.majority_acc,
            "peak_over_majority": None if peak is None or majority is None else peak - majority,
        }  # fmt: skip

    def state(self) -> dict[str, Any]:
        """What was seen so far, and whether the alert was given."""
        return {"peak": self._peak, "peak_step": self._peak_step, "final": self._final, "told": self.held.told}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`."""
        self._peak, self._peak_step, self._final = state["peak"], state["peak_step"], state["final"]
        self.held.told = state["told"]

    def _keep(self, moment: Moment) -> float:
        """With which probability an example is read as latents."""
        params = self.params
        return params.mixing.keep(moment.epoch, moment.epochs) if isinstance(params, StageBParams) else 1.0

    def _gold(self, moment: Moment) -> float:
        sampling = self.params.sampling
        return 1.0 if sampling is None else gold_share(moment.epoch, moment.epochs, floor=sampling.floor)
