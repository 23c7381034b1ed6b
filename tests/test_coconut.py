from __future__ import annotations

from pathlib import Path

import pytest

from stepwell.cli import run
from stepwell.coconut import import_args
from stepwell.errors import StepwellError
from stepwell.plan import load_plan
from stepwell.plan.source import read_text

# The keys and values that the official file for ProsQA sets, in this test's own order.
PROSQA = """\
cot: False
coconut: True
no_cot: False
no_thoughts: False
special_token: False
c_thought: 1
epochs_per_stage: 5
max_latent_stage: 6
pad_latent_to_max: True
uniform_prob: 0.0
model_id: openai-community/gpt2
load_model_path: None
seed: 0
resume: 0
bf16: False
batch_size_training: 32
gradient_accumulation_steps: 1
num_epochs: 50
lr: !!float "1e-4"
weight_decay: 0.01
reset_optimizer: True
train_path: data/prosqa_train.json
val_path: data/prosqa_valid.json
project: coconut
name: prosqa-coconut
save_path: somewhere
save_only_improve: False
only_eval: False
debug: False
local: False
local_path: /models/gpt2
"""


def imported(tmp_path: Path, text: str, **options):
    path = tmp_path / "args.yaml"
    path.write_text(text)
    return import_args(path, **options)


def values(tmp_path: Path, text: str, **options) -> dict:
    pairs = (override.partition("=") for override in imported(tmp_path, text, **options).overrides)
    return {key: read_text(value, "x").data for key, _, value in pairs}


def refused(tmp_path: Path, text: str) -> str:
    with pytest.raises(StepwellError) as caught:
        imported(tmp_path, text)
    return str(caught.value)


def test_the_official_file_becomes_the_original_recipe(tmp_path: Path) -> None:
    assert imported(tmp_path, PROSQA).arm == "continuous"
    assert values(tmp_path, PROSQA) == {
        "model.curriculum.thoughts_per_step": 1,
        "model.curriculum.epochs_per_stage": 5,
        "model.curriculum.advance": "epochs",
        "model.curriculum.stages": 6,
        "model.curriculum.pad_to_max": True,
        "model.curriculum.mix.share": 0.0,
        "model.model.name": "openai-community/gpt2",
        "train.epochs": 50,
        "train.steps": None,
        "train.batch_size": 32,
        "train.accumulation": 4,
        "train.lr": 1e-4,
        "train.weight_decay": 0.01,
        "train.reset_optimizer": "epoch",
        "train.precision": "fp32",
        "axes.seed": [0],
        "data.train": "data/prosqa_train.json",
        "data.valid": "data/prosqa_valid.json",
    }


