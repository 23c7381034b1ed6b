"""LoRA against matrices written out, which adapter is on, what is frozen, and artifacts that load whole or not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fit_models import tiny
from stepwell.adapt.artifact import load_artifact, read_about, save_artifact
from stepwell.adapt.covering import assert_covered, clip_gradients
from stepwell.adapt.frozen import Seal, assert_frozen, weights_sha256
from stepwell.adapt.lora import LoRA, LoraParams, active_adapter
from stepwell.backbone import HFBackbone
from stepwell.errors import StepwellError
from stepwell.merging.base import BaseIdentity
from stepwell.shapes import Shape

IDS = torch.tensor([[3, 9, 4, 7], [5, 5, 8, 2]])
GPT2 = ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]
LLAMA = [
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
]  # fmt: skip
PYTHIA = ["attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"]
LAYERS = {"gpt2": ("transformer.h", GPT2), "llama": ("model.layers", LLAMA), "pythia": ("gpt_neox.layers", PYTHIA)}


def logits(backbone: HFBackbone) -> Tensor:
    positions = torch.arange(IDS.shape[1]).expand_as(IDS)
    hidden = backbone(backbone.embed(IDS), positions=positions, mask=torch.ones_like(IDS, dtype=torch.bool))
    return backbone.logits(hidden)


def trained(lora: LoRA, seed: int = 5) -> LoRA:
    """With weights as if it had been trained: B is zero at first."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in lora.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.3)
    return lora


def adapted(name: str = "gpt2", **params: Any) -> tuple[HFBackbone, LoRA]:
    backbone = tiny(name)
    return backbone, trained(LoRA(backbone, LoraParams(**({"rank": 3} | params))))


def sites(lora: LoRA) -> set[str]:
    return {name.replace("/", ".") for name in lora.sites}


# What is adapted, and what it computes.


@pytest.mark.parametrize("name", ["gpt2", "llama", "pythia"])
def test_the_first_half_of_the_layers_with_all_their_linear_maps(name: str):
    place, kinds = LAYERS[name]
    backbone = tiny(name)
    assert sites(LoRA(backbone, LoraParams(layers="first half"))) == {f"{place}.0.{kind}" for kind in kinds}
    attention = sites(LoRA(tiny(name), LoraParams(targets="attention")))
    assert attention == {
        f"{place}.{i}.{kind}" for i in (0, 1) for kind in kinds if kind.startswith(("attn", "self", "att"))
    }
    assert "embed" not in str(attention) and "lm_head" not in str(attention)


def test_layers_and_targets_by_name():
    names = sites(LoRA(tiny("llama"), LoraParams(layers=(1,), targets=("q_proj", "mlp.up_proj"))))
    assert names == {"model.layers.1.self_attn.q_proj", "model.layers.1.mlp.up_proj"}
    both = sites(LoRA(tiny("gpt2"), LoraParams(layers=(0,), targets=("c_proj",))))
    assert both == {"transformer.h.0.attn.c_proj", "transformer.h.0.mlp.c_proj"}
    three = HFBackbone.from_shape(Shape(vocabulary=11, width=8, layers=3, heads=2, max_positions=8))
    assert {name.split(".")[2] for name in sites(LoRA(three, LoraParams(layers="first half")))} == {"0", "1"}


def test_many_layers_are_all_adapted_and_no_others():
    """PEFT shortens long lists of targets: what it puts in must still be what was asked for."""
    backbone = HFBackbone.from_shape(Shape(vocabulary=11, width=8, layers=12, heads=2, max_positions=8))
    names = sites(LoRA(backbone, LoraParams(layers="first half")))
    assert names == {f"transformer.h.{i}.{kind}" for i in range(6) for kind in GPT2}


@pytest.mark.parametrize("name", ["gpt2", "llama", "pythia"])
def test_it_computes_the_products_written_out(name: str):
    """In float64, against the same model with W + alpha / r B A in place of W (Conv1D holds the transpose)."""
    backbone = tiny(name, "fp64")
    before = logits(backbone)
    lora = LoRA(backbone, LoraParams(rank=3, alpha=6.0))
    torch.testing.assert_close(logits(backbone), before, rtol=0, atol=0)  # B = 0
    trained(lora)
    found = logits(backbone)
    other = tiny(name, "fp64")
    weights = dict(other.model.named_parameters())
    with torch.no_grad():
        for site, pair in lora.sites.items():
            weight = weights[f"{site.replace('/', '.')}.weight"]
            a, b = pair["A"].weight, pair["B"].weight  # pyright: ignore
            delta = sum(2.0 * torch.outer(b[:, i], a[i]) for i in range(3))
            weight += delta.T if name == "gpt2" else delta
    wanted = logits(other)
    assert not torch.allclose(found, before)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


