"""Toy plans and small disks for the tests of store, engines and runner."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

TOY = Path(__file__).resolve().parent
sys.path.insert(0, str(TOY))  # where plans find `stepwell_toy`, here and in workers

from stepwell.plan import Plan, dump_plan  # noqa: E402
from stepwell.store import read_events  # noqa: E402

SOURCE = TOY.parents[1] / "src"
GATE: dict[str, Any] = {
    "name": "early",
    "asks": "Is the walk above the threshold often enough?",
    "after": ["sum"],
    "criteria": [
        {"metric": "correct", "stage": "sum", "where": {"kind": "item"}, "comparison": ">=", "threshold": 0.1}
    ],
}


def toy_plan(
    *, walk: dict[str, Any] | None = None, total: dict[str, Any] | None = None, threshold: float = 0.1, **changes: Any
) -> Plan:
    """Two walks, one sum over each, a gate; two jobs at a time."""
    gate = {**GATE, "criteria": [{**GATE["criteria"][0], "threshold": threshold}]}
    fields: dict[str, Any] = {
        "study": "toy",
        "title": "Toy",
        "question": "Does it run?",
        "extensions": ["stepwell_toy"],
        "engine": "inline",
        "workers": 2,
        "axes": {"seed": [0, 1]},
        "stages": [
            {"name": "walk", "kind": "toy.walk", "each": {"seed": "seed"}, "params": walk or {}},
            {"name": "sum", "kind": "toy.sum", "each": {"seed": "seed"}, "needs": ["walk"], "params": total or {}},
        ],
        "gates": [gate],
        **changes,
    }
    return Plan.model_validate(fields)


def one_stage(kind: str, engine: str = "inline", **params: Any) -> Plan:
    """A plan of one job, `only`, and no gate."""
    return toy_plan(stages=[{"name": "only", "kind": kind, "params": params}], gates=[], engine=engine)


def events_of(folder: Path, *names: str) -> list[dict[str, Any]]:
    """The events of these names."""
    return [event for event in read_events(folder / "events.jsonl") if event["event"] in names]


def started(folder: Path) -> list[str]:
    """Jobs in the order in which they were started."""
    return [event["job"] for event in events_of(folder, "job-started")]


def contents(folder: Path) -> dict[str, str]:
    """Each file of records and artifacts with its hash: what must not depend on interruptions."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for part in ("records", "artifacts")
        for path in sorted((folder / part).rglob("*"))
        if path.is_file()
    }


def drive(plan: Plan, folder: Path, *, seconds_per_step: float = 0.0) -> subprocess.Popen[str]:
    """Start a run of the plan, slowed down, in a process of its own, in a group of its own."""
    path = folder.with_name(f"{folder.name}.plan.yaml")
    path.write_text(dump_plan(plan))
    return subprocess.Popen(
        [sys.executable, "-m", "stepwell_toy_drive", str(path), str(folder)],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(SOURCE), str(TOY)]),
            "TOY_SECONDS_PER_STEP": str(seconds_per_step),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )


def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait for a condition; fail when it does not come to hold in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def marker(folder: Path, job: str) -> dict[str, Any]:
    """The done marker of a job."""
    return json.loads((folder / "jobs" / f"{job}.json").read_text())


@contextlib.contextmanager
def small_disk(at: Path, size_bytes: int, *, writable: bool = True) -> Iterator[Path]:
    """A file system of its own, of so many bytes, in memory; skips where one cannot be mounted."""
    at.mkdir(parents=True, exist_ok=True)
    options = f"size={size_bytes},mode=777{'' if writable else ',ro'}"
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(at)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        pytest.skip(f"no small disk: mount cannot be run ({error})")
    if done.returncode:
        pytest.skip(f"no small disk: mounting one needs more rights ({done.stderr.strip()})")
    try:
        yield at
    finally:
        subprocess.run(["umount", "-l", str(at)], check=True)
