"""What `squeeze` will cost, against arithmetic by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_wire import kept, reader_of, small_wire

from stepwell.estimate import estimate
from stepwell.latents import restoring as training
from stepwell.latents.compressor import Compressor, token_counts
from stepwell.latents.restorer import Restorer
from stepwell.latents.restorer_specs import RestorerParams, RestoringRecipe
from stepwell.latents.restoring import train_restorer
from stepwell.plan import Plan, load_plan
from stepwell.shapes import embedding_table
from stepwell.studies.squeeze import cost
from stepwell.studies.squeeze.cost import restoring
from stepwell.studies.squeeze.params import RefineParams, RestoreParams

LAYERS, WIDTH, VOCABULARY = 106_203_456, 576, 49_152
PROMPT, ANCHOR, ANSWER = 61 + 4 * 12, 8, 10
"""Tokens of the demo: template, instruction and question, and four sentences; the longest answer."""


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEPWELL_HOME", str(tmp_path / "home"))  # no calibration of this machine


def costs(*overrides: str, rung: str = "demo") -> dict[str, Any]:
    plan: Plan = load_plan("squeeze", rung=rung, overrides=overrides)
    return {each.stage: each for each in estimate(plan, "h100").stages}


def test_the_demo_costs_what_hand_arithmetic_says() -> None:
    found, head = costs(), WIDTH * VOCABULARY
    assert (LAYERS + head) == 134_515_008, "all parameters of SmolLM2-135M"
    one = 2 * ((PROMPT + ANCHOR + ANSWER) * LAYERS + ANSWER * head)
    assert found["text"].flop == 2 * 32 * one
    assert found["answer"].flop == 4 * 2 * 32 * one and found["answer"].jobs == 4
    assert found["answer-refined"].flop == 32 * one and found["answer-refined"].conditional
    # Of the compressors: as many rows as tokens, for fewer than the vocabulary has; eigenvectors; one pass at the end.
    fitting = 2 * min(VOCABULARY, 400 * PROMPT) * WIDTH**2 + 9 * WIDTH**3
    inverse = 128 * WIDTH
    net = 128 * WIDTH + WIDTH * WIDTH + WIDTH * WIDTH
    linear = 4 * fitting + 3 * 48 * PROMPT * 2 * 2 * inverse
    trained = 200 * 512 * (2 * (2 * inverse + net) + 4 * net) + 48 * PROMPT * 2 * (2 * inverse + net)
    look = 8 * one  # at the only checkpoint
    assert found["restore"].flop == linear + trained + look
    read = 4 * LAYERS + 6 * head + 2 * (2 * inverse + net) + 4 * net
    assert found["refine"].flop == 12 * 4 * PROMPT * read + look


def test_limits_and_items_are_seen() -> None:
    found = costs(
        "model.contract.max_prompt_tokens=64", "text.items=5", "text.cut_tokens=[8, 16]", "text.cut_bytes=[99]"
    )
    one = 2 * ((64 + ANCHOR + ANSWER) * LAYERS + ANSWER * WIDTH * VOCABULARY)
    assert found["text"].flop == (2 + 3) * 5 * one and found["text"].tokens == 25 * (64 + ANCHOR + ANSWER)


def test_the_hero_is_known_and_a_model_of_unknown_size_is_not() -> None:
    hero = costs(rung="hero")
    assert all(hero[name].hours > 0 for name in ("text", "restore", "answer", "refine", "answer-refined"))
    assert hero["answer"].flop > 40 * hero["text"].flop / 2
    other = costs("model.name=./somewhere")
    assert all(other[name].flop is None for name in ("text", "restore", "answer", "refine", "answer-refined"))
    assert costs("refine.recipe={objective: mse, steps: 3}")["refine"].flop < costs()["refine"].flop


def test_an_adapter_is_counted_by_its_matrices() -> None:
    assert restoring(RestorerParams(adapter="pca"), 8, 32) == (2 * 2 * 8 * 32, 0)
    assert restoring(RestorerParams(adapter="linear"), 8, 32) == (2 * 2 * 8 * 32, 4 * 8 * 32)
    net = 8 * 16 + 16 * 16 + 16 * 32
    assert restoring(RestorerParams(adapter="mlp", hidden=16), 8, 32) == (2 * (8 * 32 + net), 4 * net)
    assert restoring(RestorerParams(adapter="residual", hidden=16), 8, 32) == (2 * (2 * 8 * 32 + net), 4 * net)


def test_the_hero_fits_on_its_card_by_parts() -> None:
    found = costs(rung="hero")
    for name in ("text", "restore", "answer", "refine", "answer-refined"):
        memory = found[name].memory
        assert 16.0e9 < memory.weights < 16.1e9, "8.03 billion parameters in bf16"
        assert memory.weights < memory.device < 80e9
    refine = found["refine"].memory
    assert refine.activations > found["answer"].memory.activations and refine.training > 0 and refine.logits > 0
    # One prompt more in a batch takes as much more as each of the others.
    twice = costs("refine.recipe.batch_size=16", rung="hero")["refine"].memory
    assert twice.activations == 2 * refine.activations and twice.weights == refine.weights
    assert costs("model.name=./somewhere")["refine"].memory is None


def test_what_a_step_of_phase_2_keeps_is_estimated_within_a_factor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors saved for the backward pass, without logits, which are made twice, some positions at a time.

    The estimate is at least that, and at most 1.7 times.
    """
    assert cost.AT_ONCE == training.STATES
    backbone = small_wire().backbone
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(3, 250, (60,), generator=generator).tolist() for _ in range(8)]
    counts = token_counts(prompts, backbone.vocabulary)
    restorer = Restorer(Compressor.fit(embedding_table(backbone), counts, 16), RestorerParams(hidden=64))
    recipe = RestoringRecipe(objective="reading", steps=1, batch_size=8)
    measured = kept(lambda: train_restorer(restorer, backbone, counts, recipe, prompts=prompts), backbone, restorer)
    known = reader_of(backbone, longest=60)
    monkeypatch.setattr(cost, "reader", lambda inputs: known)
    arms = {"residual": {"restorer": {"hidden": 64}, "recipe": {"steps": 1}}}
    inputs = {"restore": RestoreParams.model_validate({"arms": arms, "dims": 16})}
    work = cost.of_refine(RefineParams(recipe=recipe, answered=0), {"arm": "residual"}, inputs)
    assert work is not None and work.memory is not None
    assert 1 <= work.memory.activations / measured <= 1.7
    assert work.memory.training == pytest.approx(16 * sum(p.numel() for p in restorer.parameters()), rel=0.1)
    assert work.memory.logits == min(8 * 60, 512) * backbone.vocabulary * 4 * 3
