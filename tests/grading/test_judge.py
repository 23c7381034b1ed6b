"""A judge over real HTTP: both orders, flips are ties, what cannot be read is counted, and its biases are measured."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from grading_models import benchmark

from fake_endpoint import completion, own_environment, serving
from stepwell.chat import Answer
from stepwell.errors import StepwellError
from stepwell.grading.asking import ask_benchmark, asker, read_answers
from stepwell.grading.judge import Judged, Pair, judge, messages, trust, verdict
from stepwell.localchat import LocalModel

__all__ = ["own_environment"]


def pairs(n: int) -> list[Pair]:
    draw = random.Random(0)
    texts = [("good " * draw.randint(1, 9)).strip() for _ in range(n)]
    return [
        Pair(id=f"j{i}", prompt=f"Request {i}", ours=text, theirs="bad" if i % 2 else "bad " * 12)
        for i, text in enumerate(texts)
    ]


def shown(request: Any) -> tuple[str, str]:
    """The answers A and B of a request."""
    text = request["messages"][-1]["content"] if isinstance(request, dict) else request[-1]["content"]
    found = re.search(r"<answer_A>\n(.*)\n</answer_A>\n\n<answer_B>\n(.*)\n</answer_B>", text, re.DOTALL)
    assert found is not None
    return found[1], found[2]


def fair(request: Any) -> str:
    return "One is good. [[A]]" if "good" in shown(request)[0] else "One is good. [[B]]"


def longer(request: Any) -> str:
    one, two = shown(request)
    return "[[A]]" if len(one) > len(two) else "[[B]]"


def stand_in(rule: Any) -> Any:
    """An asker that asks once, and checks as the real ones do."""

    def ask(conversations: Any, checks: Any) -> list[Answer]:
        texts = [rule(conversation) for conversation in conversations]
        return [
            Answer(text=None, why=check(text)) if check(text) else Answer(text=text)
            for text, check in zip(texts, checks, strict=True)
        ]

    return ask


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("[[A]]", "first"), ("Not [[A]], so [[B]]", "second"), ("Both. [[C]]", "tie"), ("A", None), ("[[D]]", None),
        ("<think>[[A]]</think>[[B]]", "second"), ("", None),
    ],
)  # fmt: skip
def test_verdicts_are_read(text: str, choice: str | None):
    assert verdict(text) == choice


def test_a_fair_judge_over_http_is_asked_once(tmp_path: Path):
    given = pairs(6)
    with serving(fair) as server:
        ask = asker(server.endpoint(), tmp_path)
        found = judge(given, ask)
        assert len(server.asked) == 12
        assert judge(given, ask) == found and len(server.asked) == 12
        assert server.asked[0]["messages"] == messages("Request 0", given[0].ours, given[0].theirs)
        assert server.asked[6]["messages"] == messages("Request 0", given[0].theirs, given[0].ours)
    assert [one.outcome for one in found] == ["win"] * 6
    says = trust(found, truth={"j0": "win", "j1": "loss", "j2": "tie"})
    assert says.flips.value == 0 and says.took_first.value == 0.5 and says.unparsed == 0
    assert says.as_truth is not None and (says.as_truth.value, says.as_truth.n) == (0.5, 2)
    assert found[0].match().by == "judge" and found[0].match().why == "One is good. [[A]]"


def test_a_judge_of_places_calls_ties():
    found = judge(pairs(10), stand_in(lambda _: "[[A]]"))
    assert {one.outcome for one in found} == {"tie"} and all(one.flipped for one in found)
    says = trust(found)
    assert says.flips.value == 1.0 and says.took_first.value == 1.0 and says.took_longer.value is None
    assert says.outcomes == {"win": 0, "tie": 10, "loss": 0, "undecided": 0} and says.as_truth is None
    assert found[0].match().why == "the verdict changes with the order"


def test_a_judge_of_lengths_is_seen_through():
    """As in the original, where the judge took the longer of two right answers 43 times of 50."""
    found = judge(pairs(50), stand_in(longer))
    says = trust(found)
    assert says.took_longer.value == 1.0 and says.took_longer.low is not None and says.took_longer.low > 0.9
    assert says.outcomes == says.by_length
    honest = trust(judge(pairs(50), stand_in(fair)))
    assert honest.took_longer.value is not None and honest.took_longer.value < 0.8
    assert honest.outcomes["win"] == 50 and honest.by_length["win"] < 50


def test_what_cannot_be_read_is_counted(tmp_path: Path):
    def mumbles(request: Any) -> str:
        return "Hard to say." if "Request 1\n" in request["messages"][1]["content"] else fair(request)

    with serving(mumbles) as server:
        found = judge(pairs(4), asker(server.endpoint(retries=1), tmp_path))
        assert len(server.asked) == 8 + 2  # once again for each of the two
        assert "it does not end with [[A]], [[B]] or [[C]]" in server.asked[2]["messages"][-1]["content"]
    says = trust(found)
    assert says.pairs == 4 and says.unparsed == 1 and says.outcomes == {"win": 3, "tie": 0, "loss": 0, "undecided": 1}
    match = found[1].match()
    assert (match.outcome, match.by) == ("undecided", "none") and "no usable answer in 2 tries" in match.why


def test_half_a_tie_is_a_flip():
    pair = pairs(1)[0]
    for first, second, outcome in (
        ("first", "second", "win"), ("second", "first", "loss"), ("tie", "tie", "tie"), ("first", "tie", "tie"),
        ("first", "first", "tie"), ("first", None, "undecided"),
    ):  # fmt: skip
        one = Judged(pair=pair, ours_first=first, theirs_first=second, why="")  # pyright: ignore[reportArgumentType]
        assert one.outcome == outcome


def test_pairs_need_their_own_ids():
    with pytest.raises(StepwellError, match="two pairs have one id"):
        judge([*pairs(1), *pairs(1)], stand_in(fair))


def test_reference_answers_from_an_endpoint(tmp_path: Path):
    asked = benchmark(2)
    with serving(lambda r: "<think>1</think>It is 1." if "has 1 of" in r["messages"][0]["content"] else "") as server:
        found = ask_benchmark(asked, asker(server.endpoint(retries=0), tmp_path))
    assert found.texts == {"p000": "", "p001": "It is 1."} and found.stops == {"p000": "end", "p001": "end"}
    assert list(found.why) == ["p000"] and "it is empty" in found.why["p000"]


def test_how_an_answer_ended_is_known_where_the_endpoint_says_it(tmp_path: Path):
    """Cut off, cut off before its first word, and no word about it; from the cache it is the same."""
    said = (completion("1 2 3", finish="length"), completion(None, finish="length"), completion("1", finish=None))
    with serving(*said) as server:
        ask = asker(server.endpoint(retries=0), tmp_path)
        for _ in range(2):
            found = ask_benchmark(benchmark(3), ask)
            assert found.stops == {"p000": "length", "p001": "length"} and list(found.why) == ["p001"]
            assert found.ends is not None and found.ends.counts == {"length": 2}
            assert found.ends.red_flag.startswith("2 of 2 answers (100%) were cut off by a limit: raise max_tokens")
            assert (found.ends.empty, found.ends.looping, found.ends.longest) == (1, None, None)
        assert len(server.asked) == 3


def test_recorded_answers(tmp_path: Path):
    path = tmp_path / "recorded.jsonl"

    def write(*rows: Any) -> None:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    write({"id": "p001", "answer": "1"}, {"id": "x", "answer": "of another"}, {"id": "p000", "answer": ""})
    found = read_answers(path, benchmark(2))
    assert (found.texts, found.stops, found.why) == ({"p000": "", "p001": "1"}, {}, {}) and found.ends is None
    write(
        {"id": "p001", "answer": "1", "cut": True},
        {"id": "p000", "answer": ""},
        {"id": "x", "answer": "", "cut": 1 > 2},
    )
    assert read_answers(path, benchmark(2)).stops == {"p001": "length"}
    for rows, cause in (
        ([{"id": "p000", "answer": "0"}], "1 of 2 items of gsm8k are not answered, 'p001' for one"),
        ([{"id": "p000", "answer": "0"}] * 2, "entry 2: 'p000' was answered before"),
        ([{"id": "p000", "text": "0"}], "entry 1 has no id or no answer"),
        ([{"id": "p000", "answer": "0", "cut": "length"}], "entry 1: `cut` is neither true nor false"),
    ):
        write(*rows)
        with pytest.raises(StepwellError) as caught:
            read_answers(path, benchmark(2))
        assert caught.value.cause == cause and caught.value.path == path


@pytest.mark.slow
def test_a_real_model_judges_and_is_graded(tmp_path: Path, shared_data: Any):
    """SmolLM2-135M: what it answers to GSM8K is graded, and as a judge it is found out."""
    from stepwell.backbone import HFBackbone
    from stepwell.grading.benchmarks import grade, gsm8k
    from stepwell.grading.decoding import OwnWriter, answer
    from stepwell.grading.protocol import Decoding
    from stepwell.grading.stops import Stops
    from stepwell.models import pull
    from stepwell.sft.render import ChatFormat
    from stepwell.tasks.gsm8k import load_gsm8k

    try:
        folder = pull("smollm2-135m")
    except StepwellError as error:
        pytest.skip(f"SmolLM2-135M cannot be pulled: {error.cause}")
    backbone = HFBackbone.load(folder, device="cpu")
    form, decoding = ChatFormat.of(backbone.tokenizer), Decoding(max_tokens=24)
    asked = gsm8k(load_gsm8k(shared_data("gsm8k/train.jsonl"))[:2], split="train")
    found = answer(asked, form, decoding, OwnWriter(backbone=backbone, form=form, batch_size=2))
    one = OwnWriter(backbone=backbone, form=form, batch_size=1)
    assert answer(asked, form, decoding, one).texts == found.texts
    result = grade(asked, found.texts, model="smollm2", protocol=asked.protocol(form.fingerprint(), decoding),
                   stops=found.stops)  # fmt: skip
    assert result.statuses["right"] + result.statuses["wrong"] == 2
    assert sum(Stops.of(list(found.written.values())).counts.values()) == 2
    ask = asker(LocalModel(model=str(folder), max_tokens=16, retries=0), tmp_path, device="cpu")
    judged = judge([Pair(id=q.id, prompt=q.bare, ours=found.texts[q.id][0], theirs=q.reference)
                    for q in asked.questions], ask)  # fmt: skip
    says = trust(judged)
    assert says.pairs == 2 and sum(says.outcomes.values()) == 2
