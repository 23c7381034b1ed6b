"""From c numbers a token back to D: trained adapters behind a compressor, and how near they come to what was there.

A `Restorer` is the whole bottleneck, so that training, evaluation and the count of what travels are one path. It
reads z in units of each coordinate's deviation and writes in units of the corpus's RMS around its mean: the entries of
an embedding table are of the order of .01, where a freshly drawn network would first have to learn the scale.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from stepwell.errors import StepwellError
from stepwell.latents.compressor import Compressor, load_tensors, save_tensors
from stepwell.latents.restorer_specs import RestorerParams

COMPRESSOR = "compressor."
"""What the names of the compressor's buffers begin with in a restorer's state dict."""


class Restorer(nn.Module):
    """A compressor and an adapter: (..., D) -> c numbers -> (..., D).

    Args:
        compressor: is kept as it is; its buffers are part of the state dict, so that a saved restorer is whole.
        params: which adapter.
    """

    unit: Tensor
    spread: Tensor

    def __init__(self, compressor: Compressor, params: RestorerParams) -> None:
        super().__init__()
        self.compressor, self.params = compressor, params
        self.net = _net(compressor, params)
        self.register_buffer("unit", compressor.mean.new_tensor(compressor.rms), persistent=False)
        deviations = compressor.variances.sqrt() / compressor.scales
        # A coordinate that never varies is always zero, whatever it is divided by.
        self.register_buffer("spread", torch.where(deviations > 0, deviations, 1.0), persistent=False)

    @property
    def numbers_per_token(self) -> int:
        """How many numbers of each token travel."""
        return self.compressor.dims + (self.params.rms == "token")

    def encode(self, vectors: Tensor) -> Tensor:
        """(..., D) -> (..., numbers_per_token): all that is known of each vector behind the bottleneck."""
        compressed = self.compressor.compress(vectors)
        if self.params.rms != "token":
            return compressed
        return torch.cat((compressed, rms_of(vectors.to(compressed))), -1)

    def decode(self, sent: Tensor) -> Tensor:
        """(..., numbers_per_token) -> (..., D).

        Raises:
            StepwellError: another number of them.
        """
        if sent.shape[-1] != self.numbers_per_token:
            raise StepwellError(
                f"{sent.shape[-1]} numbers a token arrive, and this restorer reads {self.numbers_per_token}",
                "send what its own `encode` gives",
            )
        compressed = sent[..., : self.compressor.dims]
        restored = self._restored(compressed)
        if self.params.rms == "free":
            return restored
        return scaled_to(restored, sent[..., -1:] if self.params.rms == "token" else self.unit)

    def forward(self, vectors: Tensor) -> Tensor:
        """What is left of (..., D) behind the bottleneck."""
        return self.decode(self.encode(vectors))

    def save(self, path: Path) -> None:
        """Write one safetensors file with the compressor in it, whole or not at all."""
        # One entry: several come into the file in no order, and equal restorers would be unequal files.
        about = {"subspace": self.compressor.subspace, "params": self.params.model_dump(mode="json")}
        metadata = {"restorer": json.dumps(about, sort_keys=True)}
        save_tensors(path, self.state_dict(), metadata)

    @classmethod
    def load(cls, path: Path) -> Restorer:
        """A saved restorer, on the CPU.

        Raises:
            StepwellError: a file that cannot be read, that lacks a part or has a spare one, or whose parts do not fit
                together.
        """
        tensors, metadata = load_tensors(path)
        held = {n.removeprefix(COMPRESSOR): t for n, t in tensors.items() if n.startswith(COMPRESSOR)}
        try:
            about = json.loads(metadata.get("restorer", ""))
            compressor = Compressor.of_parts(about["subspace"], held, path)
            made = cls(compressor, RestorerParams.model_validate(about["params"]))
            made.load_state_dict(tensors)
        except (ValidationError, RuntimeError, ValueError, KeyError, TypeError) as error:
            raise StepwellError(f"this is no restorer: {error}", "name the file that was saved", path=path) from error
        return made

    def _restored(self, compressed: Tensor) -> Tensor:
        if self.net is None:
            return self.compressor.restore(compressed)
        found = self.unit * self.net(compressed / self.spread)
        base = self.compressor.restore(compressed) if self.params.adapter == "residual" else self.compressor.mean
        return base + found


def _net(compressor: Compressor, params: RestorerParams) -> nn.Module | None:
    """The trained part, in the compressor's precision and on its device; the global random state is left alone."""
    dims, width, hidden = compressor.dims, compressor.width, params.hidden or compressor.width
    if params.adapter == "pca":
        return None
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(params.seed)
        if params.adapter == "linear":
            net: nn.Module = nn.Linear(dims, width)
        else:
            last = nn.Linear(hidden, width)
            if params.adapter == "residual":
                nn.init.zeros_(last.weight)
                nn.init.zeros_(last.bias)
            net = nn.Sequential(nn.Linear(dims, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), last)
    return net.to(compressor.mean)


