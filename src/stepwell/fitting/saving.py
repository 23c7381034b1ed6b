"""A fit on the disk: written as its parts come, read as its vectors are asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import Tensor

from stepwell import models
from stepwell.merging.files import DTYPES, entry_bytes, writing

if TYPE_CHECKING:
    from stepwell.fitting.result import Fitted

VECTORS, RECORDS, ABOUT = "vectors.safetensors", "records.jsonl", "fit.json"
ORDER = ("I64", "F64", "F32", "BF16", "F16")
"""Of the tensors in a file: wider types first, as safetensors puts them; then by name."""
NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Saving:
    """A folder that a fit is being written into; see `saving`."""

    def __init__(self, folder: Path, records: IO[str], scratch: IO[bytes]) -> None:
        self.folder, self.records, self.scratch = folder, records, scratch
        # Name -> dtype, shape, where it begins in the scratch file.
        self.tensors: dict[str, tuple[str, tuple[int, ...], int]] = {}
        self.stops: set[int] = set()
        self.about: dict[str, Any] = {}

    def add(self, part: Fitted) -> None:
        """Write a part; parts come in the order of their problems, and nothing is kept of them but names."""
        tensors = {f"vectors/{id}": found for id, found in part.vectors.items()}
        tensors |= {f"modes/{name}": found for name, found in part.modes.items()}
        tensors |= {f"contexts/{id}": torch.tensor(ids) for id, ids in part.contexts.items()}
        for name, tensor in tensors.items():
            if name not in self.tensors:
                self.tensors[name] = (NAMES[tensor.dtype], tuple(tensor.shape), self.scratch.tell())
                self.scratch.write(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        self.records.writelines(json.dumps(r.to_record(), allow_nan=False) + "\n" for r in part.records)
        self.stops |= set(part.stops)
        self.about = {"recipe": part.recipe.model_dump(mode="json"), "slots": part.slots, "seed": part.seed,
                      "stops": sorted(self.stops)}  # fmt: skip

    def close(self) -> None:
        """Bring the tensors into their order, behind a header that names them all."""
        (self.folder / ABOUT).write_text(json.dumps(self.about, indent=2) + "\n", encoding="utf-8")
        order = sorted(self.tensors, key=lambda name: (ORDER.index(self.tensors[name][0]), name.encode()))
        told = [(name, *self.tensors[name][:2]) for name in order]
        with writing(self.folder / VECTORS, told, metadata={}) as file:
            for name, dtype, shape in told:
                self.scratch.seek(self.tensors[name][2])
                file.write(self.scratch.read(entry_bytes(dtype, shape)))


@contextmanager
def saving(folder: Path) -> Iterator[Saving]:
    """A saved fit, whole or not at all, of parts that are added in the block: in memory there is one part at a time.

    Raises:
        StepwellError: it cannot be written.
    """
    with models.whole_folder(folder) as new:
        scratch = new / ".scratch"
        with (new / RECORDS).open("w", encoding="utf-8") as records, scratch.open("w+b") as raw:
            saved = Saving(new, records, raw)
            yield saved
            saved.close()
        scratch.unlink()


class Stored(Mapping[str, Tensor]):
    """The tensors of a file whose names begin so, each read when it is asked for."""

    def __init__(self, path: Path, begins: str) -> None:
        self.file, self.begins = safe_open(path, framework="pt"), begins
        # As a dict, to be asked whether it has a name; the order is that of the file.
        self.names = dict.fromkeys(n.removeprefix(begins) for n in self.file.keys() if n.startswith(begins))  # noqa: SIM118

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.names:
            raise KeyError(name)
        return self.file.get_tensor(self.begins + name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)
