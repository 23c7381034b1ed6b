"""What a merge refuses, and what an audit of an adapter finds; each on a planted fault, and none on a clean adapter."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from merge_models import adapter_on, saved_base, tensors_of
from safetensors.torch import load_file, save_file

from fit_models import tiny
from stepwell.adapt.lora import LoRA, LoraParams
from stepwell.cli import run
from stepwell.errors import StepwellError
from stepwell.merging.auditing import audit
from stepwell.merging.base import BaseIdentity
from stepwell.merging.checking import check_files, check_merged, read_manifest
from stepwell.merging.merge import merge

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`base`, another base `other`, `adapter` as PEFT saves it, and `ours` as Stepwell does."""
    folder = tmp_path_factory.mktemp("made")
    base = saved_base(folder / "base")
    other = tiny()
    adapter_on(base, folder / "adapter", target_modules=["q_proj", "down_proj"])
    other = tiny("llama")
    with torch.no_grad():
        other.model.model.norm.weight[3] += 1e-3
    other.save(folder / "other")
    backbone = tiny("llama")
    lora = LoRA(backbone, LoraParams(rank=2, targets=("q_proj", "up_proj")))
    for parameter in lora.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(0))
    lora.save_peft(folder / "ours", base="some/model", identity=BaseIdentity.of(base), revision="main")
    return folder


def change(made: Path, tmp_path: Path, edit: Callable[[dict[str, torch.Tensor]], None], **config: Any) -> Path:
    """A copy of the adapter with its tensors or its configuration changed."""
    folder = tmp_path / "changed"
    shutil.copytree(made / "adapter", folder)
    tensors = load_file(folder / WEIGHTS)
    edit(tensors)
    save_file(tensors, folder / WEIGHTS)
    told = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(told | config))
    return folder


def nothing(tensors: dict[str, torch.Tensor]) -> None:
    pass


Q = "base_model.model.model.layers.0.self_attn.q_proj"


def misnamed(tensors: dict[str, torch.Tensor]) -> None:
    for part in "AB":
        tensors[f"base_model.model.model.layers.7.self_attn.q_proj.lora_{part}.weight"] = tensors[
            f"{Q}.lora_{part}.weight"
        ].clone()


def twice(tensors: dict[str, torch.Tensor]) -> None:
    for part in "AB":
        tensors[f"{Q}.lora_{part}.second.weight"] = tensors[f"{Q}.lora_{part}.weight"].clone()


def half(tensors: dict[str, torch.Tensor]) -> None:
    del tensors[f"{Q}.lora_B.weight"]


def zero(tensors: dict[str, torch.Tensor]) -> None:
    for key in tensors:
        if "lora_B" in key:
            tensors[key].zero_()


def one_zero(tensors: dict[str, torch.Tensor]) -> None:
    tensors[f"{Q}.lora_B.weight"].zero_()


def wide(tensors: dict[str, torch.Tensor]) -> None:
    tensors[f"{Q}.lora_A.weight"] = torch.ones(8, 33)


def nan(tensors: dict[str, torch.Tensor]) -> None:
    tensors[f"{Q}.lora_A.weight"][0, 0] = torch.nan


FAULTS: list[tuple[str, Callable[[dict[str, torch.Tensor]], None], dict[str, Any], str]] = [
    ("quantised-base", nothing, {"base_model_name_or_path": "unsloth/llama-3-8b-bnb-4bit"}, "'bnb' in the name"),
    ("unmatched-key", misnamed, {}, "model.layers.7.self_attn.q_proj.lora_A.weight"),
    ("used-twice", twice, {}, "q_proj.lora_A.second.weight"),
    ("half-pair", half, {}, "model.layers.0.self_attn.q_proj has no B"),
    ("no-effect", zero, {}, "all 4 pairs are zero"),
    ("rank-mismatch", nothing, {"rank_pattern": {"q_proj": 3}}, "rank 3 in the configuration"),
    ("shape-mismatch", wide, {}, "B A is (32, 33), and the base's weight (32, 32)"),
    ("not-finite", nan, {}, f"{Q}.lora_A.weight"),
]
OVERRIDDEN = ("quantised-base", "unmatched-key", "no-effect")


@pytest.mark.parametrize(("code", "edit", "config", "told"), FAULTS, ids=[fault[0] for fault in FAULTS])
def test_a_planted_fault_is_found_and_refused(code, edit, config, told, made: Path, tmp_path: Path, capsys):
    adapter = change(made, tmp_path, edit, **config)
    found = audit(adapter, made / "base")
    assert [fault.code for fault in found.faults] == [code]
    assert told in found.faults[0].example
    with pytest.raises(StepwellError, match="the merge is refused") as caught:
        merge(made / "base", adapter, tmp_path / "out")
    assert told in str(caught.value)
    overridable = code in (*OVERRIDDEN, "used-twice")
    assert ('`--override "..."`' in str(caught.value)) == overridable
    assert not (tmp_path / "out").exists() and [path.name for path in tmp_path.iterdir()] == ["changed"]
    if code in OVERRIDDEN:
        merged = merge(made / "base", adapter, tmp_path / "out", override="a test")
        assert [fault.code for fault in merged.overridden][:1] == [code]
        manifest = read_manifest(tmp_path / "out")
        assert manifest["override"] == "a test" and manifest["overridden"][0]["code"] == code
    if code not in ("unmatched-key", "shape-mismatch"):
        assert [fault.code for fault in audit(adapter).faults] == [code], "without its base too"