def rms_of(vectors: Tensor) -> Tensor:
    """The root mean square of each vector's entries: (..., D) -> (..., 1)."""
    return vectors.square().mean(-1, keepdim=True).sqrt()


def scaled_to(vectors: Tensor, rms: Tensor) -> Tensor:
    """Vectors (..., D) scaled to an RMS of (..., 1) or (); a vector of zeros has no direction and stays."""
    square = vectors.square().mean(-1, keepdim=True)
    # The root's slope at zero is infinite, and would make the gradient of such a vector NaN.
    nonzero = square > 0
    return vectors * torch.where(nonzero, rms / torch.where(nonzero, square, 1.0).sqrt(), 1.0)


@dataclass(frozen=True, kw_only=True)
class Total:
    """A sum over some tokens, and over how many: those for which the measure is defined."""

    sum: float
    count: int

    @property
    def mean(self) -> float | None:
        """The mean; None over no token."""
        return self.sum / self.count if self.count else None

    def __add__(self, other: Total) -> Total:
        return Total(sum=self.sum + other.sum, count=self.count + other.count)


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """How near restored vectors x' are to the vectors x, summed over tokens; adding joins batches.

    Attributes:
        mse: |x' - x|^2 / D.
        cosine: between x' and x; undefined where one of them is zero.
        relative_error: |x' - x| / |x|; undefined where x is zero.
        norm_ratio: |x'| / |x|; undefined where x is zero.
    """

    mse: Total
    cosine: Total
    relative_error: Total
    norm_ratio: Total

    def __add__(self, other: Reconstruction) -> Reconstruction:
        return Reconstruction(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    def means(self) -> Mapping[str, float | None]:
        """Each measure's mean a token; None where it is defined for none."""
        return {field.name: getattr(self, field.name).mean for field in fields(self)}


@torch.no_grad()
def reconstruction(restored: Tensor, original: Tensor, tokens: Tensor) -> Reconstruction:
    """Measures over real tokens only, in float64.

    Args:
        restored, original: (..., D).
        tokens: (...), True where a token is real; or how often each vector occurs, so that the vectors of a whole
            vocabulary and the corpus's counts give the corpus's measures exactly. What stands where it is False or 0
            is not read, NaN or not.

    Raises:
        StepwellError: shapes that do not fit together.
    """
    if restored.shape != original.shape or tokens.shape != original.shape[:-1]:
        raise StepwellError(
            f"restored {tuple(restored.shape)}, original {tuple(original.shape)} and tokens {tuple(tokens.shape)} do "
            "not fit together",
            "give two of the same shape (..., D), and a mask or counts (...)",
        )
    real = tokens > 0
    weights = tokens[real].to(torch.int64)
    x, found = _float64(original[real]), _float64(restored[real])
    weights = weights.to(x.device)
    norm, found_norm, error = x.norm(dim=-1), found.norm(dim=-1), (found - x).norm(dim=-1)

    def total(values: Tensor, defined: Any = slice(None)) -> Total:
        counted = weights[defined]
        return Total(sum=float((values[defined] * counted).sum()), count=int(counted.sum()))

    has_norm, both = norm != 0, (norm != 0) & (found_norm != 0)
    return Reconstruction(
        mse=total(error.square() / original.shape[-1]),
        cosine=total(F.cosine_similarity(found, x, dim=-1, eps=0.0), both),
        relative_error=total(error / norm, has_norm),
        norm_ratio=total(found_norm / norm, has_norm),
    )


def _float64(vectors: Tensor) -> Tensor:
    # MPS has no float64.
    return (vectors.cpu() if vectors.device.type == "mps" else vectors).double()
