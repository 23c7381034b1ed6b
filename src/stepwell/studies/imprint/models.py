"""The stage `imprint.model`: the model that vectors are fitted to, and the self-test of its labels."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from stepwell.backbone import HFBackbone
from stepwell.errors import StepwellError
from stepwell.fitting.selftest import self_test
from stepwell.latents.prompt import mode_vectors
from stepwell.shapes import Shape
from stepwell.stage import StageContext
from stepwell.studies.imprint.params import ModelParams, OneModel, Scratch


class ByteTokenizer:
    """One token a byte of UTF-8, and an end token: for models of random weights."""

    eos_token_id = 256
    unk_token_id = None

    def __len__(self) -> int:
        return 257

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """The bytes of a text; nothing is added at either end."""
        return list(text.encode())

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """The text of some bytes; what is no UTF-8 becomes a replacement character."""
        return bytes(number for number in ids if number < 256).decode(errors="replace")


def scratch(shape: Scratch, precision: str, device: str) -> HFBackbone:
    """A model of random weights, so large that attention and positions matter."""
    tokenizer = ByteTokenizer()
    made = Shape(
        architecture=shape.architecture, vocabulary=len(tokenizer), width=shape.width, layers=shape.layers,
        heads=shape.heads, max_positions=shape.max_positions,
    )  # fmt: skip
    backbone = HFBackbone.from_shape(made, precision="fp32", device="cpu")
    generator = torch.Generator().manual_seed(0)
    for parameter in backbone.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=shape.deviation, generator=generator)
    backbone.tokenizer = tokenizer
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}
    return backbone.to(device=device, dtype=dtypes[precision])


def chosen(params: ModelParams, ctx: StageContext) -> OneModel:
    """The model of the job's axis. Raises StepwellError where the plan does not say what it is."""
    name = str(ctx.job.axes["model"])
    if name not in params.models:
        raise StepwellError(
            f"there is no model `{name}`; models: {', '.join(params.models)}", "name some of them in `axes.model`"
        )
    return params.models[name]


def check(params: ModelParams, ctx: StageContext) -> None:
    """Load the model, say which it is, and prove that a target's labels are where its tokens are predicted."""
    one, missing = chosen(params, ctx), None
    try:
        backbone = HFBackbone.load(one.name, precision=one.precision, device=ctx.device)
    except StepwellError as error:
        if one.otherwise is None:
            raise
        missing = error.cause
        backbone = scratch(one.otherwise, one.precision, ctx.device)
    modes = _modes(backbone, params, fallback=missing is not None)
    ctx.write(
        "model", name=one.name, fallback=missing is not None, why=missing, width=backbone.width,
        parameters=sum(parameter.numel() for parameter in backbone.parameters()), vocabulary=backbone.vocabulary,
        max_positions=backbone.max_positions, precision=one.precision, modes=sorted(modes),
    )  # fmt: skip
    if missing is not None:
        ctx.event("model-missing", model=one.name, cause=missing)
    found = self_test(backbone)
    ctx.write("check", name="self-test", passed=found.passed, detail=found.detail)


def loaded(ctx: StageContext, device: str | None = None) -> tuple[HFBackbone, dict[str, Tensor]]:
    """The model of this job as the model stage found it, and its mode vectors (D,).

    Args:
        ctx: of the job.
        device: where it is put; None = the job's device.

    Raises:
        StepwellError: it cannot be had any more.
    """
    (made,) = ctx.inputs["model"]
    params = ModelParams.model_validate(dict(made.job.params))
    one, fallback = chosen(params, ctx), next(made.records("model"))["fallback"]
    device = device or ctx.device
    if fallback:
        assert one.otherwise is not None
        backbone = scratch(one.otherwise, one.precision, device)
    else:
        backbone = HFBackbone.load(one.name, precision=one.precision, device=device)
    return backbone, _modes(backbone, params, fallback=fallback)


def _modes(backbone: HFBackbone, params: ModelParams, *, fallback: bool) -> dict[str, Tensor]:
    """The mode vectors. The fallback knows no words: it gets bytes from 255 down, which no UTF-8 text holds."""
    spare = {name: 255 - place for place, name in enumerate(params.modes)}
    return mode_vectors(backbone, spare if fallback else dict(params.modes))
