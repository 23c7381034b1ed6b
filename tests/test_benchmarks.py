"""The benchmarks run, and compare what they time: a wrong result ends them, whatever its speed."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parents[1] / "benchmarks"
NAMES = tuple(sorted(path.stem for path in HERE.glob("bench_*.py")))
LONG = ("bench_devices",)
"""They start processes of their own, for a quarter of a minute."""


@pytest.fixture
def benchmark(monkeypatch):
    """A function from a name to the module; benchmarks are scripts that import each other from their own folder."""
    monkeypatch.syspath_prepend(str(HERE))
    yield importlib.import_module
    for name in [name for name, module in sys.modules.items() if _lies_in(module, HERE)]:
        del sys.modules[name]


def _lies_in(module: object, folder: Path) -> bool:
    path = getattr(module, "__file__", None)
    return path is not None and Path(path).parent == folder


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in LONG)) for name in NAMES])
def test_quick_form_runs_and_compares_results(name, benchmark, capsys):
    benchmark(name).main(["--quick", "--threads", "1"])
    shown = capsys.readouterr().out
    assert shown.startswith(f"benchmarks/{name}.py --quick --threads 1\n  machine: ")
    assert "\n  commit: " in shown
    assert ": the same (" in shown
    assert "DIFFERENT" not in shown
    assert ": not judged at this size (" in shown
    assert "MISSED" not in shown


def test_another_loss_ends_the_benchmark(benchmark, capsys, monkeypatch):
    module, naive = benchmark("bench_thoughts"), benchmark("naive")
    right = naive.loss
    monkeypatch.setattr(naive, "loss", lambda *args, **kwargs: 1.001 * right(*args, **kwargs))
    with pytest.raises(SystemExit) as ended:
        module.main(["--quick", "--threads", "1", "--only", "cached"])
    assert ended.value.code == 1
    assert "compared: loss and gradients: DIFFERENT" in capsys.readouterr().out


def test_thoughts_that_are_not_fed_back_end_the_benchmark(benchmark, capsys, monkeypatch):
    module, naive = benchmark("bench_thoughts"), benchmark("naive")
    monkeypatch.setattr(naive, "_exchanged", lambda embeds, column, thoughts: embeds)
    with pytest.raises(SystemExit):
        module.main(["--quick", "--threads", "1", "--only", "recompute"])
    assert "DIFFERENT" in capsys.readouterr().out


def test_other_tokens_end_the_benchmark(benchmark, capsys, monkeypatch):
    module, naive = benchmark("bench_evaluation"), benchmark("naive")
    right = naive.generate
    monkeypatch.setattr(naive, "generate", lambda *args, **kwargs: [0, *right(*args, **kwargs)[1:]])
    with pytest.raises(SystemExit):
        module.main(["--quick", "--threads", "1"])
    assert "compared: decoded tokens: DIFFERENT" in capsys.readouterr().out


def test_other_weights_end_the_benchmark(benchmark, capsys, monkeypatch):
    module = benchmark("bench_overhead")
    monkeypatch.setattr(module.BareLoop, "train", lambda loop: None)
    with pytest.raises(SystemExit):
        module.main(["--quick", "--threads", "1"])
    assert "compared: weights at the end: DIFFERENT" in capsys.readouterr().out


def test_both_naive_forms_are_the_same_function(benchmark):
    import torch

    module, naive = benchmark("bench_thoughts"), benchmark("naive")
    backbone = module.HFBackbone.from_shape(module.QUICK_SHAPE, device="cpu", precision="fp64")
    work = module.Work(backbone, module.QUICK)
    cached, recomputed = (naive.loss(backbone.model, work.plain, cached=cached) for cached in (True, False))
    assert torch.allclose(cached, recomputed, rtol=1e-12)


def test_ratio_of_medians_and_its_spread(benchmark, capsys):
    common = benchmark("common")
    found = common.Pairs(a=(2.0, 4.0, 9.0), b=(1.0, 2.0, 2.0))
    assert found.ratio == 2.0
    assert found.ratios == (2.0, 2.0, 4.5)
    common.show_pairs("a / b", ("a", "b"), found)
    assert "a / b: 2 (ratio of medians; single pairs 2 to 4.5, 3 pairs)" in capsys.readouterr().out


@pytest.mark.parametrize(("value", "comparison", "said"), [
    (1.2, "<=", "met"), (1.3, "<=", "MISSED"), (1.3, ">=", "met"), (1.2, ">=", "MISSED"),
])  # fmt: skip
def test_an_aim_that_is_missed_is_said_to_be(benchmark, capsys, value, comparison, said):
    assert benchmark("common").aim("ratio", value, comparison, 1.25) is (said == "met")
    assert f"aim: ratio {comparison} 1.25: {said} ({value:.3g})" in capsys.readouterr().out
