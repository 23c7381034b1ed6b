"""What a training of `thoughts` holds, as estimated, against what a micro-batch saves for its backward pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_wire import kept
from torch import Tensor

from stepwell.backbone import HFBackbone
from stepwell.latents.thoughts import Arm, Batch, Thoughts
from stepwell.objectives import cross_entropy, supervised
from stepwell.recipe import Curriculum
from stepwell.shapes import Shape
from stepwell.studies.thoughts import cost
from stepwell.studies.thoughts.params import ModelParams, TextModel

ROWS, COLUMNS, FIRST, LAYERS, WIDTH, HEADS = 3, 120, 70, 3, 64, 4


def batch_of(thoughts: int) -> Batch:
    ids = torch.randint(512, (ROWS, COLUMNS), generator=torch.Generator().manual_seed(0))
    latent = torch.zeros_like(ids, dtype=torch.bool)
    latent[:, FIRST : FIRST + thoughts] = True
    answer = slice(FIRST + thoughts, FIRST + thoughts + cost.TEXT_ANSWER)
    labels = torch.full_like(ids, -100)
    labels[:, answer] = ids[:, answer]
    return Batch(
        ids=ids, mask=torch.ones_like(latent), latent=latent, labels=labels, first=FIRST, items=torch.arange(ROWS)
    )


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@pytest.mark.parametrize("arm", ["cot", "shared", "continuous"])
def test_what_a_step_keeps_is_estimated_within_a_factor(arm: Arm, architecture: Any, dropout: float) -> None:
    stages = 0 if arm == "cot" else 6
    shape = Shape(architecture=architecture, vocabulary=cost.WORDS, width=WIDTH, layers=LAYERS, heads=HEADS,
                  max_positions=256, dropout=dropout)  # fmt: skip
    module = Thoughts(HFBackbone.from_shape(shape, device="cpu"), arm, vector=torch.zeros(WIDTH))
    module.train()
    batch = batch_of(stages)

    def loss() -> Tensor:
        hidden = module(batch.inputs())
        mask, targets = supervised(batch.labels, batch.first)
        return cross_entropy(module.backbone.logits(hidden[mask[:, :-1]]), targets)[0]

    spec = TextModel(architecture=architecture, width=WIDTH, layers=LAYERS, heads=HEADS, dropout=dropout)
    model = ModelParams(model=spec, curriculum=Curriculum(stages=stages or 1, thoughts_per_step=1))
    found = cost.held(model, {"arm": arm}, ROWS * COLUMNS, ROWS, trained=True)
    assert found is not None
    assert 1 <= (found.activations + found.logits) / kept(loss, module) <= 1.7
    parameters = sum(p.numel() for p in module.parameters())
    assert found.training == pytest.approx(16 * parameters, rel=0.35), "norms, biases and positions are left out"


def test_a_model_of_unknown_size_has_no_estimate() -> None:
    model = ModelParams(model=TextModel(name="someone/else"))
    assert cost.held(model, {"arm": "cot"}, 100, 1, trained=True) is None
