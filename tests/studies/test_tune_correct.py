"""Failures of `tune` answered anew, by the model itself, a teacher or a file: trained on only where they are right."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tiny import records
from tiny_wire import wire_model
from tune_answers import asked_at, plan_of, recorded, stage, write_lines

from fake_endpoint import completion, error, own_environment, serving
from stepwell.errors import StageFailed
from stepwell.grading.decoding import Written
from stepwell.grading.mining import read_failures
from stepwell.grading.protocol import Decoding
from stepwell.runner import run
from stepwell.sft.render import ChatFormat
from stepwell.stage import StageContext
from stepwell.studies.tune import correcting
from stepwell.studies.tune.correcting import CRITIQUE
from stepwell.studies.tune.data import draw
from stepwell.studies.tune.grading import opened
from stepwell.studies.tune.params import AnsweringParams, TuneDataParams, WordProblems

__all__ = ["own_environment"]

ASK = "\nEnd with ####."
PARAMS = TuneDataParams(
    source=WordProblems(categories=("add",)), benchmarks={"problems": WordProblems(categories=("add",))},
    n_train=10, n_held=2, n_test=2, ask=ASK,
)  # fmt: skip
SOLVED = {item.question: item for item in draw(PARAMS).problems.values()}
TRAINING = {"steps": 2, "epochs": None, "batch_size": 1, "accumulation": 1, "max_tokens": 400, "warmup_steps": 0}


def whole(question: str) -> str:
    """A right answer in words that the written solution does not have."""
    return f"Slowly now. #### {SOLVED[question].answer}"


def is_even(question: str) -> bool:
    return int(str(SOLVED[question].answer)) % 2 == 0


def anew(question: str) -> str:
    """Right where the answer is even."""
    return whole(question) if is_even(question) else "I still do not know."


@dataclass
class Scripted:
    """In the place of the model: reads the prompts as text, and answers as `anew`."""

    form: ChatFormat
    prompts: list[str] = field(default_factory=list)
    name: str = "scripted"

    def write(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], decoding: Decoding) -> list[Written]:
        texts = [self.form.decode(prompt) for prompt in prompts]
        self.prompts += texts
        asked = [next(one for one in SOLVED if one in text) for text in texts]
        return [
            Written(text=anew(one), stop="end" if is_even(one) else "length", tokens=decoding.max_tokens)
            for one in asked
        ]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any], list[str]]:
    """One run with every way of correcting; what the endpoint and the scripted model were asked."""
    here = tmp_path_factory.mktemp("correct")
    asked: list[Any] = []
    silent: list[str] = []
    writers: list[Scripted] = []

    def reply(request: Any) -> str:
        asked.append(request["messages"])
        question = request["messages"][0]["content"].removesuffix(ASK)
        if is_even(question) and not silent:
            silent.append(question)
            return " "
        return anew(question)

    def instead(params: AnsweringParams, ctx: StageContext) -> tuple[Scripted, ChatFormat]:
        _, form = opened(params, ctx)
        writers.append(Scripted(form))
        return writers[-1], form

    graded = draw(PARAMS).benchmarks["problems"][0].question
    leaks = {item.id: f"As in: {graded} {whole(item.question)}" for item in SOLVED.values()}
    file = recorded(here / "teacher.jsonl", {item.id: anew(item.question) for item in SOLVED.values()}, "a teacher")
    answering: dict[str, Any] = {"decoding": {"max_tokens": 4}, "batch_size": 8}
    with serving(reply) as server, pytest.MonkeyPatch.context() as patch:
        patch.setattr(correcting, "opened", instead)
        run(
            plan_of(
                stage("data", "data", **PARAMS.model_dump(mode="json")),
                stage("model", "model", name=str(wire_model(here / "tiny"))),
                stage("mine", "mine", ["data", "model"], **answering),
                stage("self", "correct", ["data", "model", "mine"], **answering),
                stage("file", "correct", ["data", "mine"], by=file, critique=False),
                stage("endpoint", "correct", ["data", "mine"], by=asked_at(server.port, retries=0)),
                stage("anew", "correct", ["data", "mine"], by=asked_at(server.port, retries=0), critique=False),
                stage("lint", "lint", ["data", "model", "mine", "self"], max_tokens=400, replay=0.5),
                stage(
                    "train",
                    "train",
                    ["data", "model", "mine", "self", "lint"],
                    lora={"rank": 2, "alpha": 4},
                    **TRAINING,
                ),
                stage("leak", "correct", ["data", "mine"], by=recorded(here / "leak.jsonl", leaks, "one who has seen")),
                stage("lint-leak", "lint", ["data", "model", "mine", "leak"], max_tokens=400, replay=0),
            ),
            here / "run",
        )
    (writer,) = writers
    return here / "run", asked, writer.prompts


def check_kept(folder: Path, job: str, without: int = 0) -> None:
    """What is right by ground truth is kept, with its new answer; of the rest there is a record."""
    failures = {one.id: one for one in read_failures(folder / "artifacts/mine/failures.jsonl")}
    right = {item.id for item in SOLVED.values() if is_even(item.question)} & failures.keys()
    rows = {row["id"]: row for row in records(folder, job, "correction")}
    kept = {one.id: one for one in read_failures(folder / f"artifacts/{job}/failures.jsonl")}
    assert rows.keys() == failures.keys() and len(failures) == 10
    assert kept.keys() == {name for name, row in rows.items() if row["right"]} <= right
    assert len(right) - len(kept) == without and 0 < len(kept) < 10
    for name, one in kept.items():
        assert one.reference == rows[name]["text"] == whole(SOLVED_BY_ID[name].question)
        assert (one.prompt, one.wrong) == (failures[name].prompt, failures[name].wrong)
    (told,) = records(folder, job, "corrected")
    assert (told["n"], told["right"]) == (10, len(kept))


SOLVED_BY_ID = {item.id: item for item in SOLVED.values()}


@pytest.mark.parametrize(("job", "by"), [("self", "self"), ("file", "a teacher")])
def test_only_what_is_right_is_kept(made: tuple[Path, list[Any], list[str]], job: str, by: str) -> None:
    check_kept(made[0], job)
    (told,) = records(made[0], job, "corrected")
    assert told["by"] == by


def test_a_model_is_shown_its_wrong_answer(made: tuple[Path, list[Any], list[str]]) -> None:
    folder, _, prompts = made
    failures = {one.prompt: one for one in read_failures(folder / "artifacts/mine/failures.jsonl")}
    assert len(prompts) == len(failures) == 10
    for prompt in prompts:
        (failure,) = [one for asked, one in failures.items() if asked in prompt]
        wrong = failure.wrong.strip() or "(nothing)"
        assert prompt.index(failure.prompt) < prompt.index(wrong) < prompt.index(CRITIQUE["maths"])
    (check,) = records(folder, "self", "check")
    assert check["name"] == "answers-whole" and not check["passed"] and "were cut off by a limit" in check["detail"]
    stops = {row["stop"] for row in records(folder, "self", "correction") if row["right"]}
    assert stops == {"end"}


def test_an_endpoint_is_shown_it_too_or_asked_anew(made: tuple[Path, list[Any], list[str]]) -> None:
    folder, asked, _ = made
    check_kept(folder, "endpoint", without=1)
    failures = {one.prompt: one for one in read_failures(folder / "artifacts/mine/failures.jsonl")}
    shown, bare = [one for one in asked if len(one) == 3], [one for one in asked if len(one) == 1]
    assert len(shown) == len(bare) == 10 and len(asked) == 20
    check_kept(folder, "anew")
    for first, wrong, critique in shown:
        assert wrong == {"role": "assistant", "content": failures[first["content"]].wrong or "(nothing)"}
        assert critique == {"role": "user", "content": CRITIQUE["maths"]}
    (missing,) = [row for row in records(folder, "endpoint", "correction") if row["status"] == "unanswered"]
    assert not missing["right"] and "it is empty" in missing["why"]


def test_how_a_teachers_answers_end_is_recorded(made: tuple[Path, list[Any], list[str]], tmp_path: Path) -> None:
    """Planted: a teacher that runs into its limit each time, right or not; one that does not; a file that may say."""
    told = dict.fromkeys((item.id for item in SOLVED.values()), "#### 1")
    silent, says = (recorded(tmp_path / f"{name}.jsonl", told, "a teacher") for name in ("silent", "says"))
    rows = [json.loads(line) for line in (tmp_path / "says.jsonl").read_text().splitlines()]
    write_lines(tmp_path / "says.jsonl", [row | ({"cut": True} if i % 2 else {}) for i, row in enumerate(rows)])
    with serving(completion("Slowly now. #### 1", finish="length")) as server:
        run(
            plan_of(
                stage("data", "data", **PARAMS.model_dump(mode="json")),
                stage("model", "model", name=str(made[0].parent / "tiny")),
                stage("mine", "mine", ["data", "model"], decoding={"max_tokens": 2}),
                stage("cut", "correct", ["data", "mine"], by=asked_at(server.port, retries=0)),
                stage("silent", "correct", ["data", "mine"], by=silent),
                stage("says", "correct", ["data", "mine"], by=says),
            ),
            tmp_path / "run",
        )
    (check,) = records(tmp_path / "run", "cut", "check")
    assert check["name"] == "answers-whole" and not check["passed"]
    assert check["detail"].startswith("10 of 10 answers (100%) were cut off by a limit: raise max_tokens")
    assert {row["stop"] for row in records(tmp_path / "run", "cut", "correction")} == {"length"}
    (clean,) = records(made[0], "anew", "check")
    assert clean["passed"] and clean["detail"] == "few were cut off"
    assert {row["stop"] for row in records(made[0], "anew", "correction")} == {"end"}
    assert records(tmp_path / "run", "silent", "check") == [], "nobody says how those ended"
    (part,) = records(tmp_path / "run", "says", "check")
    ends = [row["stop"] for row in records(tmp_path / "run", "says", "correction")]
    assert 0 < ends.count("length") < 10 == ends.count("length") + ends.count("")
    assert not part["passed"] and part["detail"].endswith(f"; how {ends.count('')} others ended is not known")


def test_what_was_corrected_is_trained_on_with_replay(made: tuple[Path, list[Any], list[str]]) -> None:
    """Both the mined and the corrected failures are at hand: the corrected ones are taken."""
    (told,) = records(made[0], "train", "training-set")
    (corrected,) = records(made[0], "self", "corrected")
    # Half of the rows are replayed, as far as the first set has others than the failures; here it has none.
    assert corrected["right"] < 10 and told["n"] - told["replayed"] == corrected["right"] == told["replayed"]
    assert (made[0] / "artifacts/train/adapter/adapter_model.safetensors").is_file()


def test_corrected_failures_are_linted_before_they_are_trained_on(made: tuple[Path, list[Any], list[str]]) -> None:
    """Planted: a teacher whose answers, right as they are, quote an item that is graded."""
    folder, graded = made[0], draw(PARAMS).benchmarks["problems"][0]
    (leak,) = records(folder, "lint-leak", "finding")
    assert (leak["code"], leak["count"], leak["of"]) == ("evaluation-overlap", 10, 10) and graded.id in leak["example"]
    (check,) = records(folder, "lint-leak", "check")
    assert not check["passed"] and "evaluation-overlap (10 of 10)" in check["detail"]
    (clean,), (linted,), (told,) = (
        records(folder, *of) for of in (("lint", "check"), ("lint", "linted"), ("train", "training-set"))
    )
    assert clean["passed"] and records(folder, "lint", "finding") == []
    assert (linted["n"], linted["replayed"]) == (told["n"], told["replayed"])


def mining(made: tuple[Path, list[Any], list[str]], *, items: int) -> list[dict[str, Any]]:
    """The stages up to the failures of so many problems."""
    return [
        stage("data", "data", **PARAMS.model_dump(mode="json")),
        stage("model", "model", name=str(made[0].parent / "tiny")),
        stage("mine", "mine", ["data", "model"], decoding={"max_tokens": 2}, items=items),
    ]


def test_a_linter_of_other_failures_lets_nothing_be_trained_on(
    made: tuple[Path, list[Any], list[str]], tmp_path: Path
) -> None:
    """Planted: the linter looks at the written solutions, and a teacher's are to be trained on."""
    right = recorded(tmp_path / "t.jsonl", {item.id: whole(item.question) for item in SOLVED.values()}, "a teacher")
    with pytest.raises(StageFailed) as error:
        run(
            plan_of(
                *mining(made, items=2),
                stage("file", "correct", ["data", "mine"], by=right),
                stage("lint", "lint", ["data", "model", "mine"], max_tokens=400, replay=0.5),
                stage("train", "train", ["data", "model", "file", "lint"], **TRAINING),
            ),
            tmp_path / "run",
        )
    assert "stage train: lint looked at other conversations than the 4 that are to be trained on" in str(error.value)
    assert "Way out: let it need the `tune.mine` or `tune.correct` that `train` needs" in str(error.value)
    assert records(tmp_path / "run", "lint", "check")[0]["passed"] and not list(tmp_path.glob("run/artifacts/train/*"))


