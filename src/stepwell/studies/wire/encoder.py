"""The stage `wire.encoder`: an arm's encoder and adapter, and their auto-encoding where the arm asks for it.

Auto-encoding (in-context autoencoder, Ge et al. 2023, arXiv 2307.06945): after BOS, prefix and an anchor of its own the
frozen model is to write the words that the encoder read. What it cannot write back is not in the latents; whether it
writes from them, or only guesses as any text goes on, is told by the same words after another item's prefix.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from stepwell.errors import StepwellError
from stepwell.latents.contract import Contract
from stepwell.losses import LossWeights, Reading, Summed, teacher_forced_ce
from stepwell.stage import StageContext
from stepwell.stats import paired_difference
from stepwell.studies.qa.data import read_split
from stepwell.studies.qa.models import loaded
from stepwell.studies.wire.evaluation import others
from stepwell.studies.wire.loop import Loop, Moment, counted, placed, proved, save, sealed
from stepwell.studies.wire.model import Wire
from stepwell.studies.wire.objective import Rows, answers_of, read_answers
from stepwell.studies.wire.params import REPEATED, AutoEncoding, EncoderParams
from stepwell.studies.wire.training import items_of, texts_of
from stepwell.tasks.base import QA
from stepwell.tasks.qa_scores import squad_form

MODE = "encoder"


def encoder(params: EncoderParams, ctx: StageContext) -> None:
    """Build the arm's parts, train them to repeat where it says so, and save them for stage A."""
    name = str(ctx.job.axes["arm"])
    if name not in params.arms:
        raise StepwellError(f"there is no arm `{name}`; arms: {', '.join(params.arms)}", "name some in `axes.arm`")
    arm, axis = params.arms[name], ctx.job.axes.get("vectors")
    state, contract = ctx.restored(), loaded(ctx)
    train = items_of(ctx, 0 if arm.auto_encoding is None else arm.auto_encoding.items)
    vectors = arm.served(None if axis is None else int(axis))
    wire = placed(Wire(contract, arm, vectors, texts=texts_of(contract, train), seed=ctx.seed), ctx)
    if arm.auto_encoding is not None:
        lesson = Repeating(wire, arm.auto_encoding, ctx)
        Loop(wire, lesson, arm.auto_encoding.recipe, train, ctx).run(state)
        return
    seal = sealed(wire)
    counted(wire, seal, ctx)
    proved(seal, ctx)
    save(wire, MODE, 0, ctx)


def repeating(contract: Contract, params: AutoEncoding) -> Contract:
    """The contract under which words are repeated: the same template and BOS, another anchor, another length."""
    # No text prompt is read under it, so that none needs positions.
    changed = {"anchor": params.anchor, "max_answer_tokens": params.tokens, "max_prompt_tokens": 1}
    return Contract.of(contract.backbone, contract.params.model_copy(update=changed))


@dataclass(frozen=True, kw_only=True)
class Repeated:
    """How well one item's words are written back.

    Attributes:
        nats: a token, on average.
        hits: tokens that are the likeliest one.
        tokens: of the words, EOS among them where they are all there.
    """

    nats: float
    hits: int
    tokens: int


