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

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stepwell.latents.deferred import DeferredWeightGradients
from stepwell.ranks import spans

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
        most: of a part of a batch, the batch's K: a part may have fewer, and takes as many passes as the others.
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
    most: int | None = None

    @property
    def thoughts(self) -> int:
        """K, the number of latent columns of the row with the most."""
        return int(self.latent.sum(1).max()) if self.most is None else self.most

    def to(self, device: str | torch.device) -> Batch:
        """The same batch on a device."""
        moved = {k: v.to(device, non_blocking=True) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **moved)

    def parts(self, count: int) -> list[Batch]:
        """The batch in so many parts of its rows, or fewer; columns stay, so that each row is computed as it was."""
        held = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        whole = replace(self, most=self.thoughts)
        parts = spans(len(self.ids), count)
        return [replace(whole, **{name: value[part] for name, value in held.items()}) for part in parts]

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

    def with_thoughts(self, count: int) -> Batch:
        """The same columns with `count` latents in every row in place of its K.

        Raises:
            ValueError: the rows have different numbers of latents.
        """
        known = self.thoughts
        if bool((self.latent.sum(1) != known).any()):
            raise ValueError("the rows have different numbers of latents: give all the same before changing it")
        new = {"ids": 0, "mask": True, "latent": True, "labels": IGNORE}
        changed = {}
        for name, value in new.items():
            old: Tensor = getattr(self, name)
            head, tail = old[:, : self.first], old[:, self.first + known :]
            changed[name] = torch.cat((head, old.new_full((len(old), count), value), tail), 1)
        return replace(self, **changed)


@dataclass(frozen=True, kw_only=True)
class Chain:
    """Prompts that were read once, and the thoughts that followed them: where every continuation may begin.

    Attributes:
        caches: K + 1 of them; number k holds the prompt and the first k thoughts. They are cloned, never continued.
        hidden: (B, K + 1, D), the last state of each: what a `continuous` arm thinks next.
        thoughts: (B, K, D), what stands in the latent columns.
    """

    caches: tuple[Any, ...]
    hidden: Tensor
    thoughts: Tensor


