"""The streamed merge against PEFT's own, in float32, for each kind of adapter and of base."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from merge_models import adapter_on, saved_base, tensors_of
from torch import Tensor

from stepwell.backbone import HFBackbone
from stepwell.merging.merge import merge

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "linear": ("llama", {"target_modules": LINEARS, "r": 4, "lora_alpha": 16}),
    "patterns": (
        "llama",
        {"target_modules": LINEARS, "rank_pattern": {"q_proj": 3, r"layers\.1\.mlp\.up_proj": 5},
         "alpha_pattern": {"q_proj": 7, "1.self_attn.v_proj": 30}},
    ),
    "rslora": ("llama", {"target_modules": ["q_proj", "down_proj"], "use_rslora": True, "lora_alpha": 5}),
    "dora": ("llama", {"target_modules": ["q_proj", "down_proj"], "use_dora": True}),
    "dora rslora": ("qwen2", {"target_modules": ["v_proj"], "use_dora": True, "use_rslora": True}),
    "modules to save": ("pythia", {"target_modules": ["query_key_value"], "modules_to_save": ["lm_head"]}),
    "norms saved": ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["input_layernorm"]}),
    "head": ("pythia", {"target_modules": ["lm_head", "dense"]}),
    "embedding": ("pythia", {"target_modules": ["embed_in", "dense"]}),
    "dora embedding": ("pythia", {"target_modules": ["embed_in"], "use_dora": True}),
    "bias all": ("qwen2", {"target_modules": ["q_proj", "k_proj"], "bias": "all"}),
    "bias lora only": ("gpt2", {"target_modules": ["c_attn"], "bias": "lora_only", "fan_in_fan_out": True}),
    "bias of B": ("qwen2", {"target_modules": ["q_proj"], "lora_bias": True, "use_rslora": True}),
    "conv1d": ("gpt2", {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}),
    "conv1d dora": ("gpt2", {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True, "use_dora": True}),
    "tied together": (
        "llama", {"target_modules": ["embed_tokens", "lm_head", "q_proj"], "ensure_weight_tying": True},
    ),
}  # fmt: skip


def logits(model: Any) -> Tensor:
    ids = torch.randint(0, 61, (2, 11), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return model(input_ids=ids).logits


def weights_of(model: Any) -> dict[str, Tensor]:
    """What PEFT's own merge makes; tied parameters under every name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return dict(model.merge_and_unload().named_parameters(remove_duplicate=False))


CASES = [*((kind, False) for kind in KINDS), ("linear", True), ("conv1d dora", True), ("modules to save", True)]


@pytest.mark.parametrize(("kind", "sharded"), CASES)
def test_the_merge_is_pefts(kind: str, sharded: bool, tmp_path: Path):
    name, options = KINDS[kind]
    base = saved_base(tmp_path / "base", name, shard="20KB" if sharded else None)
    model = adapter_on(base, tmp_path / "adapter", **options)
    wanted_logits = logits(model)
    wanted = weights_of(model) if kind != "tied together" else None
    merged = merge(base, tmp_path / "adapter", tmp_path / "out")
    assert merged.advice == "good" and merged.proof.exact and merged.proof.top1_agreement == 1.0
    found = tensors_of(tmp_path / "out")
    if wanted is not None:
        assert found.keys() == tensors_of(base).keys()
        for key, tensor in found.items():
            torch.testing.assert_close(tensor, wanted[key.replace("embed_out.", "lm_head.")], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        logits(HFBackbone.load(tmp_path / "out", device="cpu").model), wanted_logits, rtol=1e-4, atol=1e-4
    )
