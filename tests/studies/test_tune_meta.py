"""Meta-learning through the stage `tune.train`: what it records, a kill, failures as tasks, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import records
from tiny_tune import stopped_once, tiny_tune
from tiny_wire import wire_model

from stepwell.errors import StepwellError
from stepwell.kinds import kind
from stepwell.merging.adapter import Adapter
from stepwell.runner import run
from stepwell.sft.recipe import Maml
from stepwell.studies.tune.cost import of_training
from stepwell.studies.tune.params import Gsm8k, TuneDataParams, TuneModelParams, TuneTrainParams

SHORT = ("data", "model", "lint", "train")
MAML = "train.meta={kind: maml, inner_steps: 2, inner_lr: 0.05}"
ANIL = "train.meta={kind: anil, inner_steps: 2, inner_lr: 0.05}"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wire_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def done(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("meta") / "run"
    run(tiny_tune(model, MAML, stages=SHORT), folder)
    return folder


def test_the_stage_records_its_tasks_and_both_losses(done: Path) -> None:
    promised = kind("tune.train").yields
    for line in (done / "records/train.0.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        assert row.keys() - {"kind", "seed"} == promised[row["kind"]], row["kind"]
    categories, (whole,) = records(done, "train.0", "category"), records(done, "train.0", "training-set")
    assert [row["category"] for row in categories] == ["add", "add-subtract", "subtract"]
    assert sum(row["n"] for row in categories) == whole["n"] == 24
    assert sum(row["rows"] for row in categories) == whole["rows"]
    told, steps = records(done, "train.0", "meta"), records(done, "train.0", "step")
    assert [row["step"] for row in told] == [row["step"] for row in steps] == [1, 2, 3, 4]
    assert [row["query"] for row in told] == pytest.approx([row["loss"] for row in steps])
    assert all(row["support_after"] < row["support_before"] for row in told)
    learnt = sum(row["query_tokens"] for row in told)
    assert whole["supervised_tokens"] == pytest.approx(learnt, rel=0.25) and whole["supervised_tokens"] < 0.6 * (
        learnt + sum(row["support_tokens"] for row in told)
    )
    assert Adapter.read(done / "artifacts/train.0/adapter").lineage.identity is not None


def test_a_killed_meta_training_goes_on_and_writes_the_same(
    model: Path, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = tiny_tune(model, MAML, stages=SHORT)
    stops = stopped_once("train.0", monkeypatch)
    run(plan, tmp_path / "run")
    assert stops and len(records(tmp_path / "run", "train.0", "meta")) == 2, "stopped at its first checkpoint"
    run(plan, tmp_path / "run")
    for name in ("records/train.0.jsonl", "artifacts/train.0/adapter/adapter_model.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (done / name).read_bytes(), name


def test_failures_are_tasks_of_the_categories_that_they_had(model: Path, tmp_path: Path) -> None:
    second = ANIL.replace("train.", "train-b.")
    stages = (*SHORT, "merge", "mine", "lint-b", "train-b")
    run(tiny_tune(model, ANIL, second, stages=stages), tmp_path / "run")
    (mined,) = records(tmp_path / "run", "mine.0", "mined")
    found = {row["category"]: row["n"] for row in records(tmp_path / "run", "train-b.0", "category")}
    assert found.keys() == {"add", "subtract", "add-subtract"}
    assert sum(found.values()) == 2 * mined["failures"] > 0


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (
            ("data.source={kind: word-problems, categories: [add]}",),
            "1 of 1 categories (add) have the 2 rows of a task",
        ),
        (("train.batch_size=30",), "0 of 3 categories (add, add-subtract, subtract) have the 30 rows of a task"),
        (("train.meta={kind: anil, head_layers: 2}",), "the adapter is on 2 layers, and 2 of them are to be the head"),
        (("train.batch_size=1",), "`batch_size` is 2 at least"),
    ],
)
def test_what_cannot_be_meta_learnt_is_refused(
    model: Path, tmp_path: Path, overrides: tuple[str, ...], told: str
) -> None:
    with pytest.raises(StepwellError) as error:
        run(tiny_tune(model, MAML, *overrides, stages=SHORT), tmp_path / "run")
    assert told in str(error.value) and "Way out: " in str(error.value)


def test_the_forecast_reads_a_support_once_an_inner_step() -> None:
    inputs = {"data": TuneDataParams(source=Gsm8k(), benchmarks={"gsm8k": Gsm8k()}),
              "model": TuneModelParams(name="smollm2-135m")}  # fmt: skip
    plain = of_training(TuneTrainParams(epochs=1), {}, inputs)
    meta = of_training(TuneTrainParams(epochs=1, meta=Maml(inner_steps=3, support=0.25)), {}, inputs)
    assert plain is not None and meta is not None and meta.tokens == plain.tokens
    assert meta.flop == pytest.approx((3 * 0.25 + 0.75) * plain.flop)
