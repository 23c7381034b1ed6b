"""Continuous thoughts and their controls (COCONUT, Hao et al. 2024, arXiv 2412.06769).

A sequence is a prompt, K latent columns and a tail. What stands in the latent columns is the arm:

- `continuous`: the hidden state (after the final norm) of the column before, so the columns are computed one after
  another over an appended cache: K + 1 passes, every column through the model exactly once;
- `frozen`, `shared`: one vector, a buffer or a parameter. Under causal attention nothing depends on a later column, so
  ONE pass is the same function as K + 1 of them (docs/decisions/0003);
- `cot`, `direct`, `removal`: no latent columns at all.

Every batch is laid out so that the first latent stands in the same column for all rows (left padding), and the tail is
right-padded.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stepwell.latents.deferred import DeferredWeightGradients

Arm = Literal["cot", "direct", "continuous", "frozen", "shared", "removal"]
ARMS: tuple[Arm, ...] = ("cot", "direct", "continuous", "frozen", "shared", "removal")
WITH_LATENTS: frozenset[str] = frozenset({"continuous", "frozen", "shared"})
WITH_CURRICULUM: frozenset[str] = WITH_LATENTS | {"removal"}
IGNORE = -100
DEFER_FROM_WIDTH = 512
"""Below it a weight's gradient is small beside the rows that make it, and deferring costs more than it saves."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """B sequences, the first latent column aligned.

    Attributes:
        ids: (B, T) token ids; what stands at latent and padded columns is not read.
        mask: (B, T) True where a column is real.
        latent: (B, T) True where a latent stands.
        labels: (B, T) the token to be predicted AT its own column, `IGNORE` elsewhere; the one shift is in
            `objectives.supervised`.
        first: the column of the first latent, or of the tail where there are none.
        facts: (B, F, 2), options (B, 2), root (B,): the prompt of a backbone that reads graphs; F + 2 columns before
            `ids`.
        facts_mask: (B, F) True where a fact is real.
        items: the items' indices, for whoever evaluates.
    """

    ids: Tensor
    mask: Tensor
    latent: Tensor
    labels: Tensor
    first: int
    items: Tensor
    names: Tensor | None = None
    facts: Tensor | None = None
    facts_mask: Tensor | None = None
    options: Tensor | None = None
    root: Tensor | None = None

    @property
    def thoughts(self) -> int:
        """K, the number of latent columns of the row with the most."""
        return int(self.latent.sum(1).max())

    def to(self, device: str | torch.device) -> Batch:
        """The same batch on a device."""
        moved = {k: v.to(device, non_blocking=True) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **moved)

    def inputs(self) -> Batch:
        """All columns but the last, which has nothing left to predict: what a loss needs to compute."""
        return replace(self, **{name: getattr(self, name)[:, :-1] for name in ("ids", "mask", "latent", "labels")})

    def prompt(self) -> Batch:
        """The columns before the first label: what decoding starts from. They must end in one column for all rows."""
        starts = (self.labels != IGNORE).int().argmax(1)
        end = int(starts[0])
        if bool((starts != end).any()):
            raise ValueError(
                "the rows' tails start in different columns: decode with the same number of latents for all"
            )
        cut = {name: getattr(self, name)[:, :end] for name in ("ids", "mask", "latent", "labels")}
        return replace(self, **cut)


class Thoughts(nn.Module):
    """A backbone that thinks in one arm's latents.

    Args:
        backbone: any `Backbone`.
        arm: what stands at the latent columns.
        vector: (D,) the start of the vector of `shared` and `frozen` (a copy of an existing token's embedding).
        multipass: compute `shared` and `frozen` in K + 1 passes. It is the same function (a test proves it), and is
            here for that proof only.
    """

    def __init__(self, backbone: Any, arm: Arm, *, vector: Tensor | None = None, multipass: bool = False) -> None:
        super().__init__()
        self.backbone, self.multipass = backbone, multipass
        self.arm: Arm = arm
        self.deferred = DeferredWeightGradients()
        if arm in ("frozen", "shared"):
            if vector is None:
                raise ValueError(f"arm {arm} needs the vector that it holds")
            start = vector.detach().clone()
            self.vector = nn.Parameter(start) if arm == "shared" else nn.Buffer(start)

    def layout(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, int]:
        """Embeddings (B, P + T, D), mask and positions (B, P + T) and P, the number of graph columns before the ids."""
        embeds, mask, columns = self.backbone.embed(batch.ids), batch.mask, 0
        if batch.facts is not None:
            graph = self.backbone.embed_graph(batch.facts, batch.options, batch.root)
            columns = graph.shape[1]
            embeds = torch.cat((graph, embeds), 1)
            assert batch.facts_mask is not None
            mask = torch.cat((batch.facts_mask, mask.new_ones(len(mask), 2), mask), 1)
        # The facts of a graph have no order; position ids count the columns after them.
        positions = F.pad((batch.mask.cumsum(1) - 1).clamp(min=0), (columns, 0))
        return embeds, mask, positions, columns

    def placed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """For a prompt that is in a cache: the mask (B, P + T) of its columns, and each row's next position (B,)."""
        # Not from the last column's position: a prompt that is a graph alone has no column that is counted.
        return self.layout(batch)[1], batch.mask.sum(1)

    def forward(
        self, batch: Batch, *, cache: Any = None, edit: Callable[[int, Tensor], Tensor] | None = None
    ) -> Tensor:
        """Hidden states of the columns that can predict something: from the one before `first` to the last.

        Args:
            batch: the sequences.
            cache: an empty one to be filled, where the columns are to be continued.
            edit: `edit(k, thoughts (B, D))` replaces what is put into latent column k (from 0) WHILE the chain is being
                computed, so that it propagates to later thoughts.

        Returns:
            (B, T - first + 1, D).
        """
        if batch.thoughts and (self.arm == "continuous" or self.multipass or edit is not None):
            deferring = torch.is_grad_enabled() and self.backbone.width >= DEFER_FROM_WIDTH
            deferring = deferring and not getattr(self.backbone, "recomputes", False)
            with self.deferred if deferring else nullcontext():
                return self.columns(batch, cache=cache, edit=edit)[0]
        embeds, mask, positions, graph = self.layout(batch)
        if self.arm in ("frozen", "shared") and batch.thoughts:
            at = F.pad(batch.latent, (graph, 0)) if graph else batch.latent
            embeds = torch.where(at[..., None], self.vector.to(embeds.dtype), embeds)
        return self._run(embeds, mask, positions, cache, graph + batch.first - 1, graph)

    def _run(self, embeds: Tensor, mask: Tensor, positions: Tensor, cache: Any, skip: int, graph: int = 0) -> Tensor:
        extra = {"prefix": graph} if graph else {}
        return self.backbone(embeds, positions=positions, mask=mask, cache=cache, skip=skip, **extra)

    def columns(
        self, batch: Batch, *, cache: Any = None, edit: Callable[[int, Tensor], Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """The pass over the prompt, one pass a latent column, one over the tail.

        Returns:
            Hidden states (B, T - first + 1, D) and the thoughts that were put in (B, K, D).
        """
        cache = self.backbone.new_cache() if cache is None else cache
        embeds, mask, positions, graph = self.layout(batch)
        first, end = graph + batch.first, graph + batch.first + batch.thoughts
        hidden = self._run(embeds[:, :first], mask[:, :first], positions[:, :first], cache, first - 1, graph)
        states, put_in = [hidden], []
        for k, column in enumerate(range(first, end)):
            thought = hidden[:, 0] if self.arm == "continuous" else self.vector.to(hidden).expand_as(hidden[:, 0])
            thought = thought if edit is None else edit(k, thought)
            put_in.append(thought)
            here = batch.latent[:, column - graph, None]
            # Rows with fewer latents than the widest already hold a token of their tail in this column.
            x = torch.where(here, thought, embeds[:, column])[:, None]
            hidden = self._run(x, mask[:, : column + 1], positions[:, column : column + 1], cache, 0)
            states.append(hidden)
        if end < embeds.shape[1]:
            states.append(self._run(embeds[:, end:], mask, positions[:, end:], cache, 0))
        thoughts = torch.stack(put_in, 1) if put_in else hidden[:, :0]
        return torch.cat(states, 1), thoughts

    def replaced(self, batch: Batch, thoughts: Tensor, *, cache: Any = None) -> Tensor:
        """Hidden states as `forward`, with thoughts (B, K, D) put in AFTERWARDS: none of them is computed anew."""
        embeds, mask, positions, graph = self.layout(batch)
        first, end = graph + batch.first, graph + batch.first + batch.thoughts
        latent = batch.latent[:, batch.first : batch.first + batch.thoughts, None]
        middle = torch.where(latent, thoughts.to(embeds.dtype), embeds[:, first:end])
        embeds = torch.cat((embeds[:, :first], middle, embeds[:, end:]), 1)
        return self._run(embeds, mask, positions, cache, first - 1, graph)
