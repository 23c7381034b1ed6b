"""Merging an adapter, streamed: against copying the base's file, and against PEFT's merge_and_unload + save.

A generated Llama of 3 GB in bf16 with LoRA of rank 16 on all seven kinds of linear map. Our side reads every byte,
hashes what it reads and what it writes, measures what the cast takes away, and writes with fsync; the copy is of the
same file, with fsync; PEFT's side loads, merges and saves, and does none of the rest. The proof, which runs the model,
is not in these times. Aim: at least half the speed of the copy.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import common
from stepwell.merging.adapter import Adapter
from stepwell.merging.arithmetic import Merger
from stepwell.merging.faults import examine
from stepwell.merging.files import SINGLE, Weights, writing
from stepwell.merging.layout import Layout
from stepwell.merging.writing import write_weights


@dataclass(frozen=True, kw_only=True)
class Size:
    """A Llama, and the rank of the adapter on it."""

    width: int = 2048
    inner: int = 5632
    layers: int = 28
    heads: int = 16
    vocabulary: int = 32000
    rank: int = 16

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """(out, in) of the linear maps of one layer."""
        square, up = (self.width, self.width), (self.inner, self.width)
        attention = {f"self_attn.{name}_proj": square for name in "qkvo"}
        return attention | {"mlp.gate_proj": up, "mlp.up_proj": up, "mlp.down_proj": (self.width, self.inner)}


QUICK = Size(width=64, inner=128, layers=2, heads=4, vocabulary=300, rank=4)


def generate(folder: Path, size: Size) -> tuple[Path, Path]:
    """A base and an adapter of random weights; the base's are one block of numbers over and over, to be quick."""
    base, adapter = folder / "base", folder / "adapter"
    base.mkdir()
    adapter.mkdir()
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": size.width, "dtype": "bfloat16",
        "intermediate_size": size.inner, "num_hidden_layers": size.layers, "num_attention_heads": size.heads,
        "num_key_value_heads": size.heads, "vocab_size": size.vocabulary, "max_position_embeddings": 512,
        "tie_word_embeddings": True, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
    }  # fmt: skip
    (base / "config.json").write_text(json.dumps(config), encoding="utf-8")
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (size.vocabulary, size.width)}
    for layer in range(size.layers):
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in size.linears.items()}
        shapes |= {
            f"model.layers.{layer}.{name}_layernorm.weight": (size.width,) for name in ("input", "post_attention")
        }
    shapes["model.norm.weight"] = (size.width,)
    block = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0)).mul_(0.02).bfloat16().view(torch.uint8)
    with writing(base / SINGLE, [(name, "BF16", shape) for name, shape in shapes.items()]) as file:
        for shape in shapes.values():
            left = 2 * torch.Size(shape).numel()
            while left:
                left -= file.write(block.numpy().data[: min(left, len(block))])
    _generate_adapter(adapter, size)
    return base, adapter


def _generate_adapter(folder: Path, size: Size) -> None:
    names = [name.rpartition(".")[2] for name in size.linears]
    config = {"peft_type": "LORA", "r": size.rank, "lora_alpha": 16, "target_modules": names, "task_type": "CAUSAL_LM"}
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    shapes: dict[str, tuple[int, int]] = {}
    for layer in range(size.layers):
        for name, (rows, columns) in size.linears.items():
            key = f"base_model.model.model.layers.{layer}.{name}"
            shapes |= {f"{key}.lora_A.weight": (size.rank, columns), f"{key}.lora_B.weight": (rows, size.rank)}
    generator = torch.Generator().manual_seed(1)
    with writing(
        folder / "adapter_model.safetensors", [(name, "F32", shape) for name, shape in shapes.items()]
    ) as file:
        for shape in shapes.values():
            file.write(torch.randn(shape, generator=generator).mul_(0.01).numpy().data.cast("B"))


def streamed(base: Path, adapter: Path, out: Path) -> None:
    """Our merge without its proof."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    held = Adapter.read(adapter)
    with ExitStack() as stack:
        weights, tensors = stack.enter_context(Weights.of_model(base)), stack.enter_context(held.open())
        found = examine(held, tensors, base=(str(base), base, weights, Layout.of(base, weights)))
        write_weights(Merger(held, tensors, weights), found.outputs, out, precision=None)


def copied(base: Path, out: Path) -> None:
    """A copy of the base's file, on the disk as ours is."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    shutil.copyfile(base / SINGLE, out / SINGLE)
    with (out / SINGLE).open("rb") as file:
        os.fsync(file.fileno())


def by_peft(base: Path, adapter: Path, out: Path) -> None:
    """PEFT's merge of the whole model in memory."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    shutil.rmtree(out, ignore_errors=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
        merged: Any = PeftModel.from_pretrained(model, adapter).merge_and_unload()
        merged.save_pretrained(out, max_shard_size="100GB")


def compare(ours: Path, theirs: Path) -> None:
    """Every weight, to one step of bf16: the order of roundings differs."""
    most = 0.0
    with Weights.of_file(ours / SINGLE) as a, Weights.of_file(theirs / SINGLE) as b:
        equal = a.entries.keys() == b.entries.keys()
        for name in a.entries if equal else ():
            x, y = a.tensor(name).float(), b.tensor(name).float()
            most = max(most, float(((x - y).abs() / y.abs().clamp(min=1e-4)).max()))
    common.same("merged weights", equal and most <= 2**-7, f"the largest relative difference is {most:.2g}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = common.parser(__doc__)
    given = parser.parse_args(arguments)
    common.header("bench_merge", given, arguments)
    with tempfile.TemporaryDirectory() as name, common.threads(given.threads):
        folder = Path(name)
        base, adapter = generate(folder, QUICK if given.quick else Size())
        gigabytes = (base / SINGLE).stat().st_size / 1e9
        print(f"a base of {gigabytes:.2g} GB")
        streamed(base, adapter, folder / "ours")  # warm-up
        by_peft(base, adapter, folder / "theirs")
        compare(folder / "ours", folder / "theirs")
        pairs = given.pairs or (1 if given.quick else 3)
        found = common.in_pairs(lambda: copied(base, folder / "copy"), lambda: streamed(base, adapter, folder / "ours"),
                                pairs=pairs, kind=given.clock)  # fmt: skip
        common.show_pairs("copy / merge", ("copy of the file", "streamed merge"), found)
        common.aim("copy / merge", found.ratio, ">=", 0.5, meant=not given.quick)
        others = common.in_pairs(lambda: by_peft(base, adapter, folder / "theirs"),
                                 lambda: streamed(base, adapter, folder / "ours"),
                                 pairs=1 if given.quick else 2, kind=given.clock)  # fmt: skip
        common.show_pairs("PEFT / merge", ("PEFT: load, merge, save", "streamed merge"), others)


if __name__ == "__main__":
    main()
