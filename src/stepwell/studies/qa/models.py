"""The stage `qa.model`: the model, its prompt contract and what it costs the items; and how later stages load it."""

from __future__ import annotations

from pathlib import Path

import torch

from stepwell import models
from stepwell.answers import Asked
from stepwell.backbone import HFBackbone
from stepwell.latents.contract import Contract
from stepwell.stage import StageContext
from stepwell.studies.qa.data import SPLITS, read_split
from stepwell.studies.qa.params import QAModelParams
from stepwell.writing import Writing

TOLERANCE = 1e-3
PROBED = 2
"""Items whose text is read both ways."""


def check(params: QAModelParams, ctx: StageContext) -> None:
    """Say what every arm reads, what the limits cut, and prove that embeddings and tokens are read alike."""
    backbone = HFBackbone.load(params.name, precision=params.precision, device=ctx.device)
    contract = Contract.of(backbone, params.contract)
    ctx.write(
        "contract", fingerprint=contract.fingerprint(), shown=contract.shown(), model=params.name,
        precision=params.precision, parameters=sum(p.numel() for p in backbone.parameters()),
    )  # fmt: skip
    (data,) = ctx.inputs["data"]
    for name in SPLITS:
        found = contract.coverage(read_split(data.folder, name))
        ctx.write(
            "coverage", set=name, n=found.n, contexts_cut=found.contexts_cut, answers_lost=found.answers_lost,
            answers_cut=found.answers_cut,
        )  # fmt: skip
    passed, detail = reads_alike(contract, data.folder)
    ctx.write("check", name="embeddings-as-text", passed=passed, detail=detail)


def reads_alike(contract: Contract, folder: Path) -> tuple[bool, str]:
    """Whether the whole text as a prefix of embeddings gives the state that it gives as tokens: the ceiling's proof."""
    backbone, worst = contract.backbone, 0.0
    with torch.no_grad():
        for item in read_split(folder, "held", PROBED):
            ids = contract.prompt(item)[len(contract.bos) :]
            device = next(backbone.parameters()).device
            prefix = backbone.embed(torch.tensor([ids], device=device))
            one = Asked.of_prefix(contract, prefix).read(backbone).hidden.float()
            other = Asked.of_ids(backbone, [contract.text(item)]).read(backbone).hidden.float()
            worst = max(worst, float((one - other).abs().max() / other.abs().max()))
    return worst <= TOLERANCE, f"largest difference of the last state: {worst:.1e} of the largest entry"


def loaded(ctx: StageContext) -> Contract:
    """The contract of the model stage, with its model."""
    params = _model_of(ctx)
    # What no device holds whole is loaded beside it, and moved there in parts.
    device = "cpu" if ctx.shard else ctx.device
    return Contract.of(HFBackbone.load(params.name, precision=params.precision, device=device), params.contract)


def writing_of(ctx: StageContext, vllm: bool, *, unless: str = "") -> Writing:
    """What writes answers after what the model of the model stage read; `unless`: why vLLM is not fit for it."""
    if not vllm:
        return Writing()
    params = _model_of(ctx)
    return Writing.of(lambda: models.locate(params.name), params.precision, unless=unless)


def _model_of(ctx: StageContext) -> QAModelParams:
    (made,) = ctx.inputs["model"]
    return QAModelParams.model_validate(dict(made.job.params))
