"""Encoders: a prompt's text becomes M latents of width d_z; its own bytes, a frozen sentence encoder, or the LM reads.

An encoder is given prompts and nothing else. No argument could carry an answer or its length, and neither ever reaches
it. A text that is too long, or empty, is an error rather than cut: the question follows the context, so a cut at the
end would take it away. `Encoder.prompt` cuts the context beforehand.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from stepwell.errors import StepwellError
from stepwell.latents.encoder_specs import AnyEncoder
from stepwell.latents.encoders.base import Encoder, fitted
from stepwell.latents.encoders.bytewise import BytesEncoder
from stepwell.latents.encoders.lm import LMEncoder
from stepwell.shapes import Backbone, pick_device

if TYPE_CHECKING:
    from stepwell.latents.encoders.sentence import SentenceLatents

__all__ = ["BytesEncoder", "Encoder", "LMEncoder", "build_encoder", "fitted"]


def build_encoder(
    spec: AnyEncoder,
    *,
    seed: int = 0,
    backbone: Backbone | None = None,
    reading: Callable[[], AbstractContextManager[Any]] = nullcontext,
    trained: bool = False,
    device: str = "auto",
) -> BytesEncoder | LMEncoder | SentenceLatents:
    """The encoder of a spec.

    Args:
        spec: of any kind.
        seed: of its weights.
        backbone, reading, trained: of an `LMEncoder`, which lies where the backbone does.
        device: of the others.

    Raises:
        StepwellError: the sentence encoder cannot be loaded, or an `lm` encoder has no backbone.
    """
    if spec.kind == "bytes":
        return BytesEncoder(spec, seed=seed).to(pick_device(device))
    if spec.kind == "sentence":
        # Here, for it loads transformers, which the other encoders do without.
        from stepwell.latents.encoders.sentence import SentenceLatents

        return SentenceLatents.load(spec, seed=seed, device=device)
    if backbone is None:
        raise StepwellError("an encoder of kind `lm` has no language model to read with", "give the backbone")
    return LMEncoder(spec, backbone, reading=reading, trained=trained, seed=seed)
