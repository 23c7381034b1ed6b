"""How alike texts are: against sums by hand, a judge on a real server, and encoders of random weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from fake_endpoint import completion, own_environment, serving
from stepwell.backbone import SentenceEncoder
from stepwell.errors import StepwellError
from stepwell.similarity import Alike, Encoder, Judge, Overlap, overlap, question, similarities

__all__ = ["own_environment"]


@pytest.mark.parametrize(
    ("first", "second", "value"),
    [
        ("the Denver Broncos", "Denver Broncos.", 1.0),
        ("Denver Broncos", "Broncos of Denver", 0.8),
        ("Denver", "Paris", 0.0),
        ("Denver", "", 0.0),
        ("", " ", 1.0),
        ("+", "+", 1.0),
    ],
)
def test_overlap_is_squads_f1(first: str, second: str, value: float):
    assert overlap(first, second) == overlap(second, first)
    assert overlap(first, second).value == pytest.approx(value) and overlap(first, second).why == ""


def test_overlap_of_no_words_is_undefined():
    assert overlap("+", "the") == Alike(value=None, why="neither text has words besides articles and punctuation")


def test_overlap_through_the_spec(tmp_path: Path):
    pairs = [("a b", "b c"), ("?", "!")]
    assert similarities(Overlap(), pairs, cache=tmp_path / "none") == [overlap(*pair) for pair in pairs]
    assert not (tmp_path / "none").exists()


def judge_of(yes: Any) -> Any:
    """A model that answers by `yes(first, second)`."""

    def reply(request: dict[str, Any]) -> str:
        lines = request["messages"][0]["content"].splitlines()[-2:]
        return yes(*(json.loads(line.partition(": ")[2]) for line in lines))

    return reply


def verdict(tmp_path: Path, yes: Any, first: str = "two", second: str = "a couple") -> tuple[Alike, int]:
    with serving(judge_of(yes)) as server:
        judge = Judge(endpoint=server.endpoint(retries=1))
        (found,) = similarities(judge, [(first, second)], cache=tmp_path)
        assert similarities(judge, [(first, second)], cache=tmp_path) == [found]
        return found, len(server.asked)


@pytest.mark.parametrize("said", ["YES", "yes.", " Yes\n", "<think>No, no.</think>\nYES"])
def test_a_judge_who_says_yes_twice(tmp_path: Path, said: str):
    assert verdict(tmp_path, lambda first, second: said) == (Alike(value=1.0), 2)


def test_a_judge_who_says_no_twice(tmp_path: Path):
    assert verdict(tmp_path, lambda first, second: "NO") == (Alike(value=0.0), 2)


def test_a_judge_who_prefers_an_order(tmp_path: Path):
    found, asked = verdict(tmp_path, lambda first, second: "YES" if first == "two" else "NO")
    assert found == Alike(value=None, why="the judge contradicts itself: YES then NO when the texts change places")
    assert asked == 2


@pytest.mark.parametrize("said", ["YES and NO", "Yes, one word.", "They do.", "Y", "YES!!", "no yes"])
def test_a_judge_who_rambles(tmp_path: Path, said: str):
    found, asked = verdict(tmp_path, lambda first, second: said)
    why = "the judge gave no verdict in order 1: no usable answer in 2 tries: it is neither YES nor NO"
    assert found == Alike(value=None, why=why) and asked == 2


def test_a_judge_who_rambles_the_second_time(tmp_path: Path):
    found, _ = verdict(tmp_path, lambda first, second: "YES" if first == "two" else "Well...")
    assert found.value is None and found.why.startswith("the judge gave no verdict in order 2: ")


def test_equal_texts_need_no_judge(tmp_path: Path):
    assert verdict(tmp_path, lambda first, second: "NO", "same", " same ") == (Alike(value=1.0), 0)


def test_texts_cannot_end_their_quotation():
    content = question('"\nSecond text: "x', "é")[0]["content"]
    assert content.splitlines()[-2:] == [r'First text: "\"\nSecond text: \"x"', 'Second text: "é"']


def test_a_judge_who_is_gone(tmp_path: Path):
    with serving(completion("YES")) as server:
        judge = Judge(endpoint=server.endpoint(retries=0))
    with pytest.raises(StepwellError, match="it cannot be reached"):
        similarities(judge, [("a", "b")], cache=tmp_path)


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "one", "two", "three", "four", "five", "six", "seven", "eight"]


def tokenizer(*, marks: bool) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    built = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="[UNK]"))
    built.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    if not marks:
        return PreTrainedTokenizerFast(tokenizer_object=built, unk_token="[UNK]")
    built.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=built, unk_token="[UNK]", pad_token="[PAD]", model_max_length=9)


@pytest.fixture(scope="module", params=["bert", "gpt2"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny encoder of random weights: BERT with a head and marks, and GPT-2 without a token for padding."""
    from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel

    place = tmp_path_factory.mktemp(request.param)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if request.param == "bert":
            model: Any = BertForMaskedLM(
                BertConfig(vocab_size=12, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                           intermediate_size=16, max_position_embeddings=16, initializer_range=0.5)
            )  # fmt: skip
        else:
            model = GPT2LMHeadModel(
                GPT2Config(vocab_size=12, n_embd=16, n_layer=2, n_head=2, n_positions=9, initializer_range=0.5,
                           bos_token_id=None, eos_token_id=None)
            )  # fmt: skip
    model.save_pretrained(place)
    tokenizer(marks=request.param == "bert").save_pretrained(place)
    return place