def test_a_pair_of_zeros_is_found_and_does_not_stop_a_merge(made: Path, tmp_path: Path):
    adapter = change(made, tmp_path, one_zero)
    assert [(fault.code, fault.count) for fault in audit(adapter).faults] == [("dead-pair", 1)]
    assert merge(made / "base", adapter, tmp_path / "out").advice == "good"


def test_clean_adapters_have_no_findings(made: Path):
    for adapter in ("adapter", "ours"):
        for base in (None, made / "base"):
            assert audit(made / adapter, base).ok


def test_the_hash_decides(made: Path, tmp_path: Path):
    merged = merge(made / "base", made / "ours", tmp_path / "out")
    assert merged.verified and merged.base == BaseIdentity.of(made / "base")
    assert merged.merged == BaseIdentity.of(tmp_path / "out")
    assert audit(made / "ours", made / "other").faults[0].code == "other-base"
    with pytest.raises(StepwellError) as caught:
        merge(made / "other", made / "ours", tmp_path / "wrong")
    wanted, found = merged.base.sha256[:12], BaseIdentity.of(made / "other").sha256[:12]
    assert f"trained on the weights {wanted}, and these are {found}" in str(caught.value)
    assert "give the base that it was trained on; to merge all the same" in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    assert not merge(made / "other", made / "ours", tmp_path / "wrong", override="one weight differs").verified
    # An adapter of PEFT's own has no hash: it is merged, and the result says that nothing vouches for the base.
    assert not merge(made / "base", made / "adapter", tmp_path / "unknown").verified


def test_a_hash_outweighs_a_name(made: Path, tmp_path: Path):
    shutil.copytree(made / "ours", tmp_path / "ours")
    told = json.loads((tmp_path / "ours" / "adapter_config.json").read_text())
    told["base_model_name_or_path"] = "made-from-Q4_1.gguf"
    (tmp_path / "ours" / "adapter_config.json").write_text(json.dumps(told))
    assert audit(tmp_path / "ours", made / "base").ok


def test_what_was_said_while_training_on_4_bits_is_believed(made: Path, tmp_path: Path):
    shutil.copytree(made / "ours", tmp_path / "ours")
    file = tmp_path / "ours" / "stepwell.json"
    tensors = load_file(tmp_path / "ours" / WEIGHTS)
    told = json.loads(file.read_text())
    assert told["base"] == "some/model" and told["revision"] == "main" and told["quantised"] is False
    assert told["trained_in"] == "float32" and told["base_dtype"] == "F32"
    file.write_text(json.dumps(told | {"quantised": True}))
    with pytest.raises(StepwellError, match=r"stepwell.json and the metadata of adapter_model.safetensors name differ"):
        audit(tmp_path / "ours")
    save_file(tensors, tmp_path / "ours" / WEIGHTS)
    assert [fault.code for fault in audit(tmp_path / "ours").faults] == ["quantised-base"]
    with pytest.raises(StepwellError, match="`--merge-base fp` adds it to the weights as they are"):
        merge(made / "base", tmp_path / "ours", tmp_path / "out")
    with pytest.raises(StepwellError, match="there is no choice of what to merge it into"):
        merge(made / "base", made / "ours", tmp_path / "out", merge_base="fp")


def test_both_ways_for_4_bits_are_measured(made: Path, tmp_path: Path):
    shutil.copytree(made / "adapter", tmp_path / "a")
    told = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    told["base_model_name_or_path"] = "model-4bit"
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps(told))
    full = merge(made / "base", tmp_path / "a", tmp_path / "fp", merge_base="fp")
    back = merge(made / "base", tmp_path / "a", tmp_path / "back", merge_base="dequantized")
    assert full.other is not None and back.other is not None
    # Adding to what 4 bits leave is what the adapter was trained as; the two measurements of each way agree.
    assert back.proof.exact and back.proof.kl_nats < 1e-6 < full.proof.kl_nats
    assert back.other.kl_nats == pytest.approx(full.proof.kl_nats, rel=1e-3)
    assert full.other.kl_nats == pytest.approx(back.proof.kl_nats, abs=1e-6)
    assert full.advice != "good" or full.proof.kl_nats < 0.25 * full.proof.effect_kl_nats


