"""The merged weights, written tensor by tensor: hashed as they are read and as they are written, and measured.

Hashes are computed by two threads beside the arithmetic, so that on two cores they cost little time.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from stepwell.errors import StepwellError
from stepwell.merging.arithmetic import Chunk, Merger, Product, chunk_rows, largest_chunk, squares_of
from stepwell.merging.base import hash_of, new_hash
from stepwell.merging.files import DTYPES, FLOATS, INDEX, SINGLE, Entry, writing
from stepwell.merging.matching import Output

Precision = Literal["fp32", "bf16", "fp16"]
STORED: Mapping[Precision, str] = {"fp32": "F32", "bf16": "BF16", "fp16": "F16"}
BUFFERS = 3
MEASURED = 16
"""What the cast takes away is measured in every 16th row, at least 64 rows of a chunk: to a percent or so of itself."""


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
        base_hashes: tensor of the base -> sha256.
        hashes: merged tensor -> sha256.
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
    with ExitStack() as stack:
        stack.enter_context(_one_thread())
        writer = _Writer(merger, precision, stack)
        for name, held in shards.items():
            _write_file(writer, held, folder / name)
    used = {output.source for output in outputs}
    left = {name: hash_of(merger.base, entry) for name, entry in merger.base.entries.items() if name not in used}
    if set(shards) != {SINGLE}:
        _write_index(writer, shards, folder)
    return Written(
        base_hashes={name: digest.hexdigest() for name, digest in writer.read.items()} | left,
        hashes={name: digest.hexdigest() for name, digest in writer.written.items()},
        changes=tuple(writer.changes),
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


def _write_file(writer: _Writer, outputs: Sequence[Output], file: Path) -> None:
    entries = [writer.merger.base.entries[output.source] for output in outputs]
    tensors = [(output.place, stored_as(entry, writer.precision), entry.shape)
               for output, entry in zip(outputs, entries, strict=True)]  # fmt: skip
    # Wider dtypes first, so that each tensor begins at a multiple of its width.
    order = sorted(range(len(tensors)), key=lambda index: -DTYPES[tensors[index][1]].itemsize)
    with writing(file, [tensors[index] for index in order]) as opened:
        for index in order:
            writer.write(outputs[index], opened)
        writer.finish()


def _write_index(writer: _Writer, shards: Mapping[str, Sequence[Output]], folder: Path) -> None:
    entries = writer.merger.base.entries
    weight_map = {output.place: name for name, held in shards.items() for output in held}
    total = sum(
        entries[output.source].bytes // entries[output.source].torch_dtype.itemsize
        * DTYPES[stored_as(entries[output.source], writer.precision)].itemsize
        for held in shards.values() for output in held
    )  # fmt: skip
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")


class _Ring:
    """Buffers that are used in turn, each again when what was done with it is done."""

    def __init__(self, count: int, size: int) -> None:
        self.buffers = deque(torch.empty(size, dtype=torch.uint8) for _ in range(count))
        self.work: deque[list[Future[None]]] = deque([] for _ in range(count))

    def __iter__(self) -> Iterator[Tensor]:
        return self

    def __next__(self) -> Tensor:
        self.buffers.rotate(1)
        self.work.rotate(1)
        self.wait()
        return self.buffers[0]

    def wait(self) -> None:
        for future in self.work[0]:
            future.result()
        self.work[0].clear()


class _Writer:
    def __init__(self, merger: Merger, precision: Precision | None, stack: ExitStack) -> None:
        self.merger = merger
        self.precision: Precision | None = precision
        entries = merger.base.entries.values()
        most = max((min(chunk_rows(entry), entry.rows) * entry.row_bytes // entry.torch_dtype.itemsize
                    * DTYPES[stored_as(entry, precision)].itemsize for entry in entries), default=0)  # fmt: skip
        self.raw, self.out = _Ring(BUFFERS, largest_chunk(merger.base)), _Ring(BUFFERS, most)
        # One thread each, so that what is added to a hash is added in order.
        self.reading, self.hashing, self.writing = (stack.enter_context(ThreadPoolExecutor(1)) for _ in range(3))
        self.read: dict[str, Any] = {}
        self.written: dict[str, Any] = {}
        self.changes: list[Change] = []

    def finish(self) -> None:
        """Wait until all that was begun is done."""
        for ring in (self.raw, self.out):
            for _ in range(BUFFERS):
                next(ring)

    def write(self, output: Output, file: Any) -> None:
        entry = self.merger.base.entries[output.source]
        dtype = stored_as(entry, self.precision)
        digest = None if entry.name in self.read else self.read.setdefault(entry.name, new_hash(entry))
        if output.edit is None and dtype == entry.dtype and entry.name not in self.merger.four_bit:
            self._copy(entry, digest, file)
            self.written[output.place] = self.read[entry.name]
            return
        self.written[output.place] = new_hash(entry, dtype)
        products = self.merger.products(output)
        squares = torch.zeros(3, dtype=torch.float64)
        direct = _known_delta(output, products)
        for chunk in self.merger.chunks(output, products, self.raw, in_place=direct is not None):
            if digest is not None:
                self.raw.work[0].append(self.reading.submit(digest.update, chunk.raw.numpy().data))
            squares += self._cast(output, chunk, dtype, direct is None, file)
        norms = squares.sqrt().tolist()
        if output.edit is not None:
            self.changes.append(
                Change(name=output.place, base_norm=norms[0], lost_norm=norms[2],
                       delta_norm=norms[1] if direct is None else direct)
            )  # fmt: skip

    def _copy(self, entry: Entry, digest: Any, file: Any) -> None:
        rows = chunk_rows(entry)
        for start in range(0, entry.rows, rows):
            buffer = next(self.raw)[: (min(start + rows, entry.rows) - start) * entry.row_bytes]
            self.merger.base.read_into(entry, start, buffer)
            if digest is not None:
                self.raw.work[0].append(self.reading.submit(digest.update, buffer.numpy().data))
            self.raw.work[0].append(self.writing.submit(_put, file, buffer))

    def _cast(self, output: Output, chunk: Chunk, dtype: str, measured: bool, file: Any) -> Tensor:
        """Cast a chunk, hash and write it; squared norms of base, change and loss."""
        merged = chunk.merged
        buffer = next(self.out)[: merged.numel() * DTYPES[dtype].itemsize]
        cast = buffer.view(DTYPES[dtype]).view(merged.shape).copy_(merged)
        self.out.work[0].append(self.hashing.submit(self.written[output.place].update, buffer.numpy().data))
        self.out.work[0].append(self.writing.submit(_put, file, buffer))
        # bf16 and fp32 reach as far as each other: only fp16 can lose what is finite in fp32.
        if not math.isfinite(squares_of(cast.float() if dtype == "F16" else merged)):
            raise StepwellError(
                f"{output.place} is not finite after the merge, as {dtype}",
                "look at the adapter (`stepwell audit adapter`); where only the dtype is too narrow, take --dtype fp32",
            )
        if output.edit is None:
            return torch.zeros(3, dtype=torch.float64)
        delta = squares_of(merged - chunk.base) if measured else 0.0
        step = min(MEASURED, max(1, len(merged) // 64))
        some = merged[::step]
        lost = squares_of(some - cast[::step].float()) * len(merged) / len(some)
        return torch.tensor([chunk.base_squares, delta, lost], dtype=torch.float64)


def _known_delta(output: Output, products: Sequence[Product]) -> float | None:
    """The norm of the change where it is that of a product; None where it has to be measured."""
    plain = output.edit is not None and output.edit.saved is None and not output.edit.biases and len(products) == 1
    return products[0].norm() if plain and products[0].magnitude is None else None


def _put(file: Any, buffer: Tensor) -> None:
    view = buffer.numpy().data
    while view:
        view = view[file.write(view) :]
