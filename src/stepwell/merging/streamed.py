"""A model that reads its weights as it runs: each module's when it is called, given back when it returns.

So a model of any size runs in the memory of its largest module, at the speed of its disk.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, load_peft_weights, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from stepwell.backbone import renaming, skeleton
from stepwell.errors import StepwellError
from stepwell.merging.adapter import PREFIX
from stepwell.merging.arithmetic import Merger, chunk_rows
from stepwell.merging.files import Weights
from stepwell.merging.layout import Layout
from stepwell.merging.nf4 import through_nf4

Load = Callable[[str], Tensor]
"""From a parameter's name to the parameter in fp32."""


def from_files(weights: Weights, layout: Layout, four_bit: frozenset[str] = frozenset()) -> Load:
    """Parameters as they lie in files; those in `four_bit` as they come back from 4 bits."""

    def load(name: str) -> Tensor:
        entry = weights.entries[layout.places[name]]
        made = torch.empty(entry.shape)
        rows, step = (made if entry.shape else made[None]), chunk_rows(entry)
        for start in range(0, entry.rows, step):
            part = rows[start : start + step]
            raw = torch.empty(len(part) * entry.row_bytes, dtype=torch.uint8)
            weights.read_into(entry, start, raw)
            part.copy_(raw.view(entry.torch_dtype).view(part.shape))
            if entry.name in four_bit:
                part.copy_(through_nf4(part))
        return made

    return load


def from_merger(merger: Merger, places: dict[str, Any]) -> Load:
    """Parameters as a merge would make them, without a file being written; before the cast."""
    return lambda name: merger.whole(places[name])


class Streamed:
    """A causal LM in fp32 whose weights are loaded module by module; with an adapter on it, through PEFT, or without.

    Args:
        folder: of the model: configuration and tokenizer.
        load: gives its parameters.
        device: where it computes.
        adapter: folder of the adapter that PEFT puts on it; None = none.

    Raises:
        StepwellError: an architecture that reads weights past its modules, or an adapter that PEFT does not load.
    """

    def __init__(self, folder: Path, load: Load, *, device: torch.device, adapter: Path | None = None) -> None:
        model, self.tokenizer = skeleton(folder)
        self.load, self.device, self.folder = load, device, folder
        self.config = model.config.get_text_config(decoder=True)
        self.names = {parameter: name for name, parameter in model.named_parameters()}
        self.model: Any = model if adapter is None else _with_adapter(model, adapter)
        for buffers in (module._buffers for module in self.model.modules()):
            buffers |= {name: buffer if buffer is None else buffer.to(device) for name, buffer in buffers.items()}
        for unit in _units(self.model):
            unit.register_forward_pre_hook(self._fetch)
            unit.register_forward_hook(self._release)
        self._held: dict[nn.Module, list[tuple[nn.Module, str, nn.Parameter]]] = {}

    @torch.no_grad()
    def logits(self, ids: Tensor, *, last: int) -> Tensor:
        """Logits (B, last, V), fp32 on the CPU, of the last columns of ids (B, T)."""
        mask = torch.ones_like(ids)
        try:
            found = self.model(
                input_ids=ids.to(self.device), attention_mask=mask.to(self.device), use_cache=False,
                logits_to_keep=last,
            )  # fmt: skip
        except (NotImplementedError, RuntimeError, TypeError) as error:
            raise StepwellError(
                f"the model cannot be run from its files: {str(error).strip().splitlines()[0]}",
                "an architecture that reads weights past its modules cannot be merged here: use PEFT",
                path=self.folder,
            ) from error
        return found.logits[:, -last:].float().cpu()

    def _fetch(self, unit: nn.Module, _: Any) -> None:
        held = self._held[unit] = []
        for module in unit.modules() if isinstance(unit, BaseTunerLayer) else (unit,):
            for name, parameter in list(module._parameters.items()):
                if parameter is not None and parameter.is_meta:
                    held.append((module, name, parameter))
                    real = self.load(self.names[parameter]).to(self.device)
                    module._parameters[name] = nn.Parameter(real, requires_grad=False)
                elif parameter is not None and parameter.device != self.device:
                    module._parameters[name] = nn.Parameter(parameter.to(self.device), requires_grad=False)

    def _release(self, unit: nn.Module, _: Any, output: Any) -> None:
        for module, name, parameter in self._held.pop(unit):
            module._parameters[name] = parameter


def _units(model: nn.Module) -> Iterator[nn.Module]:
    """The modules at whose calls weights are fetched: those with parameters, an adapted one together with its base."""
    inside = {id(part) for module in model.modules() if isinstance(module, BaseTunerLayer)
              for part in module.modules() if part is not module}  # fmt: skip
    for module in model.modules():
        adapted = isinstance(module, BaseTunerLayer)
        if id(module) not in inside and (adapted or any(True for _ in module.parameters(recurse=False))):
            yield module


def _with_adapter(model: Any, folder: Path) -> Any:
    base, rename = set(model.parameters()), renaming(model)
    with warnings.catch_warnings():
        # Tied embeddings, a tokenizer of another length, and the like: what they mean for a merge is looked at here.
        warnings.simplefilter("ignore")
        config = LoraConfig.from_pretrained(str(folder))
        config.inference_mode = True
        wrapped = PeftModel(model, config)
        held = load_peft_weights(str(folder), device="cpu")
        state = {PREFIX + rename(name.removeprefix(PREFIX)): tensor for name, tensor in held.items()}
        set_peft_model_state_dict(wrapped, state, low_cpu_mem_usage=True)
    # PEFT has them, and then moves them to where the base is, which is `meta`.
    for name, parameter in list(wrapped.named_parameters()):
        if parameter.is_meta and ".lora_" in name:
            key = name.replace(".default", "", 1)
            if (tensor := state.get(key, state.get(key.removesuffix(".weight")))) is not None:
                parent, _, leaf = name.rpartition(".")
                wrapped.get_submodule(parent)._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
    if lacking := [name for name, each in wrapped.named_parameters() if each.is_meta and each not in base]:
        raise StepwellError(
            f"PEFT finds no weights for {lacking[0]} in the adapter", "save the adapter again, whole", path=folder
        )
    wrapped.float()
    return wrapped.eval()
