"""The benchmark of PCA ends where the two sides did not find the same subspace."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parents[1] / "benchmarks"


def test_another_subspace_ends_the_benchmark(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(HERE))
    before = set(sys.modules)
    try:
        module = importlib.import_module("bench_pca")
        right = module.Compressor.fit

        def other(table, counts, dims):
            return right(table, counts.clamp(max=1), dims)  # every token that occurs counts the same

        monkeypatch.setattr(module.Compressor, "fit", other)
        with pytest.raises(SystemExit) as ended:
            module.main(["--quick", "--threads", "1"])
        assert ended.value.code == 1
        assert "compared: subspaces: DIFFERENT" in capsys.readouterr().out
    finally:
        for name in {"bench_pca", "common"} - before:
            sys.modules.pop(name, None)
