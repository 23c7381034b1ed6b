"""Encoders of bytes and of the language model: alone as in a batch, nested, frozen, and blind to answers."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from doubles import norms_in_float64
from fit_models import SHAPES
from stepwell.adapt.lora import LoRA, LoraParams, active_adapter
from stepwell.backbone import HFBackbone
from stepwell.errors import StepwellError
from stepwell.latents.adapter import Adapter, embedding_rms
from stepwell.latents.deep_prefix import DeepPrefix, begin
from stepwell.latents.encoder import BytesEncoder, Encoder, LMEncoder, build_encoder, fitted
from stepwell.latents.encoder_specs import AdapterSpec, BytesSpec, DeepPrefixSpec, LMSpec, Mean, Queries, Tokens
from stepwell.latents.encoders import bytewise, sentence
from stepwell.shapes import Precision
from stepwell.studies.imprint.models import ByteTokenizer

QUERIES = Queries(inner=8, layers=2, heads=2)
PROMPTS = ["Zoë baked.\nWho?", "?", "The cat sat on the mat, and the dog did not.\nWho sat?"]


class WithBOS(ByteTokenizer):
    bos_token_id = 256


def language_model(name: str = "llama", precision: Precision = "fp64", tokenizer: Any = None) -> HFBackbone:
    backbone = HFBackbone.from_shape(replace(SHAPES[name], vocabulary=257, max_positions=80), device="cpu")
    generator = torch.Generator().manual_seed(1)
    for parameter in backbone.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.25, generator=generator)
    backbone = backbone.to({"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16}[precision])
    if precision == "fp64":
        norms_in_float64(backbone, backbone.width)
    backbone.tokenizer = tokenizer or ByteTokenizer()
    return backbone


def rough(encoder: Any) -> Any:
    """The encoder in float64, its weights large enough that every one matters."""
    generator = torch.Generator().manual_seed(7)
    for name, parameter in encoder.double().named_parameters():
        if parameter.dim() > 1 and "embedding" not in name:
            nn.init.normal_(parameter, std=0.3, generator=generator)
    return encoder


def bytes_encoder(**changed: Any) -> BytesEncoder:
    return BytesEncoder(BytesSpec(vectors=(2, 5), width=6, inner=8, layers=2, heads=2, pooling=QUERIES, **changed))


def lm_encoder(pooling: Any, tokenizer: Any = None, **options: Any) -> LMEncoder:
    spec = LMSpec(vectors=(2, 5), width=6, pooling=pooling)
    return LMEncoder(spec, language_model(tokenizer=tokenizer), **options)


ENCODERS: dict[str, Callable[[], Encoder]] = {
    "bytes": bytes_encoder,
    "bytes, patches": lambda: bytes_encoder(patch=3),
    "lm mean": lambda: lm_encoder("mean"),
    "lm mean, BOS": lambda: lm_encoder("mean", WithBOS()),
    "lm queries": lambda: lm_encoder(QUERIES),
    "lm queries, BOS": lambda: lm_encoder(QUERIES, WithBOS()),
    "lm tokens": lambda: lm_encoder("tokens"),
    "lm tokens, BOS": lambda: lm_encoder("tokens", WithBOS()),
}


@pytest.fixture(params=ENCODERS)
def encoder(request: pytest.FixtureRequest) -> Any:
    return rough(ENCODERS[request.param]())


def close(found: Tensor, wanted: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


@torch.no_grad()
def test_a_prompt_is_the_same_alone_and_in_any_batch(encoder: Encoder):
    together = encoder(PROMPTS)
    assert together.shape == (3, 5, 6) and together.isfinite().all()
    assert torch.equal(together, encoder(PROMPTS))
    for row, prompt in enumerate(PROMPTS):
        close(together[row], encoder([prompt])[0])
    close(encoder(PROMPTS[::-1]), together.flip(0))
    assert (together[0] - together[2]).abs().max() > 0.1


@torch.no_grad()
def test_padding_that_is_read_is_seen(monkeypatch: pytest.MonkeyPatch):
    """The equality above would find a mask that is forgotten."""
    encoder, padded = rough(bytes_encoder()), bytewise.right_padded
    alone = encoder(PROMPTS[:1])[0]

    def forgetful(rows: Any, **to: Any) -> Any:
        ids, mask = padded(rows, **to)
        return ids, torch.ones_like(mask)

    monkeypatch.setattr(bytewise, "right_padded", forgetful)
    assert (encoder(PROMPTS)[0] - alone).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("patch", [1, 2, 3, 5])
def test_columns_are_patches_of_bytes(patch: int):
    """What the layers get, one byte at a time; a change of any byte is seen."""
    encoder, got = rough(bytes_encoder(patch=patch, max_bytes=57)), []
    encoder.layers[0].register_forward_pre_hook(lambda layer, given: got.append(given))
    encoder(PROMPTS)
    columns, mask = got[0]
    for row, prompt in enumerate(PROMPTS):
        data = prompt.encode()
        assert mask[row].tolist() == [place * patch < len(data) for place in range(columns.shape[1])]
        for place in range(int(mask[row].sum())):
            wanted = encoder.places[place].clone()
            if patch == 1:
                wanted += encoder.embedding.weight[data[place]]
            else:
                wanted += encoder.patches.bias
                for offset, byte in enumerate(data[place * patch : (place + 1) * patch]):
                    weight = encoder.patches.weight[:, offset * 8 : (offset + 1) * 8]
                    wanted += weight @ encoder.embedding.weight[byte]
            close(columns[row, place], wanted)
    whole = encoder(["abcdefg"])
    for place in range(7):
        assert (encoder(["abcdefg"[:place] + "X" + "abcdefg"[place + 1 :]]) - whole).abs().max() > 1e-3


@torch.no_grad()
def test_the_first_vectors_are_the_same_whether_others_follow(encoder: Encoder):
    for vectors in range(1, 6):
        found = encoder(PROMPTS, vectors)
        assert found.shape == (3, vectors, 6)
        if not (isinstance(encoder, LMEncoder) and encoder.pooling is None and encoder.tokens is None):
            close(found, encoder(PROMPTS)[:, :vectors])
    assert encoder.sent(4) == 4


@torch.no_grad()
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), WithBOS()])
def test_what_the_model_reads_is_what_it_says_itself(name: str, tokenizer: Any):
    """Against the model run on each text alone, by transformers' own call."""
    backbone = language_model(name, tokenizer=tokenizer)
    bos = [256] * hasattr(tokenizer, "bos_token_id")
    mean = rough(LMEncoder(LMSpec(vectors=(3,), width=6), backbone))
    tokens = rough(LMEncoder(LMSpec(vectors=(3,), width=6, pooling=Tokens()), backbone))
    for row, prompt in enumerate(PROMPTS):
        embeds = backbone.embed(torch.tensor([[*bos, *prompt.encode()]]))
        states = backbone.base(inputs_embeds=embeds).last_hidden_state[0, len(bos) :]
        wanted = mean.project(F.adaptive_avg_pool1d(states.T[None], 3)[0].T)
        close(mean(PROMPTS)[row], wanted)
        longer = torch.cat((embeds, tokens.tokens[None]), 1)
        close(tokens(PROMPTS)[row], tokens.project(backbone.base(inputs_embeds=longer).last_hidden_state[0, -3:]))