def test_the_adapter_is_single_precision_on_a_base_of_half_and_trains():
    backbone = tiny("llama", "bf16")
    lora = LoRA(backbone, LoraParams(rank=2))
    assert {parameter.dtype for parameter in lora.parameters()} == {torch.float32}
    assert {p.dtype for n, p in backbone.named_parameters() if ".lora_" not in n} == {torch.bfloat16}
    found = logits(trained(lora).backbone)
    assert found.dtype == torch.bfloat16
    found.float().square().mean().backward()
    gradients = [parameter.grad for parameter in lora.parameters()]
    assert all(g is not None and g.dtype == torch.float32 and bool(g.isfinite().all()) for g in gradients)
    assert {p.dtype for p in LoRA(tiny("gpt2", "fp64"), LoraParams()).parameters()} == {torch.float64}


def test_only_the_adapter_takes_gradients_and_the_module_holds_nothing_else():
    backbone, lora = adapted(layers="first half")
    assert {id(p) for p in backbone.parameters() if p.requires_grad} == {id(p) for p in lora.parameters()}
    width, rank = 32, 3
    shapes = [(width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)]
    assert lora.parameter_count() == sum(rank * (a + b) for a, b in shapes)
    assert len(lora.state_dict()) == 8
    loss = logits(backbone).square().mean()
    loss.backward()
    assert all(p.grad is not None for p in lora.parameters())
    assert all(p.grad is None for p in backbone.parameters() if not p.requires_grad)


def test_weights_depend_on_the_seed_and_the_global_random_state_is_left_alone():
    torch.manual_seed(7)
    wanted = torch.rand(3)
    torch.manual_seed(7)
    states = [LoRA(tiny(), LoraParams(), seed=seed).state_dict() for seed in (1, 1, 2)]
    torch.testing.assert_close(torch.rand(3), wanted, rtol=0, atol=0)
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    assert not all(torch.equal(value, states[2][key]) for key, value in states[0].items())


def test_dropout_is_of_training_only_and_follows_the_model_it_was_put_into():
    backbone, lora = adapted(dropout=0.5)
    torch.testing.assert_close(logits(backbone), logits(backbone), rtol=0, atol=0)  # born in evaluation mode
    lora.train()
    assert not torch.allclose(logits(backbone), logits(backbone))
    backbone.eval()
    torch.testing.assert_close(logits(backbone), logits(backbone), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("params", "name", "fault"),
    [
        ({"layers": (0, 2)}, "lora", "there is no layer 2: the model has 2\n  Way out: choose from 0 to 1"),
        (
            {"targets": ("q_proj",)},
            "lora",
            "layer 0 has no linear map called q_proj\n  Way out: choose from attn.c_attn",
        ),
        ({}, "a.b", "'a.b' cannot name an adapter"),
        ({}, "attn", "a module of the model is called 'attn'"),
    ],
)
def test_what_cannot_be_adapted_is_refused_and_the_model_stays_as_it_was(params: Any, name: str, fault: str):
    backbone = tiny()
    with pytest.raises(StepwellError) as caught:
        LoRA(backbone, LoraParams(**params), name=name)
    assert fault in str(caught.value)
    assert not any(".lora_" in key for key in backbone.state_dict())
    assert all(parameter.requires_grad for parameter in backbone.parameters())


# Which adapter is on.


def test_on_and_off_are_what_they_say_and_end_with_the_block():
    """Fault 05: KD ran with the adapter in the wrong state."""
    bare = logits(tiny()).detach()
    backbone, lora = adapted()
    full = logits(backbone).detach()
    assert lora.is_on and active_adapter(backbone) == "lora"
    with lora.off():
        assert not lora.is_on
        torch.testing.assert_close(logits(backbone).detach(), bare)
        with lora.on():
            torch.testing.assert_close(logits(backbone).detach(), full, rtol=0, atol=0)
        assert not lora.is_on
    assert lora.is_on
    with pytest.raises(ValueError, match="inside"), lora.off():
        raise ValueError("inside")
    assert lora.is_on
    assert all(parameter.requires_grad for parameter in lora.parameters()), "switched off is not frozen"


