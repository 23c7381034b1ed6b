"""The stages of `tune` end to end on a model of random weights: what they write, prove, refuse and go on from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny import records
from tiny_tune import WHOLE, stopped_once, tiny_tune
from tiny_wire import wire_model

from stepwell.adapt.lora import LoRA
from stepwell.errors import StageFailed, StepwellError
from stepwell.grading.mining import read_failures
from stepwell.grading.records import read_result
from stepwell.merging.adapter import Adapter
from stepwell.merging.base import BaseIdentity
from stepwell.merging.checking import check_merged
from stepwell.models import MANIFEST
from stepwell.plan import load_plan
from stepwell.runner import run
from stepwell.sft.conversations import read_conversations
from stepwell.sft.overlap import Overlap
from stepwell.stage import StageContext
from stepwell.studies import KINDS
from stepwell.studies.tune import lint, mining
from stepwell.studies.tune.base import Base
from stepwell.studies.tune.params import TuneModelParams


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wire_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def done(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run, phase B with it."""
    folder = tmp_path_factory.mktemp("tune") / "run"
    run(tiny_tune(model), folder)
    return folder


def test_every_record_has_the_fields_that_its_kind_promises(done: Path) -> None:
    promised = {kind.name: kind.yields for kind in KINDS}
    stages = {stage.name: stage.kind for stage in tiny_tune(Path("unread")).stages}
    seen = set()
    for file in sorted((done / "records").glob("*.jsonl")):
        name = file.stem.split(".")[0]
        for line in file.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            assert row.keys() - {"kind", "seed"} == promised[stages[name]][row["kind"]], (name, row["kind"])
            seen.add((stages[name], row["kind"]))
    for name in ("finding",):  # none on clean data
        assert ("tune.lint", name) not in seen
    assert {"merged", "layer", "continuation"} <= {kind for stage, kind in seen if stage == "tune.merge"}


def test_nothing_that_is_graded_is_trained_on(done: Path) -> None:
    graded = [json.loads(line) for line in _lines(done / "artifacts/data/benchmarks/problems.jsonl")]
    overlap = Overlap.of({row["id"]: row["question"] for row in graded})
    train = read_conversations(done / "artifacts/data/train.jsonl")
    assert len(graded) == 6 and len(train) == 24
    assert not any(overlap.find(one.asked) for one in train)
    held = {one.id for one in read_conversations(done / "artifacts/data/held.jsonl")}
    assert not held & {one.id for one in train} and len(held) == 4
    assert all(row["passed"] for row in records(done, "data", "check"))


def test_a_model_is_asked_in_the_words_it_was_trained_on(done: Path) -> None:
    (pool,) = [json.loads(line) for line in _lines(done / "artifacts/data/pool.jsonl")][:1]
    (talk,) = [one for one in read_conversations(done / "artifacts/data/train.jsonl") if one.id == pool["id"]]
    failure = next(iter(read_failures(done / "artifacts/mine.0/failures.jsonl")))
    assert talk.asked == f"{pool['question']}\nEnd with #### and the number."
    assert failure.prompt.endswith("\nEnd with #### and the number.")
    solved = {one.id: one.answers[0] for one in read_conversations(done / "artifacts/data/train.jsonl")}
    assert failure.reference == solved[failure.id]


def test_the_adapter_names_its_base_by_hash_and_the_merge_knows_it(done: Path, model: Path) -> None:
    identity = BaseIdentity.of(model).sha256
    (base,) = records(done, "model", "base")
    (merged,) = records(done, "merge.0", "merged")
    adapter = Adapter.read(done / "artifacts/train.0/adapter")
    assert adapter.lineage.identity is not None and adapter.lineage.identity.sha256 == identity
    assert base["sha256"] == merged["base_sha256"] == identity
    assert (adapter.lineage.base, adapter.lineage.revision) == (str(model), None)
    assert merged["verified"] and merged["advice"] == "good"
    assert merged["max_logit_difference"] <= 1e-3 * max(1, merged["largest_logit"])
    check_merged(done / "artifacts/merge.0/merged")


def test_phase_b_trains_on_the_merged_model_with_replay(done: Path) -> None:
    (first,) = records(done, "merge.0", "merged")
    (second,) = records(done, "merge-b.0", "merged")
    (trained,) = records(done, "train-b.0", "training-set")
    (mined,) = records(done, "mine.0", "mined")
    assert second["base_sha256"] == first["merged_sha256"] != second["merged_sha256"]
    assert trained["base"] == "merge.0"
    assert trained["n"] == 2 * mined["failures"] and trained["replayed"] == mined["failures"]
    assert mined["n"] == 12 and mined["contaminated"] == 0


