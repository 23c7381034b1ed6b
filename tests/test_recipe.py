"""What a recipe says, and what it refuses to say."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from pydantic import ValidationError

from stepwell.recipe import Curriculum, Monitors, Recipe, StageMix


def test_the_defaults_are_the_originals() -> None:
    recipe, curriculum = Recipe(epochs=50), Curriculum()
    assert (recipe.lr, recipe.weight_decay, recipe.schedule, recipe.precision) == (1e-4, 0.01, "constant", "fp32")
    assert (curriculum.stages, curriculum.thoughts_per_step, curriculum.epochs_per_stage) == (6, 1, 5)
    assert curriculum.pad_to_max and curriculum.mix.share == 0
    assert recipe.clip is None


@pytest.mark.parametrize("given", [{}, {"steps": 3, "epochs": 3}])
def test_a_length_is_given_once(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="give either `steps` or `epochs`, not both and not neither"):
        Recipe(**given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lr": 0}, "greater than 0"),
        ({"lr": float("nan")}, "finite number"),
        ({"batch_size": 0}, "greater than or equal to 1"),
        ({"accumulation": -1}, "greater than or equal to 1"),
        ({"clip": 0}, "greater than 0"),
        ({"warmup_steps": -1}, "greater than or equal to 0"),
        ({"decay_share": 1.5}, "less than or equal to 1"),
        ({"checkpoint_every": 0}, "greater than or equal to 1"),
        ({"reset_optimizer": "step"}, "'epoch', 'stage' or 'never'"),
        ({"precision": "fp16"}, "'fp32' or 'bf16'"),
        ({"lrr": 1}, "Extra inputs are not permitted"),
    ],
)
def test_what_cannot_be_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Recipe(steps=1, **given)


@pytest.mark.parametrize(
    "given", [{"flat_share": 0}, {"flat_steps": 1}, {"divergence_factor": 1}, {"chance": 1}, {"nan": "ignore"}]
)
def test_monitors_that_could_never_or_always_fire_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Monitors(**given)


@pytest.mark.parametrize("given", [{"share": 1.1}, {"share": -0.1}, {"over": "later"}, {"weights": "square"}])
def test_mixtures_that_are_none_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        StageMix(**given)


def test_steps_or_epochs_make_the_length() -> None:
    assert Recipe(steps=17).total_steps(5) == 17
    assert Recipe(epochs=3).total_steps(5) == 15


def test_a_constant_rate_is_warmed_up() -> None:
    recipe = Recipe(steps=100, warmup_steps=10)
    assert [recipe.lr_factor(s, 100) for s in (0, 4, 8, 9, 10, 99)] == pytest.approx([0.1, 0.5, 0.9, 1, 1, 1])
    assert {Recipe(steps=9).lr_factor(s, 9) for s in range(9)} == {1.0}


def test_a_decay_is_flat_and_then_linear_to_nearly_zero() -> None:
    recipe = Recipe(steps=1000, schedule="decay", decay_share=0.3)
    factors = [recipe.lr_factor(s, 1000) for s in range(1000)]
    assert factors[:701] == [1.0] * 701
    assert factors[850] == pytest.approx(0.5)
    assert factors[-1] == pytest.approx(1 / 300), "the last step is still one"
    falls = {round(a - b, 12) for a, b in pairwise(factors[700:])}
    assert falls == {round(1 / 300, 12)}


def test_recipes_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Recipe(steps=1).lr = 1.0  # pyright: ignore[reportAttributeAccessIssue]