@pytest.mark.parametrize("on", [True, False])
def test_the_teacher_is_the_model_with_or_without_the_adapter_as_asked(on: bool):
    """Fault 05, whatever the state outside; and no dropout, no gradient."""
    bare = logits(tiny()).detach()
    backbone, lora = adapted(dropout=0.4)
    full = logits(backbone).detach()
    backbone.train()
    for outside in (lora.on, lora.off):
        with outside():
            with lora.teacher(adapted=on):
                assert lora.is_on == on
                found = logits(backbone)
            assert not found.requires_grad
            torch.testing.assert_close(found, full if on else bare)
            assert lora.is_on == (outside == lora.on)
    assert all(module.training for module in backbone.modules()), "in training again"


def test_a_state_changed_behind_its_back_is_found():
    backbone, lora = adapted()
    layers = [module for module in backbone.modules() if isinstance(module, LoraLayer)]
    with pytest.raises(StepwellError) as caught, lora.teacher(adapted=True):
        for layer in layers:
            layer.enable_adapters(False)
    assert "the adapter was to be on (lora), and is off at the end" in str(caught.value)
    assert lora.is_on, "as before all the same"
    layers[0].enable_adapters(False)
    with pytest.raises(StepwellError, match="the model's layers run with different adapters"):
        active_adapter(backbone)


def test_merged_weights_are_no_state_to_go_on_from():
    backbone, _ = adapted()
    next(module for module in backbone.modules() if isinstance(module, LoraLayer)).merge()
    with pytest.raises(StepwellError, match="an adapter is merged into the model's weights"):
        active_adapter(backbone)


def test_two_adapters_on_one_model_are_on_one_at_a_time_and_both_train():
    """An encoder's and a decoder's, on different layers; the gradients of one pass through both reach both."""
    alone, first_alone = adapted()
    backbone, first = adapted()
    second = trained(LoRA(backbone, LoraParams(rank=2, layers="first half"), name="second"), seed=6)
    other = tiny()
    trained(LoRA(other, LoraParams(rank=2, layers="first half")), seed=6)
    assert active_adapter(backbone) == "second", "the newest is on"
    with first.on():
        torch.testing.assert_close(logits(backbone), logits(alone))
        through_first = logits(backbone)
    with second.on():
        torch.testing.assert_close(logits(backbone), logits(other))
        through_second = logits(backbone)
    with second.off():
        torch.testing.assert_close(logits(backbone), logits(tiny()))
    (through_first * through_second).sum().backward()
    assert all(p.grad is not None for lora in (first, second) for p in lora.parameters())
    assert not {id(p) for p in first.parameters()} & {id(p) for p in second.parameters()}
    assert {id(p) for p in backbone.parameters() if p.requires_grad} == {
        id(p) for lora in (first, second) for p in lora.parameters()
    }
    assert len(first.state_dict()) == len(first_alone.state_dict())
    with pytest.raises(StepwellError, match="has an adapter 'lora' already"):
        LoRA(backbone, LoraParams())


def test_recomputed_layers_cannot_be_switched_for_one_forward_pass():
    shape = Shape(vocabulary=61, width=32, layers=2, heads=4, max_positions=40)
    backbone = HFBackbone.from_shape(shape, gradient_checkpointing=True)
    lora = trained(LoRA(backbone, LoraParams(rank=2)))
    with pytest.raises(StepwellError) as caught, lora.off():
        pass
    assert "gradient checkpointing runs the layers again in backward" in str(caught.value)
    with lora.teacher(adapted=False), torch.no_grad():
        logits(backbone)
    with lora.on():
        logits(backbone).square().mean().backward()
    plain = HFBackbone.from_shape(shape)
    same = trained(LoRA(plain, LoraParams(rank=2)))
    logits(plain).square().mean().backward()
    for found, wanted in zip(lora.parameters(), same.parameters(), strict=True):
        torch.testing.assert_close(found.grad, wanted.grad)


# What is frozen.


