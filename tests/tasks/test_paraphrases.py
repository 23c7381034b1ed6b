"""Paraphrases from a file, an endpoint and a local model: parsed strictly, and nothing that lacks goes unsaid."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from fake_endpoint import own_environment, serving
from stepwell import localchat
from stepwell.backbone import HFBackbone
from stepwell.chat import Attempts
from stepwell.decode import greedy_prompts
from stepwell.errors import StepwellError
from stepwell.localchat import LocalChat, LocalModel
from stepwell.shapes import Shape
from stepwell.tasks.base import QA
from stepwell.tasks.paraphrases import (
    FORMAT,
    FromEndpoint,
    FromFile,
    FromModel,
    Lack,
    Mode,
    ParaphraseSpec,
    paraphrase,
    parse,
    prompt,
    read_paraphrases,
)

__all__ = ["own_environment"]
ITEMS = [
    QA(id="q1", question="Who wrote Emma?", answers=("Jane Austen", "Austen")),
    QA(id="q2", question="Is it?", answers=()),
    QA(id="t1", question="", answers=("A text.",)),
]


def written(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def good(**changes: Any) -> list[dict[str, Any]]:
    rows = [
        {
            "id": "q1",
            "questions": ["Emma is by whom?", "who  wrote EMMA?", "Whose book is Emma?"],
            "answers": ["J. A."],
        },
        {"id": "q2", "mode": "question", "text": "So it is?"},
        {"id": "q2", "mode": "question", "text": "so it  is?"},
        {"id": "t1", "mode": "answer", "text": " A writing. "},
    ]
    return [{**row, **changes} if row["id"] == "q2" else row for row in rows]


def test_a_file_in_both_formats(tmp_path: Path):
    spec = ParaphraseSpec(source=FromFile(path=written(tmp_path / "p.jsonl", good())), n=2)
    found = paraphrase(ITEMS, spec, cache=tmp_path / "none")
    assert found.texts == {
        "q1": {"question": ("Emma is by whom?", "Whose book is Emma?"), "answer": ("J. A.",)},
        "q2": {"question": ("So it is?",)},
        "t1": {"answer": ("A writing.",)},
    }
    singles: list[tuple[str, Mode]] = [("q1", "answer"), ("q2", "question"), ("t1", "answer")]
    assert found.lacks == tuple(
        Lack(id=name, mode=mode, wanted=2, found=1, why="the file gives 1 that are new") for name, mode in singles
    )
    assert not (tmp_path / "none").exists()
    one = ParaphraseSpec(source=spec.source, n=1, modes=("question",))
    assert paraphrase(ITEMS, one, cache=tmp_path).texts == {
        "q1": {"question": ("Emma is by whom?",)},
        "q2": {"question": ("So it is?",)},
    }
    assert not paraphrase(ITEMS, one, cache=tmp_path).lacks


def test_a_file_that_only_repeats_the_original_lacks(tmp_path: Path):
    spec = ParaphraseSpec(source=FromFile(path=written(tmp_path / "p", good(text="is IT?"))), modes=("question",), n=3)
    assert paraphrase(ITEMS, spec, cache=tmp_path).lacks == (
        Lack(id="q1", mode="question", wanted=3, found=2, why="the file gives 2 that are new"),
        Lack(id="q2", mode="question", wanted=3, found=0, why="the file gives 0 that are new"),
    )


@pytest.mark.parametrize(
    ("rows", "cause"),
    [
        (
            good(id="q9"),
            "entry 2 names the id 'q9', which is not in the set (2 of an unknown id, 1 without a paraphrase)",
        ),
        (good(mode="query"), "entry 2 has the mode 'query' (2 of a wrong mode, 1 without a paraphrase)"),
        (good(mode="answer"), "entry 2: 'q2' has no answer to paraphrase (2 of a wrong mode, 1 without a paraphrase)"),
        (good(text=" "), "entry 2 gives 'q2' an empty question (2 an empty text, 1 without a paraphrase)"),
        (good(text=5), "entry 2 gives 'q2' an empty question (2 an empty text, 1 without a paraphrase)"),
        (good()[:1], "'q2' has none for its question (2 without a paraphrase)"),
        ([*good(), {"id": "q1", "texts": []}], "entry 5 has the fields id, texts (1 of another format)"),
        ([*good(), {"mode": "answer", "text": "x"}], "entry 5 has the fields mode, text (1 of another format)"),
        ([*good(), {"id": "q1", "answers": "J. A."}], "entry 5 has the fields id, answers (1 of another format)"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_error(tmp_path: Path, rows: list[dict[str, Any]], cause: str):
    path = written(tmp_path / "p.jsonl", rows)
    with pytest.raises(StepwellError) as caught:
        read_paraphrases(path, ITEMS)
    assert (caught.value.cause, caught.value.way_out) == (cause, f"correct the file: {FORMAT}")
    assert caught.value.path == path


def test_a_file_for_the_whole_set_serves_a_sample(tmp_path: Path):
    path = written(tmp_path / "p.jsonl", [*good(), {"id": "q7", "answers": ["of another item"]}])
    with pytest.raises(StepwellError, match="entry 5 names the id 'q7'"):
        read_paraphrases(path, ITEMS)
    assert set(read_paraphrases(path, ITEMS, known=["q7"])) == {"q1", "q2", "t1"}


@pytest.mark.parametrize(
    ("rows", "cause"), [([], "the file is empty"), (["x"], "another format: one str, not objects")]
)
def test_no_file_of_objects(tmp_path: Path, rows: list[Any], cause: str):
    with pytest.raises(StepwellError) as caught:
        read_paraphrases(written(tmp_path / "p.jsonl", rows), ITEMS)
    assert caught.value.cause == cause


@pytest.mark.parametrize(
    "text",
    [
        '["a", " b "]',
        '\n["a","b"]\n',
        '```json\n["a", "b"]\n```',
        '```\n["a", "b"]\n```',
        '<think>[1]</think>["a", "b"]',
    ],
)
def test_a_list_is_read(text: str):
    assert parse(text) == ("a", "b")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("1. a\n2. b", "it is not one JSON list and nothing else"),
        ('Sure! ["a", "b"]', "it is not one JSON list and nothing else"),
        ('["a", "b"', "it is not one JSON list and nothing else"),
        ('["a"]["b"]', "it is not one JSON list and nothing else"),
        ("[]", "it is JSON, but not a list with something in it"),
        ('{"paraphrases": ["a"]}', "it is JSON, but not a list with something in it"),
        ('"a"', "it is JSON, but not a list with something in it"),
        ('["a", 2]', "the list holds something else than texts, or a blank one"),
        ('["a", " "]', "the list holds something else than texts, or a blank one"),
    ],
)
def test_anything_else_is_not(text: str, why: str):
    with pytest.raises(ValueError, match=why):
        parse(text)


@pytest.mark.parametrize(
    ("item", "mode", "said"),
    [
        (ITEMS[0], "question", ['Question: "Who wrote Emma?"', "Write 3 paraphrases of this question"]),
        (ITEMS[0], "answer", ['Question: "Who wrote Emma?"\nAnswer: "Jane Austen"', "Write 3 other wordings"]),
        (ITEMS[2], "answer", ['Text: "A text."', "Write 3 paraphrases of this text"]),
    ],
)
def test_what_is_asked(item: QA, mode: Mode, said: list[str]):
    (message,) = prompt(item, mode, 3)
    assert message["role"] == "user" and "JSON list of 3 strings and with nothing else" in message["content"]
    assert all(text in message["content"] for text in said)
    assert "JSON list of 1 string and" in prompt(item, mode, 1)[0]["content"]


def writer(request: dict[str, Any]) -> str:
    """A model that paraphrases well at the second try, except for answers to questions, which it cannot."""
    asked = request["messages"][0]["content"]
    if "Answer:" in asked:
        return '["jane austen"]'
    if len(request["messages"]) == 1:
        return "Sure! Here they are."
    return '["Emma, by whom?", "emma,  by WHOM?", "Who?", "And who?"]' if "Emma" in asked else '["A wording."]'


def test_an_endpoint_writes_them_once(tmp_path: Path):
    with serving(writer) as server:
        spec = ParaphraseSpec(source=FromEndpoint(endpoint=server.endpoint(retries=1)), n=2)
        found = paraphrase([ITEMS[0], ITEMS[2]], spec, cache=tmp_path)
        sent = len(server.asked)
        assert sent == 6 and paraphrase([ITEMS[0], ITEMS[2]], spec, cache=tmp_path) == found
        assert len(server.asked) == sent
    assert found.texts == {
        "q1": {"question": ("Emma, by whom?", "Who?"), "answer": ()},
        "t1": {"answer": ("A wording.",)},
    }
    nothing = "no usable answer in 2 tries: nothing in it differs from the original"
    assert found.lacks == (
        Lack(id="q1", mode="answer", wanted=2, found=0, why=nothing),
        Lack(id="t1", mode="answer", wanted=2, found=1, why="1 of what it wrote are new"),
    )


def test_an_endpoint_that_goes_away_is_one_error(tmp_path: Path):
    with serving(writer) as server:
        spec = ParaphraseSpec(source=FromEndpoint(endpoint=server.endpoint(retries=1)), n=2)
        paraphrase(ITEMS[:1], spec, cache=tmp_path)
    with pytest.raises(StepwellError, match="failed 2 times in a row: it cannot be reached"):
        paraphrase(ITEMS, spec, cache=tmp_path)
    assert paraphrase(ITEMS[:1], spec, cache=tmp_path).texts["q1"]["question"] == ("Emma, by whom?", "Who?")


TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}>{% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny GPT-2 over bytes, with a tokenizer and a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = {letter: place for place, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()), 1)}
    built = Tokenizer(models.BPE(vocab={"<eos>": 0, **alphabet}, merges=[]))
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    built.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    shape = Shape(architecture="gpt2", vocabulary=257, width=16, layers=1, heads=2, max_positions=640)
    backbone = HFBackbone.from_shape(shape, device="cpu")
    backbone.tokenizer = PreTrainedTokenizerFast(tokenizer_object=built, eos_token="<eos>", chat_template=TEMPLATE)
    place = tmp_path_factory.mktemp("model") / "tiny"
    backbone.save(place)
    return place


def test_a_local_model_is_asked_through_its_template(folder: Path, tmp_path: Path):
    chat = LocalChat(LocalModel(model=str(folder), max_tokens=6, retries=0, batch_size=2), tmp_path, device="cpu")
    talks = [[{"role": "user", "content": text}] for text in ("Hi", "How are you?", "x")]
    found = chat.ask_all(talks, [lambda text: ""] * 3)
    backbone = HFBackbone.load(folder, device="cpu")
    for talk, answer in zip(talks, found, strict=True):
        ids = backbone.tokenizer.encode(f"<user>{talk[0]['content']}\n>")
        (alone,) = greedy_prompts(backbone, [ids], stop=[0], limit=6)
        assert answer.text == backbone.tokenizer.decode(list(alone.ids))
    # A second process loads nothing.
    again = LocalChat(chat.local, tmp_path, device="cpu")
    assert again.ask_all(talks, [lambda text: ""] * 3) == found and "_backbone" not in vars(again)


def test_the_cache_of_a_local_model_follows_its_content(folder: Path, tmp_path: Path):
    talk = [{"role": "user", "content": "Hi"}]
    other = tmp_path / "copy"
    shutil.copytree(folder, other)
    first = LocalChat(LocalModel(model=str(folder)), tmp_path)._request(talk)
    assert LocalChat(LocalModel(model=str(other)), tmp_path)._request(talk) == first
    (other / "config.json").write_text((other / "config.json").read_text() + "\n")
    assert LocalChat(LocalModel(model=str(other)), tmp_path)._request(talk) != first
    assert LocalChat(LocalModel(model=str(folder), precision="bf16"), tmp_path)._request(talk) != first


def test_nonsense_of_a_local_model_is_asked_again_and_said(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    spec = ParaphraseSpec(source=FromModel(local=LocalModel(model=str(folder), max_tokens=5)), modes=("question",))
    items = [QA(id="short", question="?", answers=("!",)), QA(id="long", question="x" * 700, answers=("!",))]
    stops: list[int] = []
    found = paraphrase(items, spec, cache=tmp_path, device="cpu", between=lambda: stops.append(1))
    assert found.texts == {"short": {"question": ()}, "long": {"question": ()}}
    short, long = (lack.why for lack in found.lacks)
    assert short == "no usable answer in 2 tries: it is not one JSON list and nothing else, and cut off at 5 tokens"
    assert long.startswith("the prompt of ") and long.endswith("leaves no room: the model knows 640 positions")
    assert len(stops) == 2
    (kept,) = tmp_path.iterdir()
    assert len(json.loads(kept.read_text())["attempts"]) == 2
    # The second try was told what was wrong with the first.
    asked: list[Any] = []
    monkeypatch.setattr(localchat, "next_try", lambda *given: asked.append(given) or localchat_next_try(*given))
    shutil.rmtree(tmp_path)
    paraphrase(items[:1], spec, cache=tmp_path, device="cpu")
    assert [why[:30] for _, _, why in asked] == ["", "it is not one JSON list and no"]


localchat_next_try = localchat.next_try


def test_a_local_model_that_answers_well(folder: Path, tmp_path: Path):
    """What is kept of it is read with the same parser as an endpoint's."""
    local = LocalModel(model=str(folder))
    told: list[tuple[Mode, str]] = [("question", '["Emma?", "Who?"]'), ("answer", '```json\n["A.", "J."]\n```')]
    for mode, text in told:
        request = LocalChat(local, tmp_path)._request(prompt(ITEMS[0], mode, 2))
        Attempts(tmp_path).write(request, [localchat.Attempt(text=text)])
    found = paraphrase(ITEMS[:1], ParaphraseSpec(source=FromModel(local=local), n=2), cache=tmp_path, device="cpu")
    assert found.texts == {"q1": {"question": ("Emma?", "Who?"), "answer": ("A.", "J.")}} and not found.lacks


def test_a_local_model_without_tokenizer(folder: Path, tmp_path: Path):
    HFBackbone.from_shape(Shape(vocabulary=9, width=8, layers=1, heads=1, max_positions=8)).save(tmp_path / "bare")
    chat = LocalChat(LocalModel(model=str(tmp_path / "bare")), tmp_path / "cache", device="cpu")
    with pytest.raises(StepwellError, match="the model has no tokenizer") as caught:
        chat.ask_all([[{"role": "user", "content": "Hi"}]], [lambda text: ""])
    assert caught.value.way_out == "name a model with its tokenizer"


def test_the_spec_reads_each_kind():
    for source in (
        {"kind": "file", "path": "p.jsonl"},
        {"kind": "endpoint", "endpoint": {"base_url": "http://x/v1", "model": "m"}},
        {"kind": "model", "local": {"model": "smollm2-135m"}},
    ):
        spec = ParaphraseSpec.model_validate({"source": source})
        assert spec.source.kind == source["kind"] and spec.n == 4
