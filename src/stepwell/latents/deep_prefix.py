"""A deep prefix: latents become keys and values of every layer, written into a cache between BOS and the anchor.

Columns of the cache are columns of the sequence: BOS first, then M of the prefix, then whatever is read. The next
position is the number of columns so far. Keys are written as attention reads them, after any rotation by position.
Prefix tuning: Li & Liang 2021, arXiv 2101.00190.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from stepwell.backbone import HFBackbone, HFCache, _Columns
from stepwell.decode import left_padded
from stepwell.errors import StepwellError
from stepwell.latents.adapter import calibrate, two_hidden
from stepwell.latents.encoder_specs import DeepPrefixSpec
from stepwell.latents.encoders.pooling import seeded

KeyValues = Sequence[tuple[Tensor, Tensor]]
"""Keys and values (B, H, M, D/H) of each layer; H counts the heads of keys."""


@dataclass(frozen=True, kw_only=True)
class Begun:
    """B rows whose first S columns are in a cache.

    Attributes:
        cache: with S columns; never changed.
        mask: (B, S), True where a column is real.
    """

    cache: HFCache
    mask: Bool[Tensor, "B S"]

    @property
    def positions(self) -> Int[Tensor, " B"]:
        """The position of each row's next column."""
        return self.mask.sum(1)

    def read(
        self, backbone: HFBackbone, embeds: Float[Tensor, "B T D"], mask: Bool[Tensor, "B T"] | None = None
    ) -> tuple[Float[Tensor, "B T D"], Begun]:
        """Hidden states of T columns more, and the rows with these in their cache.

        Args:
            backbone: whose cache it is.
            embeds: such as the anchor, or anchor and answer.
            mask: True where a column is real; None = all are.
        """
        here = torch.ones(embeds.shape[:2], dtype=torch.bool, device=embeds.device) if mask is None else mask
        positions = (self.positions[:, None] + here.cumsum(1) - 1).clamp(min=0)
        cache, whole = self.cache.clone(), torch.cat((self.mask, here), 1)
        hidden = backbone(embeds, positions=positions, mask=whole, cache=cache)
        return hidden, Begun(cache=cache, mask=whole)


class DeepPrefix(nn.Module):
    """Latents (B, M, d_z) to keys and values of every layer.

    Each layer's keys and values are calibrated, per example, to the RMS that the model's own have there, times a
    learned factor that starts at 1.

    Args:
        spec: its sizes.
        latents_width: d_z.
        backbone: whose layers they are for.
        texts: token ids of some real prompts, on which the RMS of the model's own keys and values is measured.
        seed: of the weights.

    Raises:
        StepwellError: texts too short to measure on.
    """

    rms: Tensor

    def __init__(
        self,
        spec: DeepPrefixSpec,
        latents_width: int,
        backbone: HFBackbone,
        texts: Sequence[Sequence[int]],
        *,
        seed: int = 0,
    ) -> None:
        super().__init__()
        shapes, rms = key_value_rms(backbone, texts)
        self.shapes = shapes
        with seeded(seed):
            self.mlp = two_hidden(latents_width, spec.inner, sum(2 * heads * width for heads, width in shapes))
        self.scale = nn.Parameter(torch.ones(len(shapes), 2))
        self.register_buffer("rms", rms)

    def forward(self, latents: Float[Tensor, "B M d_z"]) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of each layer, each (B, H, M, D/H), in the module's precision."""
        numbers = self.mlp(latents.to(self.scale.dtype))
        made, start = [], 0
        for layer, (heads, width) in enumerate(self.shapes):
            pair = []
            for side in range(2):
                part = numbers[..., start : start + heads * width].unflatten(-1, (heads, width)).transpose(1, 2)
                pair.append(calibrate(part, self.rms[layer, side]) * self.scale[layer, side])
                start += heads * width
            made.append((pair[0], pair[1]))
        return made


def begin(backbone: HFBackbone, keys_values: KeyValues, before: Float[Tensor, "B T D"]) -> Begun:
    """Rows that begin with `before` (such as BOS; T may be 0) and go on with a deep prefix.

    Raises:
        StepwellError: keys and values of other layers, or of another number of rows, than the model and `before` have.
    """
    rows = len(before)
    layers = backbone.config.num_hidden_layers
    if len(keys_values) != layers or any(len(each) != rows for pair in keys_values for each in pair):
        raise StepwellError(
            f"there are keys and values of {len(keys_values)} layers, and {len(keys_values[0][0])} rows in the first; "
            f"the model has {layers} layers, and {rows} rows begin",
            "make them by a DeepPrefix of this model, for the same rows",
        )
    cache = backbone.new_cache()
    if before.shape[1]:
        places = torch.arange(before.shape[1], device=before.device).expand(rows, -1)
        backbone(before, positions=places, mask=torch.ones_like(places, dtype=torch.bool), cache=cache)
    dtype = next(backbone.parameters()).dtype
    cache = written(cache, [(key.to(dtype), value.to(dtype)) for key, value in keys_values])
    return Begun(cache=cache, mask=torch.ones(rows, cache.length, dtype=torch.bool, device=before.device))


def written(cache: HFCache, keys_values: KeyValues) -> HFCache:
    """The cache with more columns at its end; it itself is unchanged."""
    if not cache.layers:
        return HFCache([(_Columns(key), _Columns(value)) for key, value in keys_values])
    held = cache.clone().layers
    return HFCache([
        (keys.appended(key), values.appended(value))
        for (keys, values), (key, value) in zip(held, keys_values, strict=True)
    ])  # fmt: skip


@torch.no_grad()
def key_value_rms(
    backbone: HFBackbone, texts: Sequence[Sequence[int]]
) -> tuple[tuple[tuple[int, int], ...], Float[Tensor, "layers 2"]]:
    """(heads, width of a head) of each layer, and the RMS of its keys and of its values over some texts.

    The first column of each text is left out: as the sink of attention its keys and values are like no other's.

    Raises:
        StepwellError: no text has two tokens.
    """
    texts = [text for text in texts if len(text) > 1]
    if not texts:
        raise StepwellError("keys and values cannot be measured: no text has two tokens", "give some real prompts")
    ids, mask = left_padded(texts, device=next(backbone.parameters()).device)
    cache, positions = backbone.new_cache(), (mask.cumsum(1) - 1).clamp(min=0)
    backbone(backbone.embed(ids), positions=positions, mask=mask, cache=cache, skip=ids.shape[1])
    counted = positions > 0
    rms, shapes = [], []
    for pair in cache.layers:
        sides = [side.tensor.transpose(1, 2)[counted] for side in pair]
        shapes.append((sides[0].shape[1], sides[0].shape[2]))
        rms.append([float(side.double().square().mean().sqrt()) for side in sides])
    return tuple(shapes), torch.tensor(rms, device=ids.device)
