"""Bad input, as a user meets it: `stepwell run` on the real study, one clear message, the exit code, nothing lost.

Where each bad input of the issue is tested:

| bad input                                     | its unit: in tests/               | here, end to end: test_...    |
| --------------------------------------------- | --------------------------------- | ----------------------------- |
| plan: unknown key, negative size, cycle       | test_plan                         | a_plan_that_cannot_be_...     |
| gate on a metric that no stage yields         | test_plan                         | a_plan_that_cannot_be_...     |
| data file: missing                            | test_cli, tasks/test_prosqa_items | a_data_file_that_is_not_there |
| ... empty, not JSON, of another format        | tasks/test_prosqa_items           | a_bad_data_file_...           |
| ... a target not among the options            | tasks/test_prosqa_items           | a_bad_data_file_...           |
| ... with findings (target unreachable)        | audit/test_data                   | unsound_data_stop_...         |
| ... items too large for the model             | tasks/test_reading                | items_of_another_size_...     |
| set to be evaluated that does not exist       |                                   | a_set_that_is_not_there       |
| model folder: missing                         | test_backbone                     | a_model_that_is_nowhere       |
| ... without weights, a pickle only, cut off   | test_backbone                     | a_bad_model_folder_...        |
| ... of another vocabulary, no tokenizer       | test_backbone                     | a_bad_model_folder_...        |
| checkpoint in Meta's layout that does not fit | test_backbone                     | a_checkpoint_in_metas_...     |
| checkpoint of another run                     | test_store                        | a_checkpoint_of_another_run   |
| folder that cannot be written                 | test_store, test_runner           | a_folder_that_cannot_...      |
| disk full before, or while saving             | test_store, test_runner           | a_disk_that_...               |
| two runs in one folder                        | test_store, test_runner           | two_runs_in_one_folder        |
| Ctrl-C once, twice                            | test_runner                       | ctrl_c                        |
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from refusals import refused
from tiny import contents, model_folder, records, started, tiny, write_plan

import stepwell.store.job
import stepwell.studies.thoughts.training as training
from stepwell.cli import run
from stepwell.plan import Plan
from stepwell.runner import run as run_plan
from stepwell.store import RunFolder
from stepwell.tasks.prosqa import generate_graphs, generate_items, render, write_items
from toy import small_disk

SOURCE = Path(__file__).resolve().parents[2] / "src"
ITEMS = render(generate_graphs("mini", 6, 9), "mini", 9)


def command(plan: Plan, folder: str = "run", *overrides: str) -> list[str]:
    return ["run", str(write_plan(plan, Path("tiny.yaml"))), "--out", folder, "--quiet", *overrides]


def data_only(*overrides: str) -> Plan:
    """The first two stages: data and their audit."""
    plan = tiny("engine=inline", *overrides, gates=())
    return Plan.model_validate(plan.model_copy(update={"stages": plan.stages[:2]}).model_dump())


# ---- the plan


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.lrr=1e-3", "override train.lrr=1e-3: stages.train.params.lrr: unknown key; allowed: steps, epochs, "),
        ("train.lrr=1e-3", "did you mean `lr`?"),
        ("data.n_train=-5", "override data.n_train=-5: stages.data.params.n_train: must be greater than or equal to 1"),
        ("evaluate.items=-1", "stages.evaluate.params.items: must be greater than or equal to 0, found -1"),
        ("model.curriculum.stages=-1", "stages.model.params.curriculum.stages: must be greater than or equal to 0"),
        ("train.steps=null", "give either `steps` or `epochs`, not both and not neither"),
        ("data.needs=[evaluate]", "cycle: "),
        ("gates.early.criteria.0.metric=acuracy", "stage train (thoughts.train) yields no record with `acuracy`; "),
        ("gates.early.criteria.0.where={kind: item}", "unknown record kind `item`; record kinds: "),
        ("train.trackers=[mlflow]", "stages.train.params.trackers.0: allowed: `tensorboard`, `trackio` or `wandb`"),
        ("data.valid=gone.json", "stages.data.params.valid: no such file: "),
    ],
)
def test_a_plan_that_cannot_be_is_refused_before_anything_is_made(
    here: Path, capsys: pytest.CaptureFixture[str], override: str, message: str
) -> None:
    error = refused(capsys, ["run", "thoughts", "--rung", "demo", "--out", "run", override], 3)
    assert message in error
    assert list(here.iterdir()) == []


def test_a_data_file_that_is_not_there(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = refused(capsys, ["run", "thoughts", "--rung", "demo", "--out", "run", "data.valid=gone.json"], 3)
    assert f"no such file: {here / 'gone.json'}" in error


# ---- the data


def entry(**changes: Any) -> list[dict[str, Any]]:
    return [{**ITEMS[0].to_json(), **changes}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the file is empty"),
        ("[{", "not JSON: line 1, column 3"),
        ("[]", "the list holds no items"),
        (json.dumps({"question": "a"}), "another format: one dict"),
        (json.dumps([{"prompt": "a", "completion": "b"}]), "item 0: question, answer, steps missing"),
        (json.dumps(entry(answer="Wren is a rat.")), "item 0: the answer 'Wren is a rat.' is not among the options"),
        (json.dumps(entry(target=0)), "item 0: target "),
        (json.dumps(entry(steps=["Every rat is a cat."])), "the step 'Every rat is a cat.' names no node"),
    ],
)
def test_a_bad_data_file_fails_its_stage_and_a_good_one_goes_on(
    here: Path, capsys: pytest.CaptureFixture[str], content: str, message: str
) -> None:
    path = here / "valid.json"
    path.write_text(content)
    arguments = command(data_only(f"data.valid={path}"))
    error = refused(capsys, arguments, 4)
    assert error.startswith(f"stepwell: stage data: {here / 'run' / 'logs' / 'data.log'}: ")
    assert message in error and ("valid.json" in error or "item" in message or "step" in message)
    assert not (here / "run" / "jobs" / "data.json").exists()
    write_items(path, ITEMS)
    assert run(arguments) == 0
    (official,) = [record for record in records(here / "run", "data", "dataset") if record["set"] == "official"]
    assert (official["n"], official["source"]) == (6, "file")


def test_unsound_data_stop_at_the_first_gate(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A target that cannot be reached is no error of a stage: it is a finding, and no training is paid for."""
    item = ITEMS[0].to_json()
    severed = f"{item['idx_to_symbol'][item['target']]}."
    kept = [line for line in item["question"].split(". ") if not f"{line}.".endswith(f" a {severed}")]
    names = item["idx_to_symbol"]
    edges = [edge for edge in item["edges"] if names[edge[1]] != names[item["target"]]]
    path = here / "valid.json"
    path.write_text(json.dumps([{**item, "question": ". ".join(kept), "edges": edges}]))
    plan = tiny("engine=inline", f"data.valid={path}", arms=("direct",))
    (gate,) = plan.gates
    strict = gate.model_copy(update={"routes": {**gate.routes, "no-go": "stop"}})
    plan = Plan.model_validate(plan.model_copy(update={"gates": (strict,)}).model_dump())
    assert run(command(plan)) == 1
    assert "decision: no-go" in capsys.readouterr().out
    assert not [job for job in started(here / "run") if job.startswith("train")]
    assert {r["code"] for r in records(here / "run", "audit", "audit") if r["set"] == "official"} >= {
        "target-unreachable"
    }