class Repeating:
    """The prompt's own words from latents: a `Lesson`.

    Args:
        wire: what is trained.
        params: of the arm.
        ctx: of the job.

    Raises:
        StepwellError: the model has too few positions, or all held-out items have one context.
    """

    mode = MODE
    weights = LossWeights(terms={REPEATED: 1.0})

    def __init__(self, wire: Wire, params: AutoEncoding, ctx: StageContext) -> None:
        self.wire, self.params, self.ctx = wire, params, ctx
        self.contract = repeating(wire.contract, params)
        (data,) = ctx.inputs["data"]
        self.held = read_split(data.folder, "held", params.held)
        self._strangers = others(self.held)
        self._targets: dict[str, tuple[int, ...]] = {}
        self._last: dict[str, Any] = {}

    def prepare(self, items: Sequence[QA], batch_size: int, told: Callable[[int], None]) -> None:
        """Nothing is to be known beforehand."""

    def rows(self, items: Sequence[QA], batch_size: int, moment: Moment) -> list[Rows]:
        """All of them read as latents."""
        return [
            Rows(latent=tuple(items[at : at + batch_size]), text=(), number=number)
            for number, at in enumerate(range(0, len(items), batch_size))
        ]

    def counts(self, batches: Sequence[Rows], vectors: int) -> dict[str, int]:
        """The words' tokens."""
        return {REPEATED: sum(len(self.target(item)) for rows in batches for item in rows.latent)}

    def terms(self, rows: Rows, vectors: int, moment: Moment) -> dict[str, Summed]:
        """Cross-entropy over the words, and nowhere else."""
        return {REPEATED: teacher_forced_ce(self.read(rows.latent, rows.latent, vectors))}

    def target(self, item: QA) -> tuple[int, ...]:
        """The first tokens of what the encoder reads of an item."""
        if item.id not in self._targets:
            read = self.wire.encoder.prompt(item.context or "", item.question)
            self._targets[item.id] = self.contract.answer(read)
        return self._targets[item.id]

    def read(self, items: Sequence[QA], encoded: Sequence[QA], vectors: int | None = None) -> Reading:
        """What the model says of the items' words after the latents of `encoded`, the items themselves or others."""
        wire = self.wire
        asked = wire.asked(wire.prefix(wire.latents(encoded, vectors)), self.contract)
        return read_answers(wire.backbone, asked, answers_of(self.contract, [self.target(item) for item in items]))

    def look(self, moment: Moment) -> dict[str, Any]:
        """Nothing of a step's record is measured on held-out items; `after` writes a record of its own."""
        return {}

    def fields(self, items: Sequence[QA], moment: Moment) -> dict[str, Any]:
        """How many tokens were repeated an item."""
        return {"text_tokens": sum(len(self.target(item)) for item in items) / len(items)}

    def after(self, moment: Moment) -> None:
        """Held-out words after their own prefix, and after another item's."""
        step = moment.step + 1
        if step % self.params.every and not moment.last:
            return
        own = self.repeated(self.held)
        other = self.repeated([self._strangers[item.id] for item in self.held])
        contexts = [squad_form(item.context or "") for item in self.held]
        gain = paired_difference([one.nats for one in other], [one.nats for one in own], clusters=contexts)
        tokens = sum(one.tokens for one in own)
        self._last = {
            "nats_per_token": sum(one.nats * one.tokens for one in own) / tokens,
            "nats_per_token_other": sum(one.nats * one.tokens for one in other) / tokens,
            "gain": gain.value, "gain_low": gain.low, "gain_high": gain.high,
            "token_acc": sum(one.hits for one in own) / tokens,
            "token_acc_other": sum(one.hits for one in other) / tokens,
        }  # fmt: skip
        self.ctx.write("restored", step=step, n=len(own), tokens=tokens, **self._last)

    @torch.no_grad()
    def repeated(self, encoded: Sequence[QA]) -> list[Repeated]:
        """How well the held-out items' words are written back after the latents of as many items."""
        found, size = [], self.params.recipe.batch_size
        with self.wire.still(), self.wire.speaking():
            for at in range(0, len(self.held), size):
                reading = self.read(self.held[at : at + size], encoded[at : at + size])
                lengths = [len(row) for row in reading.targets.rows]
                hits = (reading.predicted == reading.targets.tokens).split(lengths)
                found += [
                    Repeated(nats=float(nats.double().mean()), hits=int(hit.sum()), tokens=len(nats))
                    for nats, hit in zip(reading.nats.split(lengths), hits, strict=True)
                ]
        return found

    def outcome(self) -> dict[str, Any]:
        """The last look."""
        return {"n": len(self.held), **self._last}

    def state(self) -> dict[str, Any]:
        """The last look."""
        return {"last": self._last}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`."""
        self._last = dict(state["last"])
