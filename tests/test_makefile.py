"""`make demo` takes a verdict for a success and an error for an error; tests of a group go to one worker."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def make_demo(folder: Path, script: str) -> subprocess.CompletedProcess[str]:
    """Run the target with a command `stepwell` of our own, which leaves with a chosen exit code."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    command = folder / "bin" / "stepwell"
    command.parent.mkdir()
    command.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    command.chmod(0o755)
    stamp = folder / "ready"
    stamp.touch()
    settings = [f"BIN={command.parent}", f"STAMP={stamp}", f"DEMO_FOLDER={folder / 'run'}"]
    return subprocess.run(["make", "-C", str(ROOT), "demo", *settings], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("code", "verdict"), [(0, "go"), (1, "no-go"), (2, "inconclusive")])
def test_every_verdict_is_a_success(tmp_path: Path, code: int, verdict: str):
    (tmp_path / "run").mkdir()
    done = make_demo(tmp_path, f"echo report > {tmp_path}/run/report.html; exit {code}")
    assert done.returncode == 0, done.stderr
    assert f"verdict: {verdict} (exit code {code} of stepwell run)" in done.stdout


@pytest.mark.parametrize("code", [3, 4, 130])
def test_an_error_is_an_error(tmp_path: Path, code: int):
    (tmp_path / "run").mkdir()
    done = make_demo(tmp_path, f"echo report > {tmp_path}/run/report.html; exit {code}")
    assert done.returncode != 0
    assert "verdict:" not in done.stdout


def test_a_crash_is_no_verdict(tmp_path: Path):
    done = make_demo(tmp_path, "exit 1")
    assert done.returncode != 0
    assert "make demo: the run ended without a report" in done.stderr


def test_a_group_of_tests_goes_to_one_worker(tmp_path: Path):
    """`make chaos` stands on it: versions of pytest and pytest-xdist that do not fit together say nothing."""
    test = '@pytest.mark.xdist_group("one")\ndef test_{name}(): pass\n'
    (tmp_path / "test_group.py").write_text("import pytest\n" + "".join(test.format(name=name) for name in "abcd"))
    command = [sys.executable, "-m", "pytest", "-n", "2", "--dist", "loadgroup", "-v", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert len(set(re.findall(r"\[(gw\d)\]", done.stdout))) == 1, done.stdout
