"""Tiny bases on disk, and adapters on them as PEFT saves them, with weights that were never zero."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import Tensor

from fit_models import tiny
from stepwell.backbone import HFBackbone


def saved_base(
    folder: Path, name: str = "llama", *, shard: str | None = None, dtype: torch.dtype | None = None
) -> Path:
    """A tiny model in a folder, in shards of some size where asked."""
    model = tiny(name).model
    if dtype is not None:
        model = model.to(dtype)
    model.save_pretrained(folder, **({} if shard is None else {"max_shard_size": shard}))
    return folder


def adapter_on(base: Path, folder: Path, *, seed: int = 0, size: float = 0.1, **options: Any) -> Any:
    """PEFT's model with an adapter on a base; all that is trained is random. It is saved as PEFT does it."""
    model: Any = HFBackbone.load(base, device="cpu").model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped: Any = get_peft_model(model, LoraConfig(**options))
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in wrapped.named_parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator) * size
                plain = "lora_A" in name or "lora_B" in name or "lora_embedding" in name
                # In place: tied adapters share their memory.
                parameter.data.copy_(noise if plain else parameter.data + noise)
        wrapped.save_pretrained(folder)
    return wrapped.eval()


def tensors_of(folder: Path) -> dict[str, Tensor]:
    """All weights of a model folder, read by the format's own library."""
    return {key: tensor for file in sorted(folder.glob("*.safetensors")) for key, tensor in load_file(file).items()}
