"""A command of the real line that must fail, and its one message."""

from __future__ import annotations

import pytest

from stepwell.cli import run


def refused(capsys: pytest.CaptureFixture[str], arguments: list[str], code: int) -> str:
    """The one message of a command that must fail with this exit code."""
    capsys.readouterr()
    assert run(arguments) == code
    error = capsys.readouterr().err
    assert error.startswith("stepwell: ") and error.count("stepwell: ") == 1
    assert error.count("\n  Way out: ") == 1 and error.endswith("\n"), error
    assert "Traceback" not in error and 'File "' not in error
    return error