def test_no_argument_could_carry_an_answer():
    """Fault 06: the gold answer's length was given to the adapter."""
    kinds = [Encoder, BytesEncoder, LMEncoder, sentence.SentenceLatents]
    for kind in kinds:
        assert list(inspect.signature(kind.forward).parameters) == ["self", "prompts", "vectors"]
        assert list(inspect.signature(kind.prompt).parameters) == ["self", "context", "question"]
        assert list(inspect.signature(kind.read).parameters) == ["self", "rows", "vectors"]
        assert kind.__call__ is nn.Module.__call__


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("one text", "reads a list of texts, not str of str"),
        ([("prompt", "answer")], "reads a list of texts, not list of tuple"),
        ([b"bytes"], "reads a list of texts, not list of bytes"),
        (["text", 7], "reads a list of texts, not list of int, str"),
        ([], "reads a list of texts, not list of nothing"),
        (["text", " \n"], "prompt 1 is empty"),
        (["", "text"], "prompt 0 is empty"),
    ],
)
def test_what_is_no_prompt(given: Any, said: str):
    with pytest.raises(StepwellError, match=said):
        bytes_encoder()(given)


@pytest.mark.parametrize("vectors", [0, -1, 6])
def test_vectors_that_are_not_served(vectors: int):
    with pytest.raises(StepwellError, match=f"{vectors} vectors are asked of an encoder of 1 to 5"):
        bytes_encoder()(PROMPTS, vectors)


