"""The merged weights, written tensor by tensor: hashed as they are read and as they are written, and measured.

Each thread takes a tensor through all of it, some rows at a time: nothing is handed over, and rows that have been read
stay in its core's cache until they are written.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from stepwell.errors import StepwellError
from stepwell.merging.arithmetic import Merger, Product, chunk_rows, squares_of
from stepwell.merging.base import hash_of, new_hash
from stepwell.merging.files import DTYPES, FLOATS, INDEX, SINGLE, Entry, Weights, entry_bytes, writing
from stepwell.merging.matching import Output

Precision = Literal["fp32", "bf16", "fp16"]
STORED: Mapping[Precision, str] = {"fp32": "F32", "bf16": "BF16", "fp16": "F16"}
THREADS = 4
"""Tensors that are written at once, where there are so many cores."""
MEASURED = 16
"""What the cast takes away is measured in every 16th row, but in 64 rows at least: to a percent or so of itself."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """What became of one tensor that the adapter changes.

    Attributes:
        name: of the tensor.
        delta_share: norm of the change over the norm of the base's weights; None where the base's are all zero.
        survived: 1 - |cast(W + D) - (W + D)| / |D|, not below 0: how much of the change D the cast left; None where
            nothing changed.
        delta_norm: Frobenius norm of the change.
        lost_norm: Frobenius norm of what the cast took away.
        base_norm: Frobenius norm of the base's weights.
    """

    name: str
    delta_norm: float
    lost_norm: float
    base_norm: float

    @property
    def delta_share(self) -> float | None:
        """See the class."""
        return self.delta_norm / self.base_norm if self.base_norm else None

    @property
    def survived(self) -> float | None:
        """See the class."""
        return share_survived(self.delta_norm, self.lost_norm)

    def to_json(self) -> dict[str, Any]:
        """As the manifest holds it."""
        return {"name": self.name, "delta_share": self.delta_share, "survived": self.survived}


def share_survived(delta_norm: float, lost_norm: float) -> float | None:
    """1 - lost / delta, not below 0; None where there is no delta."""
    return max(0.0, 1 - lost_norm / delta_norm) if delta_norm else None


@dataclass(frozen=True, kw_only=True)
class Written:
    """What was read and written.

    Attributes:
        base_hashes: tensor of the base -> its hash (`base.new_hash`).
        hashes: merged tensor -> its hash.
        changes: of the tensors that the adapter changes.
    """

    base_hashes: Mapping[str, str]
    hashes: Mapping[str, str]
    changes: tuple[Change, ...]


def stored_as(entry: Entry, precision: Precision | None) -> str:
    """The dtype in which a tensor is written: its own, or the one that was asked for, where it is a float."""
    return entry.dtype if precision is None or entry.dtype not in FLOATS else STORED[precision]


def write_weights(
    merger: Merger, outputs: Sequence[Output], folder: Path, *, precision: Precision | None
) -> Written:  # fmt: skip
    """Write the merged tensors into files that are called as the base's are.

    Args:
        merger: computes them.
        outputs: all tensors of the merged model.
        folder: is there already.
        precision: of all floats; None = each as the base has it.

    Raises:
        StepwellError: a value that is not finite in the dtype it is written in; a file that was not written whole.
    """
    shards: dict[str, list[Output]] = {}
    for output in outputs:
        shards.setdefault(merger.base.entries[output.source].file.name, []).append(output)
    with _one_thread():
        done = [one for name, held in shards.items() for one in _write_file(merger, held, folder / name, precision)]
    used = {output.source for output in outputs}
    left = {name: hash_of(merger.base, entry) for name, entry in merger.base.entries.items() if name not in used}
    if set(shards) != {SINGLE}:
        _write_index(merger.base, shards, folder, precision)
    return Written(
        base_hashes={one.output.source: one.read for one in done} | left,
        hashes={one.output.place: one.written for one in done},
        changes=tuple(one.change for one in done if one.change is not None),
    )


@contextmanager
def _one_thread() -> Iterator[None]:
    """Torch computes on one thread in the block: the others, which wait by spinning, are needed to hash and write."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True, kw_only=True)
class _Done:
    """One tensor: its hash in the base, and as it was written."""

    output: Output
    read: str
    written: str
    change: Change | None


