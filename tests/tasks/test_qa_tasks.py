"""Loaders and scorers of the question sets, and what they say about bad input."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stepwell.errors import StepwellError
from stepwell.tasks import arc, arithmetic, openqa, squad, sudoku, text
from stepwell.tasks.base import QA, Score, check_ids, sample
from stepwell.tasks.sources import hub_id, read_entries

LOADERS: dict[str, Callable[[Any], list[QA]]] = {
    "squad": squad.load_squad,
    "openqa": openqa.load_openqa,
    "sudoku": sudoku.load_sudoku,
    "arc": arc.load_arc,
    "text": text.load_text,
}
NAMES = sorted(LOADERS)
SQUAD_ROW = {"id": "1", "question": " Who? ", "context": "Rollo led.", "answers": {"text": ["Rollo", "Rollo"]}}


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


# What is the same for all: bad files.


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_file_is_named(name: str, tmp_path: Path):
    with pytest.raises(StepwellError, match=r"missing\.json: there is no such file\n  Way out: name a readable file"):
        LOADERS[name](tmp_path / "missing.json")


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_file_is_told(name: str, tmp_path: Path):
    with pytest.raises(StepwellError, match=r"the file is empty\n  Way out: expected "):
        LOADERS[name](write(tmp_path / "empty.json", " \n"))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_json_is_told_with_its_place(name: str, tmp_path: Path):
    with pytest.raises(StepwellError, match=r"not JSON: line 2, column 1: "):
        LOADERS[name](write(tmp_path / "broken.json", '{"id": 1,\n!}'))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("content", [[{"other": 1}], {"other": 1}, [1, 2], 3])
def test_another_format_is_told(name: str, content: Any, tmp_path: Path):
    with pytest.raises(StepwellError, match=r"another format") as caught:
        LOADERS[name](write(tmp_path / "other.json", content))
    assert "expected" in caught.value.way_out


@pytest.mark.parametrize("name", ["squad", "openqa", "sudoku", "text"])
def test_an_empty_list_is_told(name: str, tmp_path: Path):
    with pytest.raises(StepwellError, match=r"holds no (items|questions)"):
        LOADERS[name](write(tmp_path / "none.json", []))


def test_a_folder_and_other_bytes_cannot_be_read(tmp_path: Path):
    with pytest.raises(StepwellError, match="cannot be read: "):
        squad.load_squad(tmp_path)
    (tmp_path / "latin.json").write_bytes(b'["\xe9"]')
    with pytest.raises(StepwellError, match="cannot be read: 'utf-8' codec"):
        squad.load_squad(tmp_path / "latin.json")


def test_a_broken_line_is_numbered(tmp_path: Path):
    path = write(tmp_path / "lines.jsonl", '{"a": 1}\n\n{"a": }\n')
    with pytest.raises(StepwellError, match="not JSON: line 3, column 7"):
        read_entries(path, "objects")


def test_lines_end_at_line_feeds_alone(tmp_path: Path):
    path = tmp_path / "lines.jsonl"
    path.write_bytes('{"text": "a\u2028b"}\r\n{"text": "c"}\r\n'.encode())
    assert [item.answers for item in text.load_text(path)] == [("a\u2028b",), ("c",)]


# The hub.


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("rajpurkar/squad_v2", ("rajpurkar/squad_v2", None)),
        ("mandarjoshi/trivia_qa:rc.nocontext", ("mandarjoshi/trivia_qa", "rc.nocontext")),
        ("data/dev.json", None),
        ("dev.json", None),
        ("../data/dev", None),
        (Path("rajpurkar/squad"), None),
    ],
)
def test_what_names_a_hub_set(source: str | Path, found: Any):
    assert hub_id(source) == found


def test_a_path_that_exists_is_no_hub_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "owner").mkdir()
    write(tmp_path / "owner" / "name", [SQUAD_ROW])
    monkeypatch.chdir(tmp_path)
    assert hub_id("owner/name") is None
    assert len(squad.load_squad("owner/name")) == 1


def test_without_datasets_a_hub_set_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(StepwellError, match=r"rajpurkar/squad: .* needs the package datasets") as caught:
        squad.load_squad("rajpurkar/squad")
    assert caught.value.way_out == "pip install 'stepwell[data]', or name a file"


def hub(monkeypatch: pytest.MonkeyPatch, load: Callable[..., Any]) -> None:
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load))


def test_offline_the_cause_is_told(monkeypatch: pytest.MonkeyPatch):
    def load(name: str, config: str | None, split: str) -> Any:
        raise ConnectionError("Couldn't reach the hub\nand more")

    hub(monkeypatch, load)
    with pytest.raises(StepwellError, match=r"'validation' .* from the hub: ConnectionError: Couldn't reach the hub\n"):
        squad.load_squad("rajpurkar/squad")


@pytest.mark.parametrize(
    ("name", "source", "row", "expected"),
    [
        ("squad", "rajpurkar/squad", SQUAD_ROW, QA(id="1", question="Who?", answers=("Rollo",), context="Rollo led.")),
        (
            "openqa",
            "google-research-datasets/nq_open",
            {"question": "who", "answer": ["one", "1"]},
            QA(id="nq_open-00000", question="who", answers=("one", "1")),
        ),
        (
            "openqa",
            "mandarjoshi/trivia_qa:rc.nocontext",
            {"question": "Who?", "question_id": "tc_2", "answer": {"aliases": ["S. L.", "Lewis"], "value": "Lewis"}},
            QA(id="tc_2", question="Who?", answers=("Lewis", "S. L.")),
        ),
        ("text", "owner/books", {"text": "Once."}, QA(id="books-00000", question="", answers=("Once.",))),
    ],
)
def test_rows_of_the_hub(name: str, source: str, row: dict, expected: QA, monkeypatch: pytest.MonkeyPatch):
    asked = []
    hub(monkeypatch, lambda name, config, split: asked.append((name, config, split)) or [row])
    assert LOADERS[name](source) == [expected]
    assert (asked[0][0], asked[0][1]) == (source.split(":")[0], "rc.nocontext" if ":" in source else None)


# SQuAD.


def official(*qas: dict) -> dict:
    return {"version": "v2.0", "data": [{"title": "T", "paragraphs": [{"context": "Rollo led.", "qas": list(qas)}]}]}


def test_squad_keeps_all_golds_and_leaves_out_what_has_none(tmp_path: Path):
    answered = {
        "id": "a",
        "question": "Who? ",
        "answers": [{"text": "Rollo"}, {"text": "the Rollo"}, {"text": "Rollo"}],
    }
    empty = {"id": "b", "question": "When?", "answers": [], "is_impossible": True, "plausible_answers": [{"text": "X"}]}
    path = write(tmp_path / "squad.json", official(answered, empty))
    first = QA(id="a", question="Who?", answers=("Rollo", "the Rollo"), context="Rollo led.")
    assert squad.load_squad(path) == [first]
    assert first.targets() == {"question": "Who?", "answer": "Rollo"}
    both = squad.load_squad(path, unanswerable=True)
    assert both == [first, QA(id="b", question="When?", answers=(), context="Rollo led.")]
    assert both[1].targets() == {"question": "When?"}
    assert both[1].answer is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (official({"id": "a", "question": "Who?", "answers": []}), "none of the 1 questions has an answer"),
        (official({"id": "a", "answers": []}), "another format: the field 'question' is missing"),
        (official({"id": "a", "question": " ", "answers": []}), "another format: ' ' where a text is expected"),
        (official({"id": "a", "question": "Who?", "answers": [{"text": 5}]}), "question 'a' has an answer that is no"),
        (official({"id": "a", "question": "Who?", "answers": "Rollo"}), "another format: "),
        (official(*[{"id": "a", "question": "Who?", "answers": [{"text": "R"}]}] * 2), "1 ids are given to several"),
        ({"data": []}, "the file holds no questions"),
    ],
)
def test_what_squad_refuses(content: dict, message: str, tmp_path: Path):
    with pytest.raises(StepwellError, match=message):
        squad.load_squad(write(tmp_path / "squad.json", content))


def test_real_squad(shared_data):
    path = shared_data("squad/dev-a.json")
    answerable, every = squad.load_squad(path), squad.load_squad(path, unanswerable=True)
    assert (len(answerable), len(every)) == (1278, 2805)
    assert all(squad.score(item, item.answers[-1]).exact for item in answerable[::5])
    assert all(gold in (item.context or "") for item in answerable for gold in item.answers)
    # Real paragraphs as plain texts.
    assert len(text.as_texts(text.contexts(every), "squad")) == 294


# Open questions.


def test_real_open_questions(shared_data):
    nq = openqa.load_openqa(shared_data("openqa/NQ-open.dev.jsonl"))
    trivia = openqa.load_openqa(shared_data("openqa/triviaqa_subsample.jsonl"))
    assert (len(nq), len(trivia)) == (3610, 1000)
    assert nq[0].answers == ("14 December 1972 UTC", "December 1972")
    assert trivia[0].id == "test_6233"
    assert all(openqa.score_nq(item, item.answers[-1]).exact for item in nq[::10])
    assert all(openqa.score_triviaqa(item, item.answers[0]) == Score(exact=True, partial=1.0) for item in trivia[::10])


def test_an_official_triviaqa_file(tmp_path: Path):
    entry = {"QuestionId": "tc_1", "Question": "Who?", "Answer": {"Value": "Lewis", "Aliases": ["S. Lewis", "Lewis"]}}
    path = write(tmp_path / "trivia.json", {"Data": [entry], "Version": 1.0})
    assert openqa.load_openqa(path) == [QA(id="tc_1", question="Who?", answers=("Lewis", "S. Lewis"))]


@pytest.mark.parametrize("golds", [[], [" "]])
def test_an_open_question_without_an_answer_is_refused(golds: list, tmp_path: Path):
    path = write(tmp_path / "q.jsonl", {"id": "x", "question": "Who?", "answer": golds})
    with pytest.raises(StepwellError, match=r"1 of 1 questions have no answer, 'x' for one"):
        openqa.load_openqa(path)


# Arithmetic.


def test_sums_are_right_and_all_different():
    items = arithmetic.make_arithmetic(400, operations=("add", "subtract", "multiply"), digits=2, seed=3)
    assert len({item.id for item in items}) == 400
    for item in items:
        body = item.question.removesuffix("=?")
        sign = next(sign for sign in "+*-" if sign in body)
        first, second = map(int, body.split(sign))
        assert 0 <= first < 100 and 0 <= second < 100
        assert int(item.answers[0]) == {"+": first + second, "-": first - second, "*": first * second}[sign]
        assert arithmetic.score(item, item.answers[0]).exact
    assert items == arithmetic.make_arithmetic(400, operations=("add", "subtract", "multiply"), digits=2, seed=3)
    assert items != arithmetic.make_arithmetic(400, operations=("add", "subtract", "multiply"), digits=2, seed=4)


def test_all_problems_of_a_family_can_be_had():
    asked = {item.question for item in arithmetic.make_arithmetic(100, digits=1)}
    assert asked == {f"{a}+{b}=?" for a in range(10) for b in range(10)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 101}, "101 problems asked for; there are 100"),
        ({"n": 0}, "0 problems asked for"),
        ({"n": 1, "digits": 0}, "operands of 0 digits"),
        ({"n": 1, "operations": ("divide",)}, r"no such operation: \['divide'\]"),
        ({"n": 1, "operations": ()}, "no such operation"),
    ],
)
def test_sums_that_cannot_be_made(options: dict, message: str):
    with pytest.raises(StepwellError, match=message):
        arithmetic.make_arithmetic(**options)


@pytest.mark.parametrize(
    ("said", "right"),
    [
        ("-35", True),
        (" -35\n", True),
        ("-035", True),
        ("35", False),
        ("-35.", False),
        ("", False),
        ("-3" * 3000, False),
    ],
)
def test_a_number_is_right_or_wrong(said: str, right: bool):
    item = QA(id="s", question="12-47=?", answers=("-35",))
    assert arithmetic.score(item, said).exact is right
    assert arithmetic.score(item, said).partial is None


def test_a_number_however_long_is_read():
    item = QA(id="s", question="0+0=?", answers=("0",))
    assert not arithmetic.score(item, "9" * 10_000).exact
    assert arithmetic.score(item, "-" + "0" * 10_000).exact


# Plain text.


def test_parts_of_a_text(tmp_path: Path):
    path = write(tmp_path / "book.txt", "One\nline.\n\n \n\nTwo.\n\nOne\nline.\n")
    items = text.load_text(path)
    assert [(item.id, item.answers[0]) for item in items] == [("book-00000", "One\nline."), ("book-00001", "Two.")]
    assert items[0].targets() == {"answer": "One\nline."}


def test_a_text_is_scored_to_its_first_fault():
    item = QA(id="t", question="", answers=("abcd",))
    assert text.score(item, "abcd") == Score(exact=True, partial=1.0)
    assert text.score(item, "abXd") == Score(exact=False, partial=0.5)
    assert text.score(item, "abcde") == Score(exact=False, partial=1.0)
    assert text.score(item, "") == Score(exact=False, partial=0.0)


def test_blank_texts_are_refused():
    with pytest.raises(StepwellError, match="1 of 2 texts are blank"):
        text.as_texts(["a", " "], "mine")


# Samples.


def test_a_larger_sample_contains_a_smaller_one_whatever_the_order():
    items = arithmetic.make_arithmetic(100)
    assert sample(items, 30, seed=1)[:10] == sample(items[::-1], 10, seed=1)
    assert sample(items, 10, seed=1) != sample(items, 10, seed=2)
    draws = [{item.id for item in sample(items, 10, seed=seed)} for seed in range(200)]
    counts = [sum(item.id in drawn for drawn in draws) for item in items]
    assert min(counts) > 2 and max(counts) < 45, "each is drawn 20 times on average"


@pytest.mark.parametrize("n", [0, 101])
def test_a_sample_is_no_larger_than_its_set(n: int):
    with pytest.raises(StepwellError, match=f"{n} items asked for, of 100"):
        sample(arithmetic.make_arithmetic(100), n)


def test_ids_are_told_apart():
    one = QA(id="a", question="Q", answers=())
    check_ids([one, QA(id="b", question="Q", answers=())], "here")
    with pytest.raises(StepwellError, match=r"here: 1 ids are given to several items, 'a' for one"):
        check_ids([one, one], "here")