class Thoughts(nn.Module):
    """A backbone that thinks in one arm's latents.

    Args:
        backbone: any `Backbone`.
        arm: what stands at the latent columns.
        vector: (D,) the start of the vector of `shared` and `frozen` (a copy of an existing token's embedding).
        multipass: compute `shared` and `frozen` in K + 1 passes. It is the same function (a test proves it), and is
            here for that proof only.

    Attributes:
        in_parts: whether processes hold the backbone in parts (`stepwell.sharding`).
    """

    def __init__(self, backbone: Any, arm: Arm, *, vector: Tensor | None = None, multipass: bool = False) -> None:
        super().__init__()
        self.backbone, self.multipass = backbone, multipass
        self.arm: Arm = arm
        self.deferred = DeferredWeightGradients()
        self.in_parts = False
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
            embeds, mask = torch.cat((graph, embeds), 1), self._mask(batch)
        # The facts of a graph have no order; position ids count the columns after them.
        positions = F.pad((batch.mask.cumsum(1) - 1).clamp(min=0), (columns, 0))
        return embeds, mask, positions, columns

    def placed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """For a prompt that is in a cache: the mask (B, P + T) of its columns, and each row's next position (B,)."""
        # Not from the last column's position: a prompt that is a graph alone has no column that is counted.
        return self._mask(batch), batch.mask.sum(1)

    def _mask(self, batch: Batch) -> Tensor:
        """(B, P + T): the facts, their two columns of the query, the ids."""
        if batch.facts_mask is None:
            return batch.mask
        return torch.cat((batch.facts_mask, batch.mask.new_ones(len(batch.mask), 2), batch.mask), 1)

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
            # A model in parts is not to hold what a chain would cast and keep of all its layers.
            kept = getattr(self.backbone, "recomputes", False) or self.in_parts
            deferring = deferring and not kept
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
        hidden, after, mask, positions = self._read(batch, cache)
        states, put_in = [hidden], []
        for thought, state in self._think(batch, hidden, after, mask, positions, cache, edit, 0):
            put_in.append(thought)
            states.append(state)
        if (end := len(put_in)) < after.shape[1]:
            states.append(self._run(after[:, end:], mask, positions[:, end:], cache, 0))
        thoughts = torch.stack(put_in, 1) if put_in else hidden[:, :0]
        return torch.cat(states, 1), thoughts

    def _read(self, batch: Batch, cache: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The pass over the prompt: its last state (B, 1, D), and what `_think` needs for the columns from `first`."""
        embeds, mask, positions, graph = self.layout(batch)
        first = graph + batch.first
        hidden = self._run(embeds[:, :first], mask[:, :first], positions[:, :first], cache, first - 1, graph)
        return hidden, embeds[:, first:], mask, positions[:, first:]

    def _think(
        self, batch: Batch, hidden: Tensor, after: Tensor, mask: Tensor, positions: Tensor, cache: Any,
        edit: Callable[[int, Tensor], Tensor] | None, start: int,
    ) -> Iterator[tuple[Tensor, Tensor]]:  # fmt: skip
        """One pass a latent column from number `start` on, the columns before it being in the cache.

        Args:
            batch: the sequences.
            hidden: (B, 1, D), the state of the column before.
            after: (B, T - first, D), embeddings of all columns from `first` on.
            mask: (B, P + T).
            positions: (B, T - first).
            cache: appended to.
            edit: see `forward`.
            start: number of the first column to be computed.

        Yields:
            What was put in (B, D), and the state of its column (B, 1, D).
        """
        before = mask.shape[1] - after.shape[1]
        for k in range(start, batch.thoughts):
            thought = hidden[:, 0] if self.arm == "continuous" else self.vector.to(hidden).expand_as(hidden[:, 0])
            thought = thought if edit is None else edit(k, thought)
            here = batch.latent[:, batch.first + k, None]
            # Rows with fewer latents than the widest already hold a token of their tail in this column.
            x = torch.where(here, thought, after[:, k])[:, None]
            hidden = self._run(x, mask[:, : before + k + 1], positions[:, k : k + 1], cache, 0)
            yield thought, hidden

    def chain(self, batch: Batch) -> Chain:
        """Read the prompts in one pass and think, one pass a latent column; all rows have the same number of them."""
        cache = self.backbone.new_cache()
        hidden, after, mask, positions = self._read(batch, cache)
        states, thoughts, caches = [hidden], [], [cache.clone()]
        for thought, state in self._think(batch, hidden, after, mask, positions, cache, None, 0):
            thoughts.append(thought)
            states.append(state)
            caches.append(cache.clone())
        put_in = torch.stack(thoughts, 1) if thoughts else hidden[:, :0]
        return Chain(caches=tuple(caches), hidden=torch.cat(states, 1), thoughts=put_in)

    def resume(
        self, batch: Batch, chain: Chain, *, start: int, edit: Callable[[int, Tensor], Tensor] | None = None,
        put_in: Tensor | None = None,
    ) -> tuple[Tensor, Any, Tensor]:  # fmt: skip
        """Go on after the first `start` thoughts of a chain, without reading the prompt again.

        Args:
            batch: the chain's prompts, with K latents in every row: more or fewer than the chain has, but at least
                `start`.
            chain: left as it is.
            start: how many thoughts stay as they are.
            edit: as for `forward`: thoughts from number `start` on are computed anew, and edited on the way.
            put_in: (B, K, D), of which those from number `start` on stand in the columns, none of them computed anew.

        Returns:
            The last column's hidden state (B, D), its cache, and the thoughts (B, K, D) that stand in the columns.
        """
        cache, before, count = chain.caches[start].clone(), chain.hidden[:, start, None], batch.thoughts
        after, mask = self.backbone.embed(batch.ids[:, batch.first :]), self._mask(batch)
        positions = (batch.mask.cumsum(1) - 1).clamp(min=0)[:, batch.first :]
        parts, hidden, done, rest = [chain.thoughts[:, :start]], before, count, after[:, count:]
        if put_in is None:
            passes = list(self._think(batch, before, after, mask, positions, cache, edit, start))
            parts += [thought[:, None] for thought, _ in passes]
            hidden = passes[-1][1] if passes else before
        else:
            given = put_in[:, start:].to(after)
            parts, done, rest = [*parts, given], start, torch.cat((given, rest), 1)
        if columns := rest.shape[1]:
            hidden = self._run(rest, mask, positions[:, done:], cache, columns - 1)
        return hidden[:, -1], cache, torch.cat(parts, 1)
