"""The shipped plan `wire`, so small that all its stages run in seconds, on a model of random weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from contract_models import bytes_tokenizer
from stepwell.adapt.params import LoraParams
from stepwell.backbone import HFBackbone
from stepwell.latents.contract import Contract
from stepwell.latents.contract_specs import ContractParams
from stepwell.plan import Plan, load_plan
from stepwell.shapes import Precision, Shape
from stepwell.studies.qa.cost import Reader
from stepwell.studies.wire.model import Wire
from stepwell.studies.wire.params import Arm
from stepwell.tasks.base import QA

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
    f"encoder.arms.bytes={ARM}",
    f"encoder.arms.lm={LM}",
    f"encoder.arms.deep={DEEP}",
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
    # Two steps are a third of an epoch.
    "hero.mixing.warmup_epochs=0",
    "answer.bits=[32, 16, 8, 4]",
    "answer.mean_of=4",
)


SHORT = ("data", "model", "text", "encoder", "stage-a", "stage-b", "answer")


def tiny_wire(model: Path, *overrides: str, stages: Sequence[str] | None = SHORT) -> Plan:
    """The rung `demo` on a few items: some of its stages and no gates, or all with every gate but `ceiling`.

    A model of random weights answers nothing, so that the gate would end every run.
    """
    plan = load_plan("wire", rung="demo", overrides=[*SIZES, f"model.name={model}", *overrides])
    kept = tuple(stage for stage in plan.stages if stages is None or stage.name in stages)
    asked = tuple(gate for gate in plan.gates if stages is None and gate.name != "ceiling")
    return Plan.model_validate(plan.model_copy(update={"stages": kept, "gates": asked}).model_dump())


def small_wire(*, vectors: int = 8, lora: bool = False, precision: Precision = "fp32") -> Wire:
    """A byte encoder before a llama of random weights, in memory."""
    shape = Shape(architecture="llama", vocabulary=2000, width=64, layers=4, heads=4, inner=172, max_positions=900)
    backbone = HFBackbone.from_shape(shape, precision=precision, device="cpu")
    randomise(backbone, 0.15)
    backbone.tokenizer = bytes_tokenizer()
    contract = Contract.of(
        backbone, ContractParams(max_prompt_tokens=300, max_answer_tokens=10, instruction="Be brief.")
    )
    pooling = {"kind": "queries", "inner": 32, "heads": 2}
    encoder = {"kind": "bytes", "patch": 4, "inner": 32, "layers": 1, "heads": 2, "width": 16, "max_bytes": 600}
    arm = Arm.model_validate({"encoder": encoder | {"pooling": pooling}, "adapter": {"inner": 32}})
    params = LoraParams(rank=4, alpha=4.0, layers="first half") if lora else None
    wire = Wire(contract, arm, (vectors,), lora=params)
    wire.train()
    return wire


def kept(work: Callable[[], object], *models: nn.Module) -> int:
    """Bytes that a piece of work keeps for its backward pass, the models' weights left out; each storage once."""
    known = {p.untyped_storage().data_ptr() for model in models for p in model.parameters()}
    seen: dict[int, int] = {}
    held = []  # alive, so that no address is used twice

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            held.append(tensor)
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        work()
    return sum(seen.values())


def reader_of(backbone: HFBackbone, *, longest: int) -> Reader:
    """What an estimate knows of a model, read off the model; prompts as long as they may be."""
    config = backbone.base.config
    own = sum(p.numel() for name, p in backbone.named_parameters() if ".lora_" not in name)
    return Reader(
        layers=own - backbone.width * backbone.vocabulary, width=backbone.width, vocabulary=backbone.vocabulary,
        prompt=longest, longest=longest, anchor=8, answer=10, blocks=config.num_hidden_layers,
        inner=config.intermediate_size, keys=backbone.width, tied=True,
        precision="bf16" if next(backbone.parameters()).element_size() == 2 else "fp32",
    )  # fmt: skip


def randomise(backbone: HFBackbone, std: float) -> None:
    """Matrices drawn anew, so large that what is read matters to what is said."""
    generator = torch.Generator().manual_seed(1)
    for parameter in backbone.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=std, generator=generator)


def small_items(n: int) -> list[QA]:
    """Items of differing contexts, questions and answers."""
    names = ("Ada", "Bo", "Cy", "Dora", "Eve", "Finn", "Gus", "Hal")
    return [
        QA(id=f"{at}", question=f"Who is {name}?", answers=(f"{name} of {at}"[:9],), context=f"{name} has {at} cats.")
        for at, name in ((at, names[at % len(names)] + chr(97 + at)) for at in range(n))
    ]


def wire_model(folder: Path) -> Path:
    """A llama of a few thousand random weights that reads and writes bytes, as transformers saves it."""
    shape = Shape(architecture="llama", vocabulary=264, width=16, layers=2, heads=2, inner=24, max_positions=720)
    backbone = HFBackbone.from_shape(shape, device="cpu")
    randomise(backbone, 0.3)
    backbone.tokenizer = bytes_tokenizer()
    backbone.save(folder)
    return folder
