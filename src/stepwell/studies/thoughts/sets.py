"""What the stages that ask a trained arm begin with: the arm as it was trained, and the sets they ask about."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepwell.analysis.features import blocks
from stepwell.errors import StepwellError
from stepwell.latents.thoughts import WITH_CURRICULUM, Arm
from stepwell.stage import Input, StageContext
from stepwell.studies.thoughts.build import Built
from stepwell.studies.thoughts.params import AskParams
from stepwell.studies.thoughts.training import final_stage, model_params, reloaded
from stepwell.tasks.prosqa.reading import Reader

UNREPORTED = ("train", "steer")


@dataclass(frozen=True, kw_only=True)
class TrainedArm:
    """The arm of a job, from its weights, and what it is to be asked.

    Attributes:
        built: the model, in evaluation mode.
        stage: of the curriculum that it was trained to; 0 for arms without one.
        data: the folder of the data stage.
        names: of the sets.
    """

    built: Built
    stage: int
    data: Path
    names: Sequence[str]

    def readers(self) -> Iterator[tuple[str, Reader]]:
        """Each set as the arm reads it, one after another."""
        return ((name, self.built.reader(self.data, name)) for name in self.names)


def trained_arm(params: AskParams, ctx: StageContext) -> TrainedArm:
    """The arm of this job, as the stage `train` left it.

    Raises:
        StepwellError: as `chosen_sets`.
    """
    arm: Arm = ctx.job.axes["arm"]
    (trained,), (data,) = ctx.inputs["train"], ctx.inputs["data"]
    built = reloaded(model_params(ctx), arm, trained.folder / f"{params.weights}.safetensors", ctx)
    stage = final_stage(trained.records("trained")) if arm in WITH_CURRICULUM else 0
    return TrainedArm(built=built, stage=stage, data=data.folder, names=chosen_sets(params.sets, data))


def chosen_layers(wanted: Sequence[int], backbone: Any) -> list[int]:
    """The layers wanted, or all, from what enters the first block (0) to what leaves the last (`analysis.features`).

    Raises:
        StepwellError: a layer that the model does not have.
    """
    most = len(blocks(backbone))
    if beyond := [layer for layer in wanted if layer > most]:
        raise StepwellError(
            f"there is no layer {beyond[0]}: the model has layers 0 to {most}",
            "name some of them in `layers`, or leave it empty for all",
        )
    return sorted(set(wanted)) or list(range(most + 1))


def chosen_sets(wanted: Sequence[str], data: Input) -> list[str]:
    """The sets wanted, or all but training and steering.

    Raises:
        StepwellError: a set that the data stage did not make.
    """
    made = [record["set"] for record in data.records("dataset")]
    if unknown := [name for name in wanted if name not in made]:
        raise StepwellError(
            f"there is no set `{unknown[0]}`; sets: {', '.join(made)}",
            "name some of them in `sets`, or leave it empty for all but training and steering",
        )
    return list(wanted) or [name for name in made if name not in UNREPORTED]
