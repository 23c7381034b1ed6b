"""What a run is doing, while it does it: a live table in a terminal, one line an event elsewhere."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from rich.live import Live

from stepwell.cli import show
from stepwell.errors import StepwellError

SECONDS_BETWEEN_TABLES = 2.0
SECONDS_BETWEEN_LOOKS = 0.5
QUIET = frozenset({"progress", "spent"})
PLACE = ("job", "gate", "decision", "route", "reason", "cause", "seconds", "monitor", "message")


@contextlib.contextmanager
def shown(folder: Path, *, quiet: bool = False) -> Iterator[None]:
    """Show what happens in a run folder while the block runs. Display runs in a thread: signals stay with the run."""
    if quiet:
        yield
        return
    events = folder / "events.jsonl"
    start = events.stat().st_size if events.exists() else 0
    over = threading.Event()
    # Bound now: while a job of the inline engine runs, `sys.stdout` is its log.
    out = sys.stdout
    target, arguments = (_table, (folder, over, out)) if out.isatty() else (_lines, (events, start, over, out))
    thread = threading.Thread(target=target, args=arguments, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _table(folder: Path, over: threading.Event, out: TextIO) -> None:
    from stepwell.runner import spent_hours, status
    from stepwell.store import RunFolder

    with Live(console=show.console(out), auto_refresh=False, redirect_stdout=False, redirect_stderr=False) as live:
        while True:
            last = over.wait(SECONDS_BETWEEN_TABLES)
            with contextlib.suppress(StepwellError, OSError, ValueError):  # the folder is only just being made
                plan = RunFolder(folder).read_plan()
                live.update(show.jobs(status(folder), plan, spent_hours(folder)), refresh=True)
            if last:
                return


def _lines(path: Path, offset: int, over: threading.Event, out: TextIO) -> None:
    while True:
        last = over.wait(SECONDS_BETWEEN_LOOKS)
        with contextlib.suppress(OSError), path.open("rb") as events:
            events.seek(offset)
            for line in events:
                if not line.endswith(b"\n"):
                    break
                offset += len(line)
                _print(line, out)
        if last:
            return


def _print(line: bytes, out: TextIO) -> None:
    with contextlib.suppress(ValueError):
        event: dict[str, Any] = json.loads(line)
        if event.get("event") in QUIET:
            return
        facts = [f"{event[key]:.1f} s" if key == "seconds" else str(event[key]) for key in PLACE if event.get(key)]
        print(f"{event['time'][11:19]}  {event['event']:<14} {'  '.join(facts)}", file=out, flush=True)