def test_nothing_to_train_on_is_said(made: tuple[Path, list[Any], list[str]], tmp_path: Path) -> None:
    never = {item.id: "no idea" for item in SOLVED.values()}
    with pytest.raises(StageFailed) as error:
        run(
            plan_of(
                *mining(made, items=2),
                stage("file", "correct", ["data", "mine"], by=recorded(tmp_path / "t.jsonl", never, "a teacher")),
                stage("again", "correct", ["data", "model", "file", "mine"], decoding={"max_tokens": 2}),
                stage("train", "train", ["data", "model", "file"], **TRAINING),
            ),
            tmp_path / "run",
        )
    assert "stage train: " in str(error.value) and "file left no failures to train on" in str(error.value)
    assert "Way out: mine more items" in str(error.value)
    rows = [json.loads(line) for line in (tmp_path / "run/records/again.jsonl").read_text().splitlines()]
    assert rows[-1]["n"] == 2 and rows[-1]["right"] == 0, "a random model corrects nothing"


def test_a_teacher_that_breaks_off_is_not_asked_twice(made: tuple[Path, list[Any], list[str]], tmp_path: Path) -> None:
    answer = completion("#### 1")
    with serving(answer, answer, error(500), answer) as server:
        plan = plan_of(
            *mining(made, items=4),
            stage("endpoint", "correct", ["data", "mine"], by=asked_at(server.port, retries=0)),
        )
        with pytest.raises(StageFailed, match="failed once, and no retries are allowed: HTTP 500") as broke:
            run(plan, tmp_path / "run")
        assert "run again: what it answered is kept in " in str(broke.value) and len(server.asked) == 3
        run(plan, tmp_path / "run")
        assert len(server.asked) == 5 and server.asked[3] == server.asked[2]
    assert len(records(tmp_path / "run", "endpoint", "correction")) == 4
