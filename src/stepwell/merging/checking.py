"""Whether a merged folder is still what was written: sizes, dtypes and hashes, by its manifest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stepwell.errors import StepwellError
from stepwell.fingerprint import of_file
from stepwell.merging.base import BaseIdentity
from stepwell.merging.files import Weights

MANIFEST = "stepwell-merge.json"
FORMAT = 1
AGAIN = "merge again, or copy the whole folder from where it is whole"


def write_manifest(folder: Path, told: Mapping[str, Any], hashes: Mapping[str, str]) -> None:
    """Write the manifest of a folder in which everything else is there already.

    Args:
        folder: of the merged model.
        told: what it says beside the files.
        hashes: tensor -> its BLAKE3 hash.
    """
    with Weights.of_model(folder) as weights:
        entries = weights.entries.values()
        tensors = {entry.name: {"dtype": entry.dtype, "blake3": hashes[entry.name]} for entry in entries}
        shards = {entry.file for entry in entries}
    files = sorted(file for file in folder.iterdir() if file.is_file())
    manifest = {
        "format": FORMAT,
        **told,
        "files": {file.name: file.stat().st_size for file in files},
        "sha256": {file.name: of_file(file) for file in files if file not in shards},
        "tensors": tensors,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a merged folder.

    Raises:
        StepwellError: there is none, or it is broken.
    """
    file = folder / MANIFEST
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if found["format"] != FORMAT:
            raise ValueError(f"its format is {found['format']}")
    except FileNotFoundError as error:
        raise StepwellError(f"there is no {MANIFEST}: this is no merged model", "name one", path=folder) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StepwellError(f"{MANIFEST} is broken: {error}", AGAIN, path=folder) from error
    return found


def check_files(folder: Path) -> dict[str, Any]:
    """The manifest, when every file has the size, and every tensor the dtype, that it says; reads no weights.

    Raises:
        StepwellError: a file that is missing, truncated or of another size; tensors that are missing, or of another
            dtype.
    """
    manifest = read_manifest(folder)
    for name, size in manifest["files"].items():
        file = folder / name
        if not file.is_file() or file.stat().st_size != size:
            told = f"{file.stat().st_size} bytes, not {size}" if file.is_file() else "missing"
            raise StepwellError(f"{name} is {told}", AGAIN, path=folder)
    with Weights.of_model(folder) as weights:
        found = {name: entry.dtype for name, entry in weights.entries.items()}
    wanted = {name: told["dtype"] for name, told in manifest["tensors"].items()}
    if wrong := sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)):
        name = wrong[0]
        raise StepwellError(
            f"{len(wrong)} tensors are not as they were written, first {name}: {found.get(name, 'missing')}, "
            f"not {wanted.get(name, 'there')}", AGAIN, path=folder,
        )  # fmt: skip
    return manifest


def check_merged(folder: Path) -> dict[str, Any]:
    """As `check_files`, and every byte is as it was written; the manifest.

    Raises:
        StepwellError: as `check_files`, or a hash that differs.
    """
    manifest = check_files(folder)
    if BaseIdentity.of(folder).sha256 != manifest["merged_sha256"]:
        raise StepwellError("the weights are not those that were written", AGAIN, path=folder)
    for name, digest in manifest["sha256"].items():
        if of_file(folder / name) != digest:
            raise StepwellError(f"{name} is not as it was written", AGAIN, path=folder)
    return manifest
