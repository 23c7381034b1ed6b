"""The stages of `wire` end to end on a model of random weights: what they write, freeze, save and go on from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import contents, records
from tiny_wire import tiny_wire, wire_model

from stepwell.errors import Interrupted
from stepwell.runner import run
from stepwell.stage import StageContext
from stepwell.studies.wire.kinds import FIRST, STEP

A, B, ANSWER = "stage-a.bytes.3.0", "stage-b.bytes.3.0", "answer.bytes.3.0"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wire_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def done(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run of the bytes arm."""
    folder = tmp_path_factory.mktemp("wire") / "run"
    run(tiny_wire(model, stages=None), folder)
    return folder


def test_steps_are_optimizer_steps_with_every_loss_and_norm(done: Path) -> None:
    steps = records(done, A, "step")
    assert [row["step"] for row in steps] == [1, 2, 3, 4], "4 steps of 2 micro-batches are 4 steps"
    for row in steps:
        assert row.keys() - {"kind", "arm", "vectors", "seed"} == STEP - {"vectors"}
        assert row["items"] == 4 and row["micro_batches"] == 2 and row["mode"] == "a" and row["keep"] == 1
        for term in ("first_token", "teacher_forced", "k_token", "kd", "alignment", "manifold"):
            assert row[f"weighted_{term}"] == pytest.approx(row[f"weight_{term}"] * row[f"loss_{term}"])
        terms = [value for name, value in row.items() if name.startswith("weighted_") and value is not None]
        assert row["loss"] == pytest.approx(sum(terms))
        assert row["loss_text"] is None and row["grad_norm_speaker"] is None
        both = row["grad_norm_encoder"] ** 2 + row["grad_norm_adapter"] ** 2
        assert row["grad_norm"] == pytest.approx(both**0.5)
    assert len({row["scale"] for row in steps}) == 4, "the learned scale moves"


def test_held_out_first_tokens_come_with_interval_and_baseline(done: Path) -> None:
    for row in records(done, A, "step"):
        if row["step"] % 2:
            assert all(row[name] is None for name in FIRST)
            continue
        assert row["n"] == 5
        assert row["first_acc_low"] <= row["first_acc"] <= row["first_acc_high"] <= 1
        assert row["first_acc"] <= row["first_acc_top5"]
        assert row["majority_low"] <= row["majority_acc"] <= row["majority_high"]
    assert [row["step"] for row in records(done, A, "validation")] == [3, 4]
    assert len(records(done, A, "sample")) == 4
    for row in records(done, A, "first_tokens"):
        assert sum(row["counts"]) <= row["n"] and len(row["tokens"]) == len(row["counts"]) and row["majority"]


def test_stage_b_reads_text_first_and_latents_with_a_growing_share(done: Path) -> None:
    steps = records(done, B, "step")
    assert [row["mode"] for row in steps] == ["b"] * 6
    # 24 items of 4 a step: 6 steps are an epoch, of which .4 is warm-up.
    assert [row["keep"] for row in steps[:3]] == [0, 0, 0] and steps[-1]["keep"] > 0.5
    for row in steps[:3]:
        assert row["loss_text"] is not None and row["loss_first_token"] is None and row["grad_norm_encoder"] == 0
    ramp = [row["weight_first_token"] for row in steps]
    assert ramp == sorted(ramp) and ramp[0] == pytest.approx(0.2 * 9)
    assert all(row["weight_text"] == 1 for row in steps) and all(row["grad_norm_speaker"] > 0 for row in steps)


def test_the_model_is_proved_frozen_and_the_artifact_is_whole(done: Path) -> None:
    bases = set()
    for job, parts in ((A, {"encoder", "adapter"}), (B, {"encoder", "adapter", "speaker"})):
        (check,) = records(done, job, "check")
        assert check["name"] == "frozen" and check["passed"]
        manifest = json.loads((done / "artifacts" / job / "wire" / "artifact.json").read_text())
        assert manifest["parts"].keys() == parts
        bases.add(manifest["base"])
        (outcome,) = records(done, job, "outcome")
        assert outcome["skipped"] == 0 and outcome["steps"] in (4, 6) and outcome["max_grad_norm"] > 0
    assert len(bases) == 1, "stage B stands on the same frozen model as stage A"


def test_every_condition_is_answered_and_bytes_are_counted(done: Path) -> None:
    items = records(done, ANSWER, "item")
    sizes = {row["condition"]: row["bytes"] for row in items}
    assert sizes == {
        "latent": 3 * 8 * 4, "latent-16bit": 3 * 8 * 2, "latent-8bit": 3 * 8 + 6, "latent-4bit": 3 * 4 + 6,
        "zeros": 0, "other": 3 * 8 * 4, "mean": 0,
    }  # fmt: skip
    cut = {row["id"]: row["f1"] for row in records(done, "text", "item") if row["condition"] == "tokens-3"}
    for row in items:
        assert row["above_cut"] == row["f1"] - cut[row["id"]] and row["text_bytes"] > 100
    assert len(items) == 7 * 6
    for row in records(done, ANSWER, "summary"):
        assert sum(row["histogram"]) == row["n"] == 6
        mine = [item for item in items if item["condition"] == row["condition"]]
        assert row["f1"] == pytest.approx(sum(item["f1"] for item in mine) / 6)