def test_hops_are_expected_as_family_and_file_say(here: Path) -> None:
    """Two hops are sound in `mini`, seven in a file that says so, any in swapped questions; elsewhere they are not."""
    for seed, name in enumerate(("ood_7hop.json", "plain.json")):
        write_items(here / name, generate_items("7hop", 6, seed))
    files = ("data.test=ood_7hop.json", "data.valid=plain.json")
    plan = data_only(*files, "data.families={no-shortcut: 20}", "data.swapped=[no-shortcut, steer]")
    assert run(command(plan)) == 0
    found = {r["set"]: (r["code"], r["count"]) for r in records(here / "run", "audit", "audit")}
    assert found.pop("official") == ("hops-out-of-range", 6)
    assert set(found) == {"train", "steer", "test", "no-shortcut", "no-shortcut-swapped", "steer-swapped"}
    assert set(found.values()) == {("clean", 0)}


def test_items_of_another_size_than_the_model_has_names_for(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = tiny("engine=inline", "data.family=id", "train.restart=null", arms=("direct",), gates=())
    error = refused(capsys, command(plan), 4)
    assert "stage train.direct.0: " in error and "two nodes would share one" in error
    assert "of the model to " in error


def test_a_set_that_is_not_there(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = tiny("engine=inline", "evaluate.sets=[official]", arms=("direct",), gates=())
    error = refused(capsys, command(plan), 4)
    assert "stage evaluate.direct.0: " in error and "there is no set `official`; sets: steer, train, test" in error
    assert "name some of them in `sets`" in error


# ---- the model


def unweighted(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def pickled(folder: Path) -> None:
    unweighted(folder)
    torch.save({"w": torch.ones(2)}, folder / "pytorch_model.bin")


def of_another_vocabulary(folder: Path) -> None:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["vocab"] |= {f"extra{i}": len(content["model"]["vocab"]) + i for i in range(5)}
    path.write_text(json.dumps(content))


def without_a_tokenizer(folder: Path) -> None:
    for path in folder.glob("*token*"):
        path.unlink()


def cut_off(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])


def text_plan(name: Path, more: str = "") -> Plan:
    model = f"model.model={{kind: text, name: {name}{more}}}"
    return tiny("engine=inline", "data.n_train=8", model, text=True, arms=("direct",), gates=())


@pytest.mark.parametrize(
    ("spoil", "message", "way_out"),
    [
        (unweighted, "no weights", "fetch or save the model again"),
        (pickled, "pickle", "where you trust the file, convert it once"),
        (of_another_vocabulary, "the tokenizer is of another vocabulary", "the tokenizer that the model was trained"),
        (without_a_tokenizer, "the model has no tokenizer", "put the tokenizer that the model was trained"),
        (cut_off, "the model cannot be loaded", "pull it again"),
    ],
)
def test_a_bad_model_folder_fails_the_model_stage(
    here: Path, capsys: pytest.CaptureFixture[str], spoil: Callable[[Path], None], message: str, way_out: str
) -> None:
    folder = model_folder(here / "model")
    spoil(folder)
    error = refused(capsys, command(text_plan(folder)), 4)
    cause, _, found = error.partition("\n  Way out: ")
    assert cause.startswith("stepwell: stage model.direct: ") and message in cause and str(folder) in cause
    assert way_out in found
    # What came before is kept, and no training began.
    assert started(here / "run") == ["data", "audit", "model.direct"]
    assert (here / "run" / "jobs" / "data.json").exists()


def test_a_model_that_is_nowhere(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = refused(capsys, command(text_plan(here / "nowhere")), 4)
    assert "there is no such model folder" in error and "give a folder with config.json" in error


def test_a_checkpoint_in_metas_layout_that_does_not_fit(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = model_folder(here / "model")
    path = here / "checkpoint_33"
    torch.save({"base_causallm.transformer.wte.weight": torch.ones(3, 4)}, path)
    error = refused(capsys, command(text_plan(folder, f", checkpoint: {path}")), 4)
    assert "stage model.direct: " in error and "the checkpoint has " in error and " missing keys: " in error
    path.write_bytes(b"not a checkpoint")
    error = refused(capsys, command(text_plan(folder, f", checkpoint: {path}")), 4)
    assert f"{path}: the checkpoint is not a plain state dict of tensors" in error


# ---- the run folder


class Killed(BaseException):
    """What no `except Exception` stops."""


def cut_in_training(plan: Plan, folder: Path, monkeypatch: pytest.MonkeyPatch, after: int = 2) -> None:
    """A run that died right after a checkpoint of its training."""
    honest, saved = stepwell.store.job.JobStore.save, 0

    def mortal(self: Any, state: dict[str, Any]) -> None:
        nonlocal saved
        honest(self, state)
        saved += 1
        if saved == after:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(stepwell.store.job.JobStore, "save", mortal)
        with pytest.raises(Killed):
            run_plan(plan, folder)


def test_a_checkpoint_of_another_run(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = tiny("engine=inline", arms=("direct",), gates=())
    for name in ("run", "other"):
        cut_in_training(plan, here / name, monkeypatch)
    foreign = here / "other" / "checkpoints" / "train.direct.0" / "last.ckpt"
    own = here / "run" / "checkpoints" / "train.direct.0" / "last.ckpt"
    own.write_bytes(foreign.read_bytes())
    error = refused(capsys, command(plan), 4)
    assert f"{own}: the checkpoint belongs to another run " in error
    assert "Delete this file: the job then starts from its beginning." in error
    assert own.exists(), "it is the user's to delete"
    own.unlink()
    assert run(command(plan)) == 0
    run_plan(plan, here / "fresh")
    assert contents(here / "run") == contents(here / "fresh")


def test_a_folder_that_cannot_be_written(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "file").write_text("")
    error = refused(capsys, command(data_only(), "file/run"), 3)
    assert f"{here / 'file' / 'run'}: the run folder cannot be written: Not a directory" in error
    with small_disk(here / "disk", 1 << 20, writable=False) as disk:
        error = refused(capsys, command(data_only(), str(disk / "run")), 3)
        assert "the run folder cannot be written: Read-only file system" in error
        assert "Name another run folder" in error


def test_a_disk_that_is_full_before(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with small_disk(here / "disk", 4 << 20) as disk:
        error = refused(capsys, command(data_only(), str(disk / "run")), 3)
        assert "the disk has 4." in error and " MB free, and the run needs about 16.8 MB" in error
        assert not (disk / "run" / "policy.json").exists()


def fill(disk: Path) -> None:
    with (disk / "ballast").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return


@pytest.mark.parametrize("when", ["checkpoint", "weights", "records"])
def test_a_disk_that_fills_up_while_something_is_saved(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    plan = tiny("engine=inline", arms=("direct",), gates=())
    run_plan(plan, here / "fresh")
    owner, name = {
        "checkpoint": (stepwell.store.job.JobStore, "save"),
        "weights": (training, "save_weights"),
        "records": (stepwell.store.job.JobStore, "finish"),
    }[when]
    with small_disk(here / "disk", 40 << 20) as disk:
        honest, calls = getattr(owner, name), 0

        def full(*arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == 3 or when == "weights":
                fill(disk)
            return honest(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, full)
            error = refused(capsys, command(plan, str(disk / "run")), 4)
        assert "no space is left on the disk" in error
        assert "then run the same command again: it goes on from there." in error
        for path in (disk / "run").rglob("*.jsonl"):
            assert all(isinstance(json.loads(line), dict) for line in path.read_text().splitlines())
        (disk / "ballast").unlink()
        assert run(command(plan, str(disk / "run"))) == 0
        assert contents(disk / "run") == contents(here / "fresh")
        assert started(disk / "run").count("data") == 1


def test_two_runs_in_one_folder(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = data_only()
    assert run(command(plan)) == 0
    before = contents(here / "run", ".")
    with RunFolder(here / "run").lock():
        error = refused(capsys, command(plan), 3)
        assert f"the run folder is in use by process {os.getpid()} on " in error
    after = contents(here / "run", ".")
    assert {name for name in before if before[name] != after.get(name)} <= {"lock"}


# ---- Ctrl-C


def test_ctrl_c(here: Path) -> None:
    """It stops behind the next checkpoint, says so in one message, and nothing is lost."""
    plan = tiny("engine=inline", "train.steps=150", "train.checkpoint_every=3", arms=("continuous",), gates=())
    process = subprocess.Popen(
        [sys.executable, "-m", "stepwell", *command(plan)],
        env={**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0,
    )  # fmt: skip
    train = here / "run" / "records" / "train.continuous.0.jsonl"
    deadline = time.monotonic() + 120
    while not (train.exists() and train.stat().st_size) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 4, errors
    assert errors == (
        f"stepwell: {here / 'run'}: the run was stopped, as asked\n"
        "  Way out: Run the same command again: it goes on from where it stopped.\n"
    )
    assert output == ""
    assert (here / "run" / "checkpoints" / "train.continuous.0" / "last.ckpt").exists()
    assert run(command(plan)) == 0
    run_plan(plan, here / "fresh")
    assert contents(here / "run") == contents(here / "fresh")
    assert started(here / "run").count("data") == 1
