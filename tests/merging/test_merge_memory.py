"""A model of 3 GB is merged and proved in less than 1.2 GB, measured in a process of its own."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
CODE = """
import json, resource, sys
from stepwell.cli import run
code = run(["merge", *sys.argv[1:]])
print(json.dumps([code, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024]))
"""


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_merge_of_3_gb_takes_less_than_1200_mb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    bench = importlib.import_module("bench_merge")
    base, adapter = bench.generate(tmp_path, bench.Size())
    assert (base / "model.safetensors").stat().st_size > 3.0e9
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(base), str(adapter), str(tmp_path / "out")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    code, peak_bytes = json.loads(done.stdout.splitlines()[-1])
    assert code in (0, 1)
    assert peak_bytes < 1.2e9
