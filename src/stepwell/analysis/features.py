"""Residual states of every layer at chosen columns, gathered or replaced while a backbone runs as it always does.

Layer 0 is what enters the first block (the embeddings, with positions where the model adds them), layer l what block l
leaves, layer L the state before the final norm. A column is counted over everything a cache holds: column c of a
sequence is c whether the sequence is read in one pass or thought by thought.

Both context managers are forward hooks that are gone when they end; the plain forward is never changed. Nothing but
the chosen columns is kept.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stepwell.errors import StepwellError
from stepwell.latents.thoughts import Batch

MISALIGNED = "misaligned-rows"


def blocks(backbone: Any) -> list[nn.Module]:
    """The layers of a backbone, in order.

    Raises:
        StepwellError: it has no list of as many modules as its configuration says.
    """
    if hasattr(backbone, "blocks"):
        return list(backbone.blocks)
    count = backbone.config.num_hidden_layers
    for module in backbone.base.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return list(module)
    raise StepwellError(
        f"{type(backbone.base).__name__} keeps its {count} layers in no list",
        "choose a model of the usual decoder form",
    )


@dataclass
class _Call:
    """Which of the wanted columns the call that runs now holds: indices into them, and into its T columns."""

    columns: int = 0
    rows: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    wanted: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    local: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    cut: int = 0
    smallest: int | None = None

    def begin(self, wanted: Tensor, embeds: Tensor, cache: Any) -> None:
        past, self.columns = 0 if cache is None else cache.length, embeds.shape[1]
        if len(wanted) != len(embeds):
            raise ValueError(f"columns of {len(wanted)} rows for a call of {len(embeds)}")
        inside = (wanted >= past) & (wanted < past + self.columns)
        self.rows, self.wanted = inside.nonzero(as_tuple=True)
        self.local = wanted[self.rows, self.wanted] - past
        self.smallest = int(self.local.min()) if len(self.local) else None

    def among(self, computed: int) -> tuple[Tensor, Tensor, Tensor]:
        """Rows, wanted and local columns among the last `computed` ones: a last layer leaves out what nobody reads."""
        local = self.local - (self.columns - computed)
        if self.smallest is None or self.smallest >= self.columns - computed:
            return self.rows, self.wanted, local
        there = local >= 0
        return self.rows[there], self.wanted[there], local[there]


def _state(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


@contextmanager
def _observed(backbone: Any, columns: Tensor, at: Mapping[int, Callable[[_Call, Tensor], Tensor | None]], whole: bool):
    """Call `at[layer](call, state (B, T', D))` in every pass; what it returns, if anything, stands in for the state."""
    call, layers = _Call(), blocks(backbone)

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        embeds = args[0] if args else kwargs["embeds"]
        call.begin(columns, embeds, kwargs.get("cache"))
        skip = kwargs.get("skip", 0)
        # The last layer of a small model computes no state that its caller skips: let it compute those that are wanted.
        kept = min(skip, call.smallest) if whole and call.smallest is not None else skip
        call.cut = skip - kept
        return args, {**kwargs, "skip": kept}

    def after(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return output[:, call.cut :]

    def entering(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        state = args[0] if args else kwargs["hidden_states"]
        changed = at[0](call, state)
        if changed is None:
            return args, kwargs
        return ((changed, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": changed})

    def leaving(layer: int) -> Callable[..., Any]:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            changed = at[layer](call, _state(output))
            if changed is None:
                return output
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        return hook

    with ExitStack() as hooks:
        handles = [backbone.register_forward_pre_hook(before, with_kwargs=True), backbone.register_forward_hook(after)]
        if 0 in at:
            handles.append(layers[0].register_forward_pre_hook(entering, with_kwargs=True))
        handles += [layers[layer - 1].register_forward_hook(leaving(layer)) for layer in at if layer]
        for handle in handles:
            hooks.callback(handle.remove)
        yield


@dataclass
class States:
    """What `gathered` found: `tensor` is (B, L + 1, C, D); zero where a row has no such column."""

    layers: list[Tensor | None]

    @property
    def tensor(self) -> Tensor:
        """(B, L + 1, C, D), on the backbone's device.

        Raises:
            ValueError: nothing has run yet.
        """
        if any(layer is None for layer in self.layers):
            raise ValueError("no pass has run under `gathered`")
        return torch.stack([layer for layer in self.layers if layer is not None], 1)


@contextmanager
def gathered(backbone: Any, columns: Tensor) -> Iterator[States]:
    """Gather every layer's states at some columns, over as many calls as the sequence takes.

    Args:
        backbone: a `SmallLM` or an `HFBackbone`.
        columns: (B, C) which columns of each row; -1 where it has none.

    Yields:
        The states, complete when the passes are done.
    """
    found = States(layers=[None] * (len(blocks(backbone)) + 1))

    def keep(layer: int) -> Callable[[_Call, Tensor], None]:
        def take(call: _Call, state: Tensor) -> None:
            kept = found.layers[layer]
            if kept is None:
                kept = found.layers[layer] = state.new_zeros(*columns.shape, state.shape[-1])
            if call.smallest is not None:
                rows, wanted, local = call.among(state.shape[1])
                kept[rows, wanted] = state.detach()[rows, local]

        return take

    with _observed(backbone, columns, {layer: keep(layer) for layer in range(len(found.layers))}, whole=True):
        yield found


@contextmanager
def patched(backbone: Any, layer: int, columns: Tensor, states: Tensor) -> Iterator[None]:
    """Put states into one layer at some columns, whenever a pass computes them; all that follows is computed from them.

    Args:
        backbone: as for `gathered`.
        layer: 0 to L.
        columns: (B, C); -1 = none.
        states: (B, C, D) what stands there, as `gathered` gives it for that layer.
    """

    def put(call: _Call, state: Tensor) -> Tensor | None:
        rows, wanted, local = call.among(state.shape[1])
        if not len(rows):
            return None
        changed = state.clone()
        changed[rows, local] = states[rows, wanted].to(state)
        return changed

    with _observed(backbone, columns, {layer: put}, whole=False):
        yield


def witnesses(batch: Batch) -> tuple[int, ...]:
    """One number a row that stands for what the row asks, however its batch is padded: crc32 of its real columns."""
    found = []
    for row in range(len(batch.mask)):
        parts = [batch.ids[row][batch.mask[row]]]
        if batch.facts is not None:
            assert batch.facts_mask is not None and batch.options is not None and batch.root is not None
            parts += [batch.facts[row][batch.facts_mask[row]].flatten(), batch.options[row], batch.root[row : row + 1]]
        found.append(zlib.crc32(torch.cat(parts).cpu().numpy().tobytes()))
    return tuple(found)


@dataclass(frozen=True, kw_only=True)
class Features:
    """States of n items, each row under its item's id.

    Attributes:
        ids: n of them.
        witness: (n,) what each row was computed from (`witnesses`).
        states: (n, L + 1, C, D).
    """

    ids: tuple[str, ...]
    witness: tuple[int, ...]
    states: Tensor


@dataclass(frozen=True, kw_only=True)
class Labels:
    """One label an item, under its id; None where the item has none (a path shorter than the step asked for).

    Attributes:
        witness: by id, as in `Features`.
        values: by id.
    """

    witness: Mapping[str, int]
    values: Mapping[str, str | None]


def rows_of(features: Features, labels: Labels) -> tuple[NDArray[np.intp], list[str]]:
    """The rows of `features` that have a label, and these labels, joined by item id and never by place.

    Raises:
        StepwellError: `misaligned-rows`: an id twice, ids on one side only, or rows computed from another question
            than the labels of their id.
    """
    if len(features.ids) != len(features.states) or len(features.ids) != len(features.witness):
        raise _misaligned(f"{len(features.ids)} ids for {len(features.states)} rows")
    if twice := [name for name, count in Counter(features.ids).items() if count > 1]:
        raise _misaligned(f"{len(twice)} ids stand for more than one row, first {twice[0]}")
    ids = set(features.ids)
    if lacking := sorted(ids.symmetric_difference(labels.values) | ids.symmetric_difference(labels.witness)):
        raise _misaligned(f"{len(lacking)} ids are on one side only, first {lacking[0]}")
    other = [name for name, seen in zip(features.ids, features.witness, strict=True) if labels.witness[name] != seen]
    if other:
        raise _misaligned(f"{len(other)} of {len(ids)} rows are of another question than their label, first {other[0]}")
    found = [(row, value) for row, name in enumerate(features.ids) if (value := labels.values[name]) is not None]
    return np.array([row for row, _ in found], np.intp), [value for _, value in found]


def _misaligned(cause: str) -> StepwellError:
    return StepwellError(
        f"{MISALIGNED}: {cause}",
        "gather the states and the labels of the same items, and keep each under its item's id",
    )


def columns_of(places: Sequence[int], rows: int, device: Any = None) -> Tensor:
    """(rows, C): the same columns in every row."""
    return torch.tensor(places, dtype=torch.long, device=device).expand(rows, len(places))