def step(backbone: HFBackbone, parameters: list[nn.Parameter]) -> None:
    optimizer = torch.optim.AdamW(parameters, lr=0.1)
    logits(backbone).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_training_an_adapter_leaves_the_base_as_it_was():
    backbone, lora = adapted()
    before = lora.state_dict()["sites.transformer/h/0/attn/c_attn.A.weight"].clone()
    with assert_frozen(backbone, but=lora.parameters()) as seal:
        step(backbone, list(lora.parameters()))
    assert not torch.equal(lora.state_dict()["sites.transformer/h/0/attn/c_attn.A.weight"], before)
    assert seal.sha256 == Seal.of(backbone, but=lora.parameters()).sha256


def test_one_bit_of_a_frozen_weight_or_buffer_is_found():
    backbone, lora = adapted()
    backbone.register_buffer("scale", torch.ones(3, dtype=torch.bfloat16))
    for tensor in (backbone.model.transformer.h[1].ln_1.weight, backbone.scale):
        seal = Seal.of(backbone, but=lora.parameters())
        with torch.no_grad():
            tensor.view(torch.uint8)[-1] ^= 1  # pyright: ignore
        with pytest.raises(StepwellError) as caught:
            seal.check()
        assert "1 of " in str(caught.value) and "frozen tensors have changed, first" in str(caught.value)


def test_a_gradient_where_none_should_be_is_found():
    backbone, lora = adapted()
    weight = backbone.model.transformer.wpe.weight
    seal = Seal.of(backbone, but=lora.parameters())
    weight.grad = torch.zeros_like(weight)
    with pytest.raises(StepwellError, match=r"wpe.weight is to stay as it is, and got a gradient"):
        seal.check_gradients()
    weight.grad = None
    seal.check()
    weight.requires_grad_(True)
    for call in (seal.check, seal.check_gradients, lambda: Seal.of(backbone, but=lora.parameters())):
        with pytest.raises(StepwellError, match=r"wpe.weight is to stay as it is, and takes gradients"):
            call()


def test_a_module_that_is_not_frozen_or_not_complete_cannot_be_sealed():
    with pytest.raises(StepwellError, match="takes gradients"):
        Seal.of(tiny())
    with pytest.raises(StepwellError, match="nothing in the module is frozen"):
        Seal.of(layer := nn.Linear(2, 2), but=layer.parameters())
    backbone = tiny().requires_grad_(False)
    seal = Seal.of(backbone)
    LoRA(backbone, LoraParams(rank=1)).requires_grad_(False)
    with pytest.raises(StepwellError, match="was not there before, in a module that is frozen"):
        seal.check()


def test_a_model_is_known_by_its_weights_with_an_adapter_or_without():
    bare = tiny()
    backbone, _ = adapted()
    assert weights_sha256(bare) == weights_sha256(backbone)
    assert weights_sha256(tiny("gpt2", "bf16")) != weights_sha256(bare)
    with torch.no_grad():
        bare.model.transformer.wte.weight[0, 0] += 1
    assert weights_sha256(bare) != weights_sha256(backbone)


# What is optimised.


def a_training() -> tuple[HFBackbone, dict[str, nn.Module], list[nn.Parameter]]:
    backbone, lora = adapted()
    parts: dict[str, nn.Module] = {"encoder": nn.Linear(2, 3), "lora": lora}
    return backbone, parts, [parameter for part in parts.values() for parameter in part.parameters()]


def test_an_optimizer_of_all_parts_covers_them():
    backbone, parts, everything = a_training()
    two = [torch.optim.AdamW(parts["encoder"].parameters()), torch.optim.SGD(parts["lora"].parameters())]
    for optimizers in ([torch.optim.AdamW(everything)], two):
        assert_covered(optimizers, parts, others=[backbone])


def test_a_parameter_that_is_left_out_or_doubled_or_foreign_is_found():
    """Fault 10: parts missing from the optimizer."""
    backbone, parts, everything = a_training()

    def told(parameters: list[Any], held: dict[str, nn.Module] = parts) -> str:
        with pytest.raises(StepwellError) as caught:
            assert_covered([torch.optim.AdamW(parameters)], held, others=[backbone])
        return str(caught.value)

    assert "1 of 18 trained parameters are in no optimizer, first encoder.bias" in told(
        [everything[0], *everything[2:]]
    )
    assert "8 of 18" not in told(everything[:2]) and "first lora.sites" in told(everything[:2])
    foreign = torch.nn.Parameter(torch.ones(5))
    assert "hold 1 parameters of no part, or frozen ones, first (5,)" in told([*everything, foreign])
    assert "encoder.weight is also twin.weight" in told(
        everything, {"twin": parts["encoder"], "encoder": parts["encoder"]}
    )
    assert "takes gradients and is in no part" in told(everything[:2], {"encoder": parts["encoder"]})
    twice = [torch.optim.AdamW(everything), torch.optim.SGD(everything[:1])]
    with pytest.raises(StepwellError, match=r"encoder.weight is in the optimizers 2 times"):
        assert_covered(twice, parts)
    parts["encoder"].requires_grad_(False)
    assert "part encoder has nothing to train" in told(everything)