def test_the_shipped_plan_takes_every_override_and_says_the_same(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for name in ("train", "valid"):
        (tmp_path / f"data/prosqa_{name}.json").write_text("[]")
    (tmp_path / "args.yaml").write_text(PROSQA.replace("uniform_prob: 0.0", "uniform_prob: 0.3"))
    assert run(["import-coconut", "args.yaml", "--out", "plan.yaml"]) == 0, capsys.readouterr().err
    plan = load_plan(tmp_path / "plan.yaml")
    train, model = plan.stage("train").params, plan.stage("model").params
    assert (train["epochs"], train["lr"], train["batch_size"] * train["accumulation"]) == (50, 1e-4, 128)
    assert model["curriculum"]["mix"] == {"share": 0.3, "over": "all", "weights": "uniform"}
    assert model["model"]["name"] == "openai-community/gpt2"
    assert "continuous" in plan.axes["arm"]
    assert plan.axes["seed"] == (0,)


def test_the_batch_is_per_gpu_there(tmp_path: Path) -> None:
    text = PROSQA.replace("accumulation_steps: 1", "accumulation_steps: 2")
    assert values(tmp_path, text, gpus=1)["train.accumulation"] == 2
    notes = imported(tmp_path, text, gpus=8).notes
    assert "Effective batch 512 = 32 per GPU x 2 accumulated x 8 GPUs." in notes


@pytest.mark.parametrize(
    ("switch", "arm"),
    [
        ("cot", "cot"),
        ("no_cot", "direct"),
        ("no_thoughts", "removal"),
        ("special_token", "shared"),
        ("coconut", "continuous"),
    ],
)
def test_each_switch_is_an_arm(tmp_path: Path, switch: str, arm: str) -> None:
    text = PROSQA.replace("coconut: True", "coconut: False", 1).replace(f"{switch}: False", f"{switch}: True", 1)
    assert imported(tmp_path, text).arm == arm


def test_no_thoughts_wins_over_coconut_as_it_does_there(tmp_path: Path) -> None:
    text = PROSQA.replace("no_thoughts: False", "no_thoughts: True")
    assert imported(tmp_path, text).arm == "removal"


@pytest.mark.parametrize(
    ("mode", "arm", "noted"),
    [
        ("continuous", "continuous", False),
        ("frozen", "frozen", False),
        ("learned_shared", "shared", True),
        ("pause_curriculum", "shared", False),
        ("pause_multipass", "shared", True),
    ],
)
def test_feedback_modes_are_arms_and_several_passes_are_one(tmp_path: Path, mode: str, arm: str, noted: bool) -> None:
    text = PROSQA + f"feedback_mode: {mode}\n"
    assert imported(tmp_path, text).arm == arm
    assert any("runs in one pass here" in note for note in imported(tmp_path, text).notes) == noted


def test_checkpoints_resumption_precision_and_local_models(tmp_path: Path) -> None:
    text = PROSQA.replace("load_model_path: None", "load_model_path: cot/checkpoint_22").replace(
        "resume: 0", "resume: 3"
    )
    text = text.replace("bf16: False", "bf16: true").replace("local: False", "local: True")
    text = text.replace("reset_optimizer: True", "reset_optimizer: False")
    found = values(tmp_path, text)
    assert found["model.model.checkpoint"] == "cot/checkpoint_22"
    assert any("`resume: 3` is left out" in note for note in imported(tmp_path, text).notes)
    assert found["train.precision"] == "bf16"
    assert found["model.model.name"] == "/models/gpt2"
    assert found["train.reset_optimizer"] == "never"


def test_an_arm_without_curriculum_leaves_the_curriculum_of_the_plan_alone(tmp_path: Path) -> None:
    text = PROSQA.replace("coconut: True", "coconut: False").replace("cot: False\n", "cot: True\n", 1)
    text = text.replace("c_thought: 1", "c_thought: 0")  # as the official file for chain of thought has it
    assert not any(key.startswith("model.curriculum") for key in values(tmp_path, text))
    assert any(
        note.startswith("Left out, for `cot` has no curriculum: c_thought, ") for note in imported(tmp_path, text).notes
    )


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    notes = imported(tmp_path, PROSQA.replace("save_only_improve: False", "save_only_improve: True")).notes
    assert "`save_only_improve` is left out: best and last checkpoints are always kept." in notes
    assert not any("debug" in note for note in notes)


EVAL = PROSQA.replace("only_eval: False", "only_eval: True").replace("resume: 0", "resume: 40")


def test_an_evaluation_takes_the_checkpoint_in_the_stage_of_its_epoch(tmp_path: Path) -> None:
    """Meta asks a model in stage min(epoch // epochs_per_stage, max_latent_stage), from epoch `resume` on."""
    named = EVAL.replace("load_model_path: None", "load_model_path: saved/checkpoint_40")
    found = values(tmp_path, named)
    assert found["train.given"] == 6 and found["axes.arm"] == ["continuous"] and found["gates"] == []
    assert found["model.model.checkpoint"] == "saved/checkpoint_40"
    files = [tmp_path / name for name in ("checkpoint_40", "train.json", "valid.json")]
    for file in files:
        file.touch()
    there = {"saved/checkpoint_40": files[0], "data/prosqa_train.json": files[1], "data/prosqa_valid.json": files[2]}
    overrides = imported(tmp_path, named).overrides
    assert all(any(name in override for override in overrides) for name in there)
    for name, file in there.items():
        overrides = [override.replace(name, str(file)) for override in overrides]
    assert load_plan("thoughts", rung="hero", overrides=overrides).gates == ()
    early = values(tmp_path, named.replace("resume: 40", "resume: 12"))
    assert early["train.given"] == 2
    written = named.replace("coconut: True", "coconut: False").replace("cot: False", "cot: True", 1)
    assert values(tmp_path, written)["train.given"] == 0
    assert "train.given" not in values(tmp_path, PROSQA)
    assert "load_model_path names none" in refused(tmp_path, EVAL)
    no_stage = "needs epochs_per_stage and max_latent_stage"
    assert no_stage in refused(tmp_path, named.replace("epochs_per_stage: 5\n", ""))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("c_thought: 1", "c_thoughts: 1", "args.yaml:6: c_thoughts: unknown key; allowed: "),
        ("c_thought: 1", "c_thoughts: 1", "did you mean `c_thought`?"),
        ("c_thought: 1", "c_thought: one", 'args.yaml:6: c_thought: must be a whole number, found "one"'),
        ("c_thought: 1", "c_thought: true", "args.yaml:6: c_thought: must be a whole number, found true"),
        ("bf16: False", "bf16: 1", "bf16: must be true or false, found 1"),
        ('lr: !!float "1e-4"', "lr: fast", 'lr: must be a number, found "fast"'),
        ("cot: False\n", "cot: True\n", "cot, coconut are all true; exactly one selects the arm"),
        ("coconut: True", "coconut: False", "none of cot, coconut, no_cot, no_thoughts, special_token is true"),
        ("seed: 0", "seed: 0\nseed: 1", "seed: duplicate key"),
        ("debug: False", "feedback_mode: pause_curiculum", "did you mean `pause_curriculum`?"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert message in refused(tmp_path, PROSQA.replace(old, new, 1))


def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path) -> None:
    assert "a mapping of keys is expected, found [1]" in refused(tmp_path, "[1]")
    with pytest.raises(StepwellError, match="no such file"):
        import_args(tmp_path / "gone.yaml")
