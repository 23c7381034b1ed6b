"""A tiny chat model of bytes, conversations for it, and a training of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from byte_chat import ByteChat
from torch import nn

from stepwell.adapt.lora import LoRA
from stepwell.adapt.params import LoraParams
from stepwell.backbone import HFBackbone
from stepwell.ranks import Ranks
from stepwell.recipe import Monitors
from stepwell.sft import model as module
from stepwell.sft.conversations import Conversation
from stepwell.sft.model import SftModel
from stepwell.sft.packing import Batch, Corpus
from stepwell.sft.recipe import SftRecipe
from stepwell.sft.render import ChatFormat
from stepwell.sft.stream import SftStream
from stepwell.shapes import Shape
from stepwell.stage import Memory, StageContext
from stepwell.train import Training

SHAPE = Shape(architecture="llama", vocabulary=261, width=32, layers=2, heads=4, key_value_heads=2, inner=48,
              max_positions=128)  # fmt: skip
LIMIT = 64
OFF = Monitors(breakthrough="off", collapse="off")


def chat_model() -> HFBackbone:
    backbone = HFBackbone.from_shape(SHAPE, device="cpu")
    generator = torch.Generator().manual_seed(1)
    for parameter in backbone.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.35, generator=generator)
    backbone.tokenizer = ByteChat()
    return backbone


def sums(n: int) -> list[Conversation]:
    def talk(i: int) -> Conversation:
        asked = f"{i}+{'1' * (i % 5)}?"
        return Conversation(
            id=f"s{i}", messages=({"role": "user", "content": asked}, {"role": "assistant", "content": chr(97 + i)})
        )

    return [talk(i) for i in range(n)]


def context(recorder: Memory, stop: Any = lambda: False, ranks: Ranks | None = None) -> StageContext:
    job = SimpleNamespace(id="tune", stage="tune", kind="tune", axes={}, params={}, needs=())
    return StageContext(
        job=job, folder=Path("unused"), inputs={}, threads=1, seed=0, recorder=recorder, stop_asked=stop,
        ranks=ranks or Ranks(),
    )  # fmt: skip


@dataclass
class Run:
    lora: LoRA
    model: SftModel
    stream: SftStream
    training: Training
    recorder: Memory

    def go(self) -> Run:
        self.training.run(self.training.ctx.restored())
        return self

    @property
    def losses(self) -> list[float]:
        return [record["loss"] for record in self.recorder.records if record["kind"] == "step"]


def prepared(
    *,
    conversations: int = 24,
    dropout: float = 0.0,
    pack: bool = True,
    ranks: Ranks | None = None,
    recorder: Memory | None = None,
    stop: Any = lambda: False,
    held_out: tuple[Batch, ...] = (),
    **options: Any,
) -> Run:
    recipe = SftRecipe(**{"steps": 6, "batch_size": 2, "accumulation": 2, "lr": 0.01, "warmup_steps": 2,
                          "log_every": 1, "checkpoint_every": 3, "max_tokens": LIMIT} | options)  # fmt: skip
    lora = LoRA(chat_model(), LoraParams(rank=4, dropout=dropout), seed=3)
    recorder = recorder or Memory()
    ctx = context(recorder, stop, ranks)
    corpus = Corpus.of(sums(conversations), ChatFormat.of(ByteChat()), LIMIT)
    stream = SftStream(
        corpus, max_tokens=LIMIT, batch_size=recipe.batch_size, accumulation=recipe.accumulation, seed=11, pack=pack,
    )  # fmt: skip
    model = SftModel(lora, ctx=ctx, held_out=held_out, every=2)
    training = Training(model=model, stream=stream, recipe=recipe, curriculum=None, monitors=OFF, ctx=ctx, seed=5)
    return Run(lora, model, stream, training, recorder)


NO_MEMORY = {
    "cuda": lambda: torch.OutOfMemoryError("CUDA out of memory"),
    "cpu": lambda: RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
}
"""How torch says on a device that its memory ran out."""


def out_of_memory_above(rows: int, monkeypatch: Any, device: str = "cuda") -> None:
    """A batch of more rows does not fit into the memory of a device."""
    whole = module.states

    def small(backbone: Any, ids: Any, positions: Any) -> Any:
        if len(ids) > rows:
            raise NO_MEMORY[device]()
        return whole(backbone, ids, positions)

    monkeypatch.setattr(module, "states", small)