def _write_file(merger: Merger, outputs: Sequence[Output], file: Path, precision: Precision | None) -> list[_Done]:
    entries = {output.place: merger.base.entries[output.source] for output in outputs}
    dtypes = {place: stored_as(entry, precision) for place, entry in entries.items()}
    # Wider dtypes first, so that each tensor begins at a multiple of its width.
    order = sorted(outputs, key=lambda output: -DTYPES[dtypes[output.place]].itemsize)
    tensors = [(output.place, dtypes[output.place], entries[output.place].shape) for output in order]
    with writing(file, tensors) as opened, ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        sizes = (entry_bytes(dtype, shape) for _, dtype, shape in tensors)
        places = [_Place(opened.fileno(), offset) for offset in accumulate(sizes, initial=opened.tell())]

        def write(output: Output, place: _Place) -> _Done:
            return _write(merger, output, dtypes[output.place], place)

        # Where one raises, those that have not begun do not begin.
        return list(pool.map(write, order, places))


def _write_index(
    base: Weights, shards: Mapping[str, Sequence[Output]], folder: Path, precision: Precision | None
) -> None:
    entries = [base.entries[output.source] for held in shards.values() for output in held]
    total = sum(entry_bytes(stored_as(entry, precision), entry.shape) for entry in entries)
    weight_map = {output.place: name for name, held in shards.items() for output in held}
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")


class _Place:
    """Where the next bytes of one tensor go."""

    def __init__(self, descriptor: int, offset: int) -> None:
        self.descriptor, self.offset = descriptor, offset

    def put(self, buffer: Tensor) -> None:
        view = buffer.numpy().data
        while view:
            count = os.pwrite(self.descriptor, view, self.offset)
            view, self.offset = view[count:], self.offset + count


def _write(merger: Merger, output: Output, dtype: str, place: _Place) -> _Done:
    entry = merger.base.entries[output.source]
    if output.edit is None and dtype == entry.dtype and entry.name not in merger.four_bit:
        copied = _copy(merger.base, entry, place)
        return _Done(output=output, read=copied, written=copied, change=None)
    products = merger.products(output)
    direct = _known_delta(output, products)
    read, written = new_hash(entry), new_hash(entry, dtype)
    out = torch.empty(min(chunk_rows(entry), entry.rows), *entry.row_shape, dtype=DTYPES[dtype])
    step = min(MEASURED, max(1, entry.rows // 64))
    base = delta = lost = 0.0
    for chunk in merger.chunks(output, products, in_place=direct is not None):
        merged = chunk.merged
        cast = out[: len(merged)].copy_(merged)
        _check_finite(merged, cast, output, dtype)
        read.update(chunk.raw.numpy().data)
        raw = cast.view(-1).view(torch.uint8)
        written.update(raw.numpy().data)
        place.put(raw)
        if output.edit is not None:
            some = merged[::step]
            base += chunk.base_squares
            lost += squares_of(some - cast[::step].float()) * len(merged) / len(some)
            delta += squares_of(merged - chunk.base) if direct is None else 0.0
    change = Change(name=output.place, base_norm=base**0.5, lost_norm=lost**0.5,
                    delta_norm=delta**0.5 if direct is None else direct)  # fmt: skip
    return _Done(output=output, read=read.hexdigest(), written=written.hexdigest(),
                 change=None if output.edit is None else change)  # fmt: skip


def _copy(base: Weights, entry: Entry, place: _Place) -> str:
    """Write a tensor as it is; its hash."""
    digest, rows = new_hash(entry), chunk_rows(entry)
    buffer = torch.empty(min(rows, entry.rows) * entry.row_bytes, dtype=torch.uint8)
    for start in range(0, entry.rows, rows):
        part = buffer[: (min(start + rows, entry.rows) - start) * entry.row_bytes]
        base.read_into(entry, start, part)
        digest.update(part.numpy().data)
        place.put(part)
    return digest.hexdigest()


def _check_finite(merged: Tensor, cast: Tensor, output: Output, dtype: str) -> None:
    # bf16 and fp32 reach as far as each other: only fp16 can lose what is finite in fp32.
    if not math.isfinite(squares_of(cast.float() if dtype == "F16" else merged)):
        raise StepwellError(
            f"{output.place} is not finite after the merge, as {dtype}",
            "look at the adapter (`stepwell audit adapter`); where only the dtype is too narrow, take --dtype fp32",
        )


def _known_delta(output: Output, products: Sequence[Product]) -> float | None:
    """The norm of the change where it is that of a product; None where it has to be measured."""
    plain = output.edit is not None and output.edit.saved is None and not output.edit.biases and len(products) == 1
    return products[0].norm() if plain and products[0].magnitude is None else None
