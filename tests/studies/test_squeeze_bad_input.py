"""Bad input to `squeeze`: one clear message and an exit code, before or in the stage that it concerns.

| bad input                                    | here: test_...                          |
| -------------------------------------------- | --------------------------------------- |
| plan: unknown key, c = 0, a recipe missing   | a_plan_that_cannot_be_is_refused        |
| c greater than D                             | more_dimensions_than_the_embeddings_have |
| an arm that is not there                     | an_arm_that_the_plan_does_not_explain   |
| too few items                                | too_few_items                           |
| data file: missing                           | a_data_file_that_is_not_there           |
| ... empty, not JSON                          | a_bad_data_file_fails_the_data_stage    |
| phase 2 of an arm without weights            | phase_2_of_an_arm_without_weights       |
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from refusals import refused
from tiny import started, write_plan
from tiny_squeeze import DIMS, WIDTH, letters_folder, tiny_squeeze

from stepwell.cli import run
from stepwell.plan import Plan


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return letters_folder(tmp_path_factory.mktemp("model") / "letters")


def command(plan: Plan) -> list[str]:
    return ["run", str(write_plan(plan, Path("tiny.yaml"))), "--out", "run", "--quiet"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("restore.dimz=4", "stages.restore.params.dimz: unknown key; allowed: arms, dims, "),
        ("restore.dimz=4", "did you mean `dims`?"),
        ("restore.arms.residual.recipe.stepz=4", "unknown key; allowed: objective, steps, "),
        ("restore.dims=0", "stages.restore.params.dims: must be greater than or equal to 1, found 0"),
        ("restore.arms={}", "stages.restore.params.arms"),
        ("restore.arms.residual.subspace=best", "stages.restore.params.arms.residual.subspace"),
        ("restore.arms.residual.recipe=null", "every adapter but `pca` is trained by a `recipe`, and `pca` by none"),
        ("restore.arms.pca.recipe={steps: 3}", "every adapter but `pca` is trained by a `recipe`, and `pca` by none"),
        ("answer.bits=[3]", "stages.answer.params.bits"),
        ("answer.share=1.5", "stages.answer.params.share: must be less than or equal to 1, found 1.5"),
        ("model.contract.max_answer_tokens=1", "must be greater than or equal to 2, found 1"),
        ("data.n_test=0", "must be greater than or equal to 1, found 0"),
        ("data.source={kind: squad, file: gone.json}", "no such file: "),
        ("gates.done.criteria.0.metric=above_par", "yields no record with `above_par`"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(
    here: Path, capsys: pytest.CaptureFixture[str], override: str, message: str
) -> None:
    assert message in refused(capsys, ["run", "squeeze", "--rung", "demo", "--out", "run", override], 3)
    assert list(here.iterdir()) == [], "something was made before the plan was found sound"


def test_more_dimensions_than_the_embeddings_have(here: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = tiny_squeeze(model, f"axes.dims=[{WIDTH + 1}]", stages=("data", "model", "restore"), arms=["pca"])
    error = refused(capsys, command(plan), 4)
    assert error.startswith(f"stepwell: stage restore.pca.{WIDTH + 1}.0: ")
    assert f"{WIDTH + 1} dimensions are asked for, but the embeddings have {WIDTH}" in error
    assert f"Way out: ask for 1 to {WIDTH}" in error


def test_an_arm_that_the_plan_does_not_explain(here: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = tiny_squeeze(model, stages=("data", "model", "restore"), arms=["pca", "nobody"])
    error = refused(capsys, command(plan), 4)
    assert "there is no arm `nobody`; arms: residual, pca, random, truncation" in error
    assert f"restore.pca.{DIMS}.0" in started(here / "run"), "the other arm is run all the same"


def test_phase_2_of_an_arm_without_weights(here: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stages = ("data", "model", "restore", "refine")
    plan = tiny_squeeze(model, stages=stages, arms=["pca"], refined="pca")
    assert "the adapter `pca` has no weights to train" in refused(capsys, command(plan), 4)


def of_file(model: Path, path: Path) -> Plan:
    source = f"data.source={{kind: squad, file: {path}}}"
    return tiny_squeeze(model, source, "data.n_train=4", "data.n_held=1", "data.n_test=1", stages=("data",))


def line(number: int, context: str) -> str:
    return json.dumps({"id": f"q{number}", "question": "Who?", "context": context, "answers": {"text": ["Me"]}}) + "\n"


def test_too_few_items(here: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Six questions about two paragraphs fill no three splits that share none."""
    path = here / "pairs.jsonl"
    path.write_text("".join(line(i, f"It was me, {i % 2}.") for i in range(6)))
    error = refused(capsys, command(of_file(model, path)), 4)
    assert error.startswith("stepwell: stage data: ")
    assert "the 6 items over 2 contexts do not fill the splits {'test': 1, 'held': 1, 'train': 4}" in error
    assert not (here / "run" / "jobs" / "data.json").exists()
    path.write_text("".join(line(i, f"It was me, {i}.") for i in range(6)))
    assert run(command(of_file(model, path))) == 0


def test_a_data_file_that_is_not_there(here: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = here / "pairs.jsonl"
    path.write_text(line(0, "It was me."))
    arguments = command(of_file(model, path))
    path.unlink()
    assert f"no such file: {path}" in refused(capsys, arguments, 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "the file is empty"), (" \n", "the file is empty"), ("{", "not JSON: line 1, column 2"),
     ('{"id": "a"}\n', "another format: entry 1 has the fields id")],
)  # fmt: skip
def test_a_bad_data_file_fails_the_data_stage(
    here: Path, model: Path, capsys: pytest.CaptureFixture[str], content: str, message: str
) -> None:
    path = here / "pairs.jsonl"
    path.write_text(content)
    error = refused(capsys, command(of_file(model, path)), 4)
    assert error.startswith("stepwell: stage data: ") and message in error
