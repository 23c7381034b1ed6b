"""A backbone gives the same whatever the batch, the padding and the cut into cached calls, for every shape."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM
from transformers.activations import NewGELUActivation

from doubles import norms_in_float64
from stepwell.backbone import DTYPES, HFBackbone
from stepwell.checkpoints import load_coconut_checkpoint
from stepwell.errors import StepwellError
from stepwell.shapes import Backbone, Shape, pick_device

SHAPES = {
    "gpt2": Shape(architecture="gpt2", vocabulary=61, width=32, layers=2, heads=4, max_positions=48),
    "llama": Shape(
        architecture="llama", vocabulary=61, width=32, layers=2, heads=4, key_value_heads=2, inner=40, max_positions=48
    ),
    "qwen2": Shape(
        architecture="qwen2", vocabulary=61, width=32, layers=2, heads=4, key_value_heads=2, max_positions=48
    ),
    "pythia": Shape(architecture="gpt_neox", vocabulary=61, width=32, layers=3, heads=2, max_positions=48, tied=False),
}
CUTS = [(12,), (11, 1), (1, 11), (4, 1, 5, 2), (1,) * 12]


def in_float64(shape: Shape, **options: Any) -> HFBackbone:
    """A backbone in float64 throughout, with weights large enough that attention and positions matter."""
    backbone = HFBackbone.from_shape(shape, precision="fp64", device="cpu", **options)
    torch.manual_seed(1)
    for name, parameter in backbone.named_parameters():
        if parameter.dim() > 1 or "bias" in name:
            nn.init.normal_(parameter, std=0.25)
    norms_in_float64(backbone, shape.width)
    return backbone


@pytest.fixture(params=SHAPES)
def shape(request: pytest.FixtureRequest) -> Shape:
    return SHAPES[request.param]


@pytest.fixture
def backbone(shape: Shape) -> HFBackbone:
    return in_float64(shape)


def padded(backbone: HFBackbone, lengths: tuple[int, ...] = (12, 9, 5, 1)) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, positions and mask of left-padded rows."""
    columns = max(lengths)
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(backbone.vocabulary, (len(lengths), columns), generator=generator)
    mask = torch.arange(columns)[None] >= columns - torch.tensor(lengths)[:, None]
    return ids, (mask.cumsum(1) - 1).clamp(min=0), mask


def in_pieces(backbone: HFBackbone, embeds: Tensor, positions: Tensor, mask: Tensor, cut: tuple[int, ...]) -> Tensor:
    cache, done, hidden = backbone.new_cache(), 0, []
    for columns in cut:
        end = done + columns
        hidden.append(backbone(embeds[:, done:end], positions=positions[:, done:end], mask=mask[:, :end], cache=cache))
        assert cache.length == end
        done = end
    return torch.cat(hidden, 1)


