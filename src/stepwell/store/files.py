"""Files that are whole or not there: atomic writes, hashes, and what to say when a disk is full or not writable."""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from stepwell.errors import StepwellError

FULL = (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a new file that takes the place of `path` when the block ends well, flushed to the disk before.

    When the block fails or the process dies, `path` is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def remove_torn(path: Path) -> None:
    """Remove what `replacing` has left of a file when its process was killed. Nobody else may be writing that file."""
    for torn in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        torn.unlink(missing_ok=True)


def remove_all_torn(folder: Path) -> None:
    """The same for all files under a folder."""
    for torn in folder.rglob(".*.part"):
        torn.unlink(missing_ok=True)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a whole file at once or not at all."""
    with replacing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def sync_folder(folder: Path) -> None:
    """Make a rename inside a folder last: it is the folder that holds names."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256_of(path: Path, *, length: int | None = None, sync: bool = False) -> str:
    """Hex sha256 of a file, or of its first `length` bytes; `sync` also flushes it to the disk."""
    digest, left = hashlib.sha256(), length if length is not None else -1
    with path.open("rb") as file:
        while left and (block := file.read(min(1 << 20, left) if left > 0 else 1 << 20)):
            digest.update(block)
            left -= len(block) if left > 0 else 0
        if sync:
            os.fsync(file.fileno())
    return digest.hexdigest()


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or one that led to it, says that no space is left (torch and safetensors say it in words)."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return True
        if any(text in str(error) for text in ("No space left on device", "os error 28", "Disk quota exceeded")):
            return True
        error = error.__cause__ or error.__context__
    return False


def make_writable(folder: Path) -> None:
    """Create a folder where it is missing and prove that a file can be written. Raises StepwellError."""
    probe = folder / f".probe.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"stepwell")
        probe.unlink()
    except OSError as error:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)
        if is_disk_full(error):
            raise StepwellError(
                "the disk is full", "Free space, or name a run folder on another disk.", path=folder
            ) from error
        raise StepwellError(
            f"the run folder cannot be written: {error.strerror or error}",
            "Name another run folder, or get the right to write this one.",
            path=folder,
        ) from error


def need_space(folder: Path, needed_bytes: int) -> None:
    """Raise StepwellError when the disk of a folder has less free space than needed."""
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise StepwellError(
            f"the disk has {readable(free)} free, and the run needs about {readable(needed_bytes)}",
            "Free space, or name a run folder on another disk.",
            path=folder,
        )


def readable(size_bytes: float) -> str:
    """A size as people write it, in powers of 1000."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size_bytes < 1000:
            return f"{size_bytes:.3g} {unit}" if unit != "bytes" else f"{size_bytes:.0f} bytes"
        size_bytes /= 1000
    return f"{size_bytes:.3g} TB"
