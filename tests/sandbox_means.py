"""What tests of the sandbox need of the machine: bubblewrap that works; and how to be an ordinary user."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from stepwell.errors import StepwellError
from stepwell.sandbox.execution import require

CHECKOUT = Path(__file__).resolve().parents[1]
USER = 54_321


def need_sandbox() -> None:
    """Skip for users, fail in CI, where this machine cannot isolate programs."""
    try:
        require()
    except StepwellError as error:
        reason = f"no sandbox on this machine: {error.cause}"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)


def as_user(*command: str) -> list[str]:
    """A command line that runs a command as an ordinary user: as it is, or, for root, as a user that has nothing.

    Root's own folders are closed to others, and Python or this checkout may lie in one: they are shown alone.
    """
    if os.getuid() != 0:
        return list(command)
    line = [shutil.which("bwrap") or "bwrap", "--dev-bind", "/", "/"]
    needed = [Path(sys.base_prefix), CHECKOUT]
    closed = {_closed(path) for path in needed} - {None}
    for folder in sorted(map(str, closed)):
        line += ["--perms", "0755", "--tmpfs", folder]
    for path in needed:
        if _closed(path):
            for parent in reversed([one for one in path.parents if str(one).startswith(str(_closed(path)))]):
                line += ["--perms", "0755", "--dir", str(parent)]
            line += ["--ro-bind", str(path), str(path)]
    change = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]
    return [*line, *change, *command]


def _closed(path: Path) -> Path | None:
    return next((one for one in reversed(path.parents) if not one.stat().st_mode & 0o001), None)
