"""What a cast leaves of a change, what is advised then, and tied embeddings that come apart."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from blake3 import blake3
from merge_models import adapter_on, saved_base, tensors_of

from stepwell.backbone import HFBackbone, Shape
from stepwell.merging.base import BaseIdentity, read_config
from stepwell.merging.files import Weights, writing
from stepwell.merging.merge import advise, merge
from stepwell.merging.nf4 import LEVELS, through_nf4
from stepwell.merging.proof import Proof
from stepwell.merging.writing import Change, share_survived

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def survived(weight: torch.Tensor, share: float, cast) -> float:
    delta = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    delta *= share * weight.norm() / delta.norm()
    merged = weight + delta
    found = share_survived(float(delta.norm()), float((cast(merged) - merged).norm()))
    assert found is not None
    return found


def test_what_bf16_and_4_bits_leave_of_a_small_change():
    weight = torch.randn(512, 256, generator=torch.Generator().manual_seed(0)).bfloat16().float()
    assert survived(weight, 0.003, lambda tensor: tensor.bfloat16().float()) == pytest.approx(0.45, abs=0.1)
    assert survived(weight, 0.03, lambda tensor: tensor.bfloat16().float()) > 0.9
    assert survived(weight, 0.003, lambda tensor: tensor) == 1.0
    quantised = through_nf4(weight)
    assert survived(quantised, 0.01, through_nf4) < 0.1
    assert share_survived(0.0, 0.0) is None


def test_nf4_takes_the_nearest_of_16_levels():
    weight = torch.randn(6, 32, generator=torch.Generator().manual_seed(0))
    weight[2:4] = 0
    blocks = weight.reshape(-1, 64)
    wanted = torch.stack([
        torch.stack([LEVELS[(x / (block.abs().max() or 1) - LEVELS).abs().argmin()] for x in block]) * block.abs().max()
        for block in blocks
    ])  # fmt: skip
    torch.testing.assert_close(through_nf4(weight), wanted.view(6, 32))
    torch.testing.assert_close(through_nf4(through_nf4(weight)), through_nf4(weight))


OF_BITSANDBYTES = {
    (64, 64): "0fff25f341f78fc4891d1fbf51f730e52f08597a8f8faa43d083d6e72ef549eb",
    (96, 256): "3393aaea535825334d065fb0b6bbf63ff25fc6f0b417ce726accc244d614ec95",
    (32, 1000): "5eebae6ff62c85f3c2a814bc5488f732a42f0e51c94f0d60cf7eb3ff71de1fc8",
}
"""Shape -> sha256 of what bitsandbytes 0.50.2 gives back of `counted(*shape)` on the CPU: quantize_4bit (blocksize 64,
quant_type nf4, compress_statistics False), then dequantize_4bit. It is 125 MB: its answers are kept instead."""


def counted(rows: int, columns: int) -> torch.Tensor:
    """Weights that are the same in every release: whole numbers, scaled by a power of two."""
    numbers = [(i * 7919 + 104729) * 31 % 10007 - 5003 for i in range(rows * columns)]
    return torch.tensor(numbers, dtype=torch.float32).view(rows, columns) / 2**16


@pytest.mark.parametrize("shape", OF_BITSANDBYTES)
def test_nf4_is_that_of_bitsandbytes_to_the_bit(shape: tuple[int, int]):
    found = through_nf4(counted(*shape))
    assert hashlib.sha256(found.numpy().tobytes()).hexdigest() == OF_BITSANDBYTES[shape]


def test_a_bf16_base_keeps_its_dtype_and_tells_what_was_lost(tmp_path: Path):
    base = saved_base(tmp_path / "base", dtype=torch.bfloat16)
    adapter_on(base, tmp_path / "small", size=0.01, target_modules=["q_proj"])
    found = merge(base, tmp_path / "small", tmp_path / "out")
    assert {tensor.dtype for tensor in tensors_of(tmp_path / "out").values()} == {torch.bfloat16}
    (change, other) = found.changes
    wanted = tensors_of(base)[change.name].float()
    full = merge(base, tmp_path / "small", tmp_path / "full", precision="fp32")
    exact = tensors_of(tmp_path / "full")[change.name]
    lost = (tensors_of(tmp_path / "out")[change.name].float() - exact).norm() / (exact - wanted).norm()
    assert change.survived == pytest.approx(max(0.0, 1 - float(lost)), abs=1e-4)
    assert change.delta_share == pytest.approx(float((exact - wanted).norm() / wanted.norm()), rel=1e-4)
    assert found.advice == "write fp32" and "--dtype fp32, or do not merge" in found.reason
    assert full.advice == "good" and full.survived == 1.0
    assert read_config(tmp_path / "full")["dtype"] == "float32" and other.survived is not None
    assert HFBackbone.load(tmp_path / "full", device="cpu").model.dtype == torch.float32


def test_what_was_lost_is_measured_in_some_rows_of_a_large_tensor(tmp_path: Path):
    shape = Shape(architecture="llama", vocabulary=61, width=32, layers=1, heads=4, inner=4096, max_positions=40)
    base = tmp_path / "base"
    HFBackbone.from_shape(shape, precision="bf16", device="cpu").save(base)
    adapter_on(base, tmp_path / "adapter", size=0.01, target_modules=["up_proj"])
    (change,) = merge(base, tmp_path / "adapter", tmp_path / "out").changes
    merge(base, tmp_path / "adapter", tmp_path / "full", precision="fp32")
    found, exact, weight = (tensors_of(tmp_path / name)[change.name].float() for name in ("out", "full", "base"))
    assert change.survived == pytest.approx(1 - float((found - exact).norm() / (exact - weight).norm()), abs=0.01)
    assert 0.05 < change.survived < 0.95


def test_what_is_advised():
    def proof(kl: float) -> Proof:
        return Proof(columns=9, max_logit_difference=1, largest_logit=9, kl_nats=kl, effect_kl_nats=1.0,
                     top1_agreement=0.9, continuations=())  # fmt: skip

    def change(lost: float) -> tuple[Change]:
        return (Change(name="w", delta_norm=1, lost_norm=lost, base_norm=9),)

    assert advise(change(0.2), proof(0.01), full=False)[0] == "good"
    assert advise(change(0.7), proof(0.01), full=False) == (
        "write fp32",
        "30% of the change survived the cast: write it with --dtype fp32, or do not merge: keep base and adapter apart",
    )
    assert advise(change(0.0), proof(0.3), full=True)[0] == "do not merge"
    assert "0.3 nats from base + adapter, which are 1 from the base" in advise(change(0.0), proof(0.3), full=True)[1]


@pytest.mark.parametrize("options", [
    {"target_modules": ["embed_tokens"]}, {"target_modules": ["lm_head"]},
    {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
])  # fmt: skip
def test_tied_embeddings_come_apart_where_only_one_is_changed(options, tmp_path: Path):
    base = saved_base(tmp_path / "base")
    model = adapter_on(base, tmp_path / "adapter", **options)
    found = merge(base, tmp_path / "adapter", tmp_path / "out")
    assert found.proof.exact and read_config(tmp_path / "out")["tie_word_embeddings"] is False
    ids = torch.arange(12)[None]
    with torch.no_grad():
        wanted = model(input_ids=ids).logits
        torch.testing.assert_close(HFBackbone.load(tmp_path / "out", device="cpu").model(input_ids=ids).logits, wanted,
                                   rtol=1e-4, atol=1e-4)  # fmt: skip


def test_an_identity_is_of_weights_not_of_files(tmp_path: Path):
    whole, parts = saved_base(tmp_path / "whole"), saved_base(tmp_path / "parts", shard="20KB")
    assert BaseIdentity.of(whole) == BaseIdentity.of(parts)
    assert BaseIdentity.of(saved_base(tmp_path / "half", dtype=torch.bfloat16)).dtype == "BF16"
    file = whole / "model.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    assert BaseIdentity.of(whole) != BaseIdentity.of(parts)


def test_an_identity_by_another_path(tmp_path: Path):
    base = saved_base(tmp_path / "base")
    hashes = {}
    for name, tensor in tensors_of(base).items():
        raw = f"F32 {list(tensor.shape)} ".encode() + tensor.numpy().tobytes()
        hashes[name] = blake3(raw).hexdigest()
    text = json.dumps(hashes, sort_keys=True, separators=(",", ":"))
    assert BaseIdentity.of(base).sha256 == hashlib.sha256(text.encode()).hexdigest()


def test_the_merged_folder_has_what_a_model_needs(tmp_path: Path):
    base = saved_base(tmp_path / "base")
    (base / "tokenizer_config.json").write_text('{"from": "base"}')
    (base / "generation_config.json").write_text('{"max_length": 9}')
    (base / "chat_template.jinja").write_text("base")
    (base / "stepwell-manifest.json").write_text("{}")
    adapter_on(base, tmp_path / "adapter", target_modules=["q_proj"])
    merge(base, tmp_path / "adapter", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors", "stepwell-merge.json",
        "tokenizer_config.json",
    ]  # fmt: skip


def test_a_file_is_as_the_formats_own_library_reads_it(tmp_path: Path):
    file = tmp_path / "a.safetensors"
    wanted = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(3.0)}
    with writing(file, [("a", "F32", (2, 3)), ("b", "F32", ())]) as opened:
        for tensor in wanted.values():
            opened.write(tensor.numpy().tobytes())
    file.rename(tmp_path / "model.safetensors")
    for key, tensor in tensors_of(tmp_path).items():
        torch.testing.assert_close(tensor, wanted[key])
    with Weights.of_file(tmp_path / "model.safetensors") as weights:
        torch.testing.assert_close(weights.tensor("a"), wanted["a"])


def test_one_failed_flush_is_told_though_the_next_would_not_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    failures = [OSError(5, "Input/output error")]

    def fsync(_: int) -> None:
        if failures:
            raise failures.pop()

    monkeypatch.setattr("stepwell.merging.files.os.fsync", fsync)
    monkeypatch.setattr("stepwell.merging.files.FLUSHED_SECONDS", 0.001)
    with (
        pytest.raises(OSError, match="Input/output error"),
        writing(tmp_path / "a.safetensors", [("a", "F32", ())]) as opened,
    ):
        opened.write(bytes(4))
