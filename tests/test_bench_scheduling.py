"""The simulated pool of bench_scheduling keeps time and loses nothing; what goes missing ends the benchmark."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from stepwell.engine.chunks import Queue

HERE = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(HERE))
    yield importlib.import_module("bench_scheduling")
    for name in ("bench_scheduling", "sleepers", "common"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(("items", "workers", "turns"), [(640, 5, 2), (650, 5, 3), (64, 5, 1)])
def test_equal_chunks_take_as_many_turns_as_counted_by_hand(bench, monkeypatch, items, workers, turns):
    monkeypatch.setattr(bench, "seconds_of", lambda chunk, faster: 100.0)
    pool = bench.Simulated(workers=workers)
    assert bench.deal(pool, items, 64).once
    assert pool.now == pytest.approx(100.0 * turns, abs=1.0)  # the loop's own time passes, too
    assert pool.worked == 100.0 * -(-items // 64)


def test_messages_of_a_slow_coordinator_show_on_the_clock(bench, monkeypatch):
    monkeypatch.setattr(bench, "seconds_of", lambda chunk, faster: 1.0)
    fast, slow = bench.Simulated(workers=4), bench.Simulated(workers=4, cost=1.0)
    for pool in (fast, slow):
        assert bench.deal(pool, 6_400, 64).once
    assert fast.now == pytest.approx(25.0, abs=1.0)
    # 100 chunks, each a second of the coordinator, and 4 workers that could do 4 a second.
    assert 100.0 < slow.now < 130.0


def test_deaths_cost_time_and_no_item(bench):
    killers = frozenset({5, 1_000, 3_999})
    pool = bench.Simulated(workers=8, deaths=0.1, killers=killers)
    counted = bench.deal(pool, 4_000, 64)
    assert counted.once
    assert sorted(counted.poisoned) == sorted(killers)
    assert pool.begun > 63
    assert pool.again > 0


def test_a_chunk_that_is_not_dealt_out_again_ends_the_benchmark(bench, monkeypatch, capsys):
    monkeypatch.setattr(Queue, "returned", lambda queue, chunk: None)
    with pytest.raises(SystemExit) as ended:
        bench.main(["--quick", "--threads", "1", "--only", "simulated"])
    assert ended.value.code == 1
    assert "kills its worker: DIFFERENT" in capsys.readouterr().out


def test_items_take_what_was_measured(bench):
    chunk = range(64, 64 + 20_000)
    steps = importlib.import_module("sleepers").STEPS_OF_PAIRS
    mean = sum(steps) / len(steps) * 161.4 / 280
    assert bench.seconds_of(chunk, 1.0) / len(chunk) == pytest.approx(mean, rel=0.02)
    assert bench.seconds_of(chunk, 1.0) == pytest.approx(10 * bench.seconds_of(chunk, 10.0))