def close(a: Tensor, b: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def test_it_is_a_backbone(backbone: HFBackbone, shape: Shape):
    assert isinstance(backbone, Backbone)
    assert (backbone.width, backbone.vocabulary, backbone.max_positions) == (32, 61, 48)
    assert not backbone.training
    backbone.verify()


def test_batched_and_left_padded_is_single(backbone: HFBackbone):
    ids, positions, mask = padded(backbone)
    hidden = backbone(backbone.embed(ids), positions=positions, mask=mask)
    assert torch.isfinite(hidden).all()
    for row in range(len(ids)):
        alone = ids[row, mask[row]][None]
        single = backbone(
            backbone.embed(alone),
            positions=torch.arange(alone.shape[1])[None],
            mask=torch.ones_like(alone, dtype=torch.bool),
        )
        close(hidden[row, mask[row]], single[0])


def test_right_padding_changes_nothing(backbone: HFBackbone):
    ids, positions, mask = padded(backbone, (7, 7))
    longer = torch.cat((ids, ids[:, :3]), 1), torch.cat((positions, positions[:, :3]), 1)
    hidden = backbone(backbone.embed(longer[0]), positions=longer[1], mask=nn.functional.pad(mask, (0, 3)))
    close(hidden[:, :7], backbone(backbone.embed(ids), positions=positions, mask=mask))


@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_cached_is_uncached_with_its_gradients(backbone: HFBackbone, cut: tuple[int, ...]):
    ids, positions, mask = padded(backbone)
    embeds = backbone.embed(ids).detach().requires_grad_()
    weight = torch.randn(*ids.shape, backbone.width, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    weight = weight * mask[..., None]
    parameters = [
        p for p in backbone.base.parameters() if p.dim() > 1 and p is not backbone.base.get_input_embeddings().weight
    ]
    whole = backbone(embeds, positions=positions, mask=mask)
    pieces = in_pieces(backbone, embeds, positions, mask, cut)
    close(pieces[mask], whole[mask])
    wanted = torch.autograd.grad((whole * weight).sum(), [embeds, *parameters])
    found = torch.autograd.grad((pieces * weight).sum(), [embeds, *parameters])
    for a, b in zip(found, wanted, strict=True):
        assert torch.isfinite(a).all()
        close(a, b, 1e-8)


def test_a_wrong_position_or_mask_is_seen(backbone: HFBackbone):
    """The equalities above would find a cache that forgets, or positions that shift."""
    ids, positions, mask = padded(backbone, (12, 12))
    embeds = backbone.embed(ids)
    wanted = backbone(embeds, positions=positions, mask=mask)[:, -1]
    cache = backbone.new_cache()
    backbone(embeds[:, :6], positions=positions[:, :6], mask=mask[:, :6], cache=cache)
    forgot = backbone(embeds[:, 6:], positions=positions[:, 6:], mask=mask[:, 6:])[:, -1]
    restarted = backbone(embeds[:, 6:], positions=positions[:, :6], mask=mask, cache=cache.clone())[:, -1]
    hole = mask.clone()
    hole[:, 2] = False
    blind = backbone(embeds[:, 6:], positions=positions[:, 6:], mask=hole, cache=cache)[:, -1]
    for wrong in (forgot, restarted, blind):
        assert (wrong - wanted).abs().max() > 1e-3


def test_it_is_causal(backbone: HFBackbone):
    ids, positions, mask = padded(backbone, (8, 8))
    embeds = backbone.embed(ids)
    later = embeds.clone()
    later[:, 5:] = 1.0
    close(
        backbone(later, positions=positions, mask=mask)[:, :5], backbone(embeds, positions=positions, mask=mask)[:, :5]
    )


@pytest.mark.parametrize("skip", [0, 1, 11, 12])
def test_skip_leaves_out_leading_columns_only(backbone: HFBackbone, skip: int):
    ids, positions, mask = padded(backbone)
    embeds = backbone.embed(ids)
    whole_cache, cache = backbone.new_cache(), backbone.new_cache()
    whole = backbone(embeds, positions=positions, mask=mask, cache=whole_cache)
    rest = backbone(embeds, positions=positions, mask=mask, cache=cache, skip=skip)
    close(rest, whole[:, skip:])
    assert cache.length == 12
    close(cache.layers[-1][0].tensor, whole_cache.layers[-1][0].tensor)


def test_logits_where_asked_are_the_full_logits(backbone: HFBackbone):
    ids, positions, mask = padded(backbone)
    embeds = backbone.embed(ids)
    full = backbone.model(inputs_embeds=embeds, attention_mask=mask, position_ids=positions).logits
    hidden = backbone(embeds, positions=positions, mask=mask)
    chosen = torch.tensor([[0, 3], [0, 11], [2, 8]])
    rows, columns = chosen.unbind(1)
    close(backbone.logits(hidden[rows, columns]), full[rows, columns])
    close(backbone.logits(hidden)[mask], full[mask])


@pytest.mark.parametrize("attribute", ["final_logit_softcapping", "logit_scale", "logits_scaling"])
def test_a_scaled_head_that_the_model_lacks_is_refused(attribute: str):
    """`verify` compares with the model's own logits, so a head this class gets wrong cannot be used."""
    backbone = in_float64(SHAPES["gpt2"])
    backbone.verify()
    setattr(backbone.config, attribute, 3.0)
    with pytest.raises(
        StepwellError, match=r"GPT2LMHeadModel cannot be used as a backbone: its logits from a cache differ by"
    ):
        backbone.verify()


@pytest.mark.parametrize("kind", ["gemma2", "cohere", "granite", "mistral"])
def test_heads_that_scale_and_windows_that_slide(kind: str):
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = {"mistral": {"sliding_window": 3}, "gemma2": {"sliding_window": 3, "final_logit_softcapping": 2.0}}
    scales = {"cohere": {"logit_scale": 0.3}, "granite": {"logits_scaling": 7.0}}
    config = AutoConfig.for_model(
        kind, vocab_size=61, hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=48, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        **settings.get(kind, {}), **scales.get(kind, {}),
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.3)
    backbone = HFBackbone(model).eval()
    backbone.verify()
    ids, positions, mask = padded(backbone)
    embeds = backbone.embed(ids)
    pieces = in_pieces(backbone, embeds, positions, mask, (4, 1, 5, 2))
    wanted = model(inputs_embeds=embeds, attention_mask=mask, position_ids=positions).logits
    close(backbone.logits(pieces)[mask], wanted[mask], 1e-3)


def test_a_model_without_a_cache_of_keys_is_refused():
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model("mamba", vocab_size=20, hidden_size=16, num_hidden_layers=1, state_size=4)
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(StepwellError, match="MambaForCausalLM cannot be used as a backbone: it takes no position ids"):
        HFBackbone(model)


# The cache: select, repeat, clone.


def test_a_cache_is_continued_by_rows_and_copies(backbone: HFBackbone):
    ids, positions, mask = padded(backbone)
    embeds, cache = backbone.embed(ids), backbone.new_cache()
    whole = backbone(embeds, positions=positions, mask=mask)
    backbone(embeds[:, :9], positions=positions[:, :9], mask=mask[:, :9], cache=cache)

    def rest(rows: Tensor, other: Any) -> Tensor:
        return backbone(embeds[rows, 9:], positions=positions[rows, 9:], mask=mask[rows], cache=other)

    everyone, rows = torch.arange(4), torch.tensor([2, 0])
    twice = everyone.repeat_interleave(2)
    close(rest(rows, cache.select(rows)), whole[rows, 9:])
    close(rest(twice, cache.repeat(2)), whole[twice, 9:])
    close(rest(everyone, cache.clone()), whole[:, 9:])
    assert cache.length == 9
    close(rest(everyone, cache), whole[:, 9:])
    assert cache.length == 12


def test_caches_that_share_columns_do_not_disturb_each_other(backbone: HFBackbone):
    """Without autograd columns are written in place, so the interleaving of copies is what could go wrong."""
    ids, positions, mask = padded(backbone, (12, 7))
    embeds = backbone.embed(ids).detach()
    other = -embeds

    def step(cache: Any, columns: Tensor, at: int) -> Tensor:
        end = at + 1
        return backbone(columns[:, at:end], positions=positions[:, at:end], mask=mask[:, :end], cache=cache)

    def whole(columns: Tensor) -> Tensor:
        joined = torch.cat((embeds[:, :6], columns[:, 6:]), 1)
        return backbone(joined, positions=positions, mask=mask, skip=6)

    with torch.no_grad():
        cache = backbone.new_cache()
        backbone(embeds[:, :4], positions=positions[:, :4], mask=mask[:, :4], cache=cache)
        for at in (4, 5):
            step(cache, embeds, at)
        caches = [cache, cache.clone(), cache.select(torch.tensor([0, 1])), cache.repeat(1)]
    tracked = embeds.clone().requires_grad_()
    graph = cache.clone()
    kept = torch.cat([step(graph, tracked, at) for at in range(6, 12)], 1)
    with torch.no_grad():
        columns = [embeds, other, other * 2, embeds * 3]
        found = [[] for _ in caches]
        for at in range(6, 12):
            for i, one in enumerate(caches):
                found[i].append(step(one, columns[i], at))
        for i, rows in enumerate(found):
            close(torch.cat(rows, 1), whole(columns[i]))
    (gradient,) = torch.autograd.grad(kept.sin().sum(), tracked)
    again = embeds.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(whole(again).sin().sum(), again)
    close(gradient[:, 6:], wanted[:, 6:], 1e-8)


def test_a_cache_made_with_autograd_goes_on_without(backbone: HFBackbone):
    ids, positions, mask = padded(backbone)
    embeds, cache, rows = backbone.embed(ids), backbone.new_cache(), torch.tensor([3, 1])
    backbone(embeds[:, :9], positions=positions[:, :9], mask=mask[:, :9], cache=cache)
    with torch.no_grad():
        found = backbone(embeds[rows, 9:], positions=positions[rows, 9:], mask=mask[rows], cache=cache.select(rows))
    close(found, backbone(embeds, positions=positions, mask=mask)[rows, 9:].detach())


def test_a_long_continuation_outgrows_its_room(backbone: HFBackbone):
    ids, positions, mask = padded(backbone, (48, 30))
    with torch.no_grad():
        embeds = backbone.embed(ids)
        found = in_pieces(backbone, embeds, positions, mask, (2,) + (1,) * 46)
        close(found[mask], backbone(embeds, positions=positions, mask=mask)[mask])


def test_gradients_flow_through_a_prompt_used_twice(backbone: HFBackbone):
    ids, positions, mask = padded(backbone, (6, 6))
    embeds = backbone.embed(ids).detach().requires_grad_()
    cache = backbone.new_cache()
    backbone(embeds[:, :4], positions=positions[:, :4], mask=mask[:, :4], cache=cache)
    both = cache.repeat(2)
    tails = torch.cat((embeds[:, 4:], -embeds[:, 4:]), 1).reshape(4, 2, -1)
    columns, everything = positions[:, 4:].repeat_interleave(2, 0), mask.repeat_interleave(2, 0)
    found = torch.autograd.grad(backbone(tails, positions=columns, mask=everything, cache=both).sin().sum(), embeds)[0]
    whole = torch.cat((embeds[:, :4].repeat_interleave(2, 0), tails), 1)
    hidden = backbone(whole, positions=positions.repeat_interleave(2, 0), mask=everything, skip=4)
    close(found, torch.autograd.grad(hidden.sin().sum(), embeds)[0], 1e-8)


# Gradient checkpointing, precision, device, size.


@pytest.mark.parametrize("training", [False, True])
def test_gradient_checkpointing_is_the_same_function_with_a_cache_too(shape: Shape, training: bool):
    plain = in_float64(shape)
    recomputed = in_float64(shape, gradient_checkpointing=True).train(training)
    ids, positions, mask = padded(plain)
    embeds = plain.embed(ids).detach().requires_grad_()
    calls = []
    for module in recomputed.modules():
        if type(module).__name__ in ("GPT2MLP", "LlamaMLP", "Qwen2MLP", "GPTNeoXMLP"):
            module.register_forward_pre_hook(lambda *_: calls.append(1))
    gradients = []
    for backbone in (plain, recomputed):
        hidden = in_pieces(backbone, embeds, positions, mask, (7, 1, 4))
        parameters = [p for p in backbone.base.h[0].parameters()] if shape.architecture == "gpt2" else []
        gradients.append(torch.autograd.grad(hidden[mask].sin().sum(), [embeds, *parameters]))
    for a, b in zip(*gradients, strict=True):
        close(a, b, 1e-9)
    assert len(calls) == 2 * 3 * shape.layers  # every layer of every piece ran again in backward


def test_checkpointed_layers_survive_a_copy():
    backbone = in_float64(SHAPES["gpt2"], gradient_checkpointing=True)
    other = copy.deepcopy(backbone)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    ids, positions, mask = padded(backbone)
    hidden = other(other.embed(ids), positions=positions, mask=mask)
    assert hidden.abs().max() == 0


def test_gpt2s_gelu_in_one_step_is_the_same_function_and_saved_as_it_was(tmp_path: Path):
    ours = in_float64(SHAPES["gpt2"])
    folder = tmp_path / "saved"
    ours.save(folder)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    assert not any(isinstance(m, NewGELUActivation) for m in ours.modules())
    assert sum(isinstance(m, NewGELUActivation) for m in plain.modules()) == 2
    ids = torch.randint(0, 61, (3, 12), generator=torch.Generator().manual_seed(0))
    for model in (ours.model, plain):
        model(input_ids=ids).logits.square().sum().backward()
    for (name, mine), (_, theirs) in zip(ours.model.named_parameters(), plain.named_parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-9, atol=1e-9, msg=name)


def test_bf16_is_near_fp32(shape: Shape):
    full, half = (HFBackbone.from_shape(shape, precision=p, device="cpu") for p in ("fp32", "bf16"))
    ids, positions, mask = padded(full)
    wanted = full(full.embed(ids), positions=positions, mask=mask)[mask]
    found = in_pieces(half, half.embed(ids), positions, mask, (7, 1, 4))[mask]
    assert found.dtype == torch.bfloat16
    assert (found.float() - wanted).abs().max() < 0.1 * wanted.abs().max()
    half.verify()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_on_cuda_padding_and_cuts_change_nothing(shape: Shape, precision: Any):
    backbone = HFBackbone.from_shape(shape, precision=precision, device="cuda")
    ids, positions, mask = (tensor.cuda() for tensor in padded(backbone))
    embeds = backbone.embed(ids).detach().requires_grad_()
    whole = backbone(embeds, positions=positions, mask=mask)
    pieces = in_pieces(backbone, embeds, positions, mask, (4, 1, 5, 2))
    tolerance = 1e-4 if precision == "fp32" else 0.05
    close(pieces[mask].float(), whole[mask].float(), tolerance)
    (gradient,) = torch.autograd.grad(pieces[mask].float().sin().sum(), embeds)
    assert torch.isfinite(whole).all() and torch.isfinite(gradient).all()


def test_flop_and_parameters_are_what_torch_counts(shape: Shape):
    backbone = HFBackbone.from_shape(shape, device="cpu")
    ids, positions, mask = padded(backbone, (12, 12, 12))
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        backbone.logits(backbone(backbone.embed(ids), positions=positions, mask=mask))
    rotary = 2 * 12 * (32 // shape.heads) // 2 * (1 if shape.architecture != "gpt2" else 0)
    counted = counter.get_total_flops()
    claimed = 3 * 12 * backbone.flop_per_token(12, logits=True)
    # Angles of rotary positions are a product too: a few, once a call, not once a layer.
    assert claimed <= counted <= claimed + 3 * rotary
    assert backbone.parameter_count() == sum(p.numel() for p in set(backbone.parameters()))


def test_counting_needs_no_weights():
    gpt2 = HFBackbone.from_shape(Shape(), device="meta")
    assert gpt2.parameter_count() == 124_439_808  # as published for GPT-2
    assert gpt2.flop_per_token(0) == 2 * 12 * 12 * 768**2


def test_a_seed_gives_the_weights_and_leaves_the_random_state_alone(shape: Shape):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one, same, other = (HFBackbone.from_shape(shape, seed=seed, device="cpu") for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    pairs = list(zip(one.parameters(), same.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


# Tokens.


@pytest.mark.parametrize("tied", [True, False])
def test_added_tokens_copy_a_row(shape: Shape, tied: bool):
    shape = Shape(**{**vars(shape), "tied": tied})
    backbone = in_float64(shape)
    before = backbone.embed(torch.arange(61)[None]).clone()
    head = backbone.model.get_output_embeddings().weight[:61].clone()
    state = torch.get_rng_state()
    ids = backbone.add_tokens(["<|a|>", "<|b|>", "<|c|>"], copy_from=7)
    assert torch.equal(torch.get_rng_state(), state)
    assert ids == (61, 62, 63) and backbone.vocabulary == 64
    close(backbone.embed(torch.arange(61)[None]), before)
    close(backbone.embed(torch.tensor([ids])), before[:, [7, 7, 7]])
    close(backbone.model.get_output_embeddings().weight, torch.cat((head, head[[7, 7, 7]])))
    tie = backbone.model.get_output_embeddings().weight is backbone.model.get_input_embeddings().weight
    assert tie == tied
    hidden = torch.randn(5, 32, dtype=torch.float64)
    close(backbone.logits(hidden)[:, 61:], backbone.logits(hidden)[:, [7, 7, 7]])


def word_tokenizer(words: list[str]) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=words[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=words[0], eos_token=words[1])


def test_added_tokens_are_the_tokenizers_too(tmp_path: Path):
    backbone = in_float64(SHAPES["gpt2"])
    backbone.tokenizer = word_tokenizer(["<unk>", "<eos>", "<<", "every", "rat"])
    assert backbone.copy_source() == 2
    ids = backbone.add_tokens(["<|latent|>", "rat"])
    # The model has spare rows, so it does not grow; a word already known keeps its row.
    assert ids == (5, 4) and backbone.vocabulary == 61
    (embedded,) = backbone.embed(torch.arange(6)[None])
    close(embedded[5], embedded[2])
    assert (embedded[4] - embedded[2]).abs().max() > 1e-3
    with torch.no_grad():
        backbone.model.get_input_embeddings().weight[5] += 1.0
    assert backbone.add_tokens(["<|latent|>"], copy_from="every") == (5,)
    close(backbone.embed(torch.tensor([[5]])), embedded[None, 5:6] + 1.0)
    backbone.tokenizer = word_tokenizer(["<unk>", "<eos>", "every"])
    assert backbone.copy_source() == 1
    for token in ("<<", 61, -1):
        with pytest.raises(StepwellError, match=f"there is no token {token!r} to copy from"):
            backbone.add_tokens(["<|x|>"], copy_from=token)


# Saving and loading.


@pytest.mark.parametrize("tied", [True, False])
def test_save_and_load_are_a_round_trip(shape: Shape, tied: bool, tmp_path: Path):
    backbone = HFBackbone.from_shape(Shape(**{**vars(shape), "tied": tied}), seed=3, device="cpu")
    backbone.tokenizer = word_tokenizer(["<unk>", "<eos>", "every", "rat"])
    backbone.add_tokens([f"<|{i}|>" for i in range(60)])
    for folder in (tmp_path / "model", tmp_path / "model"):  # the second time replaces the first
        backbone.save(folder)
    assert not list(tmp_path.glob(".*")) and not list((tmp_path / "model").glob("*.bin"))
    loaded = HFBackbone.load(tmp_path / "model", device="cpu")
    assert not loaded.training and loaded.vocabulary == 64
    assert loaded.tokenizer.get_vocab() == backbone.tokenizer.get_vocab()
    state = loaded.state_dict()
    assert state.keys() == backbone.state_dict().keys()
    assert all(torch.equal(value, state[key]) for key, value in backbone.state_dict().items())
    ids, positions, mask = padded(backbone)
    wanted, found = (b.logits(b(b.embed(ids), positions=positions, mask=mask)) for b in (backbone, loaded))
    assert torch.equal(wanted, found)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    HFBackbone.from_shape(SHAPES["gpt2"], device="cpu").save(tmp_path / "model")
    return tmp_path / "model"


def refused(folder: Path | str, cause: str) -> StepwellError:
    with pytest.raises(StepwellError, match=cause) as caught:
        HFBackbone.load(folder, device="cpu")
    return caught.value


def test_the_folder_as_saved_loads(saved: Path):
    assert HFBackbone.load(str(saved), device="cpu").tokenizer is None


def test_a_missing_folder_is_refused(tmp_path: Path):
    assert "give a folder with config.json" in refused(tmp_path / "no", "there is no such model folder").way_out
    refused("./no/such", "there is no such model folder")


def test_a_folder_without_weights_is_refused(saved: Path):
    (saved / "model.safetensors").unlink()
    assert refused(saved, r"there are no weights \(model.safetensors\)").path == saved


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_a_pickle_is_refused_with_the_way_out(saved: Path, name: str):
    (saved / "model.safetensors").rename(saved / name)
    error = refused(saved, rf"the weights are only there as a pickle \({name}\), which can run code when it is loaded")
    assert "convert it once" in error.way_out and f"save_pretrained('{saved}')" in error.way_out


def test_a_folder_without_a_configuration_is_refused(saved: Path):
    (saved / "config.json").write_text("{", encoding="utf-8")
    refused(saved, "config.json is not JSON")
    (saved / "config.json").unlink()
    refused(saved, "there is no config.json")


def test_cut_off_weights_are_refused(saved: Path):
    file = saved / "model.safetensors"
    file.write_bytes(file.read_bytes()[:2000])
    refused(saved, "the model cannot be loaded: ")


def test_weights_of_another_shape_are_refused(saved: Path):
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**config, "n_layer": 3}))
    refused(saved, "the weights lack 12 tensors, first transformer.h.2.attn.c_attn.bias")
    (saved / "config.json").write_text(json.dumps({**config, "n_embd": 16}))
    refused(saved, "the model cannot be loaded: ")


def test_missing_shards_are_refused(saved: Path):
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (saved / "model.safetensors").rename(saved / "model-00001-of-00002.safetensors")
    (saved / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(saved, "1 of 2 weight files are missing, first model-00002-of-00002.safetensors")


def test_a_tokenizer_of_another_vocabulary_is_refused(saved: Path):
    word_tokenizer([f"w{i}" for i in range(61)]).save_pretrained(saved)
    HFBackbone.load(saved, device="cpu")
    word_tokenizer([f"w{i}" for i in range(62)]).save_pretrained(saved)
    cause = "the tokenizer is of another vocabulary: its largest id is 61, and the model has 61 embeddings"
    assert "the model was trained with" in refused(saved, cause).way_out


def test_a_hub_out_of_reach_is_one_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def unreachable(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("no network")

    monkeypatch.setenv("STEPWELL_HOME", str(tmp_path))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    error = refused("someone/some-model", "the hub cannot be reached for someone/some-model, and it is not stored here")
    assert error.exit_code == 3 and "smollm2-135m" in error.way_out


def test_saving_where_it_cannot_be_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StepwellError, match="the folder cannot be written"):
        HFBackbone.from_shape(SHAPES["gpt2"], device="cpu").save(tmp_path / "file" / "model")


# Bad calls.


@pytest.mark.usefixtures("shapes_unchecked")
def test_shapes_that_do_not_fit_are_named(backbone: HFBackbone):
    ids, positions, mask = padded(backbone)
    embeds = backbone.embed(ids)
    with pytest.raises(StepwellError, match=r"mask have the shape \(4, 11\), not \(4, 12\) \(0 columns are cached\)"):
        backbone(embeds, positions=positions, mask=mask[:, 1:])
    with pytest.raises(StepwellError, match=r"positions have the shape \(1, 12\), not \(4, 12\)"):
        backbone(embeds, positions=positions[:1], mask=mask)
    with pytest.raises(StepwellError, match="skip is 13 of 12 columns"):
        backbone(embeds, positions=positions, mask=mask, skip=13)


def test_positions_beyond_the_model_are_named(backbone: HFBackbone):
    ids, positions, mask = padded(backbone, (49,))
    with pytest.raises(StepwellError, match="position 48 is asked for, but the model knows 48 positions"):
        backbone(backbone.embed(ids), positions=positions, mask=mask)
    mask[:, 0] = False  # padding takes no position
    backbone(backbone.embed(ids), positions=(mask.cumsum(1) - 1).clamp(min=0), mask=mask)


@pytest.mark.parametrize(
    ("sizes", "cause"),
    [
        ({"layers": 0}, "layers of the model is 0"),
        ({"width": -8}, "width of the model is -8"),
        ({"width": 30, "heads": 4}, "a width of 30 cannot be shared by 4 heads"),
        ({"dropout": 1.0}, "dropout of the model is 1.0"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(sizes: dict[str, Any], cause: str):
    with pytest.raises(StepwellError, match=cause):
        Shape(**sizes)


def test_a_device_that_is_not_here_is_refused():
    assert pick_device("cpu").type == "cpu"
    assert pick_device("auto").type in {"cuda", "mps", "cpu"}
    for name in ("cuda:99", "tpu"):
        with pytest.raises(StepwellError, match=f"there is no device '{name}' here"):
            pick_device(name)


def test_dtypes_are_torchs():
    assert DTYPES["bf16"] is torch.bfloat16


# Checkpoints of the COCONUT code.


@pytest.fixture
def meta_checkpoint(tmp_path: Path) -> tuple[Path, dict[str, Tensor], HFBackbone]:
    """A state dict as that code writes it: the causal LM under `base_causallm`, the embedding once more."""
    trained = HFBackbone.from_shape(SHAPES["gpt2"], seed=9, device="cpu")
    trained.add_tokens(["<|start-latent|>", "<|end-latent|>", "<|latent|>"], copy_from=0)
    state = {f"base_causallm.{key}": value for key, value in trained.model.state_dict().items()}
    state["embedding.weight"] = trained.model.get_input_embeddings().weight.detach()
    path = tmp_path / "checkpoint_33"
    torch.save(state, path)
    return path, state, trained


def fresh(markers: int = 3) -> HFBackbone:
    backbone = HFBackbone.from_shape(SHAPES["gpt2"], device="cpu")
    backbone.add_tokens([f"<|{i}|>" for i in range(markers)], copy_from=0)
    return backbone


def test_a_coconut_checkpoint_is_loaded(meta_checkpoint: tuple[Path, dict[str, Tensor], HFBackbone]):
    path, state, trained = meta_checkpoint
    backbone = fresh()
    load_coconut_checkpoint(path, backbone)
    wanted, found = trained.state_dict(), backbone.state_dict()
    assert all(torch.equal(wanted[key], found[key]) for key in wanted)
    # The arms without thoughts are saved without the wrapper; old versions also saved the causal mask of each layer.
    bare = {key.removeprefix("base_causallm."): value for key, value in state.items() if key != "embedding.weight"}
    bare["transformer.h.0.attn.bias"] = torch.ones(1, 1, 48, 48)
    torch.save(bare, path)
    other = fresh()
    load_coconut_checkpoint(path, other)
    assert torch.equal(other.model.lm_head.weight, trained.model.lm_head.weight)


def test_a_coconut_checkpoint_that_does_not_fit_is_named(meta_checkpoint: tuple[Path, dict[str, Tensor], HFBackbone]):
    path, state, _ = meta_checkpoint
    before = fresh()

    def refused_checkpoint(changed: Any, cause: str, backbone: HFBackbone | None = None) -> None:
        torch.save(changed, path)
        backbone = backbone or fresh()
        with pytest.raises(StepwellError, match=cause):
            load_coconut_checkpoint(path, backbone)
        if backbone.vocabulary == before.vocabulary:
            assert all(torch.equal(a, b) for a, b in zip(before.parameters(), backbone.parameters(), strict=True))

    key = "base_causallm.transformer.h.1.ln_1.weight"
    refused_checkpoint(
        {k: v for k, v in state.items() if k != key}, r"the checkpoint has 1 missing keys: transformer.h.1.ln_1.weight"
    )
    refused_checkpoint({**state, "base_causallm.extra": state[key]}, "the checkpoint has 1 unexpected keys: extra")
    refused_checkpoint({**state, "probe.weight": state[key]}, "the checkpoint has 1 unexpected keys: probe.weight")
    refused_checkpoint({**state, "embedding.weight": state["embedding.weight"] + 1}, "embedding.weight differs from")
    refused_checkpoint(state, r"wte.weight is \(64, 32\) in the checkpoint and \(61, 32\) in the model", fresh(0))
    refused_checkpoint([1, 2], "the checkpoint is not a state dict of tensors")
    refused_checkpoint({"model": fresh()}, "the checkpoint is not a plain state dict of tensors")
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(StepwellError, match="the checkpoint is not a plain state dict of tensors"):
        load_coconut_checkpoint(path, before)
    path.unlink()
    with pytest.raises(StepwellError, match="there is no such checkpoint"):
        load_coconut_checkpoint(path, before)


def test_shapes_are_checked_in_tests(shape: Shape):
    """The import hook is at work: what annotations say of arrays holds at every call of a test."""
    backbone = HFBackbone.from_shape(shape, device="cpu")
    assert backbone.logits(backbone.embed(torch.tensor([[1, 2]]))).shape == (1, 2, 61)
    with pytest.raises(jaxtyping.TypeCheckError, match="parameter 'ids'"):
        backbone.embed(torch.tensor([1, 2]))


def test_a_folder_can_be_copied(saved: Path, tmp_path: Path):
    shutil.copytree(saved, tmp_path / "copy")
    HFBackbone.load(tmp_path / "copy", device="cpu")