def test_clipping_is_by_the_norm_of_all_parts_together():
    """Fault 10: clipping over some groups only."""
    _, parts, everything = a_training()
    generator = torch.Generator().manual_seed(0)
    for parameter in everything:
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    before = [parameter.grad.clone() for parameter in everything]  # pyright: ignore
    norms = {
        name: sum(float((p.grad.double() ** 2).sum()) for p in part.parameters()) ** 0.5  # pyright: ignore
        for name, part in parts.items()
    }
    total = sum(norm**2 for norm in norms.values()) ** 0.5
    found = clip_gradients(parts, None)
    assert found.total == pytest.approx(total) and dict(found.parts) == pytest.approx(norms)
    assert clip_gradients(parts, total * 2).total == pytest.approx(total)
    for parameter, gradient in zip(everything, before, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=0, atol=0)
    assert clip_gradients(parts, 1.0).total == pytest.approx(total), "as it was before"
    for parameter, gradient in zip(everything, before, strict=True):
        torch.testing.assert_close(parameter.grad, gradient / total)


def test_gradients_that_are_not_finite_are_told_and_left_alone():
    _, parts, everything = a_training()
    for parameter in everything:
        parameter.grad = torch.ones_like(parameter)
    everything[0].grad[0, 0] = torch.nan  # pyright: ignore
    found = clip_gradients(parts, 1.0)
    assert not found.finite
    assert everything[5].grad is not None and bool((everything[5].grad == 1).all())
    for parameter in everything:
        parameter.grad = None
    assert clip_gradients(parts, 1.0).total == 0.0


# What is saved.


def some_parts(seed: int) -> tuple[HFBackbone, dict[str, nn.Module]]:
    backbone, lora = adapted()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    return backbone, {"encoder": encoder, "lora": trained(lora, seed)}


