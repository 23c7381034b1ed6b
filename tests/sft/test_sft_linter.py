"""The linter: silent on clean data, and every planted fault found with its count, its items and an example."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from byte_chat import TEMPLATE, ByteChat

from stepwell.cli import run
from stepwell.objectives import IGNORE
from stepwell.sft.conversations import Conversation
from stepwell.sft.linter import CODES, Finding, lint
from stepwell.sft.packing import PADDING, Batch, Corpus, first_fit_decreasing
from stepwell.sft.render import ChatFormat

FORM = ChatFormat.of(ByteChat())
LIMIT = 120
END = 259


def talk(name: str, *texts: str) -> Conversation:
    roles = ("user", "assistant")
    return Conversation(id=name, messages=tuple({"role": roles[i % 2], "content": t} for i, t in enumerate(texts)))


CLEAN = [talk(f"c{i}", f"what is {i} + {'1' * (i + 1)}?", f"it is {i + 1}", "sure?", f"yes, {i}") for i in range(8)]


def batches(form: ChatFormat = FORM) -> list[Batch]:
    corpus = Corpus.of(CLEAN, form, LIMIT)
    rows = first_fit_decreasing(corpus.lengths, LIMIT)
    return [corpus.batch(rows[:3]), corpus.batch(rows[3:])]


def found(conversations=CLEAN, **options) -> dict[str, Finding]:
    options = {"form": FORM, "max_tokens": LIMIT} | options
    return {finding.code: finding for finding in lint(conversations, **options)}


def test_clean_data_is_clean():
    assert found() == {}
    assert found(batches=batches()) == {}
    assert (
        found(evaluation={"e": "another question of this very kind"}, evaluation_form=ChatFormat.of(ByteChat())) == {}
    )


def relabelled(change) -> list[Batch]:
    return [replace(batch, labels=change(batch)) for batch in batches()]


def only(code: str, conversations=CLEAN, **options) -> Finding:
    made = found(conversations, **options)
    assert list(made) == [code]
    assert made[code].of == len(conversations) and made[code].example.startswith(f"{made[code].items[0]}: ")
    assert code in CODES
    return made[code]


def test_ends_that_are_masked_as_if_they_were_padding():
    faulty = relabelled(lambda batch: batch.labels.masked_fill(batch.ids == END, IGNORE))
    finding = only("end-not-supervised", batches=faulty)
    assert finding.count == len(CLEAN)
    assert "<|end|>" in finding.example


def test_one_end_that_is_masked():
    def change(batch: Batch):
        labels = batch.labels.clone()
        (place,) = ((batch.examples == 5) & (batch.ids == END)).nonzero()[-1:].tolist() or ([],)
        if place:
            labels[*place] = IGNORE
        return labels

    assert only("end-not-supervised", batches=relabelled(change)).items == ("c5",)


def test_prompts_that_are_trained():
    faulty = relabelled(lambda batch: torch.where(batch.examples == PADDING, IGNORE, batch.ids))
    finding = only("prompt-trained", batches=faulty)
    assert finding.count == len(CLEAN)
    assert "what is" in finding.example


def test_one_prompt_token_of_a_later_turn_that_is_trained():
    def change(batch: Batch):
        labels = batch.labels.clone()
        for row, column in ((batch.examples == 2) & (batch.ids == 257)).nonzero()[1:].tolist():
            labels[row, column] = 257
        return labels

    assert only("prompt-trained", batches=relabelled(change)).items == ("c2",)


def test_padding_in_the_loss():
    faulty = relabelled(lambda batch: torch.where(batch.examples == PADDING, END, batch.labels))
    finding = only("pads-in-loss", batches=faulty)
    assert "padded columns after it are learnt" in finding.example


def test_bos_twice():
    twice = ChatFormat.of(ByteChat("{{ bos_token }}" + TEMPLATE))
    finding = only("bos-twice", form=twice)
    assert finding.count == len(CLEAN) and "<s><s>" in finding.example


def test_a_response_that_is_cut():
    finding = only("response-truncated", [*CLEAN, talk("long", "say b", "b" * 200)])
    assert finding.items == ("long",) and "more than 120 tokens" in finding.example


def test_duplicates():
    finding = only("duplicate", [*CLEAN, talk("again", *[t["content"].upper() + "!" for t in CLEAN[3].messages])])
    assert finding.items == ("again",) and "same as c3" in finding.example


def test_an_evaluation_item_in_the_training_set():
    question = "How many apples does Ann have when she buys four and gives away the two that she had before?"
    whole = talk("whole", "how many APPLES", "9")
    part = talk("part", "Think: " + question[:80].lower() + "...", "4")
    evaluation = {"gsm/1": question, "gsm/2": "How many apples?"}
    finding = only("evaluation-overlap", [*CLEAN, whole, part], evaluation=evaluation)
    assert finding.items == ("whole", "part") and finding.example.startswith("whole: gsm/2 in")


def test_templates_that_differ():
    asking = ChatFormat.of(ByteChat(TEMPLATE.replace("<|end|>\n", "<|end|>\n\n")))
    finding = only("template-differs", evaluation_form=asking)
    assert finding.count == len(CLEAN) and "asked with" in finding.example
    same = ChatFormat.of(ByteChat("{# a remark #}" + TEMPLATE))
    assert same.fingerprint() != FORM.fingerprint() and found(evaluation_form=same) == {}


def test_a_special_token_in_a_text():
    finding = only("special-in-text", [*CLEAN, talk("bad", "what ends a turn?<pad>", "nothing")])
    assert finding.items == ("bad",) and "<pad> in" in finding.example


def test_a_conversation_that_cannot_be_rendered():
    refusing = "{% if messages[0]['content'] == 'no' %}{{ raise_exception('never') }}{% endif %}" + TEMPLATE
    finding = only("cannot-render", [*CLEAN, talk("bad", "no", "yes")], form=ChatFormat.of(ByteChat(refusing)))
    assert finding.items == ("bad",) and "refuses the conversation: never" in finding.example


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.setattr("stepwell.backbone.load_tokenizer", lambda name: ByteChat())

    def write(name: str, conversations) -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps({"id": c.id, "messages": c.messages}) + "\n" for c in conversations))
        return str(path)

    return write


def test_the_command_on_clean_data(files, capsys):
    assert run(["audit", "sft", files("a.jsonl", CLEAN), "--model", "m"]) == 0
    assert "8 conversations, clean" in capsys.readouterr().out


def test_the_command_on_faulty_data(files, capsys):
    file = files("a.jsonl", [*CLEAN, talk("again", *[each["content"] for each in CLEAN[0].messages])])
    held = files("held.jsonl", [talk("h1", "what is 4 + 11111?", "5")])
    arguments = ["audit", "sft", file, "--model", "m", "--eval", held, "--max-tokens", "500"]
    assert run([*arguments, "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["n"] == 9 and not told["ok"] and told["file"] == file
    counts = {finding["code"]: (finding["count"], finding["items"]) for finding in told["findings"]}
    assert counts == {"duplicate": (1, ["again"]), "evaluation-overlap": (1, ["c4"])}
    assert run(arguments) == 1
    output = capsys.readouterr().out
    assert "2 kinds of fault" in output and "c4: held/h1 in 'what is 4 + 11111?'" in output


def test_the_command_names_what_it_cannot_read(files, tmp_path, capsys):
    file, held = files("a.jsonl", CLEAN), tmp_path / "held.jsonl"
    held.write_text('{"a": 1}\n')
    assert run(["audit", "sft", file, "--model", "m", "--eval", str(held)]) == 3
    assert "held.jsonl: entry 0 has no question" in capsys.readouterr().err
