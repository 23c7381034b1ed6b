"""The seam behind answers: what writes on, greedily, after rows that were read: our own decoding, or vLLM."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from stepwell.answering import Read
from stepwell.decode import Decoded, greedy
from stepwell.errors import StepwellError
from stepwell.shapes import Backbone, Precision
from stepwell.vllm_engine import Engine

DEEP = "vLLM cannot go on from keys and values that the adapter made (a deep prefix)"
ADAPTED = "vLLM reads the model's folder, in which the adapter that speaks (LoRA) is not"
FAR = 1.0
"""Nats: rounding moves a token's likelihood by less, and embeddings that are read otherwise by more."""


class GoOn(Protocol):
    """Continues B rows greedily; nothing that it is given is changed."""

    def __call__(
        self, backbone: Backbone, read: Read, embeds: Tensor, *, stop: Collection[int], limit: int
    ) -> list[Decoded]:
        """One `Decoded` a row.

        Args:
            backbone: which read them, in evaluation mode.
            read: the rows, S + T columns of them.
            embeds: (B, T, D), the last T columns before the model; S of a cache came before.
            stop: ids that end a row.
            limit: new tokens at most, the stop token among them.
        """
        ...


def own(backbone: Backbone, read: Read, embeds: Tensor, *, stop: Collection[int], limit: int) -> list[Decoded]:
    """Our own decoding, over the cache that was read: see `GoOn`. Raises as `stepwell.decode.greedy`."""
    return greedy(
        backbone, read.hidden, cache=read.cache, mask=read.mask, positions=read.positions, stop=stop, limit=limit
    )


@dataclass(frozen=True, kw_only=True)
class Writing:
    """What writes the answers of a stage; build one with `of`.

    Attributes:
        engine: None = our own decoding.
        why: vLLM was asked for and does not write; "" = it does, or nobody asked.
    """

    engine: Engine | None = None
    why: str = ""

    @classmethod
    def of(cls, folder: Callable[[], Path], precision: Precision, *, unless: str = "") -> Writing:
        """VLLM, or our own decoding where it is not to be had or not fit.

        Args:
            folder: finds the model's; only called where vLLM is started.
            precision: of the model of ours that reads.
            unless: why vLLM is not fit for what is asked of the stage; then it is not started.
        """
        if unless:
            return cls(why=unless)
        try:
            return cls(engine=Engine.start(folder(), precision, embeds=True))
        except StepwellError as error:
            return cls(why=error.cause)

    def telling(self, tell: Callable[[str], None]) -> GoOn:
        """What continues rows, and says at each batch of our own why vLLM did not write it."""

        def go_on(
            backbone: Backbone, read: Read, embeds: Tensor, *, stop: Collection[int], limit: int
        ) -> list[Decoded]:
            why = self.why
            if self.engine is not None:
                try:
                    return _by_vllm(self.engine, backbone, read, embeds, stop, limit)
                except StepwellError as error:
                    why = error.cause
            if why:
                tell(why)
            return own(backbone, read, embeds, stop=stop, limit=limit)

        return go_on


def _by_vllm(
    engine: Engine, backbone: Backbone, read: Read, embeds: Tensor, stop: Collection[int], limit: int
) -> list[Decoded]:
    """Raises StepwellError where vLLM cannot go on with these rows, or fails."""
    columns = embeds.shape[1]
    if read.mask.shape[1] != columns:
        raise StepwellError(DEEP, "decode without it")
    rows = [row[real].detach().cpu() for row, real in zip(embeds, read.mask, strict=True)]
    longest = max(map(len, rows), default=0)
    if longest + limit > engine.most:
        raise StepwellError(
            f"vLLM knows {engine.most} columns, and a prompt of {longest} with {limit} tokens of answer has more",
            "decode without it",
        )
    found = engine.write([{"prompt_embeds": row} for row in rows], limits=[limit] * len(rows), stop=stop)
    below = _below(backbone, read, stop, found)
    if below > FAR:
        # Such as an architecture that scales its embeddings, here before they are given to it and there after.
        raise StepwellError(
            f"vLLM does not read these embeddings as we do: an answer begins with a token {below:.1f} nats below the "
            "likeliest",
            "decode without it",
        )
    return found


def _below(backbone: Backbone, read: Read, stop: Collection[int], found: Sequence[Decoded]) -> float:
    """How far below the likeliest first token, in our own reading, the one that was written is; the most of all rows.

    Of an answer that stopped at once, the likeliest of the tokens that stop is taken for the one that did.
    """
    nats, ends = backbone.logits(read.hidden).double().log_softmax(-1), sorted(stop)
    first = [row[one.ids[0]] if one.ids else row[ends].max() for row, one in zip(nats, found, strict=True)]
    return max((float(row.max() - token) for row, token in zip(nats, first, strict=True)), default=0.0)
