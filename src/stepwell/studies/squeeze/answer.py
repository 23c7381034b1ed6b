"""The stage `squeeze.answer`: what the model answers when it reads prompts through the bottleneck."""

from __future__ import annotations

from stepwell.latents.restorer import Restorer
from stepwell.latents.wirebytes import bytes_on_wire
from stepwell.stage import Input, StageContext
from stepwell.studies.qa.data import read_split
from stepwell.studies.qa.models import loaded, writing_of
from stepwell.studies.qa.text import ask, text_bytes
from stepwell.studies.squeeze.params import AnswerParams
from stepwell.studies.squeeze.restore import FILE, through


def answer(params: AnswerParams, ctx: StageContext) -> None:
    """One record an item and number of bits, beside the ceiling's F1 on the same item."""
    contract, writing = loaded(ctx), writing_of(ctx, params.vllm)
    (data,), (text,) = ctx.inputs["data"], ctx.inputs["text"]
    ceiling = {row["id"]: row["f1"] for row in text.records("item") if row["condition"] == "ceiling"}
    restorer = Restorer.load(trained(ctx).folder / FILE).to(next(contract.backbone.parameters()).device)
    items = [item for item in read_split(data.folder, "test", params.items) if item.id in ceiling]
    arm = str(ctx.job.axes["arm"])
    for done, bits in enumerate(params.bits, 1):
        condition = arm if bits == 32 else f"{arm}-{bits}bit"
        found = ask(
            contract, items, batch_size=params.batch_size, ctx=ctx, condition=condition, writing=writing,
            prefix_of=lambda some, bits=bits: through(contract, restorer, some, bits),
        )  # fmt: skip
        for item, record in zip(items, found, strict=True):
            fields, sent = record.to_record(), len(contract.prompt(item)) - len(contract.bos)
            ctx.write(
                "item", set="test", condition=condition, question=item.question, answers=list(item.answers), bits=bits,
                bytes=bytes_on_wire(sent, restorer.numbers_per_token, bits), text_bytes=text_bytes(contract, item),
                ceiling_f1=ceiling[item.id], above_share=record.f1 - params.share * ceiling[item.id],
                above_floor=record.f1 - params.floor * ceiling[item.id], **fields,
            )  # fmt: skip
        ctx.progress(done, len(params.bits))
        ctx.stop_if_asked()


def trained(ctx: StageContext) -> Input:
    """The job whose restorer is read: of phase 2 where the plan has one, else of phase 1."""
    (made,) = ctx.inputs["refine"] if "refine" in ctx.inputs else ctx.inputs["restore"]
    return made
