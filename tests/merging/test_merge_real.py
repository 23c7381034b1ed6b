"""A real model, made from a GGUF file: an adapter of Stepwell's own merges into exactly its weights, and is proved."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stepwell.adapt.lora import LoRA, LoraParams
from stepwell.backbone import HFBackbone
from stepwell.merging.base import BaseIdentity
from stepwell.merging.checking import check_merged
from stepwell.merging.merge import merge
from stepwell.models import locate


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_smollm2_is_merged_and_proved(tmp_path: Path):
    base = locate("smollm2-135m")
    backbone = HFBackbone.load(base, device="cpu")
    lora = LoRA(backbone, LoraParams(rank=8, alpha=16))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in lora.named_parameters():
        if ".B." in name:
            torch.nn.init.normal_(parameter, std=0.02, generator=generator)
    lora.save_peft(tmp_path / "adapter", base="smollm2-135m", identity=BaseIdentity.of(base))
    found = merge("smollm2-135m", tmp_path / "adapter", tmp_path / "out", device="cpu")
    assert found.verified and found.advice == "good" and found.proof.exact and found.proof.top1_agreement == 1.0
    assert found.proof.effect_kl_nats > 1e-3 and found.proof.greedy_agreement == 1.0
    assert found.merged.sha256 == check_merged(tmp_path / "out")["merged_sha256"]
    narrow = merge("smollm2-135m", tmp_path / "adapter", tmp_path / "narrow", precision="bf16", device="cpu")
    assert narrow.survived is not None and 0 < narrow.survived < 1
    print(narrow.survived, narrow.proof)
    assert HFBackbone.load(tmp_path / "narrow", device="cpu").tokenizer is not None
