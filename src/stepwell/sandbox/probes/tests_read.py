"""Looks for its tests: in files, in processes, in what it has open, and in its own memory."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path
from typing import Any

MOST_BYTES, MOST_FILES = 1 << 22, 2000


def escape(arena: dict[str, Any]) -> str:
    """Where it found the mark that stands in the tests and nowhere else."""
    mark = arena["first_half"] + "-of-the-tests"
    found = [f"in {path}" for path in _files(arena["python"]) if mark.encode() in _start(path)]
    found += [f"in the frame of {name}" for name in _frames(mark)]
    for one in gc.get_objects():
        texts = list(one.values())[:1000] if isinstance(one, dict) and one.get("mark") is not mark else []
        if any(isinstance(text, str) and mark in text for text in texts):
            found.append("in an object")
    return ", ".join(found)


def _files(python: str) -> list[Path]:
    roots = [Path(__file__).parent, *map(Path, ("/tmp", "/box", "/dev/shm", "/run", "/root", "/home", "/mnt"))]
    found = [path for root in roots for path in _below(root, python)]
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            found += [folder / "cmdline", folder / "environ", *_listed(folder / "fd")]
    return [path for path in found if path.name != "tests_read.py"]


def _below(root: Path, python: str) -> list[Path]:
    """The files below a folder; those of Python itself, which are many, are not of interest."""
    found: list[Path] = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if str(Path(folder) / name) != python]
        found += [Path(folder) / name for name in names]
        if len(found) > MOST_FILES:
            break
    return found


def _listed(folder: Path) -> list[Path]:
    try:
        return [one for one in folder.iterdir() if "pipe:" not in str(one.readlink())]
    except OSError:
        return []


def _start(path: Path) -> bytes:
    try:
        if path.is_file():
            with path.open("rb") as file:
                return file.read(MOST_BYTES)
    except OSError:
        pass
    return b""


def _frames(mark: str) -> list[str]:
    frame, found = sys._getframe().f_back, list[str]()
    while frame is not None:
        if frame.f_code.co_name not in ("escape", "_frames"):
            texts = [*frame.f_code.co_consts, *frame.f_locals.values(), *frame.f_globals.values()]
            if any(isinstance(one, str) and mark in one for one in texts):
                found.append(frame.f_code.co_name)
        frame = frame.f_back
    return found
