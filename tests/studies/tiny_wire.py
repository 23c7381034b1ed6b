"""The shipped plan `wire`, so small that all its stages run in seconds, on a model of random weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from contract_models import bytes_tokenizer
from stepwell.backbone import HFBackbone
from stepwell.plan import Plan, load_plan
from stepwell.shapes import Shape

ARM = (
    "{encoder: {kind: bytes, patch: 4, inner: 16, layers: 1, heads: 2, width: 8, max_bytes: 600, "
    "pooling: {kind: queries, inner: 16, heads: 2, layers: 1}}, adapter: {inner: 16}}"
)
LM = "{encoder: {kind: lm, pooling: mean, width: 8, max_tokens: 700}, reader: {rank: 2, alpha: 2}}"
DEEP = ARM.replace("adapter: {inner: 16}", "adapter: null, deep: {inner: 16}")
HELD = "{every: 2, answered: 3, answer_every: 3, shown: 2}"
SIZES = (
    "engine=inline",
    "threads_per_job=1",
    "device=cpu",
    "axes.vectors=[3]",
    "data.source.sentences=4",
    "data.n_train=24",
    "data.n_held=5",
    "data.n_test=6",
    "model.contract={max_prompt_tokens: 500, max_answer_tokens: 10, instruction: Be brief.}",
    "text.cut_tokens=[3]",
    "text.cut_bytes=[30]",
    f"stage-a.arms.bytes={ARM}",
    f"stage-a.arms.lm={LM}",
    f"stage-a.arms.deep={DEEP}",
    "stage-a.recipe={steps: 4, batch_size: 2, accumulation: 2, lr: 1.0e-2, checkpoint_every: 2}",
    f"stage-a.held={HELD}",
    "stage-b.recipe={steps: 6, batch_size: 4, lr: 1.0e-2, checkpoint_every: 2}",
    "stage-b.lora={rank: 2, alpha: 2, layers: first half, dropout: 0.1}",
    "stage-b.mixing.warmup_epochs=0.4",
    f"stage-b.held={HELD}",
    *(
        f"{name}.{key}"
        for name in ("sweep", "sampling", "hero")
        for key in (
            "recipe={steps: 2, batch_size: 4, lr: 1.0e-2}",
            "lora={rank: 2, alpha: 2, layers: first half, dropout: 0.1}",
            f"held={HELD}",
        )
    ),
    "answer.bits=[32, 16, 8, 4]",
    "answer.mean_of=4",
)


SHORT = ("data", "model", "text", "stage-a", "stage-b", "answer")


def tiny_wire(model: Path, *overrides: str, stages: Sequence[str] | None = SHORT) -> Plan:
    """The rung `demo` on a few items: some of its stages and no gates, or all with every gate but `ceiling`.

    A model of random weights answers nothing, so that the gate would end every run.
    """
    plan = load_plan("wire", rung="demo", overrides=[*SIZES, f"model.name={model}", *overrides])
    kept = tuple(stage for stage in plan.stages if stages is None or stage.name in stages)
    asked = tuple(gate for gate in plan.gates if stages is None and gate.name != "ceiling")
    return Plan.model_validate(plan.model_copy(update={"stages": kept, "gates": asked}).model_dump())


def wire_model(folder: Path) -> Path:
    """A llama of a few thousand random weights that reads and writes bytes, as transformers saves it."""
    shape = Shape(architecture="llama", vocabulary=264, width=16, layers=2, heads=2, inner=24, max_positions=720)
    backbone = HFBackbone.from_shape(shape, device="cpu")
    generator = torch.Generator().manual_seed(1)
    for parameter in backbone.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.3, generator=generator)
    backbone.tokenizer = bytes_tokenizer()
    backbone.save(folder)
    return folder
