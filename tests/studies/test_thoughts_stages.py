"""The plan `thoughts` from end to end, tiny: every arm, symbols and text, and what each stage must record."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import ARMS, contents, events, model_folder, records, tiny

import stepwell.studies.thoughts.training as training
from stepwell import kinds
from stepwell.errors import StageFailed
from stepwell.fingerprint import of_file
from stepwell.plan import Plan
from stepwell.runner import RunResult, run
from stepwell.studies.thoughts.build import build
from stepwell.studies.thoughts.params import ModelParams
from stepwell.tasks.prosqa import load_items

LATENT_ARMS = ("continuous", "frozen", "shared")


@pytest.fixture(scope="module", params=["symbols", "text"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, RunResult]:
    """All six arms, run once."""
    plan = tiny("engine=inline", text=request.param == "text", arms=ARMS)
    return plan, run(plan, tmp_path_factory.mktemp(request.param) / "run")


@pytest.fixture
def folder(whole: tuple[Plan, RunResult]) -> Path:
    return whole[1].folder


def is_text(plan: Plan) -> bool:
    return plan.stage("model").params["model"]["kind"] == "text"


def test_every_job_is_done_and_the_set_up_is_sound(whole: tuple[Plan, RunResult]) -> None:
    _, result = whole
    assert set(result.jobs.values()) == {"done"}
    assert len(result.jobs) == sum(len(ARMS) if stage.each else 1 for stage in whole[0].stages)
    assert [(v.gate, v.decision) for v in result.verdicts] == [("setup", "go")]


def test_every_record_has_the_documented_fields(whole: tuple[Plan, RunResult]) -> None:
    plan, result = whole
    seen: set[tuple[str, str]] = set()
    for job in result.jobs:
        stage = plan.stage(job.split(".")[0])
        yields = kinds.kind(stage.kind).yields
        for record in records(result.folder, job):
            seen.add((stage.name, record["kind"]))
            assert record["kind"] in yields, f"{job} writes the kind {record['kind']}, which is not documented"
            assert yields[record["kind"]] <= set(record), f"{job}: {record}"
            assert {"arm", "seed"} >= set(record) & {"arm", "seed"} == set(stage.each)
            assert not any(isinstance(value, float) and not math.isfinite(value) for value in record.values())
    wanted = {(s.name, kind) for s in plan.stages for kind in kinds.kind(s.kind).yields}
    assert wanted - seen == {("train", "restart"), ("train", "alert")}, "what did not happen is not recorded"


def test_the_data_are_what_their_records_say(folder: Path) -> None:
    found = records(folder, "data", "dataset")
    assert {record["set"] for record in found} == {"train", "steer", "test"}
    for record in found:
        path = folder / "artifacts" / "data" / f"{record['set']}.safetensors"
        assert record["sha256"] == of_file(path)
        assert len(load_file(path)["root"]) == record["n"]
        assert len(load_items(path.with_suffix(".json"))) == record["as_text"]


def test_every_arm_is_asked_the_same_items(whole: tuple[Plan, RunResult]) -> None:
    plan, result = whole
    items = load_items(result.folder / "artifacts" / "data" / "test.json")
    wanted = [item.id for item in items]
    for arm in ARMS:
        found = records(result.folder, f"evaluate.{arm}.0", "item")
        assert {record["condition"] for record in found} == {"clean"}
        assert [record["id"] for record in found] == wanted and len(wanted) == 16
        assert [record["hops"] for record in found] == [item.hops for item in items]
        if is_text(plan):
            assert [record["answer"] for record in found] == [item.answer for item in items]


def test_items_are_scored_as_they_say(whole: tuple[Plan, RunResult]) -> None:
    plan, result = whole
    for arm in ARMS:
        for record in records(result.folder, f"evaluate.{arm}.0", "item"):
            assert record["forced_correct"] is (record["margin"] > 0)
            assert isinstance(record["correct"], bool) and isinstance(record["prediction"], str)
            assert record["chain_valid"] in (None, True, False)
            if is_text(plan):
                assert record["correct"] is (record["prediction"] == record["answer"])
    margins = [[r["margin"] for r in records(result.folder, f"evaluate.{arm}.0", "item")] for arm in LATENT_ARMS]
    assert len(set(map(json.dumps, margins))) == 3, "the arm is not without effect on the margins"


def test_the_number_of_latents_is_the_stages_and_never_the_items(folder: Path) -> None:
    for arm in ARMS:
        (trained,) = records(folder, f"train.{arm}.0", "trained")
        wanted = trained["curriculum_stage"] if arm in LATENT_ARMS else 0
        found = records(folder, f"evaluate.{arm}.0", "item")
        assert {record["latents"] for record in found} == {wanted}
        if arm in LATENT_ARMS:
            assert wanted == max(r["curriculum_stage"] for r in records(folder, f"train.{arm}.0", "step")) == 2
            assert len({record["hops"] for record in found}) > 1


def test_arms_share_their_data_order_and_start(folder: Path) -> None:
    """Before the first latent appears, arms with a curriculum are `cot` with or without markers."""
    first = {arm: records(folder, f"train.{arm}.0", "step")[0] for arm in ARMS}
    assert first["removal"]["loss"] == first["cot"]["loss"]
    assert len({first[arm]["loss"] for arm in LATENT_ARMS}) == 1
    assert first["direct"]["loss"] != first["cot"]["loss"]


def test_parameters_are_accounted_for(folder: Path) -> None:
    found = {arm: records(folder, f"model.{arm}", "parameters")[0] for arm in ARMS}
    width = found["frozen"]["frozen_buffers"]
    assert width in (16, 32)
    assert found["continuous"]["trainable"] == found["cot"]["trainable"] == found["frozen"]["trainable"]
    assert found["shared"]["trainable"] == found["cot"]["trainable"] + width
    assert {found[arm]["frozen_buffers"] for arm in ARMS if arm != "frozen"} == {0}


def test_best_and_last_are_safetensors_of_one_shape_and_were_rescored(
    whole: tuple[Plan, RunResult], folder: Path
) -> None:
    for arm in ARMS:
        last, best = (load_file(folder / "artifacts" / f"train.{arm}.0" / f"{n}.safetensors") for n in ("last", "best"))
        assert {k: v.shape for k, v in last.items()} == {k: v.shape for k, v in best.items()}
        assert ("vector" in last) == (arm in ("frozen", "shared"))
        checks = {c["name"]: c for c in records(folder, f"train.{arm}.0", "check")}
        failed = {name for name, check in checks.items() if not check["passed"]}
        # Two stages, and items of up to three hops.
        assert failed == ({"steps-removed"} if is_text(whole[0]) and arm not in ("cot", "direct") else set())
        details = [c["detail"].split(":")[0] for c in records(folder, f"train.{arm}.0", "check") if ":" in c["detail"]]
        assert details == ["last", "best"]
        assert ("vector-moved" in checks) == (arm == "shared")


def test_a_run_leaves_no_checkpoint_and_no_half_written_file(folder: Path) -> None:
    assert not list((folder / "checkpoints").glob("*/*"))
    assert not [name for name in contents(folder) if name.endswith((".partial", ".part"))]


# ---- what a stage does when something is wrong


def small(*overrides: str, arms: tuple[str, ...] = ("direct",)) -> Plan:
    return tiny("engine=inline", *overrides, arms=arms, gates=())


LEARNS = ("train.steps=120", "train.lr=1e-2", "train.validate_every=40", "data.n_train=600", "model.model.width=32")


@pytest.mark.parametrize("file", ["last", "best"])
def test_weights_that_do_not_score_as_the_model_did_fail_the_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    honest = training.load_weights

    def broken(module: torch.nn.Module, path: Path) -> None:
        honest(module, path)
        if path.stem == file:
            with torch.no_grad():
                next(module.parameters()).zero_()

    monkeypatch.setattr(training, "load_weights", broken)
    with pytest.raises(StageFailed, match=f"the saved weights do not score as the model did: {file}: ") as caught:
        run(small(*LEARNS), tmp_path / "run")
    assert caught.value.stage == "train.direct.0" and caught.value.exit_code == 4
    (check,) = [c for c in records(tmp_path / "run", "train.direct.0", "check") if not c["passed"]]
    assert check["name"] == "reloaded-rescored" and check["detail"].endswith(" 0 after reading back")


def test_the_best_weights_are_those_of_the_best_look(tmp_path: Path) -> None:
    """At a rate that ruins the model in the end, `best` and `last` differ, and each is evaluated when asked for."""
    settings = (*LEARNS, "train.validate_every=10", "train.lr=3e-2", "train.clip=null", "train.weight_decay=0.5",
                "train.schedule=constant", "train.monitors.divergence=off")  # fmt: skip
    found = {}
    for which in ("last", "best"):
        folder = tmp_path / which
        run(small(*settings, f"evaluate.weights={which}"), folder)
        found[which] = records(folder, "evaluate.direct.0", "item")
        looks = [r["accuracy"] for r in records(folder, "train.direct.0", "validation")]
        details = [c["detail"] for c in records(folder, "train.direct.0", "check") if c["name"] == "reloaded-rescored"]
        assert details[1].startswith(f"best: {max(looks) * 24:.0f} of 24")
        assert details[0].startswith(f"last: {looks[-1] * 24:.0f} of 24")
    last, best = (load_file(tmp_path / "last" / "artifacts" / "train.direct.0" / f"{n}.safetensors")
                  for n in ("last", "best"))  # fmt: skip
    assert any(not torch.equal(last[name], best[name]) for name in last)
    assert found["last"] != found["best"]


def test_a_training_begins_again_with_other_weights_and_direct_never_does(tmp_path: Path) -> None:
    plan = small(
        "train.restart={bar: 1.0, after_steps: 10, most: 2}", "model.curriculum.min_steps=100",
        "model.curriculum.max_steps=null", arms=("cot", "direct", "continuous"),
    )  # fmt: skip
    result = run(plan, tmp_path / "run")
    for arm in ("cot", "continuous"):
        found = records(result.folder, f"train.{arm}.0")
        restarts = [record for record in found if record["kind"] == "restart"]
        assert [(r["attempt"], r["step"]) for r in restarts] == [(1, 10), (2, 10)]
        assert restarts[0]["reason"].endswith("in stage 0, below 1 after 10 steps")
        steps = [record for record in found if record["kind"] == "step"]
        # Two attempts of 10 steps, then one that goes to the end, whatever it reaches.
        assert [record["step"] for record in steps] == [*range(2, 11, 2), *range(2, 11, 2), *range(2, 31, 2)]
        starts = [record["loss"] for record in steps if record["step"] == 2]
        assert len(set(starts)) == 3, "other weights, other order"
    assert records(result.folder, "train.direct.0", "restart") == []
    # The arms' first attempts, and each later one, start from the same seed.
    losses = [[r["loss"] for r in records(result.folder, f"train.{a}.0", "step")] for a in ("cot", "continuous")]
    assert losses[0][10:] != losses[0][:10]
    assert losses[0][0] == losses[1][0] and losses[0][10] == losses[1][10], "symbols have no markers"


def test_a_monitor_that_stops_fails_the_job_and_says_so(tmp_path: Path) -> None:
    plan = small("train.monitors.flat=stop", "train.monitors.flat_steps=6", "train.monitors.flat_share=0.99")
    with pytest.raises(StageFailed) as caught:
        run(plan, tmp_path / "run")
    assert "monitor `flat` stopped the training at step 6: loss " in str(caught.value)
    assert "`monitors.flat: alert` in the stage's params lets it go on" in caught.value.way_out
    (alert,) = records(tmp_path / "run", "train.direct.0", "alert")
    assert (alert["monitor"], alert["step"], alert["stopped"]) == ("flat", 6, True)
    # Told to go on, it goes on from its checkpoint at step 4, and the alert is there once.
    run(small("train.monitors.flat_steps=6", "train.monitors.flat_share=0.99"), tmp_path / "run")
    (alert,) = records(tmp_path / "run", "train.direct.0", "alert")
    assert alert["stopped"] is False


def test_trackers_get_the_curves_of_a_real_run_and_one_that_fails_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[tuple[int, dict[str, Any]]] = []

    def fails(numbers: dict[str, Any], step: int) -> None:
        raise ConnectionError("planted")

    for name, log in (("trackio", lambda numbers, step: sent.append((step, numbers))), ("wandb", fails)):
        module = ModuleType(name)
        module.__dict__["init"] = lambda log=log, **given: SimpleNamespace(log=log)
        monkeypatch.setitem(sys.modules, name, module)
    run(small("train.trackers=[trackio, wandb]"), tmp_path / "tracked")
    run(small(), tmp_path / "plain")
    curves = [r for r in records(tmp_path / "tracked", "train.direct.0") if r["kind"] in ("step", "validation")]
    assert [step for step, _ in sent] == [record["step"] for record in curves]
    assert sent[0][1]["step/loss"] == curves[0]["loss"]
    (failed,) = events(tmp_path / "tracked", "tracker-failed")
    assert (failed["tracker"], failed["error"], failed["job"]) == (
        "wandb",
        "ConnectionError: planted",
        "train.direct.0",
    )
    # They change nothing that is recorded.
    assert contents(tmp_path / "tracked", "records") == contents(tmp_path / "plain", "records")


def test_a_tracker_that_is_not_installed_is_said_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(StageFailed, match="tracker `wandb` is not installed") as caught:
        run(small("train.trackers=[wandb]"), tmp_path / "run")
    assert "stepwell[tracking]" in caught.value.way_out
    assert records(tmp_path / "run", "train.direct.0") == []


# ---- a pretrained model and a checkpoint in Meta's layout


@pytest.fixture
def pretrained(tmp_path: Path) -> Path:
    return model_folder(tmp_path / "model")


def test_a_folder_model_and_a_checkpoint_in_metas_layout_go_the_whole_way(tmp_path: Path, pretrained: Path) -> None:
    from stepwell.backbone import HFBackbone

    trained = HFBackbone.load(pretrained, device="cpu")
    base = {key: value.clone() for key, value in trained.model.state_dict().items()}
    # Meta's order: of its rows, only the place says which token they are of.
    start, end, latent = trained.add_tokens(["<|start-latent|>", "<|end-latent|>", "<|latent|>"])
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    state = {f"base_causallm.{key}": value for key, value in trained.model.state_dict().items()}
    state["embedding.weight"] = trained.model.get_input_embeddings().weight.detach()
    torch.save(state, tmp_path / "checkpoint_33")
    # Its arms without thoughts have no markers.
    torch.save({key: value + 0.01 for key, value in base.items()}, tmp_path / "cot_33")
    few = ("data.n_train=8", "data.n_steer=8", "data.n_test=8", "train.given=2")
    loaded = {}
    for name, arm in (("checkpoint_33", "continuous"), ("cot_33", "cot")):
        spec = f"{{kind: text, name: {pretrained}, checkpoint: {tmp_path / name}}}"
        plan = tiny("engine=inline", *few, f"model.model={spec}", text=True, arms=(arm,), gates=("setup",))
        result = run(plan, tmp_path / arm)
        assert set(result.jobs.values()) == {"done"}
        found = records(result.folder, f"evaluate.{arm}.0", "item")
        assert len(found) == 8
        assert kinds.kind("thoughts.evaluate").yields["item"] <= set(found[0])
        of_training = records(result.folder, f"train.{arm}.0")
        assert {one["kind"] for one in of_training} == {"check", "trained"}, "nothing is trained"
        assert next(one for one in of_training if one["kind"] == "trained")["curriculum_stage"] == 2
        loaded[arm] = load_file(result.folder / "artifacts" / f"train.{arm}.0" / "last.safetensors")
        # What the labels say can be read in the records, in the model's own tokens.
        (shown,) = [c for c in records(result.folder, f"model.{arm}", "check") if c["name"] == "supervision"]
        assert "##" in shown["detail"] and ("\\n" in shown["detail"]) == (arm == "cot")
    wanted = trained.model.get_input_embeddings().weight
    key = next(key for key, value in loaded["continuous"].items() if value.shape == wanted.shape)  # tied: saved once
    assert torch.equal(loaded["continuous"][key], wanted)
    rows = wanted[[start, end, latent]]
    assert len(rows.unique(dim=0)) == 3, "were the rows alike, their order would not be seen"
    model = ModelParams.model_validate({"model": {"kind": "text", "name": str(pretrained),
                                                  "checkpoint": str(tmp_path / "checkpoint_33")}})  # fmt: skip
    built = build(model, "continuous", seed=0, device="cpu")
    assert tuple(built.markers) == (start, latent, end)
    assert torch.equal(built.thoughts.backbone.embed(torch.tensor([built.markers]))[0], wanted[[start, latent, end]])
    bare = base["transformer.wte.weight"] + 0.01
    torch.testing.assert_close(loaded["cot"][key][: len(bare)], bare, rtol=0, atol=1e-6)


def test_weights_are_taken_as_given_only_where_there_are_some(tmp_path: Path) -> None:
    with pytest.raises(StageFailed, match="`given` takes a checkpoint as it is, and the model has none"):
        run(small("train.given=1"), tmp_path / "none")
