"""LoRA on a backbone, through PEFT: which linear maps, which adapter is on, and its weights as a part of their own.

The adapter is put into the backbone's own layers, so that whoever runs the backbone runs it. Several adapters may be on
one backbone (an encoder's and a decoder's); at most one is on at any time, in all layers alike.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from stepwell.adapt.params import LoraParams
from stepwell.backbone import Conv1D, HFBackbone
from stepwell.errors import StepwellError
from stepwell.merging.adapter import LINEAGE, Lineage
from stepwell.merging.base import BaseIdentity

__all__ = ["LoRA", "LoraParams", "active_adapter"]


class LoRA(nn.Module):
    """A low-rank adapter on a backbone, new and on; as a module it holds the adapter's weights and nothing else.

    With B = 0 at the start, the model is at first what it was. All other weights of the backbone are frozen. The
    adapter is at least fp32, also on a base in half precision. The global random state is left alone.

    Args:
        backbone: is changed in place.
        params: rank, alpha, dropout, layers and targets.
        name: of the adapter; letters, digits and underscores.
        seed: of A's weights, drawn on the CPU.

    Raises:
        StepwellError: no such layer or target; a name that is taken, or no name.
    """

    def __init__(self, backbone: HFBackbone, params: LoraParams, *, name: str = "lora", seed: int = 0) -> None:
        super().__init__()
        self.params, self.name = params, name
        self._held = (backbone,)  # in a tuple: the backbone is no part of this module, nor of what it saves
        _need_name(name, backbone)
        linears = _targets(backbone, params)
        before = {id(module) for module in backbone.modules()}
        transposed = all(isinstance(_base_of(module), Conv1D) for module in linears.values())
        config = LoraConfig(
            r=params.rank,
            lora_alpha=params.alpha,  # pyright: ignore[reportArgumentType]  # PEFT divides it, an integer or not
            lora_dropout=params.dropout,
            target_modules=list(linears),
            fan_in_fan_out=transposed,
        )
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            # A second adapter is meant, and which of them is on is looked after here.
            warnings.filterwarnings("ignore", "Already found a `peft_config` attribute")
            torch.manual_seed(seed)
            inject_adapter_in_model(config, backbone.model, adapter_name=name)
        # New modules are born in training mode, whatever the model they are put into.
        for module in backbone.modules():
            if id(module) not in before:
                module.training = backbone.training
        _switch(backbone, name)
        self.sites = nn.ModuleDict(self._found(list(linears)))
        if next(self.parameters()).element_size() < 4:
            self.float()  # PEFT takes the base's precision, in which small updates of the optimizer are lost
        for parameter in self.parameters():
            parameter.requires_grad_(True)

    @property
    def backbone(self) -> HFBackbone:
        """The model it is on."""
        return self._held[0]

    @property
    def is_on(self) -> bool:
        """Whether the model runs with this adapter. Raises as `active_adapter`."""
        return active_adapter(self.backbone) == self.name

    @contextmanager
    def on(self) -> Iterator[None]:
        """In the block the model runs with this adapter and no other; afterwards as before.

        Raises:
            StepwellError: layers that are recomputed in backward would run with whatever is on by then; or the state
                was changed in the block.
        """
        with self._state(self.name):
            yield

    @contextmanager
    def off(self) -> Iterator[None]:
        """In the block the model runs without any adapter; afterwards as before. Raises as `on`."""
        with self._state(None):
            yield

    @contextmanager
    def teacher(self, *, adapted: bool) -> Iterator[None]:
        """In the block the model is a teacher: with this adapter or with none, as asked; no dropout, no gradient.

        Raises:
            StepwellError: the state was changed in the block.
        """
        modes = [(module, module.training) for module in self.backbone.modules()]
        self.backbone.eval()
        try:
            with torch.no_grad(), self._state(self.name if adapted else None):
                yield
        finally:
            for module, training in modes:
                module.training = training

    def parameter_count(self) -> int:
        """Weights of the adapter."""
        return sum(parameter.numel() for parameter in self.parameters())

    def save_peft(self, folder: Path, *, base: str, identity: BaseIdentity, revision: str | None = None) -> None:
        """Write the adapter into a folder as PEFT does (adapter_config.json, adapter_model.safetensors).

        Which base it belongs to is written beside it (stepwell.json) and into the metadata of its weights: name,
        revision, dtype, hash, and whether it was quantised. By the hash a merge knows the base again.

        Args:
            folder: is created where it is missing.
            base: name of the base model, for `base_model_name_or_path`.
            identity: of the base's weights on disk.
            revision: of the base.
        """
        from safetensors.torch import save_file

        frozen = next(weight for name, weight in self.backbone.named_parameters() if ".lora_" not in name)
        quantised = identity.quantised or bool(getattr(self.backbone.model, "is_quantized", False))
        lineage = Lineage(base=base, revision=revision, identity=identity, quantised=quantised,
                          trained_in=str(frozen.dtype).removeprefix("torch."))  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        config = self.backbone.model.peft_config[self.name]
        config.base_model_name_or_path, config.revision, config.task_type = base, revision, "CAUSAL_LM"
        config.inference_mode = True
        config.save_pretrained(str(folder))
        # PEFT writes a set in whatever order it has: equal adapters would be unequal files.
        written = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        written["target_modules"] = sorted(written["target_modules"])
        (folder / "adapter_config.json").write_text(json.dumps(written, indent=2, sort_keys=True), encoding="utf-8")
        told = lineage.to_json()
        (folder / LINEAGE).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
        tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in self._peft_tensors().items()}
        # One key alone: safetensors writes several in an order that changes, and with it the file's bytes.
        metadata = {"stepwell": json.dumps(told)}
        save_file(tensors, folder / "adapter_model.safetensors", metadata=metadata)

    def _peft_tensors(self) -> dict[str, Tensor]:
        return {
            f"base_model.model.{site.replace('/', '.')}.lora_{matrix}.weight": pair[matrix].weight  # pyright: ignore[reportIndexIssue, reportAttributeAccessIssue]
            for site, pair in self.sites.items()
            for matrix in ("A", "B")
        }  # fmt: skip

    def _found(self, wanted: list[str]) -> dict[str, nn.Module]:
        """What PEFT put in, by site; it must be what was wanted."""
        layers = {n: m for n, m in self.backbone.model.named_modules() if isinstance(m, LoraLayer)}
        found = {name: layer for name, layer in layers.items() if self.name in layer.lora_A}
        if found.keys() != set(wanted):
            raise StepwellError(
                f"PEFT adapted {len(found)} modules where {len(wanted)} were asked for",
                "another version of peft may select otherwise: install the one of the lock file",
            )
        # A module's name must not have dots in it.
        return {name.replace(".", "/"): self._pair(found[name]) for name in wanted}

    def _pair(self, layer: LoraLayer) -> nn.ModuleDict:
        return nn.ModuleDict(
            {"A": layer.lora_A[self.name], "B": layer.lora_B[self.name], "dropout": layer.lora_dropout[self.name]}
        )

    @contextmanager
    def _state(self, wanted: str | None) -> Iterator[None]:
        before = active_adapter(self.backbone)
        if wanted != before and self.backbone.recomputes and torch.is_grad_enabled():
            raise StepwellError(
                f"the adapter is {_told(before)}, and is to be {_told(wanted)} for one forward pass with gradients, "
                "but gradient checkpointing runs the layers again in backward, when it is no longer",
                "switch gradient checkpointing off, or give the encoder a model of its own",
            )
        _switch(self.backbone, wanted)
        try:
            yield
            if (after := active_adapter(self.backbone)) != wanted:
                raise StepwellError(
                    f"the adapter was to be {_told(wanted)}, and is {_told(after)} at the end",
                    "switch adapters by `on`, `off` and `teacher` only",
                )
        finally:
            _switch(self.backbone, before)


def active_adapter(backbone: HFBackbone) -> str | None:
    """The name of the adapter that the model runs with; None = it runs as it was without any.

    Raises:
        StepwellError: the layers do not agree, or an adapter is merged into the weights.
    """
    states: set[tuple[str, ...]] = set()
    for layer in _layers(backbone):
        if layer.merged:
            raise StepwellError("an adapter is merged into the model's weights", "load the model again, and do not")
        states.add(() if layer.disable_adapters else tuple(layer.active_adapters))
    if len(states) > 1 or any(len(state) > 1 for state in states):
        told = "; ".join(sorted("+".join(state) or "none" for state in states))
        raise StepwellError(
            f"the model's layers run with different adapters, or with several at once: {told}",
            "switch adapters by `on`, `off` and `teacher` only",
        )
    return next((state[0] for state in states if state), None)


def _switch(backbone: HFBackbone, name: str | None) -> None:
    for layer in _layers(backbone):
        # PEFT also freezes what it switches off, and trains what it switches on. What is trained is not said here.
        flags = [(parameter, parameter.requires_grad) for parameter in layer.parameters()]
        if name is not None:
            layer.set_adapter([name])
        layer.enable_adapters(name is not None)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def _layers(backbone: HFBackbone) -> Iterator[Any]:
    # LoraLayer is a mixin: only with nn.Module, which no type says, is it a layer.
    return (module for module in backbone.model.modules() if isinstance(module, LoraLayer))


def _told(name: str | None) -> str:
    return "off" if name is None else f"on ({name})"


def _need_name(name: str, backbone: HFBackbone) -> None:
    if not name.isidentifier():
        raise StepwellError(f"{name!r} cannot name an adapter", "take letters, digits and underscores")
    if name in getattr(backbone.model, "peft_config", {}):
        raise StepwellError(f"the model has an adapter {name!r} already", "name the second one otherwise")
    if any(name in module_name.split(".") for module_name, _ in backbone.model.named_modules()):
        # PEFT finds an adapter's weights by its name as a part of theirs.
        raise StepwellError(f"a module of the model is called {name!r}", "name the adapter otherwise")


def _targets(backbone: HFBackbone, params: LoraParams) -> dict[str, nn.Module]:
    """The linear maps to adapt, by their full names in `backbone.model`."""
    prefix, layers = _layer_list(backbone)
    found: dict[str, nn.Module] = {}
    for index in _chosen(params, len(layers)):
        linears = dict(_linears(layers[index]))
        kept = {name: linear for name, linear in linears.items() if _is_target(name, params.targets)}
        absent = () if isinstance(params.targets, str) else params.targets
        absent = [target for target in absent if not any(_is_target(name, (target,)) for name in linears)]
        if absent or not kept:
            raise StepwellError(
                f"layer {index} has no linear map called {', '.join(absent) or params.targets}",
                f"choose from {', '.join(linears)}, or `targets: all`",
            )
        found |= {f"{prefix}.{index}.{name}": linear for name, linear in kept.items()}
    return found


def _layer_list(backbone: HFBackbone) -> tuple[str, nn.ModuleList]:
    count = backbone.config.num_hidden_layers
    for name, module in backbone.model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return name, module
    raise StepwellError(
        f"{type(backbone.model).__name__} has no list of its {count} layers",
        "choose a causal LM with one, such as GPT-2, Llama, Qwen2 or GPT-NeoX",
    )


def _chosen(params: LoraParams, count: int) -> tuple[int, ...]:
    if isinstance(params.layers, str):
        return tuple(range(count if params.layers == "all" else (count + 1) // 2))
    if bad := [index for index in params.layers if not 0 <= index < count]:
        raise StepwellError(f"there is no layer {bad[0]}: the model has {count}", f"choose from 0 to {count - 1}")
    return tuple(sorted(set(params.layers)))


def _linears(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        if isinstance(child, nn.Linear | Conv1D | LoraLayer):
            yield prefix + name, child  # one that is adapted already is one map, not those inside it
        else:
            yield from _linears(child, f"{prefix}{name}.")


def _is_target(name: str, targets: str | tuple[str, ...]) -> bool:
    if targets == "all":
        return True
    if targets == "attention":
        return any("attn" in part or "attention" in part for part in name.split(".")[:-1])
    return any(name == target or name.endswith(f".{target}") for target in targets)


def _base_of(module: nn.Module) -> nn.Module:
    return module.get_base_layer() if isinstance(module, LoraLayer) else module
