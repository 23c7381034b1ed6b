"""The axis legend, one letter an axis, the same everywhere; and what a backbone is, without building one.

| axis | meaning                                                                              |
| ---- | ------------------------------------------------------------------------------------ |
| B    | batch: rows                                                                          |
| T    | columns of this call (tokens, or the vectors that stand where tokens would)          |
| S    | keys a call can see: cached columns + T                                              |
| K    | latents                                                                              |
| D    | width of the model                                                                   |
| V    | vocabulary: rows of the embedding                                                    |
| H    | heads                                                                                |

Hidden states after `skip` columns have T - skip columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from stepwell.errors import StepwellError

Architecture = Literal["gpt2", "llama", "qwen2", "gpt_neox"]
Precision = Literal["fp32", "bf16", "fp64"]

Ids = Int[Tensor, "B T"]
Positions = Int[Tensor, "B T"]
Embeds = Float[Tensor, "B T D"]
Mask = Bool[Tensor, "B S"]
Hidden = Float[Tensor, "B T-{skip} D"]
States = Float[Tensor, "*rows D"]
Logits = Float[Tensor, "*rows V"]
Rows = Int[Tensor, " N"]
KeyValue = Float[Tensor, "B H S d"]


class Cache(Protocol):
    """Keys and values of B rows, appended by `Backbone.forward`; every method leaves the cache itself unchanged."""

    @property
    def length(self) -> int:
        """Cached columns."""
        ...

    def select(self, rows: Rows) -> Self:
        """The cache of some rows, by index."""
        ...

    def repeat(self, n: int) -> Self:
        """Each row n times, neighbours together."""
        ...

    def clone(self) -> Self:
        """A cache that can be continued without changing this one."""
        ...

    def join(self, others: Sequence[Self]) -> Self:
        """The rows of this cache, then those of others; shorter ones after padding, which a mask has to hide."""
        ...


@runtime_checkable
class Backbone(Protocol):
    """What every model is to the rest of Stepwell; implementations are also `nn.Module`s."""

    @property
    def width(self) -> int:
        """D."""
        ...

    @property
    def vocabulary(self) -> int:
        """V, rows of the embedding."""
        ...

    @property
    def max_positions(self) -> int | None:
        """Positions the model knows; None where it knows no bound."""
        ...

    def embed(self, ids: Ids) -> Embeds:
        """Token embeddings, without positions."""
        ...

    def forward(
        self, embeds: Embeds, *, positions: Positions, mask: Mask, cache: Any | None = None, skip: int = 0
    ) -> Hidden:
        """Hidden states after the final norm of columns skip ... T - 1; appends all T columns to the cache."""
        ...

    def __call__(
        self, embeds: Embeds, *, positions: Positions, mask: Mask, cache: Any | None = None, skip: int = 0
    ) -> Hidden:
        """`forward`."""
        ...

    def logits(self, hidden: States) -> Logits:
        """Vocabulary logits of the hidden states given, and of no others."""
        ...

    def new_cache(self) -> Any:
        """An empty `Cache`."""
        ...

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """As every `nn.Module` has; their device is the backbone's."""
        ...


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The shape of a model to be built from scratch; constructing one builds nothing.

    Attributes:
        architecture: a model type of transformers; Pythia is `gpt_neox`.
        vocabulary: V.
        width: D.
        inner: width of the MLP; None = 4 D.
        key_value_heads: None = as many as heads (`llama` and `qwen2` may have fewer).
        tied: whether the head is the embedding transposed.
        dropout: in training mode, wherever the architecture has it.

    Raises:
        StepwellError: a size that is not positive, or a width that the heads do not divide.
    """

    architecture: Architecture = "gpt2"
    vocabulary: int = 50257
    width: int = 768
    layers: int = 12
    heads: int = 12
    key_value_heads: int | None = None
    inner: int | None = None
    max_positions: int = 1024
    tied: bool = True
    dropout: float = 0.0

    def __post_init__(self) -> None:
        key_heads = self.key_value_heads or self.heads
        sizes = {
            "vocabulary": self.vocabulary,
            "width": self.width,
            "layers": self.layers,
            "heads": self.heads,
            "key_value_heads": key_heads,
            "inner": self.inner or 4 * self.width,
            "max_positions": self.max_positions,
        }
        for name, value in sizes.items():
            if value < 1:
                raise StepwellError(f"{name} of the model is {value}", "give a positive number")
        if not 0 <= self.dropout < 1:
            raise StepwellError(f"dropout of the model is {self.dropout}", "give a number from 0 to below 1")
        if self.width % self.heads or self.heads % key_heads:
            raise StepwellError(
                f"a width of {self.width} cannot be shared by {self.heads} heads, {key_heads} of them for keys",
                "choose a width that is a multiple of the heads, and heads that are a multiple of the key heads",
            )


def pick_device(name: str) -> torch.device:
    """The device of a name; `auto` is the first there is of cuda, mps, cpu.

    Raises:
        StepwellError: no such device here.
    """
    here = {"cpu": True, "meta": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device(next(kind for kind in ("cuda", "mps", "cpu") if here[kind]))
    kind, _, index = name.partition(":")
    if not here.get(kind, False) or (index and not (index.isdigit() and int(index) < torch.cuda.device_count())):
        raise StepwellError(f"there is no device {name!r} here", "choose auto, cpu, cuda, cuda:N or mps")
    return torch.device(name)


@torch.no_grad()
def embedded(backbone: Any, ids: Sequence[int]) -> Tensor:
    """(T, D): the embeddings of some tokens, without a gradient."""
    device = next(backbone.parameters()).device
    return backbone.embed(torch.tensor([list(ids)], dtype=torch.long, device=device))[0].detach()


@torch.no_grad()
def embedding_table(backbone: Any) -> Tensor:
    """(V, D): the embeddings of all tokens, without a gradient."""
    ids = torch.arange(backbone.vocabulary, device=next(backbone.parameters()).device)
    return backbone.embed(ids[None])[0].detach()


@contextmanager
def evaluating(backbone: Any) -> Iterator[None]:
    """The backbone in evaluation mode; the mode it was in is put back."""
    training = backbone.training
    backbone.eval()
    try:
        yield
    finally:
        backbone.train(training)


@contextmanager
def frozen(backbone: Any) -> Iterator[None]:
    """The backbone in evaluation mode and without weight gradients; both are put back."""
    wanted = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        with evaluating(backbone):
            yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)
