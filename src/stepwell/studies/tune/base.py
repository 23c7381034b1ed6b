"""The stage `tune.model`: which weights are trained, and how they are asked; and how later stages find them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from stepwell.backbone import HFBackbone, load_tokenizer
from stepwell.errors import StepwellError
from stepwell.merging.base import BaseIdentity
from stepwell.models import locate
from stepwell.sft.render import ChatFormat
from stepwell.shapes import Precision
from stepwell.stage import Input, StageContext
from stepwell.studies.tune.params import TuneModelParams

MERGED, ADAPTER = "merged", "adapter"
"""Folders among a job's artifacts."""


@dataclass(frozen=True, kw_only=True)
class Base:
    """A model that is trained or graded.

    Attributes:
        name: for records and lineage: as the plan has it, or the job that merged it.
        folder: of its weights.
        params: of the stage `tune.model`.
    """

    name: str
    folder: Path
    params: TuneModelParams

    def load(self, device: str, precision: Precision | None = None) -> HFBackbone:
        """The model, in the plan's precision unless another is named. Raises as `HFBackbone.load`."""
        return HFBackbone.load(
            self.folder, precision=precision or self.params.precision, device=device,
            gradient_checkpointing=self.params.gradient_checkpointing,
        )  # fmt: skip


def check(params: TuneModelParams, ctx: StageContext) -> None:
    """Say which weights these are, refuse quantised ones, and prove that a model is asked as it is trained."""
    folder = locate(params.name)
    identity = BaseIdentity.of(folder)
    form = ChatFormat.of(load_tokenizer(params.name))  # the proof is in `of`: it renders a probe both ways
    ctx.write(
        "base", model=params.name, sha256=identity.sha256, dtype=identity.dtype, quantised=identity.quantised,
        template=form.fingerprint(), stops=", ".join(form.decode([stop]) for stop in sorted(form.stops)),
    )  # fmt: skip
    allowed = params.allow_quantised or not identity.quantised
    detail = "quantised: a merge will refuse its adapter" if identity.quantised else f"weights are {identity.dtype}"
    ctx.write("check", name="full-precision", passed=allowed, detail=detail)


def base_of(ctx: StageContext) -> Base:
    """What the job trains on, grades or merges into: the last merged model that it needs, else the plan's model."""
    (made,) = ctx.inputs["model"]
    params = TuneModelParams.model_validate(dict(made.job.params))
    merged = inputs_of(ctx, "tune.merge")
    if not merged:
        return Base(name=params.name, folder=locate(params.name), params=params)
    last = merged[-1]
    return Base(name=last.job.id, folder=last.folder / MERGED, params=params)


def inputs_of(ctx: StageContext, kind: str) -> list[Input]:
    """The needed jobs of a kind, in the order in which the stage names them."""
    return [made for inputs in ctx.inputs.values() for made in inputs if made.job.kind == kind]


def one_input(ctx: StageContext, kind: str) -> Input:
    """The one needed job of a kind.

    Raises:
        StepwellError: there is none, or there are several.
    """
    found = inputs_of(ctx, kind)
    if len(found) != 1:
        raise StepwellError(
            f"the stage needs one job of the kind `{kind}`, and has {len(found)}",
            "name one such stage in its `needs`, on the same axes",
            stage=ctx.job.id,
        )
    return found[0]


def data_of(ctx: StageContext) -> Input:
    """The job that made the data."""
    return one_input(ctx, "tune.data")