def test_a_text_that_is_too_long_is_never_cut_in_silence():
    encoder = bytes_encoder(max_bytes=20)
    assert encoder(["é" * 10]).shape == (1, 5, 6)
    with pytest.raises(StepwellError, match="prompt 1 has 22 bytes, and the encoder reads 20") as caught:
        encoder(["short", "é" * 11])
    assert "cuts the context and never the question" in caught.value.way_out


def test_the_models_positions_bound_a_text():
    backbone = language_model(tokenizer=WithBOS())
    assert LMEncoder(LMSpec(vectors=(4,)), backbone).most == 79
    assert LMEncoder(LMSpec(vectors=(4,), max_tokens=30), backbone).most == 30
    encoder = LMEncoder(LMSpec(vectors=(4,), width=3, pooling=Tokens()), backbone)
    assert encoder.most == 75 and encoder(["x" * 75]).shape == (1, 4, 3)
    with pytest.raises(StepwellError, match="prompt 0 has 76 tokens, and the encoder reads 75"):
        encoder(["x" * 76])
    with pytest.raises(StepwellError, match="the model knows 80 positions, and 80 are taken before any text"):
        LMEncoder(LMSpec(vectors=(79,), pooling=Tokens()), backbone)


def test_a_model_without_tokenizer_cannot_read():
    backbone = language_model()
    backbone.tokenizer = None
    with pytest.raises(StepwellError, match="the model has no tokenizer, so it cannot read a text"):
        LMEncoder(LMSpec(), backbone)


def test_the_context_is_cut_and_never_the_question():
    """Fault 07, for the encoder's own limit; the most of the context that fits is kept."""
    draw = random.Random(0)
    for _ in range(50):
        context = "".join(draw.choices("aé語😀 \n", k=draw.randrange(30)))
        question = "".join(draw.choices("aé?", k=draw.randrange(1, 8)))
        limit = draw.randrange(14, 60)
        found = fitted(context, question, limit=limit, length=lambda text: len(text.encode()))
        texts = [f"{context[:n]}\n{question}" for n in range(1, len(context) + 1)]
        assert found == max([question, *(text for text in texts if len(text.encode()) <= limit)], key=len)
        encoder = bytes_encoder(max_bytes=limit)
        assert encoder.prompt(context, question) == found and found.endswith(question)
    with pytest.raises(StepwellError, match="the question alone has a length of 9, and 8 is the limit: 'question\\?'"):
        fitted("context", "question?", limit=8, length=len)


def test_a_length_that_falls_now_and_then_is_never_exceeded():
    """Tokenizers merge: `ab` may be one token, and `a` one too."""

    def length(text: str) -> int:
        return len(text.replace("abab", "z"))

    for limit in range(2, 30):
        assert length(fitted("ab" * 30, "?", limit=limit, length=length)) <= limit


def test_the_same_seed_is_the_same_encoder():
    before = torch.get_rng_state()
    for build in (
        lambda seed: BytesEncoder(BytesSpec(vectors=(2,), width=6, inner=8, pooling=QUERIES), seed=seed),
        lambda seed: LMEncoder(LMSpec(pooling=Tokens(), width=6), language_model(precision="fp32"), seed=seed),
    ):
        first, same, other = build(0), build(0), build(1)
        with torch.no_grad():
            assert torch.equal(first(PROMPTS), same(PROMPTS))
            assert not torch.allclose(first(PROMPTS), other(PROMPTS))
    assert torch.equal(before, torch.get_rng_state())


