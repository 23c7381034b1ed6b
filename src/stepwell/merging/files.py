"""Safetensors on disk, tensor by tensor and row by row: what a header says, plain reads, and a file written in order.

Plain reads into buffers rather than a memory map: mapped pages count as this process's memory, and what is to be
shown here is how little is held.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock
from typing import Any, Self

import torch
from torch import Tensor

from stepwell.errors import StepwellError
from stepwell.models import check_folder

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
LONGEST_HEADER = 100_000_000
"""Bytes; the limit of the format's own library."""
FLUSHED_SECONDS = 0.2
"""What was written is sent to the disk so often, for waiting for all of it at the end would take longer."""

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
FLOATS = ("F64", "F32", "F16", "BF16")
"""The dtypes of weights that can be merged into; all others are taken for quantised, or for indices."""

PT: Mapping[str, str] = {"format": "pt"}
"""What transformers asks the metadata of a model's file for."""
_SHARD = re.compile(r".*-(\d+)-of-(\d+)\.safetensors")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Where one tensor lies.

    Attributes:
        name: of the tensor.
        dtype: as the format calls it, such as `BF16`.
        shape: of the tensor.
        file: the file.
        start: offset of its first byte in the file.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype in torch."""
        return DTYPES[self.dtype]

    @property
    def rows(self) -> int:
        """Length of the first dimension; 1 for a scalar."""
        return self.shape[0] if self.shape else 1

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of one row."""
        return self.shape[1:]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.bytes // self.rows if self.rows else 0

    @property
    def bytes(self) -> int:
        """Bytes of the tensor."""
        return entry_bytes(self.dtype, self.shape)


def entry_bytes(dtype: str, shape: Sequence[int]) -> int:
    """Bytes of a tensor."""
    count = 1
    for length in shape:
        count *= length
    return count * DTYPES[dtype].itemsize


