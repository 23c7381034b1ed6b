"""The inline engine: one job at a time, in this process. For debugging, notebooks and small plans."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from stepwell.engine.base import Handle, JobCall, Outcome, opened_log
from stepwell.engine.worker import execute


@dataclass(eq=False)
class InlineHandle:
    """A job that runs when it is waited for."""

    call: JobCall
    outcome: Outcome | None = None


class InlineEngine:
    """Runs a job inside `wait`. What it prints through Python goes to its log."""

    slots = 1

    def __init__(self) -> None:
        self._stop = False
        self._running = False

    def submit(self, call: JobCall) -> InlineHandle:
        """Take a job on; it starts in `wait`."""
        return InlineHandle(call)

    def wait(self, handles: Collection[Handle], seconds: float) -> set[Handle]:
        """Run the jobs to their ends, however long that takes."""
        del seconds
        for handle in handles:
            if handle.outcome is not None:
                continue
            if self._stop:
                handle.outcome = Outcome(state="stopped", cause="stopped, as asked, before it began")
                continue
            with self._logged(handle.call):
                handle.outcome = execute(handle.call, lambda: self._stop)
        return set(handles)

    def stop(self, *, now: bool) -> None:
        """Let the stage stop at its next checkpoint, or interrupt it wherever it is (from a signal handler)."""
        self._stop = True
        if now and self._running:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def _logged(self, call: JobCall) -> Iterator[None]:
        with io.TextIOWrapper(opened_log(call), "utf-8", "backslashreplace", write_through=True) as log:  # pyright: ignore[reportArgumentType]
            self._running = True
            try:
                with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
                    yield
            finally:
                self._running = False
