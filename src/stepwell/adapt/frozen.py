"""Proof that what is to stay as it is did: no gradient, and the same bytes, by hash."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from stepwell.errors import StepwellError
from stepwell.fingerprint import fingerprint
from stepwell.sharding import whole


@dataclass(frozen=True, kw_only=True)
class Seal:
    """The hashes of what is frozen in a module; `check` compares them.

    Parameters and buffers that a state dict has count, ones that are shared once; they are known by name, dtype, shape
    and content. PEFT's own part of a name (`base_layer`) does not count. What processes hold in parts is hashed whole:
    all of them must seal and check.

    Attributes:
        module: the module.
        but: the parameters that are trained.
        hashes: name -> sha256.
    """

    module: nn.Module
    but: tuple[Tensor, ...]
    hashes: Mapping[str, str]

    @classmethod
    def of(cls, module: nn.Module, *, but: Iterable[Tensor] = ()) -> Self:
        """Seal a module as it is now; all of its bytes are read once.

        Args:
            module: the module.
            but: parameters that may change, such as those of its adapter.

        Raises:
            StepwellError: another parameter takes gradients, or nothing is frozen.
        """
        trained = tuple(but)
        held = _frozen(module, trained)
        if not held:
            raise StepwellError("nothing in the module is frozen", "seal the model, not what is trained")
        _need_no_gradients(held)
        return cls(module=module, but=trained, hashes={name: _sha256(tensor) for name, tensor in held.items()})

    @property
    def sha256(self) -> str:
        """One hash (64 hex digits) of all that is frozen: the identity of a base model."""
        return fingerprint(self.hashes)

    def check_gradients(self) -> None:
        """Raise StepwellError where something frozen takes or has a gradient; quick, for every step."""
        _need_no_gradients(_frozen(self.module, self.but))

    def check(self) -> None:
        """As `check_gradients`, and all bytes are as they were.

        Raises:
            StepwellError: something has a gradient, has changed, is missing or is new.
        """
        held = _frozen(self.module, self.but)
        _need_no_gradients(held)
        if held.keys() != self.hashes.keys():
            name = min(held.keys() ^ self.hashes.keys())
            fault = "was not there before" if name in held else "is no longer there"
            raise StepwellError(f"{name} {fault}, in a module that is frozen", "seal it when it is complete")
        changed = [name for name, tensor in held.items() if _sha256(tensor) != self.hashes[name]]
        if changed:
            raise StepwellError(
                f"{len(changed)} of {len(held)} frozen tensors have changed, first {changed[0]}",
                "leave them out of the optimizer, and write into none of them",
            )


@contextmanager
def assert_frozen(module: nn.Module, *, but: Iterable[Tensor] = ()) -> Iterator[Seal]:
    """What the block does leaves a module as it is, but for some parameters. Raises as `Seal.of` and `Seal.check`."""
    seal = Seal.of(module, but=but)
    yield seal
    seal.check()


def weights_sha256(module: nn.Module) -> str:
    """One hash (64 hex digits) of a model's own weights, the same with LoRA on it and without."""
    adapters = [tensor for name, tensor in module.named_parameters() if ".lora_" in name]
    return fingerprint({name: _sha256(tensor) for name, tensor in _frozen(module, adapters).items()})


def _frozen(module: nn.Module, but: Iterable[Tensor]) -> dict[str, Tensor]:
    seen, held = {id(tensor) for tensor in but}, {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            held[name.replace(".base_layer.", ".")] = tensor
    return held


def _need_no_gradients(held: Mapping[str, Tensor]) -> None:
    for name, tensor in held.items():
        if tensor.requires_grad:
            raise StepwellError(
                f"{name} is to stay as it is, and takes gradients", "freeze it, or name it among what is trained"
            )
        if tensor.grad is not None:
            raise StepwellError(
                f"{name} is to stay as it is, and got a gradient", "freeze it before the forward pass, not after"
            )


def _sha256(tensor: Tensor) -> str:
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    digest.update(whole(tensor).detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