def read_header(file: Path) -> tuple[list[Entry], dict[str, str]]:
    """The tensors of a safetensors file in the order of their bytes, and the file's metadata.

    Raises:
        StepwellError: the file cannot be read, is none of the format, or is not as long as its header says.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if size < 8 or length > min(LONGEST_HEADER, size - 8):
                raise ValueError("its header is longer than the file")
            header = json.loads(opened.read(length))
        metadata = header.pop("__metadata__", {})
        entries = [_entry(name, told, file, 8 + length) for name, told in header.items()]
    except OSError as error:
        raise StepwellError(f"cannot be read: {error.strerror}", "check the path", path=file) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StepwellError(f"this is no whole safetensors file: {error}", "fetch it again", path=file) from error
    entries.sort(key=lambda entry: entry.start)
    end = max((entry.start + entry.bytes for entry in entries), default=8 + length)
    if size != end:
        cut = "truncated" if size < end else "longer than its header says"
        raise StepwellError(f"the file is {cut}: {size} bytes, not {end}", "fetch or write it again", path=file)
    return entries, metadata


def _entry(name: str, told: Any, file: Path, data: int) -> Entry:
    if told["dtype"] not in DTYPES:
        raise ValueError(f"{name} has the dtype {told['dtype']}, which is not known here")
    start, stop = told["data_offsets"]
    entry = Entry(name=name, dtype=told["dtype"], shape=tuple(told["shape"]), file=file, start=data + start)
    if stop - start != entry.bytes:
        raise ValueError(f"{name} takes {stop - start} bytes, and its shape {entry.bytes}")
    return entry


class Weights:
    """The tensors of some safetensors files, read when they are asked for; close it, or use it in `with`."""

    def __init__(self, entries: Sequence[Entry], metadata: Mapping[str, str]) -> None:
        self.entries = {entry.name: entry for entry in entries}
        self.metadata = dict(metadata)
        self._files: dict[Path, int] = {}
        self._opening = Lock()

    @classmethod
    def of_model(cls, folder: Path) -> Self:
        """All weights of a model folder, in one file or in shards.

        Raises:
            StepwellError: files that are missing, truncated or pickles; tensors that the index promises and no file
                has, or that two files have.
        """
        files = _model_files(folder)
        entries = [entry for file in files for entry in read_header(file)[0]]
        seen: dict[str, Path] = {}
        for entry in entries:
            if (other := seen.setdefault(entry.name, entry.file)) != entry.file:
                raise StepwellError(
                    f"{entry.name} is in {other.name} and in {entry.file.name}", "fetch the model again", path=folder
                )
        if len(files) > 1 or files[0].name != SINGLE:
            promised = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
            if lost := sorted(promised.keys() - seen.keys()):
                raise StepwellError(
                    f"{len(lost)} of {len(promised)} tensors are in none of the files, first {lost[0]}",
                    "fetch the model again", path=folder,
                )  # fmt: skip
        return cls(entries, {})

    @classmethod
    def of_file(cls, file: Path) -> Self:
        """The tensors of one file. Raises as `read_header`."""
        return cls(*read_header(file))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files.clear()

    def read_into(self, entry: Entry, row: int, buffer: Tensor) -> None:
        """Fill a uint8 buffer with the bytes of a tensor from some row on; threads may do so at once.

        Raises:
            StepwellError: the file ends before that.
        """
        view, offset = buffer.numpy().data, entry.start + row * entry.row_bytes
        with self._opening:
            descriptor = self._files.get(entry.file)
            if descriptor is None:
                descriptor = self._files[entry.file] = os.open(entry.file, os.O_RDONLY)
        while view:
            read = os.preadv(descriptor, [view], offset)
            if not read:
                raise StepwellError(f"the file ends inside {entry.name}", "fetch it again", path=entry.file)
            view, offset = view[read:], offset + read

    def tensor(self, name: str) -> Tensor:
        """One whole tensor, in its own dtype."""
        entry = self.entries[name]
        raw = torch.empty(entry.bytes, dtype=torch.uint8)
        self.read_into(entry, 0, raw)
        return raw.view(entry.torch_dtype).view(entry.shape)


def _model_files(folder: Path) -> list[Path]:
    shards = sorted(path for path in folder.glob("*.safetensors") if _SHARD.fullmatch(path.name))
    if not (folder / SINGLE).is_file() and not (folder / INDEX).is_file() and shards:
        matched = _SHARD.fullmatch(shards[0].name)
        total = int(matched[2]) if matched else len(shards)
        raise StepwellError(f"there are {len(shards)} of {total} weight files, and no {INDEX}",
                            "fetch the model again, whole", path=folder)  # fmt: skip
    check_folder(folder)
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    weight_map = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
    return sorted({folder / shard for shard in weight_map.values()})


@contextmanager
def writing(
    file: Path, tensors: Sequence[tuple[str, str, Sequence[int]]], metadata: Mapping[str, str] = PT
) -> Iterator[Any]:
    """A new safetensors file, open behind its header; the bytes of the tensors lie in this order. Flushed at the end.

    Args:
        file: is created.
        tensors: name, dtype and shape of each.
        metadata: of the file; none = no entry.

    Raises:
        StepwellError: at the end, when less or more was written than the header says.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, dtype, shape in tensors:
        stop = offset + entry_bytes(dtype, shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, stop]}
        offset = stop
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # so that the tensors are aligned
    with file.open("wb", buffering=0) as opened, _flushing(opened.fileno()):
        opened.write(len(text).to_bytes(8, "little") + text)
        yield opened
    wanted, found = 8 + len(text) + offset, file.stat().st_size
    if found != wanted:
        raise StepwellError(f"{found} bytes were written, not {wanted}", "free space and run it again", path=file)


@contextmanager
def _flushing(descriptor: int) -> Iterator[None]:
    """What is written in the block goes to the disk meanwhile; all of it is there at the end."""
    ended = Event()

    def flush() -> None:
        while not ended.wait(FLUSHED_SECONDS):
            os.fsync(descriptor)
        os.fsync(descriptor)

    with ThreadPoolExecutor(1) as pool:
        flushed = pool.submit(flush)
        try:
            yield
        finally:
            ended.set()
        flushed.result()  # a write that failed is told to one fsync only, whichever came first