def test_what_phase_b_trains_on_is_linted_first(done: Path) -> None:
    (first,), (second,) = records(done, "lint", "linted"), records(done, "lint-b.0", "linted")
    (trained,) = records(done, "train-b.0", "training-set")
    assert (first["n"], first["replayed"]) == (24, 0) and first["sha256"] != second["sha256"]
    assert (second["n"], second["replayed"]) == (trained["n"], trained["replayed"])
    assert all(row["passed"] for job in ("lint", "lint-b.0") for row in records(done, job, "check"))
    gates = {gate.name: gate for gate in load_plan("tune", rung="demo").gates}
    (held,), (judged,) = gates["lint-b"].before, gates["lint-b"].criteria
    assert (held.stage, judged.metric, judged.stage) == ("train-b", "passed", "lint-b"), "before any step of it"


def test_both_sides_are_graded_under_one_protocol(done: Path) -> None:
    before = read_result(done / "artifacts/before/problems.jsonl")
    after = read_result(done / "artifacts/after.0/problems.jsonl")
    assert before.protocol == after.protocol and len(after.records) == 6
    outcomes = records(done, "versus.0", "match")
    assert len(outcomes) == 6 and all(row["win"] + row["tie"] + row["loss"] + row["undecided"] == 1 for row in outcomes)
    (told,) = records(done, "versus.0", "versus")
    assert told["n"] == 6 and told["win"] + told["tie"] + told["loss"] + told["undecided"] == 6


def test_a_killed_training_goes_on_and_writes_the_same(
    model: Path, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = tiny_tune(model, stages=("data", "model", "lint", "train"))
    stops = stopped_once("train.0", monkeypatch)
    run(plan, tmp_path / "run")
    assert stops and len(records(tmp_path / "run", "train.0", "step")) == 2, "stopped at its first checkpoint"
    run(plan, tmp_path / "run")
    for name in ("records/train.0.jsonl", "artifacts/train.0/adapter/adapter_model.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (done / name).read_bytes(), name


def test_a_training_set_with_faults_is_found_by_the_linter(model: Path, tmp_path: Path) -> None:
    graded = [
        {"id": "g", "question": "Ada has 3 nuts and finds 4 more. How many nuts does Ada have?", "answer": "#### 7"}
    ]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in graded), encoding="utf-8")
    talks = [{"prompt": f"What is {i} and {i}?", "completion": f"{2 * i}"} for i in range(12)]
    talks += [talks[0], {"prompt": "Long", "completion": "x" * 500}, {"prompt": "End?", "completion": "a</s>b"}]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in talks), encoding="utf-8")
    source = f"data.source={{kind: conversations, file: {tmp_path}/train.jsonl}}"
    bench = f"data.benchmarks={{g: {{kind: gsm8k, file: {tmp_path}/test.jsonl}}}}"
    sizes = ("data.n_train=0", "data.n_test=0", "data.n_held=1")
    plan = tiny_tune(model, source, bench, *sizes, stages=("data", "model", "lint"))
    run(plan, tmp_path / "run")
    found = {row["code"]: row for row in records(tmp_path / "run", "lint", "finding")}
    assert found.keys() == {"duplicate", "response-truncated", "special-in-text"}
    (check,) = records(tmp_path / "run", "lint", "check")
    assert not check["passed"] and "response-truncated (1 of 14)" in check["detail"]


def test_a_conversation_with_a_graded_question_in_it_is_left_out(model: Path, tmp_path: Path) -> None:
    question = "Ada has 3 nuts and finds 4 more. How many nuts does Ada have?"
    (tmp_path / "test.jsonl").write_text(
        json.dumps({"question": question, "answer": "#### 7"}) + "\n", encoding="utf-8"
    )
    talks = [{"prompt": f"What is {i} and {i}?", "completion": f"{2 * i}"} for i in range(12)]
    talks.append({"prompt": f"Please: {question}", "completion": "7"})
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in talks), encoding="utf-8")
    source = f"data.source={{kind: conversations, file: {tmp_path}/train.jsonl}}"
    bench = f"data.benchmarks={{g: {{kind: gsm8k, file: {tmp_path}/test.jsonl}}}}"
    plan = tiny_tune(model, source, bench, "data.n_train=0", "data.n_test=0", "data.n_held=1", stages=("data",))
    run(plan, tmp_path / "run")
    (check,) = records(tmp_path / "run", "data", "check")
    assert check["passed"] and "1 were left out" in check["detail"]
    assert question not in (tmp_path / "run/artifacts/data/train.jsonl").read_text(encoding="utf-8")


