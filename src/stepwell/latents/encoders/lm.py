"""The encoder `lm`: the language model itself reads the text, frozen or through LoRA."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from stepwell.decode import left_padded
from stepwell.errors import StepwellError
from stepwell.latents.encoder_specs import LMSpec, Queries, Tokens
from stepwell.latents.encoders.base import Encoder
from stepwell.latents.encoders.pooling import Projection, QueryPooling, seeded, stretch_means
from stepwell.shapes import Backbone


class LMEncoder(Encoder):
    """The language model reads the text; what it makes of it is pooled and projected to d_z.

    The model is not a part of this module: it is the caller's, once, and neither moved nor saved with the encoder.
    BOS, where the tokenizer has one, is read and not pooled: its state says nothing of the text, and is often huge.

    Args:
        spec: pooling and sizes.
        backbone: with its tokenizer.
        reading: entered for every pass over the backbone: `LoRA.on` of the encoder's own adapter, or `LoRA.off` where
            the only one is the decoder's.
        trained: whether the backbone's parameters that take gradients, such as LoRA's, get them from here. Otherwise
            none does, whatever they are set to.
        seed: of the weights here.

    Raises:
        StepwellError: no tokenizer, or a model with no room for a text.
    """

    def __init__(
        self,
        spec: LMSpec,
        backbone: Backbone,
        *,
        reading: Callable[[], AbstractContextManager[Any]] = nullcontext,
        trained: bool = False,
        seed: int = 0,
    ) -> None:
        tokenizer: Any = getattr(backbone, "tokenizer", None)
        if tokenizer is None:
            raise StepwellError("the model has no tokenizer, so it cannot read a text", "load it with its tokenizer")
        bos = getattr(tokenizer, "bos_token_id", None)
        leading = () if bos is None else (bos,)
        extra = len(leading) + (spec.vectors[-1] if isinstance(spec.pooling, Tokens) else 0)
        room = spec.max_tokens if backbone.max_positions is None else backbone.max_positions - extra
        if room < 1:
            raise StepwellError(
                f"the model knows {backbone.max_positions} positions, and {extra} are taken before any text",
                "lower `vectors`, or choose a model with a longer context",
            )
        super().__init__(spec, min(spec.max_tokens, room))
        self.tokenizer, self.bos, self.reading, self.trained = tokenizer, leading, reading, trained
        self._held = (backbone,)  # in a tuple: torch takes no part of it for a part of this module
        with seeded(seed):
            self._build(spec, backbone)

    def _build(self, spec: LMSpec, backbone: Backbone) -> None:
        device, width = next(backbone.parameters()).device, backbone.width
        self.pooling, self.tokens = None, None
        if isinstance(spec.pooling, Queries):
            self.pooling = QueryPooling(spec.pooling, width, spec.vectors[-1])
            width = spec.pooling.inner
        elif isinstance(spec.pooling, Tokens):
            # Beginning as tokens of the vocabulary (Lester et al. 2021, arXiv 2104.08691): the model knows what to do.
            drawn = torch.randint(backbone.vocabulary, (1, spec.vectors[-1]))
            self.tokens = nn.Parameter(backbone.embed(drawn.to(device))[0].detach().float().cpu().clone())
        self.project = Projection(width, spec.width)
        self.to(device)

    @property
    def backbone(self) -> Backbone:
        """The language model."""
        return self._held[0]

    def ids(self, text: str) -> list[int]:
        """Its tokens, without BOS."""
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def read(self, rows: list[list[int]], vectors: int) -> Float[Tensor, "B M d_z"]:
        """The latents of some tokens."""
        device, dtype = next(self.parameters()).device, self.project.dtype
        ids, mask = left_padded([(*self.bos, *row) for row in rows], device=device)
        if self.tokens is not None:
            states = self._states(ids, mask, self.tokens[:vectors])
            return self.project(states.to(dtype))
        states = self._states(ids, mask).to(dtype)
        text = mask & (mask.cumsum(1) > len(self.bos))
        if self.pooling is None:
            return self.project(stretch_means(states, text, vectors))
        return self.project(self.pooling(states, text, vectors))

    def _states(
        self, ids: Int[Tensor, "B T"], mask: Bool[Tensor, "B T"], after: Float[Tensor, "M D"] | None = None
    ) -> Float[Tensor, "B N D"]:
        """The model's states of the tokens, or only those of the vectors `after` them."""
        skip = 0
        # Nothing in a frozen reading takes a gradient but the tokens after it, whose gradient passes through the model.
        with torch.set_grad_enabled(torch.is_grad_enabled() and (self.trained or after is not None)), self._reading():
            embeds = self.backbone.embed(ids)
            if after is not None:
                skip = ids.shape[1]
                embeds = torch.cat((embeds, after.to(embeds.dtype).expand(len(ids), -1, -1)), 1)
                mask = torch.cat((mask, mask.new_ones(len(ids), len(after))), 1)
            return self.backbone(embeds, positions=(mask.cumsum(1) - 1).clamp(min=0), mask=mask, skip=skip)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        with self.reading(), nullcontext() if self.trained else without_gradients(self.backbone):
            yield


@contextmanager
def without_gradients(module: Any) -> Iterator[None]:
    """What runs in the block sends no gradient to the module's parameters, though it may pass through them."""
    held = [parameter for parameter in module.parameters() if parameter.requires_grad]
    try:
        for parameter in held:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in held:
            parameter.requires_grad_(True)
