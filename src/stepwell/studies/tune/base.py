"""The stage `tune.model`: which weights are trained, and how they are asked; and how later stages find them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from stepwell.backbone import HFBackbone, load_tokenizer
from stepwell.errors import StepwellError
from stepwell.merging.base import BaseIdentity
from stepwell.models import KNOWN, MANIFEST, locate
from stepwell.sft.render import ChatFormat
from stepwell.shapes import Precision
from stepwell.stage import StageContext
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

    def origin(self) -> tuple[str, str | None]:
        """By what name others find these weights, and which revision: hub id and commit, else the folder and None.

        A folder of the hub's cache, or of what was pulled, is this machine's alone: no other one has the path.
        """
        manifest = self.folder / MANIFEST
        if manifest.is_file():
            told = json.loads(manifest.read_text(encoding="utf-8"))
            if told["source"] == "hub":
                return told["repository"], told["revision"]
        elif self.folder.parent.name == "snapshots" and not Path(self.params.name).expanduser().is_dir():
            known = KNOWN.get(self.params.name)
            return known.hub if known else self.params.name, self.folder.name
        return str(self.folder), None


def check(params: TuneModelParams, ctx: StageContext) -> None:
    """Say which weights these are, refuse quantised ones, and prove that a model is asked as it is trained."""
    folder = folder_of(params)
    identity = BaseIdentity.of(folder)
    form = ChatFormat.of(load_tokenizer(folder))  # the proof is in `of`: it renders a probe both ways
    ctx.write(
        "base", model=params.name, sha256=identity.sha256, dtype=identity.dtype, quantised=identity.quantised,
        template=form.fingerprint(), stops=", ".join(form.decode([stop]) for stop in sorted(form.stops)),
    )  # fmt: skip
    allowed = params.allow_quantised or not identity.quantised
    detail = "quantised: a merge will refuse its adapter" if identity.quantised else f"weights are {identity.dtype}"
    ctx.write("check", name="full-precision", passed=allowed, detail=detail)


def folder_of(params: TuneModelParams) -> Path:
    """Where the plan's model lies. Raises StepwellError as `locate`, or where a folder is asked for a revision."""
    if params.revision is not None and Path(params.name).expanduser().is_dir():
        raise StepwellError(
            "a folder has no revisions", "leave `revision` out, or name the model by its hub id", path=params.name
        )
    return locate(params.name, revision=params.revision)


def base_of(ctx: StageContext) -> Base:
    """What the job trains on, grades or merges into: the last merged model that it needs, else the plan's model."""
    (made,) = ctx.inputs["model"]
    params = TuneModelParams.model_validate(dict(made.job.params))
    merged = ctx.made_by("tune.merge")
    if not merged:
        return Base(name=params.name, folder=folder_of(params), params=params)
    last = merged[-1]
    return Base(name=last.job.id, folder=last.folder / MERGED, params=params)
