"""A protocol's fingerprint tells what matters, and results of different ones are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from grading_models import TEMPLATE, benchmark, items, result
from pydantic import ValidationError

from stepwell.errors import StepwellError
from stepwell.grading.benchmarks import grade, gsm8k, open_ended, squad
from stepwell.grading.protocol import Decoding, Protocol, comparable
from stepwell.grading.records import Record, read_result, unmarked_warning, write_result
from stepwell.tasks.base import QA

PROTOCOL = benchmark(5).protocol(TEMPLATE, Decoding())


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"template": "template-2"}, "template: template-1 and template-2"),
        ({"decoding": Decoding(max_tokens=64)}, "decoding: max_tokens 512 and 64"),
        ({"decoding": Decoding(temperature=0.7, seed=1)}, "decoding: temperature 0.0 and 0.7, seed 0 and 1"),
        ({"decoding": Decoding(precision="bf16")}, "decoding: precision 'fp32' and 'bf16'"),
        ({"scorer": "final-number/2"}, "scorer: final-number/1 and final-number/2"),
        ({"items": "f" * 64}, f"items: {PROTOCOL.items[:16]} and ffffffffffffffff"),
    ],
)
def test_another_protocol_is_refused(other: dict[str, Any], told: str):
    second = replace(PROTOCOL, **other)
    assert second.fingerprint() != PROTOCOL.fingerprint()
    with pytest.raises(StepwellError) as caught:
        comparable(PROTOCOL, second)
    assert caught.value.cause == f"the two results are of different protocols ({told})"
    assert caught.value.way_out == (
        "grade both again under one protocol: the same template, decoding, scorer and items"
    )


def test_the_same_protocol_is_compared():
    comparable(PROTOCOL, Protocol.of_literals(json.loads(json.dumps(PROTOCOL.literals()))))
    comparable(PROTOCOL, replace(PROTOCOL, template="another"), parts=("scorer", "items"))


def test_all_of_an_item_is_in_the_fingerprint():
    same = gsm8k(items(5)[::-1], split="test", name="other")
    assert same.protocol(TEMPLATE, Decoding()).items == PROTOCOL.items
    for other in (
        gsm8k(items(4), split="train"),
        gsm8k(items(5), split="train", ask="\n\nThink."),
        gsm8k([*items(4), replace(items(5)[4], solution="#### 5")], split="train"),
        gsm8k([*items(4), replace(items(5)[4], id="x")], split="train"),
        gsm8k([*items(4), replace(items(5)[4], question="?")], split="train"),
    ):
        assert other.protocol(TEMPLATE, Decoding()).items != PROTOCOL.items


@pytest.mark.parametrize(
    ("options", "said"),
    [({"samples": 2}, "several samples need a temperature above 0"), ({"stop": ("",)}, "an empty stop text")],
)
def test_decoding_that_means_nothing(options: dict[str, Any], said: str):
    with pytest.raises(ValidationError, match=said):
        Decoding(**options)


def test_a_result_comes_back_from_its_file(tmp_path: Path):
    one = result([True, False, True])
    write_result(tmp_path / "r.jsonl", one)
    assert read_result(tmp_path / "r.jsonl") == one
    assert one.statuses["right"] == 2 and one.statuses["wrong"] == 1 and one.statuses["timeout"] == 0
    assert one.records[1].why == "last: 2, not 1"
    share = one.accuracy()
    assert share.value == pytest.approx(2 / 3) and share.n == 3 and share.low is not None and share.low < 0.3


def test_a_changed_result_is_found(tmp_path: Path):
    path = tmp_path / "r.jsonl"
    write_result(path, result([True] * 3))
    text = path.read_text()
    for changed, cause in (
        (text.replace('"max_tokens": 512', '"max_tokens": 64'), "the protocol of this result is not the one of its"),
        ("".join(text.splitlines(keepends=True)[:-1]), "the result has 2 of its 3 records"),
        (text[:-20], "this is no graded result: "),
        ("{}", "this is no graded result: 'protocol'"),
        ("", "this is no graded result: "),
    ):
        path.write_text(changed)
        with pytest.raises(StepwellError) as caught:
            read_result(path)
        assert caught.value.cause.startswith(cause) and caught.value.path == path
    with pytest.raises(StepwellError, match="there is no such file"):
        read_result(tmp_path / "none")


def test_answers_and_items_must_fit():
    asked = benchmark(3)
    protocol, answers = asked.protocol(TEMPLATE, Decoding()), {f"p{i:03d}": "1" for i in range(3)}
    for given, cause in (
        ({"p000": "0"}, "2 of 3 items of gsm8k have no answer, 'p001' for one"),
        ({**answers, "x": "0"}, "1 answers are to no item of gsm8k, 'x' for one"),
    ):
        with pytest.raises(StepwellError) as caught:
            grade(asked, given, model="m", protocol=protocol)
        assert caught.value.cause == cause
    with pytest.raises(StepwellError, match="the protocol is not of the items and the scorer of gsm8k"):
        grade(asked, answers, model="m", protocol=benchmark(4).protocol(TEMPLATE, Decoding()))


def test_other_benchmarks():
    item = QA(id="a", question="Who?", answers=("Anna",), context="Anna came.")
    read = squad([item], split="train")
    assert read.questions[0].prompt.startswith("Anna came.\n\nWho?\n\nAnswer in") and read.bare == {"a": "Who?"}
    found = grade(read, {"a": "the Anna."}, model="m", protocol=read.protocol(TEMPLATE, Decoding()))
    assert found.records[0].right is True and found.records[0].partial == 1.0
    talk = open_ended("talk", {"a": "Hello?"}, split="test")
    found = grade(talk, {"a": "Hello."}, model="m", protocol=talk.protocol(TEMPLATE, Decoding()))
    assert found.records[0].right is None and found.accuracy().value is None and unmarked_warning(found) == ""


def test_what_could_not_be_marked_is_said():
    one = result([True] * 10)
    late = Record(id="p003", sample=0, text="", status="timeout")
    found = replace(one, records=(*one.records[:3], late, *one.records[4:]))
    assert unmarked_warning(one) == ""
    assert unmarked_warning(found) == ("1 of 10 answers could not be marked (timeout 1): the shares are of the others")
    assert found.accuracy().n == 9 and found.accuracy().value == 1.0
