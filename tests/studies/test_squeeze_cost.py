"""What `squeeze` will cost, against arithmetic by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stepwell.estimate import estimate
from stepwell.plan import Plan, load_plan
from stepwell.studies.squeeze.cost import restoring

LAYERS, WIDTH, VOCABULARY = 106_203_456, 576, 49_152
PROMPT, ANCHOR, ANSWER = 61 + 6 * 12, 8, 12
"""Tokens of the demo: template, instruction and question, and six sentences; the longest answer."""


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
    assert found["text"].flop == 2 * 40 * one
    assert found["answer"].flop == 4 * 2 * 40 * one and found["answer"].jobs == 4
    assert found["answer-refined"].flop == 40 * one and found["answer-refined"].conditional
    # Of the compressors: as many rows as tokens, for fewer than the vocabulary has; eigenvectors; one pass at the end.
    fitting = 2 * min(VOCABULARY, 400 * PROMPT) * WIDTH**2 + 9 * WIDTH**3
    inverse = 128 * WIDTH
    net = 128 * WIDTH + WIDTH * WIDTH + WIDTH * WIDTH
    linear = 4 * fitting + 3 * 56 * PROMPT * 2 * 2 * inverse
    trained = 200 * 512 * (2 * (2 * inverse + net) + 4 * net) + 56 * PROMPT * 2 * (2 * inverse + net)
    assert found["restore"].flop == linear + trained
    read = 4 * LAYERS + 6 * head + 2 * (2 * inverse + net) + 4 * net
    assert found["refine"].flop == 20 * 4 * PROMPT * read


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
    from stepwell.latents.restorer_specs import RestorerParams

    assert restoring(RestorerParams(adapter="pca"), 8, 32) == (2 * 2 * 8 * 32, 0)
    assert restoring(RestorerParams(adapter="linear"), 8, 32) == (2 * 2 * 8 * 32, 4 * 8 * 32)
    net = 8 * 16 + 16 * 16 + 16 * 32
    assert restoring(RestorerParams(adapter="mlp", hidden=16), 8, 32) == (2 * (8 * 32 + net), 4 * net)
    assert restoring(RestorerParams(adapter="residual", hidden=16), 8, 32) == (2 * (2 * 8 * 32 + net), 4 * net)