def states(parts: dict[str, nn.Module]) -> dict[str, Tensor]:
    return {f"{name}:{key}": value.clone() for name, part in parts.items() for key, value in part.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_an_artifact_loads_whole_and_the_model_is_what_it_was(tmp_path: Path):
    """Fault 10: the best checkpoint without its LoRA."""
    backbone, parts = some_parts(1)
    wanted = logits(backbone)
    about = {"step": 160, "contract": "abc"}
    for _ in range(2):  # and again over the old one
        save_artifact(tmp_path / "best", parts, base=weights_sha256(backbone), about=about)
    assert sorted(path.name for path in (tmp_path / "best").iterdir()) == ["artifact.json", "parts.safetensors"]
    assert [path.name for path in tmp_path.iterdir()] == ["best"]
    other, fresh = some_parts(2)
    assert not same(states(parts), states(fresh))
    assert load_artifact(tmp_path / "best", fresh, base=weights_sha256(other)) == about == read_about(tmp_path / "best")
    assert same(states(parts), states(fresh))
    torch.testing.assert_close(logits(other), wanted, rtol=0, atol=0)


def drop(parts: dict[str, nn.Module]) -> None:
    del parts["lora"]


def spare(parts: dict[str, nn.Module]) -> None:
    parts["head"] = nn.Linear(2, 2)


def rank(parts: dict[str, nn.Module]) -> None:
    parts["lora"] = LoRA(tiny(), LoraParams(rank=4))


def layers(parts: dict[str, nn.Module]) -> None:
    parts["lora"] = LoRA(tiny(), LoraParams(rank=3, layers="first half"))


def kinds(parts: dict[str, nn.Module]) -> None:
    parts["encoder"] = nn.Sequential(nn.Linear(3, 4, bias=False), nn.BatchNorm1d(4)).half()


@pytest.mark.parametrize(
    ("change", "faults"),
    [
        (drop, ["it has a part lora, which nothing here takes"]),
        (spare, ["part head is missing from it"]),
        (rank, ["/c_attn.A.weight is float32 (3, 32) there and float32 (4, 32) here"]),
        (layers, ["part lora has spare 8 tensors, first sites.transformer/h/1/"]),
        (kinds, ["has spare 1 tensors, first 0.bias", "0.weight is float32 (4, 3) there and float16 (4, 3) here"]),
    ],
)  # fmt: skip
def test_missing_and_spare_parts_are_one_error_and_nothing_is_loaded(
    tmp_path: Path, change: Callable[[dict[str, nn.Module]], None], faults: list[str]
):
    _, parts = some_parts(1)
    save_artifact(tmp_path / "best", parts)
    _, fresh = some_parts(2)
    change(fresh)
    before = states(fresh)
    with pytest.raises(StepwellError) as caught:
        load_artifact(tmp_path / "best", fresh)
    for fault in faults:
        assert fault in str(caught.value)
    assert "the artifact does not fit" in str(caught.value)
    assert same(before, states(fresh))


def test_another_base_is_refused(tmp_path: Path):
    backbone, parts = some_parts(1)
    save_artifact(tmp_path / "best", parts, base=weights_sha256(backbone))
    digest = weights_sha256(backbone)[:12]
    with pytest.raises(StepwellError, match=f"it was trained on base {digest}, and is loaded on no base"):
        load_artifact(tmp_path / "best", parts)


def test_files_that_are_missing_or_changed_are_refused(tmp_path: Path):
    _, parts = some_parts(1)
    folder = tmp_path / "best"
    with pytest.raises(StepwellError, match=r"there is no artifact.json, so this is no artifact"):
        load_artifact(folder, parts)
    save_artifact(folder, parts)
    held = load_file(folder / "parts.safetensors")
    save_file({key: value for key, value in held.items() if ":sites" not in key}, folder / "parts.safetensors")
    with pytest.raises(StepwellError, match=r"parts.safetensors is not as it was saved"):
        load_artifact(folder, parts)
    (folder / "parts.safetensors").unlink()
    with pytest.raises(StepwellError, match=r"parts.safetensors is missing"):
        load_artifact(folder, parts)
    for broken in ("{", "[]", json.dumps({"format": 99})):
        (folder / "artifact.json").write_text(broken)
        with pytest.raises(StepwellError, match=r"artifact.json is broken, or of another format than 1"):
            read_about(folder)


def test_what_cannot_be_saved_whole_is_refused_and_the_old_artifact_stays(tmp_path: Path):
    _, parts = some_parts(1)
    save_artifact(tmp_path / "best", parts, about={"step": 1})
    shared = nn.Linear(2, 2)
    tied = nn.Linear(2, 2)
    tied.weight = shared.weight
    calls: list[tuple[Callable[[], None], str]] = [
        (lambda: save_artifact(tmp_path / "best", {}), "there are no parts to save"),
        (lambda: save_artifact(tmp_path / "best", {"a:b": shared}), "its name has a colon"),
        (lambda: save_artifact(tmp_path / "best", {"a": nn.GELU()}), "its state is no tensors"),
        (
            lambda: save_artifact(tmp_path / "best", {"a": shared, "b": tied}),
            "b:weight shares its memory with a:weight",
        ),
        (lambda: save_artifact(tmp_path / "best", parts, about={"path": Path()}), "has no canonical form"),
    ]
    for call, fault in calls:
        with pytest.raises(StepwellError, match=fault):
            call()
    assert read_about(tmp_path / "best") == {"step": 1}


# PEFT asks transformers for what transformers is about to rename.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_peft_itself_reads_what_is_saved_in_its_format(tmp_path: Path, name: str):
    backbone, lora = adapted(name, layers="first half")
    tiny(name).save(tmp_path / "base")
    lora.save_peft(tmp_path, base="some/model", identity=BaseIdentity.of(tmp_path / "base"), revision="main")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"], config["r"]) == ("some/model", "main", 3)
    other = tiny(name)
    model = PeftModel.from_pretrained(other.model, tmp_path)
    torch.testing.assert_close(model(input_ids=IDS).logits, logits(backbone))
    assert all(parameter.requires_grad for parameter in lora.parameters())