def test_an_adapter_of_a_hub_model_names_it_and_its_commit(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit, asked = "c0ffee" * 6 + "cafe", []
    snapshot = Path(shutil.copytree(model, tmp_path / "hub/models--some--model/snapshots" / commit))

    def from_hub(repository: str, *, revision: str | None = None) -> Path:
        asked.append((repository, revision))
        return snapshot

    monkeypatch.setattr("stepwell.models._snapshot", from_hub)
    plan = tiny_tune(model, "model.name=some/model", "model.revision=v1", stages=("data", "model", "lint", "train"))
    run(plan, tmp_path / "run")
    folder = tmp_path / "run/artifacts/train.0/adapter"
    lineage = Adapter.read(folder).lineage
    assert (lineage.base, lineage.revision) == ("some/model", commit)
    assert lineage.identity is not None and lineage.identity.sha256 == BaseIdentity.of(model).sha256
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    assert (config["base_model_name_or_path"], config["revision"]) == ("some/model", commit)
    assert set(asked) == {("some/model", "v1")}


def test_what_was_pulled_from_the_hub_is_named_by_its_hub_id(tmp_path: Path) -> None:
    pulled = Base(name="short", folder=tmp_path, params=TuneModelParams(name="short"))
    for told, origin in (
        ({"source": "hub", "repository": "some/model", "revision": "abc"}, ("some/model", "abc")),
        ({"source": "package", "package": "some==1"}, (str(tmp_path), None)),
    ):
        (tmp_path / MANIFEST).write_text(json.dumps(told), encoding="utf-8")
        assert pulled.origin() == origin


@pytest.mark.parametrize("of", ["model", "merge"])
def test_a_base_that_is_not_the_recorded_one_is_not_trained_on(
    of: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = wire_model(tmp_path / "own")
    # What stands between the record and the training changes the weights.
    module, name = (lint, "check") if of == "model" else (mining, "mine_failures")
    stage = getattr(module, name)

    def plant(params: Any, ctx: StageContext) -> None:
        stage(params, ctx)
        _changed(own if of == "model" else tmp_path / "run/artifacts/merge.0/merged")

    monkeypatch.setattr(module, name, plant)
    stages = ("data", "model", "lint", "train") + (("merge", "mine", "lint-b", "train-b") if of == "merge" else ())
    with pytest.raises(StageFailed, match=rf"wrong base: .* and {of}\S* recorded .*\n  Way out: put the"):
        run(tiny_tune(own, "mine.items=2", stages=stages), tmp_path / "run")
    job = "train.0" if of == "model" else "train-b.0"
    file = tmp_path / f"run/records/{job}.jsonl"
    assert not file.exists() or not records(tmp_path / "run", job), "nothing was trained"


def test_a_template_that_is_not_the_recorded_one_is_not_trained_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, check = wire_model(tmp_path / "own"), lint.check

    def plant(params: Any, ctx: StageContext) -> None:
        check(params, ctx)
        template = own / "chat_template.jinja"
        template.write_text("{# new #}" + template.read_text(encoding="utf-8"), encoding="utf-8")

    monkeypatch.setattr(lint, "check", plant)
    with pytest.raises(StageFailed, match=r"the chat template is .* and model recorded "):
        run(tiny_tune(own, stages=("data", "model", "lint", "train")), tmp_path / "run")
    assert not list((tmp_path / "run").glob("artifacts/train.0/*"))


@pytest.mark.parametrize("plant", ["another-base", "no-effect"])
def test_a_merge_that_would_lie_is_refused(
    plant: str, done: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if plant == "another-base":
        told = "the adapter was trained on other weights than these"
        from stepwell.studies.tune import training

        # The adapter says that it belongs to other weights than those it is merged into.
        other = wire_model(tmp_path / "other")
        save = LoRA.save_peft
        _changed(other)
        monkeypatch.setattr(
            training.LoRA,
            "save_peft",
            lambda self, folder, **told: save(self, folder, **{**told, "identity": BaseIdentity.of(other)}),
        )
        overrides: tuple[str, ...] = ()
    else:
        told, overrides = "the adapter changes nothing", ("train.lr=1.0e-30",)
    plan = tiny_tune(model, *overrides, stages=("data", "model", "lint", "train", "merge"))
    with pytest.raises((StepwellError, StageFailed)) as error:
        run(plan, tmp_path / "run")
    assert told in str(error.value) and "Way out: " in str(error.value)
    assert not (tmp_path / "run/artifacts/merge.0/merged").exists()


def test_all_stages_of_the_plan_are_tried_here() -> None:
    plan = tiny_tune(Path("unread"), stages=None)
    assert {stage.name for stage in plan.stages} - set(WHOLE) == {"regress"}


def _changed(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    name = sorted(tensors)[0]
    tensors[name] = tensors[name] + 1
    shutil.copy(file, file.with_suffix(".old"))
    save_file(tensors, file, metadata={"format": "pt"})
    file.with_suffix(".old").unlink()


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()
