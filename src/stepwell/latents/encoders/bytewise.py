"""The encoder `bytes`: a transformer over UTF-8, trained from scratch."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stepwell.decode import right_padded
from stepwell.latents.encoder_specs import BytesSpec
from stepwell.latents.encoders.base import Encoder
from stepwell.latents.encoders.pooling import Layer, Projection, QueryPooling, seeded
from stepwell.latents.wirebytes import utf8


class BytesEncoder(Encoder):
    """A transformer over UTF-8 bytes, in both directions, with sinusoidal positions, read by learned queries.

    With patches, a column is a linear map of the embeddings of several bytes (MegaByte: arXiv 2305.07185).

    Args:
        spec: its sizes.
        seed: of its weights.
    """

    unit = "bytes"

    def __init__(self, spec: BytesSpec, *, seed: int = 0) -> None:
        super().__init__(spec, spec.max_bytes)
        with seeded(seed):
            self.embedding = nn.Embedding(256, spec.inner)
            self.patches = nn.Linear(spec.patch * spec.inner, spec.inner) if spec.patch > 1 else nn.Identity()
            self.layers = nn.ModuleList(Layer(spec.inner, spec.heads) for _ in range(spec.layers))
            self.pooling = QueryPooling(spec.pooling, spec.inner, spec.vectors[-1])
            self.project = Projection(spec.pooling.inner, spec.width)
        self.patch = spec.patch
        self.register_buffer("places", sinusoids(-(-spec.max_bytes // spec.patch), spec.inner), persistent=False)

    def ids(self, text: str) -> list[int]:
        """Its bytes."""
        return list(utf8(text))

    def read(self, rows: list[list[int]], vectors: int) -> Float[Tensor, "B M d_z"]:
        """The latents of some bytes."""
        ids, real = right_padded(rows, device=self.embedding.weight.device)
        # A patch that a text ends in is filled up with zeros, however long the other texts of the batch are.
        spare = -ids.shape[1] % self.patch
        embeds = nn.functional.pad(self.embedding(ids) * real[..., None], (0, 0, 0, spare))
        mask = nn.functional.pad(real, (0, spare)).unflatten(1, (-1, self.patch))[..., 0]
        columns = self.patches(embeds.unflatten(1, (-1, self.patch)).flatten(2))
        columns = columns + self.get_buffer("places")[: columns.shape[1]]
        for layer in self.layers:
            columns = layer(columns, mask)
        return self.project(self.pooling(columns, mask, vectors))


def sinusoids(columns: int, width: int) -> Float[Tensor, "T W"]:
    """Positions as sines and cosines (Vaswani et al. 2017, arXiv 1706.03762), amplitude 1.

    Unlike a learned table they are the same for the last columns, which few texts reach, as for the first.
    """
    rates = torch.exp(torch.arange(0, width, 2) * (-math.log(10_000) / width))
    angles = torch.arange(columns)[:, None] * rates
    return torch.stack((angles.sin(), angles.cos()), -1).flatten(1)[:, :width]