def test_a_base_in_few_bits_is_refused(made: Path, tmp_path: Path):
    shutil.copytree(made / "base", tmp_path / "base")
    told = json.loads((tmp_path / "base" / "config.json").read_text())
    told["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (tmp_path / "base" / "config.json").write_text(json.dumps(told))
    with pytest.raises(StepwellError, match=r"its config.json has a quantization_config"):
        merge(tmp_path / "base", made / "adapter", tmp_path / "out", override="no")


def test_another_name_or_revision_is_refused_where_there_is_no_hash(made: Path, tmp_path: Path):
    adapter = change(made, tmp_path, nothing, base_model_name_or_path="some/model", revision="a" * 40)
    shutil.copytree(made / "base", tmp_path / ("b" * 40))
    found = audit(adapter, tmp_path / ("b" * 40)).faults
    assert [(fault.code, fault.example) for fault in found] == [
        ("other-base", "trained on revision aaaaaaaaaaaa, not on bbbbbbbbbbbb")
    ]


def test_half_of_the_shards_and_other_broken_files(made: Path, tmp_path: Path):
    base = saved_base(tmp_path / "base", shard="20KB")
    shards = sorted(base.glob("*.safetensors"))
    shards[1].rename(tmp_path / "away")
    with pytest.raises(StepwellError, match=f"1 of {len(shards)} weight files are missing"):
        merge(base, made / "adapter", tmp_path / "out")
    (base / "model.safetensors.index.json").rename(tmp_path / "index")
    with pytest.raises(StepwellError, match=f"there are {len(shards) - 1} of {len(shards)} weight files"):
        merge(base, made / "adapter", tmp_path / "out")
    (tmp_path / "index").rename(base / "model.safetensors.index.json")
    shards[1].write_bytes((tmp_path / "away").read_bytes()[:-5])
    with pytest.raises(StepwellError, match="the file is truncated"):
        merge(base, made / "adapter", tmp_path / "out")


def test_a_pickle_is_never_opened(made: Path, tmp_path: Path):
    shutil.copytree(made / "adapter", tmp_path / "adapter")
    (tmp_path / "adapter" / WEIGHTS).rename(tmp_path / "adapter" / "adapter_model.bin")
    with pytest.raises(StepwellError, match=r"only there as a pickle \(adapter_model.bin\), which can run code"):
        audit(tmp_path / "adapter")


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"peft_type": "LOHA"}, "an adapter of the kind LOHA"),
        ({"trainable_token_indices": [1]}, "the adapter uses trainable_token_indices"),
        ({"init_lora_weights": "pissa"}, "started by 'pissa', which changes the base's weights"),
    ],
)
def test_other_kinds_of_adapter_are_refused(config: dict[str, Any], told: str, made: Path, tmp_path: Path):
    with pytest.raises(StepwellError, match=told):
        audit(change(made, tmp_path, nothing, **config))


def test_a_truncated_or_changed_output_is_found(made: Path, tmp_path: Path):
    out = tmp_path / "out"
    merge(made / "base", made / "adapter", out)
    assert check_merged(out)["advice"] == "good"
    file = out / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-4])
    with pytest.raises(StepwellError, match=rf"model.safetensors is {len(whole) - 4} bytes, not {len(whole)}"):
        check_files(out)
    file.write_bytes(whole[:-4] + bytes(4))
    check_files(out)
    with pytest.raises(StepwellError, match="the weights are not those that were written"):
        check_merged(out)
    save_file({key: tensor.half() for key, tensor in tensors_of(out).items()}, file)
    told = json.loads((out / "stepwell-merge.json").read_text())
    told["files"]["model.safetensors"] = file.stat().st_size
    (out / "stepwell-merge.json").write_text(json.dumps(told))
    with pytest.raises(StepwellError, match=r"tensors are not as they were written, first .*: F16, not F32"):
        check_files(out)
    with pytest.raises(StepwellError, match="there is something there already"):
        merge(made / "base", made / "adapter", out)


def test_the_command_line(made: Path, tmp_path: Path, capsys):
    base, adapter, out = (str(path) for path in (made / "base", made / "adapter", tmp_path / "out"))
    assert run(["audit", "adapter", adapter, "--base", base]) == 0
    assert "4 pairs, clean" in capsys.readouterr().out
    assert run(["audit", "adapter", str(change(made, tmp_path, zero)), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["findings"][0]["code"] == "no-effect"
    assert run(["merge", base, adapter, out]) == 0
    shown = capsys.readouterr().out
    assert "survived the cast" in shown and "good: the merged model computes what base and adapter compute" in shown
    assert run(["merge", base, adapter, str(tmp_path / "half"), "--dtype", "bf16", "--json"]) in (0, 1)
    assert json.loads(capsys.readouterr().out)["layers"][0]["survived"] < 1
    assert run(["merge", base, str(tmp_path / "changed"), str(tmp_path / "none")]) == 3
    assert "the adapter changes nothing" in capsys.readouterr().err
