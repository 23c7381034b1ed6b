"""What a run folder must be after whatever befell it, read as Stepwell reads it."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from safetensors import safe_open

from stepwell.plan import Plan, jobs
from stepwell.plan.expand import expanded
from stepwell.runner import job_fingerprints
from stepwell.store import RunFolder, load_checkpoint, read_events, read_records
from stepwell.store.records import begins_with


def check_whole(folder: Path, plan: Plan) -> set[str]:
    """Whatever lies under its own name is whole, and what is marked as done is proved; the kinds of file seen.

    A name that begins with a dot is none: no reader takes it.
    """
    run, seen = RunFolder(folder), set[str]()
    plan = expanded(plan)
    among = jobs(plan)
    identities = job_fingerprints(plan, among)
    for job in among:
        if run.marker_path(job.id).exists():
            assert run.fault(job, identities[job.id]) is None
            seen.add("marker")
        if run.checkpoint(job.id).exists():
            header, _ = load_checkpoint(run.checkpoint(job.id))
            assert (header["job"], header["fingerprint"]) == (job.id, identities[job.id])
            assert begins_with(run.records(job.id), header["records_bytes"], header["records_sha256"])
            seen.add("checkpoint")
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts):
            read(path, folder)
            seen.add(path.name if path.parent == folder else path.suffix)
    return seen


def read(path: Path, folder: Path) -> None:
    """Read a file to its end; AssertionError, with its name, where it is half written."""
    readers = {
        ".json": lambda: json.loads(path.read_bytes()),
        ".yaml": lambda: RunFolder(folder).read_plan(),
        ".safetensors": lambda: tensors(path),
        ".jsonl": lambda: list(read_events(path) if path.name == "events.jsonl" else read_records(path)),
    }
    try:
        readers.get(path.suffix, lambda: None)()
        if path.suffix == ".html":
            assert path.read_bytes().rstrip().endswith(b"</html>")
    except Exception as error:
        raise AssertionError(f"half written: {path.relative_to(folder)}: {error}") from error


def tensors(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Name -> type, shape and bytes, as they lie in the file."""
    with safe_open(path, framework="numpy"):
        pass  # it refuses a file that is not whole
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header: dict[str, Any] = json.loads(data[8 : 8 + length])
    about = header.pop("__metadata__", {})
    found = {
        name: (one["dtype"], tuple(one["shape"]), data[8 + length :][slice(*one["data_offsets"])])
        for name, one in header.items()
    }
    return {**found, "__metadata__": (json.dumps(about, sort_keys=True), (), b"")}


def check_same(folder: Path, whole: Path, *parts: str) -> None:
    """Records and artifacts byte for byte; of safetensors what they hold, since they are written in any order."""
    for part in parts or ("records", "artifacts"):
        one, other = (files(each / part) for each in (folder, whole))
        assert one.keys() == other.keys(), f"{part}: {sorted(one.keys() ^ other.keys())}"
        for name, path in one.items():
            if path.read_bytes() == other[name].read_bytes():
                continue
            assert path.suffix == ".safetensors" and tensors(path) == tensors(other[name]), f"{part}/{name} differs"


def files(folder: Path) -> dict[str, Path]:
    """Every file under a folder, by its path in it."""
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


def unfinished(folder: Path) -> list[str]:
    """What must not be left once a run has ended."""
    return [path.relative_to(folder).as_posix() for path in files(folder / "checkpoints").values()]
