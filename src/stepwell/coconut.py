"""Import of the argument files of Meta's COCONUT (facebookresearch/coconut, args/*.yaml) into the plan `thoughts`.

Every key of those files is known here: it sets something, or it is about the old program's own housekeeping and is
dropped with a note. A key that is in neither list is an error: a setting that is silently lost is a wrong experiment.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepwell.errors import StepwellError
from stepwell.plan.problems import listed, near, shown
from stepwell.plan.source import Source, dump, read_file

GPUS_OF_THE_ORIGINAL = 4
"""Its README trains on 4 GPUs, and `batch_size_training` is per GPU: 32 x 4 makes the effective batch of 128."""

FEEDBACK_ARMS: dict[str, str] = {
    # `feedback_mode` comes from a published fork that dissects COCONUT. Its multipass forms are the same function as
    # one pass, so they are the same arm here.
    "continuous": "continuous",
    "frozen": "frozen",
    "learned_shared": "shared",
    "pause_curriculum": "shared",
    "pause_multipass": "shared",
}
ARM_SWITCHES = ("cot", "coconut", "no_cot", "no_thoughts", "special_token")
WITHOUT_CURRICULUM = ("cot", "direct")
CURRICULUM: dict[str, tuple[str, type]] = {
    # Meta's key -> dotted key of the plan, and its type. Without a curriculum the original reads none of these.
    "c_thought": ("model.curriculum.thoughts_per_step", int),
    "epochs_per_stage": ("model.curriculum.epochs_per_stage", int),
    "max_latent_stage": ("model.curriculum.stages", int),
    "pad_latent_to_max": ("model.curriculum.pad_to_max", bool),
    "uniform_prob": ("model.curriculum.mix.share", float),
}
DIRECT: dict[str, tuple[str, type]] = {
    "model_id": ("model.model.name", str),
    "load_model_path": ("model.model.checkpoint", str),
    "num_epochs": ("train.epochs", int),
    "batch_size_training": ("train.batch_size", int),
    "lr": ("train.lr", float),
    "weight_decay": ("train.weight_decay", float),
    "train_path": ("data.train", str),
    "val_path": ("data.valid", str),
}
ELSEWHERE = (
    *ARM_SWITCHES,
    "bf16",
    "feedback_mode",
    "gradient_accumulation_steps",
    "local",
    "local_path",
    "only_eval",
    "reset_optimizer",
    "resume",
    "seed",
)
DROPPED: dict[str, str] = {
    "project": "a name for wandb",
    "name": "a run is named by its folder",
    "save_path": "a run is saved in its folder: --out",
    "save_only_improve": "best and last checkpoints are always kept",
    "debug": "use another rung: --rung smoke",
    "grpo": "reinforcement learning is no part of the study",
}


@dataclass(frozen=True, kw_only=True)
class Imported:
    """An argument file in this package's words.

    Args:
        arm: the one that the file trains. The plan runs it beside its controls; `axes.arm` says which.
        overrides: `dotted.key=value` for the plan `thoughts`.
        notes: one sentence for each thing that is not the same here, or was left out.
    """

    arm: str
    overrides: tuple[str, ...]
    notes: tuple[str, ...]


def import_args(path: Path, *, gpus: int = GPUS_OF_THE_ORIGINAL) -> Imported:
    """Read one of Meta's argument files.

    Args:
        path: the YAML file.
        gpus: how many GPUs it was made for; `batch_size_training` is per GPU.

    Raises:
        StepwellError: with file and line, for an unknown key, a value of the wrong type, or no arm or several.
    """
    source = read_file(path)
    if not isinstance(source.data, dict):
        raise StepwellError(
            f"a mapping of keys is expected, found {shown(source.data)}", "Name an args file.", path=path
        )
    known = sorted({*CURRICULUM, *DIRECT, *ELSEWHERE, *DROPPED})
    for key in source.data:
        if key not in known:
            raise _wrong(source, key, f"unknown key; allowed: {listed(known)}{near(key, known)}")
    reader = _Reader(source, [], [])
    arm = _arm(reader)
    if not reader.get("only_eval", bool):
        reader.notes.append(f"The file trains the arm `{arm}`; the plan runs it beside its controls.")
    for key, (target, sort) in (DIRECT if arm in WITHOUT_CURRICULUM else CURRICULUM | DIRECT).items():
        value = reader.get(key, sort)
        if value is not None:
            reader.set(target, value)
    _curriculum(reader, arm)
    _training(reader, arm, gpus)
    for key, why in DROPPED.items():
        if source.data.get(key):
            reader.notes.append(f"`{key}` is left out: {why}.")
    return Imported(arm=arm, overrides=tuple(reader.overrides), notes=tuple(reader.notes))


def _curriculum(reader: _Reader, arm: str) -> None:
    """What goes along with the curriculum's keys."""
    given = [key for key in CURRICULUM if key in reader.source.data]
    if arm in WITHOUT_CURRICULUM:
        if given:
            reader.notes.append(f"Left out, for `{arm}` has no curriculum: {listed(given)}.")
        return
    if "epochs_per_stage" in given:
        reader.set("model.curriculum.advance", "epochs")
    if reader.get("uniform_prob", float):
        reader.set("model.curriculum.mix.over", "all")
        reader.set("model.curriculum.mix.weights", "uniform")
    if arm == "removal" and "c_thought" in given:
        reader.notes.append("`c_thought` is for the arms beside it: `removal` has no latents.")