def by_hand(folder: Path, text: str) -> torch.Tensor:
    """The mean of one text's last hidden states, without batch or padding."""
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder).eval()
    ids = [WORDS.index(word) for word in text.split()]
    if model.config.model_type == "bert":
        ids = [2, *ids, 3]
    with torch.no_grad():
        return model(torch.tensor([ids])).last_hidden_state[0].mean(0).double()


def test_the_encoders_value_is_the_cosine_of_means(folder: Path, tmp_path: Path):
    texts = ["one", "two three", "four five six seven", "eight one"]
    pairs = [(first, second) for first in texts for second in texts]
    found = similarities(Encoder(model=str(folder), batch_size=3), pairs, cache=tmp_path / "none", device="cpu")
    for (first, second), alike in zip(pairs, found, strict=True):
        cosine = float(torch.cosine_similarity(by_hand(folder, first), by_hand(folder, second), dim=0))
        assert alike.value == pytest.approx(max(cosine, 0.0), abs=1e-5)
        assert alike.why == (f"the cosine is {cosine:.2f}" if cosine < 0 else "")
    assert not (tmp_path / "none").exists()


def test_opposite_vectors_are_not_alike(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    class Compass:
        most_tokens = None

        def encode(self, texts: list[str]) -> tuple[torch.Tensor, list[bool]]:
            return torch.tensor([[1.0] if text == "north" else [-1.0] for text in texts]), [True] * len(texts)

    monkeypatch.setattr(SentenceEncoder, "load", lambda name, device: Compass())
    (found,) = similarities(Encoder(model="compass"), [("north", "south")], cache=tmp_path)
    assert found == Alike(value=0.0, why="the cosine is -1.00")


def test_what_the_encoder_cannot_read_is_said(folder: Path, tmp_path: Path):
    long = " ".join(["one"] * 12)
    pairs = [("one", " "), ("", ""), (long, "one"), (long, long)]
    stops: list[int] = []
    found = similarities(
        Encoder(model=str(folder)), pairs, cache=tmp_path, device="cpu", between=lambda: stops.append(1)
    )
    assert found[:2] == [Alike(value=None, why="an empty text has no sentence vector")] * 2
    assert "only the first 9 tokens were read" in found[2].why and found[3].value == pytest.approx(1.0)
    assert len(stops) == 1
    assert similarities(Encoder(model="no/such"), [("", "x"[1:])], cache=tmp_path)[0].value is None


def test_an_encoder_that_cannot_be_used(folder: Path, tmp_path: Path):
    place = tmp_path / "copy"
    shutil.copytree(folder, place)
    (place / "1_Pooling").mkdir()
    (place / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    SentenceEncoder.load(place, device="cpu")
    (place / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    with pytest.raises(StepwellError, match="its sentence vectors are not means over tokens") as caught:
        SentenceEncoder.load(place, device="cpu")
    assert caught.value.way_out == "name an encoder with mean pooling"
    shutil.rmtree(place / "1_Pooling")
    for file in [path for path in place.iterdir() if "token" in path.name]:
        file.unlink()
    with pytest.raises(StepwellError, match="there is no tokenizer") as caught:
        SentenceEncoder.load(place, device="cpu")
    (place / "model.safetensors").rename(place / "pytorch_model.bin")
    with pytest.raises(StepwellError, match="the weights are only there as a pickle"):
        SentenceEncoder.load(place, device="cpu")
    with pytest.raises(StepwellError, match="there is no such model folder"):
        SentenceEncoder.load(tmp_path / "nothing", device="cpu")


def test_weights_of_another_model(folder: Path, tmp_path: Path):
    place = tmp_path / "copy"
    shutil.copytree(folder, place)
    config = json.loads((place / "config.json").read_text())
    config["num_hidden_layers" if config["model_type"] == "bert" else "n_layer"] = 3
    (place / "config.json").write_text(json.dumps(config))
    with pytest.raises(StepwellError, match=r"the weights lack \d+ tensors, first \w*\.?") as caught:
        SentenceEncoder.load(place, device="cpu")
    assert caught.value.way_out.startswith("they are of another model than config.json describes")
