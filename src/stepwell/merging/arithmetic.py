"""One tensor's merge, some rows at a time: W + s B A in fp32, or DoRA's m (W + s B A) / |W + s B A|.

Sources: Hu et al. 2021 (arXiv 2106.09685), eq. 3; Liu et al. 2024 (DoRA, arXiv 2402.09353), eq. 5; both as PEFT
computes them. A tensor is never held whole: what is held is the pair, and a few rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from stepwell.merging.adapter import Adapter, Pair
from stepwell.merging.files import Entry, Weights
from stepwell.merging.matching import Edit, Output
from stepwell.merging.nf4 import through_nf4

CHUNK = 1 << 18
"""Weights at a time, at least 64 rows of them: 1 MiB in fp32, so that they stay in a core's cache until written."""


@dataclass(frozen=True, kw_only=True)
class Product:
    """s B A in the layout of the stored weight (R, C).

    Attributes:
        left: (R, r).
        right: (r, C), times s.
        magnitude: DoRA's m, (R, 1) or (1, C); None for plain LoRA.
    """

    left: Tensor
    right: Tensor
    magnitude: Tensor | None

    @classmethod
    def of(cls, adapter: Adapter, pair: Pair, tensors: Weights, kind: str) -> Product:
        """Read a pair. A linear map stores (out, in) as B A does; GPT-2's Conv1D and an embedding the transpose."""
        a, b = (tensors.tensor(pair.names[part]).float() for part in ("A", "B"))
        scale = adapter.scale(pair.module, a.shape[0])
        name = pair.names.get("magnitude")
        magnitude = None if name is None else tensors.tensor(name).float()
        if kind == "linear":
            return cls(left=b, right=a * scale, magnitude=None if magnitude is None else magnitude[:, None])
        return cls(left=a.T.contiguous(), right=b.T * scale, magnitude=None if magnitude is None else magnitude[None])

    def norm(self) -> float:
        """The Frobenius norm of s B A, from products of rank size."""
        inner = (self.left.T @ self.left).double() * (self.right @ self.right.T).double()
        return max(float(inner.sum()), 0.0) ** 0.5


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Some rows of a tensor.

    Attributes:
        start: the first row.
        raw: the base's bytes. These and all weights here are overwritten by the next chunk.
        base: the base's weights in fp32 (rows, ...), a 4-bit base's as they come back from 4 bits.
        base_squares: their sum of squares.
        merged: what becomes of them; the same tensor as `base` where nothing is done to it, or it was done in place.
    """

    start: int
    raw: Tensor
    base: Tensor
    base_squares: float
    merged: Tensor


class Merger:
    """Computes merged tensors chunk by chunk.

    Args:
        adapter: the adapter.
        tensors: its tensors.
        base: the base's.
        four_bit: the base's tensors that go through 4 bits (`nf4`) before the adapter is added.
    """

    def __init__(
        self, adapter: Adapter, tensors: Weights, base: Weights, four_bit: frozenset[str] = frozenset()
    ) -> None:
        self.adapter, self.tensors, self.base, self.four_bit = adapter, tensors, base, four_bit

    def products(self, output: Output) -> list[Product]:
        """The low-rank updates of one tensor."""
        pairs = [] if output.edit is None else output.edit.pairs
        return [Product.of(self.adapter, pair, self.tensors, output.kind or "linear") for pair in pairs]

    def chunks(self, output: Output, products: list[Product], *, in_place: bool = False) -> Iterator[Chunk]:
        """The chunks of one tensor, in order.

        Args:
            output: the tensor.
            products: as `products` gives them.
            in_place: compute over the base's weights, which are not wanted any more.
        """
        entry = self.base.entries[output.source]
        scales = self._scales(output, products)
        extra = self._extra(output.edit)
        rows = chunk_rows(entry)
        work = torch.empty(min(rows, entry.rows), *entry.row_shape)
        raw = torch.empty(len(work) * entry.row_bytes, dtype=torch.uint8)
        merged = work if output.edit is None or in_place else torch.empty_like(work)
        for start in range(0, entry.rows, rows):
            stop = min(start + rows, entry.rows)
            buffer = raw[: (stop - start) * entry.row_bytes]
            base = self._read(entry, start, buffer, work[: stop - start])
            new, squares = merged[: stop - start], 0.0
            if output.edit is not None:
                squares, saved = squares_of(base), output.edit.saved
                if saved is not None:
                    new.copy_(self._saved(saved, start, stop))
                elif not in_place:
                    new.copy_(base)
                _add(new, products, scales, slice(start, stop))
                if extra is not None:
                    new += extra[start:stop]
            yield Chunk(start=start, raw=buffer, base=base, base_squares=squares, merged=new)

    def whole(self, output: Output) -> Tensor:
        """One whole merged tensor in fp32, before the cast."""
        entry = self.base.entries[output.source]
        made = torch.empty(entry.shape)
        rows = made if entry.shape else made[None]
        for chunk in self.chunks(output, self.products(output)):
            rows[chunk.start : chunk.start + len(chunk.merged)] = chunk.merged
        return made

    def _read(self, entry: Entry, start: int, buffer: Tensor, into: Tensor) -> Tensor:
        self.base.read_into(entry, start, buffer)
        into.copy_(buffer.view(entry.torch_dtype).view(into.shape))
        if entry.name in self.four_bit:
            into.copy_(through_nf4(into))
        return into

    def _saved(self, name: str, start: int, stop: int) -> Tensor:
        entry = self.tensors.entries[name]
        buffer = torch.empty((stop - start) * entry.row_bytes, dtype=torch.uint8)
        self.tensors.read_into(entry, start, buffer)
        return buffer.view(entry.torch_dtype).view(stop - start, *entry.row_shape)

    def _extra(self, edit: Edit | None) -> Tensor | None:
        if edit is None or not edit.biases:
            return None
        return torch.stack(
            [self.tensors.tensor(name).float() * self._bias_scale(module) for name, module in edit.biases]
        ).sum(0)

    def _bias_scale(self, module: str) -> float:
        return self.adapter.scale(module, self.adapter.rank(module))

    def _scales(self, output: Output, products: list[Product]) -> Tensor | None:
        """DoRA's factors that need the whole tensor: m / |W + s B A|, (1, C), where norms run down the columns."""
        magnitude = next((product.magnitude for product in products if product.magnitude is not None), None)
        if magnitude is None or magnitude.shape[0] != 1:
            return None
        plain = [Product(left=each.left, right=each.right, magnitude=None) for each in products]
        squares = torch.zeros(magnitude.shape[1], dtype=torch.float64)
        for chunk in self.chunks(output, plain):
            squares += chunk.merged.square_().sum(0)
        return magnitude / squares.sqrt().float()


def _add(new: Tensor, products: list[Product], scales: Tensor | None, rows: slice) -> None:
    for product in products:
        new.addmm_(product.left[rows], product.right)
    if scales is not None:
        new *= scales
        return
    for product in products:
        if product.magnitude is not None:
            new *= product.magnitude[rows] / torch.linalg.norm(new, dim=1, keepdim=True)


def squares_of(tensor: Tensor) -> float:
    """Sum of squares."""
    flat = tensor.reshape(-1)
    return float(torch.dot(flat, flat))


def chunk_rows(entry: Entry) -> int:
    """Rows at a time: a multiple of 64, so that no block of 64 weights is cut."""
    width = 1
    for length in entry.row_shape:
        width *= length
    return max(64, CHUNK // max(width, 1) // 64 * 64)
