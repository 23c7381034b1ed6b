"""From latents to a prefix: an MLP with a skip, the prefix of each example calibrated to the size of real embeddings.

The calibration undoes every scale before it: a learned factor in front of it would have no gradient at all. So the
factor follows the calibration, starts at 1, and says how many times the embedding table's RMS a prefix has.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stepwell.errors import StepwellError
from stepwell.latents.encoder_specs import AdapterSpec
from stepwell.latents.encoders.pooling import seeded
from stepwell.shapes import Backbone

# Added to a mean square: below what any embedding table has by orders (RMS .01 is 1e-4), and it keeps the gradient at
# zero finite.
TINY = 1e-12


class Adapter(nn.Module):
    """Latents (B, M, d_z) to a prefix (B, M, D): two hidden layers with GELU, a skip, LayerNorm, calibration, scale.

    Args:
        spec: its sizes.
        latents_width: d_z.
        width: D.
        rms: of the embedding table, from `embedding_rms`.
        seed: of the weights.

    Attributes:
        scale: learned, 1 at first: the prefix's RMS in units of `rms`. None where the spec has none.
    """

    def __init__(self, spec: AdapterSpec, latents_width: int, width: int, *, rms: float, seed: int = 0) -> None:
        super().__init__()
        _check_rms(rms)
        # A number, not a buffer: it is the model's, and bf16 would keep three digits of it.
        self.rms = rms
        inner = width if spec.inner is None else spec.inner
        with seeded(seed):
            self.mlp = two_hidden(latents_width, inner, width)
            self.skip = nn.Linear(latents_width, width)
        self.norm = nn.LayerNorm(width)
        self.scale = nn.Parameter(torch.ones(())) if spec.learned_scale else None

    def forward(self, latents: Float[Tensor, "B M d_z"]) -> Float[Tensor, "B M D"]:
        """The prefix of each example, in the adapter's precision."""
        latents = latents.to(self.skip.weight.dtype)
        prefix = calibrate(self.norm(self.skip(latents) + self.mlp(latents)), self.rms)
        return prefix if self.scale is None else prefix * self.scale


def two_hidden(width: int, inner: int, out: int) -> nn.Sequential:
    """An MLP with two hidden layers and GELU."""
    hidden = nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, inner), nn.GELU()
    return nn.Sequential(*hidden, nn.Linear(inner, out))


def calibrate(prefix: Float[Tensor, "B *columns D"], rms: float | Tensor) -> Float[Tensor, "B *columns D"]:
    """Each example by itself scaled to an RMS over all its numbers; a prefix of zeros stays one.

    Computed in fp32 at least. The vectors of one example keep their lengths relative to each other.
    """
    exact = prefix if prefix.dtype == torch.float64 else prefix.float()
    mean_square = exact.square().mean(tuple(range(1, exact.dim())), keepdim=True)
    return (exact * (rms * (mean_square + TINY).rsqrt())).to(prefix.dtype)


@torch.no_grad()
def embedding_rms(backbone: Backbone, *, rows: int = 4096) -> float:
    """Root mean square of all numbers of the embedding table, as the model embeds with it; `rows` tokens at a time.

    Raises:
        StepwellError: a table of zeros, or one with numbers that are not finite.
    """
    device = next(backbone.parameters()).device
    squares = 0.0
    for start in range(0, backbone.vocabulary, rows):
        ids = torch.arange(start, min(start + rows, backbone.vocabulary), device=device)
        squares += float(backbone.embed(ids[None]).float().square().sum(dtype=torch.float64))
    rms = (squares / (backbone.vocabulary * backbone.width)) ** 0.5
    _check_rms(rms)
    return rms


def _check_rms(rms: float) -> None:
    if not 0 < rms < float("inf"):
        raise StepwellError(
            f"the embedding table has the RMS {rms}, to which no prefix can be calibrated",
            "check the model's weights: load it again",
        )