def _training(reader: _Reader, arm: str, gpus: int) -> None:
    """The keys that are more than a change of name."""
    accumulation = reader.get("gradient_accumulation_steps", int) or 1
    batch = reader.get("batch_size_training", int)
    if batch is not None or "gradient_accumulation_steps" in reader.source.data:
        reader.set("train.accumulation", accumulation * gpus)
    if batch is not None:
        parts = f"{batch} per GPU x {accumulation} accumulated x {gpus} GPUs"
        reader.notes.append(f"Effective batch {batch * accumulation * gpus} = {parts}.")
    if reader.get("num_epochs", int) is not None:
        reader.set("train.steps", None)
    if (reset := reader.get("reset_optimizer", bool)) is not None:
        # The original rebuilds its optimizer at every epoch, whatever its README says of stages.
        reader.set("train.reset_optimizer", "epoch" if reset else "never")
    if (bf16 := reader.get("bf16", bool)) is not None:
        reader.set("train.precision", "bf16" if bf16 else "fp32")
    if (seed := reader.get("seed", int)) is not None:
        reader.set("axes.seed", [seed])
    if reader.get("local", bool) and (folder := reader.get("local_path", str)):
        reader.set("model.model.name", folder)
    resume = reader.get("resume", int)
    if reader.get("only_eval", bool):
        _evaluation(reader, arm, resume or 0)
    elif resume:
        reader.notes.append(f"`resume: {resume}` is left out: a run here begins at epoch 0, and resumes by itself.")


def _evaluation(reader: _Reader, arm: str, resume: int) -> None:
    """`only_eval`: the checkpoint's arm alone, in the stage of the epoch that the file resumes at, and no training."""
    if reader.get("load_model_path", str) is None:
        raise _wrong(reader.source, "only_eval", "evaluates a checkpoint, and load_model_path names none")
    stage = 0
    if arm not in WITHOUT_CURRICULUM:
        each, stages = reader.get("epochs_per_stage", int), reader.get("max_latent_stage", int)
        if not each or stages is None:
            raise _wrong(reader.source, "only_eval", "needs epochs_per_stage and max_latent_stage for the stage")
        stage = min(resume // each, stages)
    reader.set("train.given", stage)
    reader.set("axes.arm", [arm])
    reader.set("gates", [])
    reader.notes.append(
        f"`only_eval`: the checkpoint is asked as arm `{arm}` in curriculum stage {stage} (`resume: {resume}`), and "
        "nothing is trained. It has no controls beside it, so no gate can decide, and all of them are left out."
    )


def _arm(reader: _Reader) -> str:
    """The one arm that the switches select."""
    on = [key for key in ARM_SWITCHES if reader.get(key, bool)]
    if on == ["coconut", "no_thoughts"]:  # the original turns `coconut` off where `no_thoughts` is on
        on = ["no_thoughts"]
    mode = reader.get("feedback_mode", str)
    if len(on) != 1:
        cause = f"{listed(on)} are all true" if on else f"none of {listed(ARM_SWITCHES)} is true"
        raise _wrong(reader.source, on[-1] if on else None, f"{cause}; exactly one selects the arm")
    if mode is not None and mode not in FEEDBACK_ARMS:
        allowed = listed(FEEDBACK_ARMS)
        raise _wrong(
            reader.source, "feedback_mode", f"allowed: {allowed}, found {shown(mode)}{near(mode, FEEDBACK_ARMS)}"
        )
    if mode in ("learned_shared", "pause_multipass"):
        reader.notes.append(f"`feedback_mode: {mode}` runs in one pass here: it is the same function.")
    arms = {"cot": "cot", "no_cot": "direct", "no_thoughts": "removal", "special_token": "shared"}
    return arms.get(on[0]) or FEEDBACK_ARMS[mode or "continuous"]


@dataclass
class _Reader:
    source: Source
    overrides: list[str]
    notes: list[str]

    def set(self, key: str, value: Any) -> None:
        """Add an override; a later one takes the place of an earlier one of the same key."""
        self.overrides = [given for given in self.overrides if not given.startswith(f"{key}=")]
        self.overrides.append(f"{key}={_inline(value)}")

    def get(self, key: str, sort: type) -> Any:
        """The value of a key as its type; None where it is absent or, as these files write it, `None`."""
        value = self.source.data.get(key)
        if value is None or value == "None":
            return None
        accepts: Callable[[Any], bool] = {
            bool: lambda given: isinstance(given, bool),
            int: lambda given: isinstance(given, int) and not isinstance(given, bool),
            float: lambda given: isinstance(given, int | float) and not isinstance(given, bool),
            str: lambda given: isinstance(given, str),
        }[sort]
        if not accepts(value):
            words = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
            raise _wrong(self.source, key, f"must be {words[sort]}, found {shown(value)}")
        return sort(value)


def _inline(value: Any) -> str:
    """A value as it is written on a command line."""
    if isinstance(value, list):
        return f"[{', '.join(_inline(item) for item in value)}]"
    return dump(value).removesuffix("\n").removesuffix("\n...")


def _wrong(source: Source, key: str | None, text: str) -> StepwellError:
    place = source.place((key,) if key else ())
    return StepwellError(f"{key}: {text}" if key else text, "Correct the file.", path=str(place))