def learns(encoder: Encoder) -> None:
    encoder.zero_grad()
    encoder(PROMPTS).float().square().sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert (parameter.grad != 0).any(), name


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_gradients_are_finite_in_every_precision(precision: Precision):
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    learns(bytes_encoder().to(dtype))
    for pooling in (Mean(), QUERIES, Tokens()):
        spec = LMSpec(vectors=(2, 5), width=6, pooling=pooling)
        learns(LMEncoder(spec, language_model(precision=precision)).to(dtype))
        # Weights in fp32 over a model in bf16, as they are trained.
        assert LMEncoder(spec, language_model(precision=precision))(PROMPTS).dtype == torch.float32


def test_gradients_are_finite_differences():
    spec = LMSpec(vectors=(1,), width=2, pooling=Tokens())
    encoder = rough(LMEncoder(spec, language_model("gpt2")))

    def run(tokens: Tensor) -> Tensor:
        return torch.func.functional_call(encoder, {"tokens": tokens}, (["a?", "?"],))

    assert torch.autograd.gradcheck(run, (encoder.tokens.detach().requires_grad_(),))


@pytest.mark.parametrize("pooling", ["mean", QUERIES, "tokens"])
def test_the_model_is_frozen_unless_it_is_trained(pooling: Any):
    encoder = lm_encoder(pooling)
    backbone: Any = encoder.backbone
    weight = backbone.model.model.layers[0].self_attn.k_proj.weight
    backbone.requires_grad_(False)
    weight.requires_grad_(True)  # as a decoder's LoRA would
    learns(encoder.double())
    assert weight.grad is None and weight.requires_grad
    assert not any(p.requires_grad for p in backbone.parameters() if p is not weight)
    trained = lm_encoder(pooling, trained=True).double()
    trained._held = encoder._held
    learns(trained)
    assert weight.grad is not None and weight.grad.isfinite().all() and (weight.grad != 0).any()


@pytest.mark.parametrize("pooling", [Mean(), QUERIES, Tokens()])
def test_an_adapter_of_its_own_reads_and_is_off_for_the_decoder(pooling: Any):
    backbone = language_model(precision="fp32")
    spec = LMSpec(vectors=(2, 5), width=6, pooling=pooling)
    plain = LMEncoder(spec, backbone)(PROMPTS).detach()
    mine = LoRA(backbone, LoraParams(rank=2), name="encoder")
    decoders = LoRA(backbone, LoraParams(rank=2), name="decoder", seed=1)
    with torch.no_grad():
        for parameter in (*mine.parameters(), *decoders.parameters()):
            parameter.add_(0.1)
    for before in (mine.on, mine.off, decoders.on):
        with before():
            state = active_adapter(backbone)
            encoder = LMEncoder(spec, backbone, reading=mine.on, trained=True)
            mine.zero_grad()
            learns(encoder)
            assert active_adapter(backbone) == state
        for parameter in mine.parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all() and (parameter.grad != 0).any()
        assert (encoder(PROMPTS) - plain).abs().max() > 1e-3
        torch.testing.assert_close(LMEncoder(spec, backbone, reading=mine.off)(PROMPTS), plain)
    assert all(parameter.grad is None for parameter in decoders.parameters())
    assert all(p.grad is None for name, p in backbone.named_parameters() if ".lora_" not in name)


def test_a_frozen_reading_needs_no_second_pass():
    """With layers that are recomputed in backward an adapter cannot be switched for a pass with gradients."""
    made = HFBackbone.from_shape(replace(SHAPES["llama"], vocabulary=257), device="cpu", gradient_checkpointing=True)
    made.tokenizer = ByteTokenizer()
    decoders = LoRA(made, LoraParams(rank=2))
    encoder = LMEncoder(LMSpec(vectors=(2,), width=6), made, reading=decoders.off)
    learns_from = ["One.\nTwo?", "?"]
    encoder(learns_from).sum().backward()
    assert active_adapter(made) == decoders.name
    with pytest.raises(StepwellError, match="gradient checkpointing runs the layers again in backward"):
        LMEncoder(LMSpec(vectors=(2,), width=6, pooling=Tokens()), made, reading=decoders.off)(learns_from)


