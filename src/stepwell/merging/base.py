"""The identity of a base model: one hash of every tensor on disk, whatever files they are spread over."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from blake3 import blake3

from stepwell.errors import StepwellError
from stepwell.fingerprint import fingerprint
from stepwell.merging.files import FLOATS, Entry, Weights

BLOCK = 1 << 23
"""Bytes that are read at a time."""


@dataclass(frozen=True, kw_only=True)
class BaseIdentity:
    """Which weights these are. An adapter is trained on exactly these, and merges into exactly these.

    Names, dtypes, shapes and contents of all tensors count; file names, shards, configuration and tokenizer do not.

    Attributes:
        sha256: one hash (64 hex digits) over the BLAKE3 hashes of the tensors: SHA-256 of the weights themselves would
            take as long as all the rest of a merge.
        dtype: of most weights, as safetensors calls it, such as `F32` or `BF16`.
        quantised: whether its configuration says that it is, or its weights are no floats.
    """

    sha256: str
    dtype: str
    quantised: bool

    @classmethod
    def of(cls, folder: Path) -> Self:
        """Read every tensor of a model folder once, a block at a time. Raises as `Weights.of_model`."""
        with Weights.of_model(folder) as weights:
            hashes = {name: hash_of(weights, entry) for name, entry in weights.entries.items()}
            return cls.of_hashes(hashes, weights, folder)

    @classmethod
    def of_hashes(cls, hashes: Mapping[str, str], weights: Weights, folder: Path) -> Self:
        """The identity from the hash of each tensor, where they have been read already."""
        entries = weights.entries.values()
        return cls(sha256=fingerprint(dict(hashes)), dtype=main_dtype(entries), quantised=is_quantised(folder, weights))


def new_hash(entry: Entry, dtype: str | None = None) -> Any:
    """A hash to which the bytes of a tensor are to be added; two tensors of other shapes or dtypes never agree."""
    return blake3(f"{dtype or entry.dtype} {list(entry.shape)} ".encode())


def hash_of(weights: Weights, entry: Entry) -> str:
    """The BLAKE3 hash (64 hex digits) of one tensor on disk."""
    digest = new_hash(entry)
    rows = max(1, BLOCK // max(1, entry.row_bytes))
    buffer = torch.empty(min(rows, entry.rows) * entry.row_bytes, dtype=torch.uint8)
    for row in range(0, entry.rows, rows):
        part = buffer[: (min(row + rows, entry.rows) - row) * entry.row_bytes]
        weights.read_into(entry, row, part)
        digest.update(part.numpy().data)
    return digest.hexdigest()


def main_dtype(entries: Any) -> str:
    """The dtype of most bytes."""
    count: Counter[str] = Counter()
    for entry in entries:
        count[entry.dtype] += entry.bytes
    return count.most_common(1)[0][0] if count else "F32"


def is_quantised(folder: Path, weights: Weights) -> bool:
    """Whether the configuration of a model folder says so, or most of its bytes are no floats."""
    return "quantization_config" in read_config(folder) or main_dtype(weights.entries.values()) not in FLOATS


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a model folder.

    Raises:
        StepwellError: it is missing or no JSON object.
    """
    file = folder / "config.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StepwellError("there is no config.json that can be read", "name a model folder", path=file) from error
    if not isinstance(found, dict):
        raise StepwellError("config.json is no object", "fetch the model again", path=file)
    return found