def test_the_gates_judge_four_controls_and_climb_or_sweep(done: Path) -> None:
    lines = (done / "records" / "gates.jsonl").read_text().splitlines()
    verdicts = {row["gate"].split("[")[0].split(".")[0]: row for row in map(json.loads, lines)}
    assert len(verdicts["controls"]["criteria"]) == 4 and len(verdicts["ready"]["criteria"]) == 7
    f1 = max(row["f1"] for row in records(done, ANSWER, "item") if row["condition"] == "latent")
    assert verdicts["ladder"]["route"] == ("hero" if f1 > 0 else "silent")
    ran = {path.name.split(".")[0] for path in (done / "records").glob("*.jsonl")}
    assert ("sweep" in ran or "sampling" in ran) == (f1 == 0)
    for further in ("sweep", "sampling"):
        assert (f"ladder-{further}" in verdicts) == (further in ran), "what was trained on is judged as the rung before"
    for name in {"ladder-sweep", "ladder-sampling"} & verdicts.keys():
        assert [row["metric"] for row in verdicts[name]["criteria"]] == ["f1", "above_cut", "f1", "f1", "f1"]
        assert verdicts[name]["route"] in ("next", "stop")
    assert "hero" not in ran


def test_the_other_arms_run(model: Path, tmp_path: Path) -> None:
    losses = "{terms: {first_token: 3.0, kd: 1.0, hidden_kd: 0.1, reconstruction: 0.1}}"
    plan = tiny_wire(
        model, "axes.arm=[lm, deep]", f"stage-a.losses={losses}", "stage-a.sampling={floor: 0.5}",
        "stage-a.recipe.steps=2", "stage-b.recipe.steps=2", "stage-b.mixing.warmup_epochs=0",
        "answer.bits=[32, 8]",
    )  # fmt: skip
    run(plan, tmp_path / "run")
    for arm, part in (("lm", "reader"), ("deep", "deep")):
        (first, *_) = records(tmp_path / "run", f"stage-a.{arm}.3.0", "step")
        assert first[f"grad_norm_{part}"] > 0 and first["loss_reconstruction"] is not None
        assert first["loss_kd"] is not None
        items = records(tmp_path / "run", f"answer.{arm}.3.0", "item")
        assert {row["condition"] for row in items} == {"latent", "latent-8bit", "zeros", "other", "mean"}


def test_one_encoder_serves_several_m_drawn_anew_in_each_step(model: Path, tmp_path: Path) -> None:
    """The gates judge the largest M, that of the axis, by looks of every step; the others are answered beside it."""
    plan = tiny_wire(
        model, "encoder.arms.bytes.smaller=[1, 2, 5]", "text.cut_tokens=[1, 2, 3]", "answer.bits=[32]", stages=None
    )
    run(plan, tmp_path / "run")
    for job in (A, B):
        steps = records(tmp_path / "run", job, "step")
        assert {row["vectors"] for row in steps} == {3} and len({row["drawn"] for row in steps}) > 1
        assert {row["drawn"] for row in steps} <= {1, 2, 3}, "5 is not below the axis"
    items = records(tmp_path / "run", ANSWER, "item")
    names = {1: "latent-m1", 2: "latent-m2", 3: "latent"}
    assert {row["condition"] for row in items} == {*names.values(), "zeros", "other", "mean"}
    texts = records(tmp_path / "run", "text", "item")
    for m, name in names.items():
        own = [row for row in items if row["condition"] == name]
        assert len(own) == 6 and {row["bytes"] for row in own} == {m * 8 * 4}
        cut = {row["id"]: row["f1"] for row in texts if row["condition"] == f"tokens-{m}"}
        assert all(row["cut_f1"] == cut[row["id"]] for row in own), "each M beside the text cut to as many tokens"
    lines = (tmp_path / "run" / "records" / "gates.jsonl").read_text().splitlines()
    controls = next(row for row in map(json.loads, lines) if row["gate"] == "controls")
    assert [row["n"] for row in controls["criteria"]] == [6] * 4


def test_a_training_that_stops_and_goes_on_is_the_same_to_the_byte(
    model: Path, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = tiny_wire(model, stages=None)
    stops: list[str] = []

    def stop(ctx: StageContext) -> None:
        if ctx.job.kind.startswith("wire.stage") and ctx.job.id not in stops:
            stops.append(ctx.job.id)
            raise Interrupted("stopped, as asked", "go on", stage=ctx.job.id)

    monkeypatch.setattr(StageContext, "stop_if_asked", stop)
    for _ in range(4):
        run(plan, tmp_path / "run")
    assert stops[:2] == [A, B] and len(stops) == 3, "each training was stopped at its first checkpoint"
    assert contents(tmp_path / "run") == contents(done)