def test_a_reading_that_fails_leaves_the_model_as_it_was():
    encoder = lm_encoder("mean")
    backbone: Any = encoder.backbone
    backbone.tokenizer.encode = None
    with pytest.raises(TypeError):
        encoder(PROMPTS)
    encoder.tokenizer = ByteTokenizer()
    backbone.forward = None
    with pytest.raises(TypeError):
        encoder(PROMPTS)
    assert all(parameter.requires_grad for parameter in backbone.parameters())


def test_every_reading_is_inside_its_context():
    entered: list[str] = []

    @contextmanager
    def reading() -> Iterator[None]:
        entered.append("in")
        yield
        entered.append("out")

    encoder = lm_encoder("tokens", reading=reading).double()
    backbone: Any = encoder.backbone
    forward = backbone.forward
    backbone.forward = lambda *args, **options: [entered.append("pass"), forward(*args, **options)][1]
    encoder(PROMPTS)
    encoder(PROMPTS)
    assert entered == ["in", "pass", "out"] * 2


def test_the_model_is_no_part_of_its_encoder():
    encoder = lm_encoder(QUERIES)
    backbone: Any = encoder.backbone
    own = {id(parameter) for parameter in backbone.parameters()}
    assert not any(id(parameter) in own for parameter in encoder.parameters())
    assert not any("backbone" in name or "_held" in name for name in encoder.state_dict())
    assert "places" not in bytes_encoder().state_dict()
    dtype = next(backbone.parameters()).dtype
    encoder.to(torch.bfloat16)
    assert next(backbone.parameters()).dtype == dtype == torch.float64


def test_building_from_specs():
    assert isinstance(build_encoder(BytesSpec(), device="cpu"), BytesEncoder)
    backbone = language_model()
    built = build_encoder(LMSpec(), backbone=backbone, trained=True, seed=3)
    assert isinstance(built, LMEncoder) and built.backbone is backbone and built.trained
    assert (built.width, built.sizes) == (256, (16,))
    with pytest.raises(StepwellError, match="an encoder of kind `lm` has no language model to read with"):
        build_encoder(LMSpec())


@pytest.mark.slow
@torch.no_grad()
def test_a_real_model_reads():
    backbone = HFBackbone.load("smollm2-135m", device="cpu")
    texts = ["The Broncos won in Denver.\nWho won?", "Bread is baked from flour, water and salt.\nWhat is baked?"]
    for pooling in (Mean(), Queries(), Tokens()):
        encoder = LMEncoder(LMSpec(vectors=(4, 16), pooling=pooling), backbone)
        together = encoder(texts)
        assert together.shape == (2, 16, 256)
        torch.testing.assert_close(together[0], encoder(texts[:1])[0], rtol=1e-3, atol=1e-3)
        assert (together[0] - together[1]).abs().mean() > 0.05
        long = encoder.prompt("The Broncos won. " * 500, "Who won?")
        assert long.endswith("\nWho won?") and 500 < len(encoder.ids(long)) <= 512
    adapter = Adapter(AdapterSpec(), 256, backbone.width, rms=embedding_rms(backbone))
    prefix = adapter(together)
    assert prefix.shape == (2, 16, 576) and 0.05 < adapter.rms < 0.3
    texts_ids = [backbone.tokenizer.encode(text) for text in texts]
    deep = DeepPrefix(DeepPrefixSpec(inner=64), 256, backbone, texts_ids)
    begun = begin(backbone, deep(together), backbone.embed(torch.tensor([[1], [1]])))
    hidden, _ = begun.read(backbone, backbone.embed(torch.tensor([texts_ids[0][:5]] * 2)))
    assert hidden.isfinite().all() and begun.cache.length == 17
