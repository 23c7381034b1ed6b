"""Conversations of three categories, a meta-training of them, and first-order MAML in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from byte_chat import ByteChat
from sft_toys import LIMIT, OFF, chat_model, context
from torch import Tensor
from torch.nn import functional as F

from stepwell.adapt.lora import LoRA
from stepwell.adapt.params import LoraParams
from stepwell.ranks import Ranks
from stepwell.sft.conversations import Conversation
from stepwell.sft.meta import MetaModel
from stepwell.sft.packing import PADDING, Batch, Corpus
from stepwell.sft.recipe import Anil, Maml, SftRecipe
from stepwell.sft.render import ChatFormat
from stepwell.sft.stream import SftStream
from stepwell.stage import Memory
from stepwell.train import Training

FORM = ChatFormat.of(ByteChat())
MAML = Maml(inner_steps=2, inner_lr=0.03, support=0.4)
ANIL = Anil(inner_steps=2, inner_lr=0.03, support=0.4)
CATEGORIES = ("plus", "minus", "times")


def talks(n: int) -> list[Conversation]:
    """Conversations of three categories in turn, each with a rule of its own for the answer."""

    def talk(i: int) -> Conversation:
        asked, answer = f"{i}{'?' * (1 + i % 4)}", chr(97 + (i * (1 + i % 3)) % 26)
        messages = ({"role": "user", "content": asked}, {"role": "assistant", "content": answer})
        return Conversation(id=f"t{i}", messages=messages, category=CATEGORIES[i % 3])

    return [talk(i) for i in range(n)]


def categories_of(some: Sequence[Conversation]) -> dict[str, str | None]:
    return {one.id: one.category for one in some}


@dataclass
class Run:
    lora: LoRA
    model: MetaModel
    stream: SftStream
    training: Training
    recorder: Memory

    def go(self) -> Run:
        self.training.run(self.training.ctx.restored())
        return self

    def task(self) -> Batch:
        return self.stream.batches(0, lambda _: 0)[0]

    def records(self, kind: str) -> list[dict[str, Any]]:
        return [record for record in self.recorder.records if record["kind"] == kind]


def prepared(
    meta: Maml = MAML,
    *,
    dropout: float = 0.0,
    recorder: Memory | None = None,
    stop: Callable[[], bool] = lambda: False,
    ranks: Ranks | None = None,
    **options: Any,
) -> Run:
    recipe = SftRecipe(**{"steps": 4, "batch_size": 5, "accumulation": 2, "lr": 0.01, "warmup_steps": 1, "log_every": 1,
                          "checkpoint_every": 2, "max_tokens": LIMIT, "pack": False} | options)  # fmt: skip
    lora = LoRA(chat_model(), LoraParams(rank=4, dropout=dropout), seed=3)
    with torch.no_grad():  # B is 0 at the start, and A without a gradient
        generator = torch.Generator().manual_seed(2)
        for parameter in lora.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    recorder = recorder or Memory()
    ctx, some = context(recorder, stop, ranks), talks(48)
    stream = SftStream(
        Corpus.of(some, FORM, LIMIT), max_tokens=LIMIT, batch_size=recipe.batch_size, accumulation=recipe.accumulation,
        seed=11, pack=recipe.pack, categories=categories_of(some),
    )  # fmt: skip
    model = MetaModel(
        lora, meta, ctx=ctx, steps=recipe.total_steps(stream.steps_per_epoch), log_every=recipe.log_every,
    )  # fmt: skip
    training = Training(model=model, stream=stream, recipe=recipe, curriculum=None, monitors=OFF, ctx=ctx, seed=5)
    return Run(lora, model, stream, training, recorder)


def weights(lora: LoRA) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in lora.parameters()]


def equal(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(some, others, strict=True))


def conversations_in(batch: Batch) -> list[Conversation]:
    return [talks(48)[number] for number in sorted(set(batch.examples.flatten().tolist()) - {PADDING})]


class Float64:
    """First-order MAML, a conversation and a token at a time, by the model's own forward pass in float64."""

    def __init__(self, lora: LoRA) -> None:
        self.model = copy.deepcopy(lora.backbone.model).double().eval()
        named = {id(parameter): name for name, parameter in lora.backbone.model.named_parameters()}
        self.names = [named[id(parameter)] for parameter in lora.parameters()]
        self.begin = {name: parameter.detach() for name, parameter in self.model.named_parameters()}

    def loss(self, at: dict[str, Tensor], some: Sequence[Conversation]) -> tuple[Tensor, int]:
        nats, count = torch.zeros((), dtype=torch.float64), 0
        for one in some:
            rendered = FORM.render(one, LIMIT)
            ids = torch.tensor([rendered.ids])
            logits = torch.func.functional_call(self.model, at, kwargs={"input_ids": ids}).logits[0]
            for place, wanted in enumerate(rendered.supervised):
                if wanted:
                    nats, count = nats - F.log_softmax(logits[place - 1], -1)[rendered.ids[place]], count + 1
        return nats, count

    def gradient(self, at: dict[str, Tensor], some: Sequence[Conversation]) -> tuple[float, int, dict[str, Tensor]]:
        leaves = {name: at[name].detach().requires_grad_() for name in self.names}
        nats, count = self.loss(at | leaves, some)
        found = torch.autograd.grad(nats, list(leaves.values()))
        return float(nats.detach()), count, dict(zip(leaves, found, strict=True))

    def task(
        self, meta: Maml, support: Sequence[Conversation], query: Sequence[Conversation], adapting: Sequence[str]
    ) -> tuple[list[float], int, dict[str, Tensor]]:
        """Means before and after on the support, the query's sum; its tokens; its gradient."""
        at = dict(self.begin)
        before, count = self.loss(at, support)
        for _ in range(meta.inner_steps):
            _, _, gradient = self.gradient(at, support)
            at |= {name: at[name] - meta.inner_lr * gradient[name] / count for name in adapting}
        after, _ = self.loss(at, support)
        nats, tokens, gradient = self.gradient(at, query)
        return [float(before) / count, float(after) / count, nats], tokens, gradient
