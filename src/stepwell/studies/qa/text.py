"""The stage `qa.text`: what the model answers from the text: whole, cut to a budget, as embeddings (the ceiling)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from stepwell.answers import AnswerRecord, Asked, answer_items, nll_alarm
from stepwell.latents.contract import Contract
from stepwell.shapes import embedded as token_embeddings
from stepwell.stage import StageContext
from stepwell.studies.qa.data import read_split
from stepwell.studies.qa.models import loaded, writing_of
from stepwell.studies.qa.params import TextParams
from stepwell.tasks.base import QA
from stepwell.writing import Writing


def answer_text(params: TextParams, ctx: StageContext) -> None:
    """One record an item and condition: `text`, `ceiling`, `tokens-M`, `bytes-N`."""
    contract, writing = loaded(ctx), writing_of(ctx, params.vllm)
    (data,) = ctx.inputs["data"]
    items = read_split(data.folder, "test", params.items)
    budgets = [("tokens", n) for n in params.cut_tokens] + [("bytes", n) for n in params.cut_bytes]
    every = 2 + len(budgets)
    records = ask(contract, items, batch_size=params.batch_size, ctx=ctx, condition="text", writing=writing)
    rows = write_items(ctx, "test", "text", items, records, lambda item: text_bytes(contract, item))
    alarm = nll_alarm([row.to_record() for row in rows], contract.backbone.vocabulary)
    ctx.write("check", name="text-nll", passed=not alarm, detail=alarm or "below that of a uniform guess")
    ctx.progress(1, every)
    ctx.stop_if_asked()
    found = ask(
        contract, items, batch_size=params.batch_size, ctx=ctx, condition="ceiling", writing=writing,
        prefix_of=lambda some: embedded(contract, some),
    )  # fmt: skip
    write_items(ctx, "test", "ceiling", items, found, lambda item: text_bytes(contract, item))
    ctx.progress(2, every)
    for done, (unit, n) in enumerate(budgets, 3):
        cuts = {item.id: contract.cut(item, **{unit: n}) for item in items}
        found = ask(
            contract, items, batch_size=params.batch_size, ctx=ctx, condition=f"{unit}-{n}", writing=writing,
            text_of=lambda item, cuts=cuts: cuts[item.id].ids,
        )  # fmt: skip
        write_items(ctx, "test", f"{unit}-{n}", items, found, lambda item, cuts=cuts: cuts[item.id].bytes)
        ctx.progress(done, every)
        ctx.stop_if_asked()


def text_bytes(contract: Contract, item: QA) -> int:
    """UTF-8 bytes of the context, as far as the contract lets it in, and of the question: the text on the wire."""
    return contract.cut(item).bytes


@torch.no_grad()
def embedded(contract: Contract, items: Sequence[QA]) -> Asked:
    """The whole prompts as embeddings between BOS and anchor: what compressed prompts would be, lost nothing."""
    return laid_out(contract, [prompt_embeddings(contract, item) for item in items])


def prompt_embeddings(contract: Contract, item: QA) -> Tensor:
    """(T, D) of the prompt's tokens after BOS."""
    return token_embeddings(contract.backbone, contract.prompt(item)[len(contract.bos) :])


def laid_out(contract: Contract, prefixes: Iterable[Tensor]) -> Asked:
    """Prefixes (T_i, D) of different lengths, each between BOS and anchor."""
    return Asked.of_embeds([contract.around(prefix[None])[0] for prefix in prefixes])


def ask(
    contract: Contract, items: Sequence[QA], *, batch_size: int, ctx: StageContext, condition: str, writing: Writing,
    prefix_of: Callable[[Sequence[QA]], Tensor | Asked] | None = None,
    text_of: Callable[[QA], Sequence[int]] | None = None,
) -> list[AnswerRecord]:  # fmt: skip
    """The answers under one condition.

    Their wall-clock time, what makes the prompts included, goes to the events; and, where our own decoding took the
    place of vLLM, why: once for each reason.
    """
    began, reasons = time.perf_counter(), dict[str, None]()
    found = list(
        answer_items(
            contract.backbone, contract, items, prefix_of, batch_size, text_of=text_of,
            go_on=writing.telling(lambda why: reasons.setdefault(why)),
        )
    )  # fmt: skip
    for why in reasons:
        ctx.event("writer", condition=condition, by="stepwell", why=why)
    ctx.event("answered", condition=condition, n=len(items), seconds=round(time.perf_counter() - began, 3))
    return found


def write_items(
    ctx: StageContext, name: str, condition: str, items: Sequence[QA], found: Sequence[AnswerRecord],
    size: Callable[[QA], int],
) -> Sequence[AnswerRecord]:  # fmt: skip
    """One record an item. Raises nothing: what was answered is what is written."""
    for item, record in zip(items, found, strict=True):
        fields = record.to_record()
        ctx.write(
            "item", set=name, condition=condition, question=item.question, answers=list(item.answers),
            bytes=size(item), **fields,
        )  # fmt: skip
    return found
