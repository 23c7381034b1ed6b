"""The stage `wire.answer`: answers from latents at each number of bits, and from what is put in their place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stepwell.answers import AnswerRecord, Asked
from stepwell.errors import StepwellError
from stepwell.latents.contract import Contract
from stepwell.latents.wirebytes import bytes_on_wire, quantise_latents
from stepwell.stage import Input, StageContext
from stepwell.studies.qa.data import read_split
from stepwell.studies.qa.models import loaded, writing_of
from stepwell.studies.qa.text import ask, text_bytes
from stepwell.studies.wire.model import FOLDER, Prefix, Wire, mapped
from stepwell.studies.wire.params import AnswerParams
from stepwell.studies.wire.training import texts_of, trained
from stepwell.tasks.base import QA
from stepwell.tasks.qa_scores import squad_form
from stepwell.writing import ADAPTED, DEEP

MODES = ("empty", "repetition", "too long", "wrong")
BINS = 10
"""Of the histogram of F1; the last holds 1."""


@dataclass(frozen=True, kw_only=True)
class Condition:
    """What stands in the prompts' place.

    Attributes:
        name: of the records' field `condition`.
        vectors: M, of the job's axis where there is one.
        bits: of a number on the wire.
        bytes: on the wire for an item.
        prefix: items -> prefixes.
        cut: tokens of the cut text to compare with, where they are not M.
    """

    name: str
    vectors: int
    bits: int
    bytes: int
    prefix: Callable[[Sequence[QA]], Prefix]
    cut: int | None = None


def answer(params: AnswerParams, ctx: StageContext) -> None:
    """One record an item and condition, and a summary of each condition."""
    contract = loaded(ctx)
    (data,), (text,) = ctx.inputs["data"], ctx.inputs["text"]
    train = read_split(data.folder, "train", params.mean_of)
    wire = Wire.load(contract, trained(ctx).folder / FOLDER, texts=texts_of(contract, train))
    wire.train(False)
    unless = ADAPTED if wire.speaker is not None else DEEP if wire.deep is not None else ""
    writing = writing_of(ctx, params.vllm, unless=unless)
    whole = rows_of(text, "text")
    cuts = {vectors: rows_of(text, f"tokens-{vectors}") for vectors in wire.vectors}
    items = [item for item in read_split(data.folder, "test", params.items) if item.id in whole]
    axis = ctx.job.axes.get("vectors")
    every = [
        each
        for vectors in wire.vectors
        for each in (
            conditions(wire, params, items, train, vectors)
            if axis in (None, vectors)
            else [in_smaller(wire, vectors, int(axis))]
        )
    ]
    for done, condition in enumerate(every, 1):
        with wire.speaking():
            found = ask(
                contract, items, batch_size=params.batch_size, ctx=ctx, condition=condition.name, writing=writing,
                prefix_of=lambda some, condition=condition: laid_out(wire, condition, some),
            )  # fmt: skip
        write(ctx, contract, condition, items, found, whole, cuts[condition.cut or condition.vectors])
        ctx.progress(done, len(every))
        ctx.stop_if_asked()


def conditions(
    wire: Wire, params: AnswerParams, items: Sequence[QA], train: Sequence[QA], vectors: int
) -> list[Condition]:
    """The latent arm at each number of bits, then the controls on the same items."""
    width, sent = wire.encoder.width, wire.encoder.sent(vectors)

    def through(some: Sequence[QA], bits: int) -> Prefix:
        latents = wire.latents(some, vectors)
        return wire.prefix(latents if bits == 32 else quantise_latents(latents, bits))

    found = [
        Condition(
            name="latent" if bits == 32 else f"latent-{bits}bit", vectors=vectors, bits=bits,
            bytes=bytes_on_wire(sent, width, bits), prefix=lambda some, bits=bits: through(some, bits),
        )
        for bits in params.bits
    ]  # fmt: skip
    strangers, mean = others(items), mean_prefix(wire, train, vectors, params.batch_size)

    def zeros(some: Sequence[QA]) -> Prefix:
        return mapped(mean, lambda part: torch.zeros_like(part).expand(len(some), *part.shape[1:]))

    def middle(some: Sequence[QA]) -> Prefix:
        return mapped(mean, lambda part: part.expand(len(some), *part.shape[1:]))

    def swapped(some: Sequence[QA]) -> Prefix:
        return through([strangers[item.id] for item in some], 32)

    controls = (("zeros", zeros, 0), ("other", swapped, bytes_on_wire(sent, width, 32)), ("mean", middle, 0))
    return found + [
        Condition(name=name, vectors=vectors, bits=32, bytes=size, prefix=prefix) for name, prefix, size in controls
    ]


def in_smaller(wire: Wire, vectors: int, axis: int) -> Condition:
    """The latents of an M below the axis's, without controls; the name tells them from what is judged."""
    return Condition(
        name=f"latent-m{vectors}", vectors=axis, bits=32, cut=vectors,
        bytes=bytes_on_wire(wire.encoder.sent(vectors), wire.encoder.width, 32),
        prefix=lambda some: wire.prefix(wire.latents(some, vectors)),
    )  # fmt: skip


