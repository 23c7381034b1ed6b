"""Bad input to `tune`: one clear message with the way out, and an exit code.

| bad input                                      | here: test_...                              |
| ---------------------------------------------- | ------------------------------------------- |
| plan: unknown key, value out of range, no file | a_plan_that_cannot_be_is_refused            |
| a file that is gone                            | a_file_that_is_not_there                    |
| training set: empty, malformed, another format | a_bad_training_set_fails_the_data_stage     |
| a graded set that cannot be used               | a_bad_benchmark_fails_the_data_stage        |
| more conversations than there are              | more_than_there_are                         |
| a benchmark that the data has not              | an_unknown_benchmark                        |
| recorded answers: malformed, missing, twice    | bad_recorded_answers                        |
| a model without chat template, or of no model  | a_model_that_cannot_be_asked                |
| a folder that is asked for a revision          | a_folder_has_no_revisions                   |
| a quantised base                               | a_quantised_base                            |
| a training set that fills no step, or no row   | a_training_set_that_fits_no_step            |
| no room on the disk while merging              | a_full_disk_while_merging                   |
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from refusals import refused
from tiny import records, write_plan
from tiny_tune import tiny_tune
from tiny_wire import wire_model
from tune_answers import data_stage, maths_file, plan_of, stage, write_lines

from stepwell.cli import run
from stepwell.merging import writing
from stepwell.plan import Plan

TALKS = ("data", "model", "lint", "train")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wire_model(tmp_path_factory.mktemp("model") / "tiny")


def command(plan: Plan) -> list[str]:
    return ["run", str(write_plan(plan, Path("tiny.yaml"))), "--out", "run", "--quiet"]


def of_file(file: Path, **benchmarks: Any) -> Plan:
    """The data stage alone, on conversations of a file."""
    graded = benchmarks or {"maths": {"kind": "gsm8k", "file": str(maths_file(file.parent / "m.jsonl", 2))}}
    source = {"kind": "conversations", "file": str(file)}
    return plan_of(stage("data", "data", source=source, benchmarks=graded, n_held=1))


def out(error: str) -> str:
    """The way out."""
    return error.partition("\n  Way out: ")[2]


# ---- the plan


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.rank=4", "stages.train.params.rank: unknown key; allowed: "),
        ("merge.precison=fp32", "did you mean `precision`?"),
        ("data.n_train=-1", "stages.data.params.n_train: must be greater than or equal to 0, found -1"),
        ("data.n_train=0", "generated problems have no end: say how many in `n_train` and `n_test`"),
        ("data.benchmarks={}", "stages.data.params.benchmarks"),
        ("data.benchmarks={x: {kind: mmlu}}", "stages.data.params.benchmarks.x"),
        ("data.source={kind: word-problems, largest: 5}", "must be greater than or equal to 10, found 5"),
        ("data.source={kind: conversations, file: gone.jsonl}", "no such file: "),
        ("data.benchmarks={g: {kind: gsm8k, file: gone.jsonl}}", "no such file: "),
        ("train.replay=1", "stages.train.params.replay: must be less than 1, found 1"),
        ("train-b.lora.rank=0", "stages.train-b.params.lora.rank: must be greater than or equal to 1, found 0"),
        ("train.schedule=decay", "`cosine` takes the place of `schedule`: give one of them"),
        ("lint.max_tokens=64", "stages.train.params.max_tokens: lint looks at examples of up to 64 tokens, and "),
        ("lint-b.max_tokens=64", "is cut off is not looked for; set `lint-b.max_tokens` to the same number"),
        ("lint-b.replay=0.2", "stages.train-b.params.replay: lint-b looks at a share of 0.2 of it, and failures"),
        ("lint-b.replay=null", "lint-b looks at the first training set, and failures with a share of 0.5 of the first"),
        ("lint.replay=0.5", "stages.lint.params.replay: there are no failures to look at: name a stage of the kind"),
        ("merge.least_survived=1.5", "must be less than or equal to 1, found 1.5"),
        ("merge.precision=int4", "stages.merge.params.precision"),
        ("after.batch_size=0", "stages.after.params.batch_size: must be greater than or equal to 1, found 0"),
        ("after.decoding={samples: 2}", "several samples need a temperature above 0"),
        ("after.decoding={temperature: 3}", "must be less than or equal to 2, found 3"),
        ("after.decoding.temperature=0.5", "stages.versus.params.theirs: `after` and `before` cannot be compared"),
        ("after-b.decoding.max_tokens=9", "`after` and `after-b` cannot be compared: decoding: max_tokens 96 and 9"),
        ("before.benchmarks=[other]", "`after` and `before` cannot be compared: before does not grade problems"),
        ("versus.theirs=mine", "theirs: `mine` is to be compared, and is no stage of `needs` that grades"),
        ("versus.judge={kind: endpoint, base_url: here, model: m}", "must be an address such as http://localhost:8000"),
        ("regress.alpha=0.5", "stages.regress.params.alpha: must be less than 0.5, found 0.5"),
        ("regress.margin=-0.1", "stages.regress.params.margin: must be greater than or equal to 0, found -0.1"),
        ("model.precision=int8", "stages.model.params.precision"),
        ("gates.better.criteria.0.metric=gaind", "yields no record with `gaind`"),
    ],
)  # fmt: skip
def test_a_plan_that_cannot_be_is_refused(
    here: Path, capsys: pytest.CaptureFixture[str], override: str, message: str
) -> None:
    error = refused(capsys, ["run", "tune", "--rung", "demo", "--out", "run", override], 3)
    assert message in error
    assert list(here.iterdir()) == [], "something was made before the plan was found sound"


# ---- the data


def test_a_file_that_is_not_there(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_lines(here / "talks.jsonl", [{"prompt": "a", "completion": "b"}] * 3)
    arguments = command(of_file(file))
    for gone in (here / "m.jsonl", file):
        gone.unlink()
        error = refused(capsys, arguments, 3)
        assert f"no such file: {gone}" in error
    assert not (here / "run").exists()


GOOD = '{"prompt": "a", "completion": "b"}\n'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the file is empty"),
        (" \n\n", "the file is empty"),
        (GOOD + '{"prompt": "a", "completion"', "line 2: not JSON: column "),
        (GOOD + GOOD + "[1]\n", "line 3: a list, not an object"),
        (GOOD + '{"question": "a", "answer": "b"}\n', "line 2: in no known form: it has `question`, `answer`"),
        (GOOD + '{"prompt": "a"}\n', "line 2: `completion` is missing"),
        ('{"prompt": "a", "completion": 3}\n', "line 1: `completion` is a int, not a text"),
        (GOOD + '{"prompt": "a", "completion": " "}\n', "line 2: `completion` is empty"),
        ('{"messages": [{"role": "bot", "content": "x"}]}\n', "line 1: `messages[0].role` is 'bot', not one of "),
        ('{"messages": [{"role": "user", "content": "x"}]}\n', "line 1: `messages` ends with the user"),
        ('{"id": 1, "prompt": "a", "completion": "b"}\n' * 2, "line 2: the id '1' is given twice"),
    ],
)  # fmt: skip
def test_a_bad_training_set_fails_the_data_stage(
    here: Path, capsys: pytest.CaptureFixture[str], content: str, message: str
) -> None:
    file = here / "talks.jsonl"
    file.write_text(content, encoding="utf-8")
    arguments = command(of_file(file))
    error = refused(capsys, arguments, 4)
    assert error.startswith("stepwell: stage data: ") and str(file) in error and message in error
    assert "one JSON object a line" in out(error) or "give each line its own id" in out(error)
    assert not (here / "run/jobs/data.json").exists()
    file.write_text(GOOD * 3, encoding="utf-8")
    assert run(arguments) == 0, "the same command goes on once the file is mended"


@pytest.mark.parametrize(
    ("source", "content", "message"),
    [
        ({"kind": "gsm8k"}, "", "the file is empty"),
        ({"kind": "gsm8k"}, '{"question": "a", "answer": "#### 1"}\n{"question": "b"', "not JSON: line 2"),
        ({"kind": "gsm8k"}, '{"question": "a", "answer": "one"}\n', "1 of 1 solutions do not end in #### and a number"),
        ({"kind": "open"}, GOOD + "{", "line 2: not JSON"),
        ({"kind": "humaneval"}, '{"task_id": "x"}\n', "another format: entry 1"),
        ({"kind": "squad"}, '{"id": "a"}\n', "another format: entry 1 has the fields id"),
    ],
    ids=["empty", "malformed", "no number", "open", "code", "squad"],
)
def test_a_bad_benchmark_fails_the_data_stage(
    here: Path, capsys: pytest.CaptureFixture[str], source: Mapping[str, str], content: str, message: str
) -> None:
    file = here / "graded.jsonl"
    file.write_text(content, encoding="utf-8")
    talks = write_lines(here / "talks.jsonl", [{"prompt": f"a{i}", "completion": "b"} for i in range(3)])
    error = refused(capsys, command(of_file(talks, maths={**source, "file": str(file)})), 4)
    assert error.startswith("stepwell: stage data: ") and str(file) in error and message in error and out(error)


def test_more_than_there_are(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    maths = {"maths": {"kind": "gsm8k", "file": str(maths_file(here / "m.jsonl", 2))}}
    for asked in ({"n_train": 4}, {"n_held": 4}):
        error = refused(capsys, command(plan_of(data_stage(here, maths, **asked))), 4)
        assert "stage data: " in error and "there are 4 conversations, of which" in error
        assert "ask for fewer, or name a larger source" in out(error)
        shutil.rmtree(here / "run")


def test_an_unknown_benchmark(here: Path, capsys: pytest.CaptureFixture[str], model: Path) -> None:
    names = [f"{stage}.benchmarks=[problem]" for stage in ("before", "after", "after-b", "reference")]
    plan = tiny_tune(model, *names, stages=("data", "model", "before"))
    error = refused(capsys, command(plan), 4)
    assert "stage before: " in error and "there is no benchmark `problem`; benchmarks: problems" in error
    assert "add it to the stage `data`" in out(error)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the file is empty"),
        ('{"id": "m0", "answer": "0"}\n{"id": "m1", "answer"', "not JSON: line 2"),
        ('{"id": "m0", "text": "0"}\n', "entry 1 has no id or no answer"),
        ('{"id": "m0", "answer": "0"}\n', "1 of 2 items of maths are not answered, 'm1' for one"),
        ('{"id": "m0", "answer": "0"}\n' * 2, "entry 2: 'm0' was answered before"),
    ],
)
def test_bad_recorded_answers(here: Path, capsys: pytest.CaptureFixture[str], content: str, message: str) -> None:
    file = here / "answers.jsonl"
    file.write_text(content, encoding="utf-8")
    maths = {"maths": {"kind": "gsm8k", "file": str(maths_file(here / "m.jsonl", 2))}}
    source = {"kind": "file", "file": str(file), "model": "old"}
    arguments = command(plan_of(data_stage(here, maths), stage("old", "reference", ["data"], source=source)))
    error = refused(capsys, arguments, 4)
    assert "stage old: " in error and str(file) in error and message in error
    assert "expected one object a line, {id, answer}, with one answer for each item" in out(error)
    file.unlink()
    assert f"no such file: {file}" in refused(capsys, arguments, 3)


# ---- the model


@pytest.mark.parametrize(
    ("harm", "message", "way_out"),
    [
        ("template", "the tokenizer has no chat template", "beside its tokenizer as chat_template.jinja"),
        ("end", "the chat template writes no special token after an answer", "write the end token after each"),
        ("tokenizer", "there is no tokenizer", "name a model with its tokenizer"),
        ("folder", "there is no such model folder", "give a folder with config.json"),
        ("weights", "safetensors", ""),
    ],
)
def test_a_model_that_cannot_be_asked(
    here: Path, capsys: pytest.CaptureFixture[str], model: Path, harm: str, message: str, way_out: str
) -> None:
    folder = Path(shutil.copytree(model, here / "harmed"))
    if harm == "template":
        (folder / "chat_template.jinja").unlink()
    elif harm == "end":
        (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}\n{% endfor %}")
    elif harm == "weights":
        (folder / "model.safetensors").unlink()
    elif harm == "folder":
        shutil.rmtree(folder)
    else:
        for file in folder.glob("token*"):
            file.unlink()
    error = refused(capsys, command(tiny_tune(folder, stages=("model",))), 4)
    assert "stage model: " in error and message in error and way_out in out(error)


def test_a_folder_has_no_revisions(here: Path, capsys: pytest.CaptureFixture[str], model: Path) -> None:
    error = refused(capsys, command(tiny_tune(model, "model.revision=v1", stages=("model",))), 4)
    assert "stage model: " in error and "a folder has no revisions" in error and "leave `revision` out" in out(error)


def test_a_quantised_base(here: Path, capsys: pytest.CaptureFixture[str], model: Path) -> None:
    """Found before anything is trained, by the check of the stage, and again by whoever would train or merge."""
    folder = Path(shutil.copytree(model, here / "quantised"))
    config = json.loads((folder / "config.json").read_text())
    quantised = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": quantised}))
    assert run(command(tiny_tune(folder, stages=("model",)))) == 0
    (check,) = records(here / "run", "model", "check")
    assert not check["passed"] and "quantised: a merge will refuse its adapter" in check["detail"]
    shutil.rmtree(here / "run")
    error = refused(capsys, command(tiny_tune(folder, stages=TALKS)), 4)
    assert "stage train.0: " in error and "the base is quantised: an adapter trained on it fits no other" in error
    assert "name a base in bf16 or fp32" in out(error)


# ---- training and merging


@pytest.mark.parametrize(
    ("overrides", "message", "way_out"),
    [
        (("train.accumulation=64",), "conversations fill 1 rows, and a step has 64 micro-batches", "lower `accumulat"),
        (
            ("train.max_tokens=4", "lint.max_tokens=4"),
            "none of 2 conversations is left to train on",
            "raise `max_tokens`",
        ),
    ],
    ids=["no step", "no row"],
)
def test_a_training_set_that_fits_no_step(
    here: Path, capsys: pytest.CaptureFixture[str], model: Path, overrides: tuple[str, ...], message: str, way_out: str
) -> None:
    plan = tiny_tune(model, "data.n_train=2", "data.n_held=1", *overrides, stages=TALKS)
    error = refused(capsys, command(plan), 4)
    assert "stage train.0: " in error and message in error and way_out in out(error)


def test_a_full_disk_while_merging(
    here: Path, capsys: pytest.CaptureFixture[str], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(place: Any, buffer: Any) -> None:
        raise OSError(28, "No space left on device")

    arguments = command(tiny_tune(model, "train.steps=1", stages=(*TALKS, "merge")))
    with monkeypatch.context() as patch:
        patch.setattr(writing._Place, "put", full)
        error = refused(capsys, arguments, 4)
    assert "stage merge.0: " in error and "no space is left on the disk" in error
    assert "then run the same command again: it goes on from there" in out(error)
    left = here / "run/artifacts/merge.0"
    assert not left.exists() or list(left.iterdir()) == [], "no half of a model is left"
    assert run(arguments) == 0, "with room, it goes on with the merge"
    assert (here / "run/artifacts/merge.0/merged/config.json").is_file()
