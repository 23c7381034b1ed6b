"""What a fit holds, as estimated, against what one pass of it saves for its backward pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_wire import kept, reader_of
from torch import Tensor

from stepwell.backbone import HFBackbone
from stepwell.fitting import Problem, Target
from stepwell.fitting.rows import rows_of
from stepwell.shapes import Shape, frozen
from stepwell.studies.imprint import cost

PAIRS, SLOTS, LENGTH = 6, 8, 12


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_a_pass_keeps_is_estimated_within_a_factor(precision: Any) -> None:
    shape = Shape(architecture="llama", vocabulary=300, width=64, layers=3, heads=4, inner=172, max_positions=64)
    backbone = HFBackbone.from_shape(shape, precision=precision, device="cpu")
    ids = tuple(range(2, 2 + LENGTH))
    problems = [Problem(id=f"p{i}", targets=(Target(ids=ids, mode="ask"),)) for i in range(PAIRS)]
    modes = {"ask": backbone.embed(torch.tensor([[50]]))[0, 0].detach()}
    known = reader_of(backbone, longest=0)
    with frozen(backbone):
        (rows,) = rows_of(backbone, [problem.targets for problem in problems], modes, SLOTS, 10_000)
        leaf = torch.randn(PAIRS, SLOTS, 64, dtype=next(backbone.parameters()).dtype).requires_grad_()

        def states() -> Tensor:
            return rows.prompt.hidden(backbone, leaf)

        measured = kept(states, backbone)
    columns = PAIRS * (SLOTS + LENGTH)
    found = cost.passing(known, columns)
    assert 1 <= found.activations / measured <= 1.7
    # Logits, what their softmax makes of them, and the gradient: none is kept for the backward pass.
    assert found.logits == 4 * 4 * min(columns * 300, cost.CHUNK_LOGITS)
