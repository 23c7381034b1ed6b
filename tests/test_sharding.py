"""Models that processes hold in parts: what they compute is what a whole one computes, and they hold no more."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from stepwell.errors import StepwellError
from stepwell.ranks import Ranks
from stepwell.sharding import shard

HERE = Path(__file__).parent
CASES = ("gpt2", "llama", "small", "gpt2-recomputed", "llama-recomputed")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Three processes, so that neither widths nor rows are divided evenly."""
    folder = tmp_path_factory.mktemp("parts")
    run = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3", str(HERE / "in_parts.py")]
    done = subprocess.run(
        [sys.executable, *run, str(folder), *CASES],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads((folder / "found.json").read_text())


@pytest.mark.slow
@pytest.mark.xdist_group("parts")
@pytest.mark.parametrize("architecture", CASES)
def test_training_in_parts_is_training_a_whole(found: dict[str, Any], architecture: str) -> None:
    """Chains of thoughts with looks in between, a clip, AdamW, and a checkpoint that another model goes on from."""
    one = found[architecture]
    # The model is in float64; sums of what stays whole are of fp32.
    assert all(value < 2e-6 for value in one["off"].values()), one["off"]
    assert one["off"]["gradient"] > 0, "rounding alone would differ: were both the same run?"
    assert one["read_back"]


@pytest.mark.slow
@pytest.mark.xdist_group("parts")
@pytest.mark.parametrize("architecture", CASES)
def test_no_layer_is_whole_while_another_computes(found: dict[str, Any], architecture: str) -> None:
    one = found[architecture]
    assert one["held_whole"] and not any(one["held_whole"])
    assert one["told"]["processes"] == 3 and one["told"]["held"] < 0.6 * one["told"]["weights"]


@pytest.mark.slow
@pytest.mark.xdist_group("parts")
def test_muon_is_refused_where_matrices_are_in_parts(found: dict[str, Any]) -> None:
    assert found["gpt2"]["muon"] == "Muon needs whole matrices, and `shard` gives each process a part of them"


def test_what_cannot_be_held_in_parts_is_refused() -> None:
    with pytest.raises(StepwellError, match="set `devices` to 2 at least"):
        shard(nn.Linear(2, 2), Ranks(), "cpu")
    with pytest.raises(StepwellError, match="Linear has no list of layers"):
        shard(nn.Linear(2, 2), Ranks(size=2), "cpu")


def test_rows_too_few_for_all_are_refused() -> None:
    ranks = Ranks(rank=0, size=3)

    def cut(batch: list[int], count: int) -> list[list[int]]:
        return [batch[at::count] for at in range(min(count, len(batch)))]

    assert ranks.share([[1, 2, 3]], cut, equally=True) == [[1]]
    assert ranks.share([[1], [2], [3]], cut, equally=True) == [[1]]
    assert ranks.share([[1, 2, 3]] * 3, cut, equally=True, alike=False) == [[1], [2], [3]]
    with pytest.raises(StepwellError, match="a micro-batch of 2 rows is too small for 3 processes") as caught:
        ranks.share([[1, 2]], cut, equally=True)
    assert caught.value.way_out == "raise `batch_size`, or make `accumulation` a multiple of `devices`"