@torch.no_grad()
def laid_out(wire: Wire, condition: Condition, items: Sequence[QA]) -> Asked:
    """What the model is asked in one condition."""
    return wire.asked(condition.prefix(items))


def others(items: Sequence[QA]) -> dict[str, QA]:
    """Id -> the next item, in a circle, that has another context.

    Raises:
        StepwellError: all items have one context.
    """
    forms = [squad_form(item.context or "") for item in items]
    found: dict[str, QA] = {}
    for place, item in enumerate(items):
        order = [(place + step) % len(items) for step in range(1, len(items))]
        other = next((items[at] for at in order if forms[at] != forms[place]), None)
        if other is None:
            raise StepwellError(
                "all items of the test set have one context, so that none has another item's prefix",
                "evaluate on more items",
            )
        found[item.id] = other
    return found


@torch.no_grad()
def mean_prefix(wire: Wire, items: Sequence[QA], vectors: int, batch_size: int) -> Prefix:
    """The mean (1, ...) of the items' prefixes, part by part."""
    total: Prefix | None = None
    for at in range(0, len(items), batch_size):
        one = mapped(wire.prefix(wire.latents(items[at : at + batch_size], vectors)), _summed)
        total = one if total is None else _added(total, one)
    assert total is not None
    return mapped(total, lambda part: part / len(items))


def _summed(part: Tensor) -> Tensor:
    return part.sum(0, keepdim=True)


def _added(a: Prefix, b: Prefix) -> Prefix:
    if isinstance(a, Tensor):
        assert isinstance(b, Tensor)
        return a + b
    assert not isinstance(b, Tensor)
    return [(k + other_k, v + other_v) for (k, v), (other_k, other_v) in zip(a, b, strict=True)]


def rows_of(text: Input, condition: str) -> dict[str, dict[str, Any]]:
    """Id -> the text stage's record under a condition.

    Raises:
        StepwellError: the text stage has no such condition.
    """
    found = {row["id"]: row for row in text.records("item") if row["condition"] == condition}
    if not found:
        raise StepwellError(
            f"the stage `{text.job.stage}` has no condition `{condition}`, to which the latent arm is compared",
            f"add the number to its `cut_tokens`: {condition.removeprefix('tokens-')}",
            stage=text.job.id,
        )
    return found


def write(
    ctx: StageContext, contract: Contract, condition: Condition, items: Sequence[QA], found: Sequence[AnswerRecord],
    whole: Mapping[str, Any], cut: Mapping[str, Any],
) -> None:  # fmt: skip
    """The records of one condition, each beside the same item read as text, whole and cut to M tokens."""
    common = {"condition": condition.name, "vectors": condition.vectors, "bits": condition.bits}
    for item, record in zip(items, found, strict=True):
        fields = record.to_record()
        ctx.write(
            "item", set="test", question=item.question, answers=list(item.answers), bytes=condition.bytes,
            text_bytes=text_bytes(contract, item), repetition=record.error_mode == "repetition",
            text_f1=whole[item.id]["f1"], cut_f1=cut[item.id]["f1"], above_cut=record.f1 - cut[item.id]["f1"],
            **common, **fields,
        )  # fmt: skip
    n = len(found)
    modes = {mode: sum(one.error_mode == mode for one in found) / n for mode in MODES}
    histogram = [0] * BINS
    for one in found:
        histogram[min(int(one.f1 * BINS), BINS - 1)] += 1
    nats = sum(one.nll_per_token * one.nll_tokens for one in found) / sum(one.nll_tokens for one in found)
    ctx.write(
        "summary", n=n, f1=sum(one.f1 for one in found) / n, em=sum(one.em for one in found) / n, bytes=condition.bytes,
        best_f1=max(one.f1 for one in found), first_f1_id=next((one.id for one in found if one.f1 > 0), None),
        empty=modes["empty"], repetition=modes["repetition"], too_long=modes["too long"], wrong=modes["wrong"],
        histogram=histogram, first_top1=sum(one.first_top1 for one in found) / n,
        first_top5=sum(one.first_top5 for one in found) / n, nll_per_token=nats, **common,
    )  # fmt: skip
