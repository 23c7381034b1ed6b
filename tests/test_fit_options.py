"""Each option of a fit does what its description says, and nothing to what it does not touch."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from fit_models import EOS, MODES, pairs, tiny
from stepwell.fitting import FitRecipe, Fitted, Problem, Target, fit, measure

SLOW = FitRecipe(steps=6, restarts=1, lr=0.01, stop_when_exact=False)


@pytest.fixture(scope="module")
def backbone() -> Any:
    return tiny("gpt2", "fp64")


def run(backbone: Any, problems: list[Problem], **options: Any) -> Fitted:
    recipe = FitRecipe(**{"steps": 40, "restarts": 1, "lr": 0.1, **options})
    return fit(backbone, problems, slots=4, recipe=recipe, modes=MODES, check=False)


def reference(backbone: Any, problem: Problem, start: torch.Tensor, recipe: FitRecipe) -> torch.Tensor:
    """One problem fitted by torch alone: autograd, torch's Adam, one target at a time."""
    c = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([c], lr=recipe.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=recipe.steps)
    for _step in range(recipe.steps):
        loss = torch.zeros((), dtype=torch.float64)
        for target in problem.targets:
            mode = backbone.embed(torch.tensor([[MODES[target.mode]]]))[0]
            tail = backbone.embed(torch.tensor([target.ids[:-1]]))[0]
            logits = backbone.model(inputs_embeds=torch.cat((mode, c, tail))[None]).logits[0, len(c) :]
            tokens = torch.tensor(target.ids)
            loss = loss + target.weight * torch.nn.functional.cross_entropy(logits / recipe.temperature, tokens)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(c, 1.0)
        optimizer.step()
        schedule.step()
    backbone.zero_grad(set_to_none=True)
    return c.detach()


@pytest.mark.parametrize("temperature", [1.0, 0.25])
def test_a_fit_is_the_plain_loop(backbone: Any, temperature: float):
    """Against torch's autograd and Adam, from the start that a fit of no length gives away."""
    problem = pairs(3)[2]
    recipe = SLOW.model_copy(update={"temperature": temperature})
    barely = recipe.model_copy(update={"steps": 1, "lr": 1e-300})
    start = fit(backbone, [problem], slots=4, recipe=barely, modes=MODES, check=False).vectors["p2"][0]
    found = fit(backbone, pairs(3), slots=4, recipe=recipe, modes=MODES, check=False)
    torch.testing.assert_close(
        found.vectors["p2"][0], reference(backbone, problem, start, recipe), rtol=1e-5, atol=1e-7
    )
    assert found.best("p2").steps == 6 and found.best("p2").end == "steps"


def test_curves_and_bars(backbone: Any):
    problem = pairs(1)[0]
    bars = {"p0": {"ask": 100.0, "say": 100.0}}
    found = fit(backbone, [problem], slots=4, recipe=SLOW.model_copy(update={"curve_every": 2}), modes=MODES, bars=bars,
                check=False).best("p0")  # fmt: skip
    curve = dict((found.curve or {})["ask"])
    assert list(curve) == [0, 2, 4, 6] and curve[6] == pytest.approx((found.nats or {})["ask"])
    assert curve[0] > curve[6]
    assert found.converged is True
    low = {"p0": {"ask": 100.0, "say": 1e-9}}
    assert (
        fit(backbone, [problem], slots=4, recipe=SLOW, modes=MODES, bars=low, check=False).best("p0").converged is False
    )
    assert fit(backbone, [problem], slots=4, recipe=SLOW, modes=MODES, check=False).best("p0").converged is None


def test_a_margin_is_reached_before_a_row_retires(backbone: Any):
    problems = pairs(3, longest=2)
    leads = {}
    for margin, weight in ((0.0, 0.0), (0.6, 0.0), (0.6, 1.0)):
        found = run(backbone, problems, margin=margin, margin_weight=weight, steps=150)
        ended = [record for record in found.records if record.end == "exact"]
        assert ended
        leads[margin, weight] = [min((r.lead or {}).values()) for r in ended]
        assert min(leads[margin, weight]) > 0 and min(leads[margin, weight]) >= margin
    assert min(leads[0.0, 0.0]) < 0.6


def test_progressive_targets_grow_as_they_are_held(backbone: Any):
    targets = (Target(ids=(*range(5, 16), EOS), mode="ask"), Target(ids=(20, 21, EOS), mode="say"))
    problem = Problem(id="x", targets=targets)
    found = run(backbone, [problem, *pairs(2)], progressive=2, steps=60, schedule="constant")
    record = found.best("x")
    said = found.decode("x")
    for target in targets:
        written = (*said[target.mode].ids, *((EOS,) if said[target.mode].stopped else ()))
        held = (record.held or {})[target.mode]
        assert written[:held] == target.ids[:held]
    again = measure(backbone, [problem], [found.vectors["x"][0]], modes=MODES)[0]
    assert record.nats == pytest.approx(again.nats) and record.held == again.held
    # What was held when the last stage began is still held: a stage that fails gives back where it began.
    assert (record.held or {})["ask"] >= 4 and (record.held or {})["say"] == 3
    assert (record.steps or 0) <= 60 * 6
    whole = run(backbone, [problem], progressive=50, steps=60, schedule="constant")
    at_once = run(backbone, [problem], steps=60, schedule="constant")
    assert torch.equal(whole.vectors["x"], at_once.vectors["x"])
    later = fit(backbone, [problem], slots=4, recipe=found.recipe, modes=MODES, look_every=5, columns=9, check=False)
    assert later.best("x").steps == record.steps and later.best("x").held == record.held


def test_progressive_failure_gives_back_what_was_held(backbone: Any):
    ids = tuple(torch.randint(2, 50, (30,), generator=torch.Generator().manual_seed(5)).tolist())
    problem = Problem(id="x", targets=(Target(ids=(*ids, EOS), mode="ask"),))
    found = fit(backbone, [problem], slots=1, modes=MODES, check=False,
                recipe=FitRecipe(progressive=1, steps=15, restarts=1, lr=0.1, schedule="constant"))  # fmt: skip
    record = found.best("x")
    assert record.end == "steps" and 1 <= (record.held or {})["ask"] < 31
    assert found.decode("x")["ask"].ids[: (record.held or {})["ask"]] == ids[: (record.held or {})["ask"]]


def test_noise_counts_as_exact_only_without_it(backbone: Any):
    problems = pairs(3, longest=2)
    found = run(backbone, problems, noise=0.05, noise_rest=3, steps=90)
    assert any(record.end == "exact" for record in found.records)
    for record, problem in zip(found.records, problems, strict=True):
        assert record.end != "exact" or (record.steps or 0) % 3 == 0
        (again,) = measure(backbone, [problem], [found.vectors[problem.id][0]], modes=MODES)
        assert record.nats == pytest.approx(again.nats) and record.exact == again.exact
    apart = run(backbone, problems[1:2], noise=0.05, noise_rest=3, steps=90)
    torch.testing.assert_close(apart.vectors["p1"], found.vectors["p1"], rtol=1e-7, atol=1e-7)
    quiet = run(backbone, problems, steps=90)
    assert not torch.equal(quiet.vectors["p0"], found.vectors["p0"])


def test_the_pull_brings_vectors_to_the_table(backbone: Any):
    problems = pairs(2)
    table = backbone.embed(torch.arange(61)[None])[0].detach()

    def apart(found: Fitted) -> float:
        c = torch.cat([vectors[0] for vectors in found.vectors.values()])
        return float(torch.cdist(c, table).amin(1).mean())

    options = {"init": "table", "stop_when_exact": False, "clip": None}
    assert apart(run(backbone, problems, pull=3.0, **options)) < 0.8 * apart(run(backbone, problems, **options))


def test_low_rank_vectors_lie_in_the_shared_plane(backbone: Any):
    problems = pairs(3, longest=2)
    found = run(backbone, problems, rank=6, steps=100)
    table = backbone.embed(torch.arange(61)[None])[0].detach()
    together = torch.cat([vectors[0] for vectors in found.vectors.values()]) - table.mean(0)
    assert int(torch.linalg.matrix_rank(together, rtol=1e-9)) == 6
    (again,) = measure(backbone, problems[:1], [found.vectors["p0"][0]], modes=MODES)
    assert found.best("p0").nats == pytest.approx(again.nats)
    losses = {}
    for rank in (2, 32):
        record = run(backbone, problems[:1], rank=rank, stop_when_exact=False).best("p0")
        losses[rank] = sum((record.nats or {}).values())
    assert losses[32] < losses[2]


def test_surgery_changes_only_what_is_in_conflict(backbone: Any):
    problems = [*pairs(3), Problem(id="one", targets=(Target(ids=(4, 8, EOS), mode="ask"),))]
    plain, cut = run(backbone, problems, steps=12), run(backbone, problems, steps=12, surgery=True)
    torch.testing.assert_close(cut.vectors["one"], plain.vectors["one"])
    assert plain.best("one").gradient_cosine is None and plain.best("one").opposed is None
    opposed = [r.id for r in plain.records if (r.opposed or 0) > 0]
    assert opposed and all(not torch.equal(cut.vectors[id], plain.vectors[id]) for id in opposed)
    for record in plain.records[:3]:
        assert record.gradient_cosine is None or -1 <= record.gradient_cosine <= 1


def test_paraphrases_share_a_c_and_one_of_them_is_exact(backbone: Any):
    targets = (Target(ids=(4, 8, EOS), mode="ask"), Target(ids=(5, 9, EOS), mode="ask", weight=0.1),
               Target(ids=(7, EOS), mode="say"))  # fmt: skip
    problem = Problem(id="x", targets=targets)
    found = run(backbone, [problem], steps=120)
    record = found.best("x")
    assert record.end == "exact" and found.decode("x")["ask"].ids in ((4, 8), (5, 9))
    assert set(record.nats or {}) == {"ask", "say"} and (record.tokens or {})["ask"] == 3


def test_restarts_begin_elsewhere_and_runs_too(backbone: Any):
    problem = pairs(1)
    found = run(backbone, problem, restarts=3, steps=1)
    vectors = found.vectors["p0"]
    assert vectors.shape == (3, 4, 32) and not torch.equal(vectors[0], vectors[1])
    other = fit(backbone, problem, slots=4, recipe=found.recipe, modes=MODES, seed=1, check=False)
    assert not torch.equal(other.vectors["p0"], vectors)
    assert len({record.seed for record in (*found.records, *other.records)}) == 6


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"betas": (0.9, 1.0)}, "`betas` lie from 0 to below 1"),
        ({"weight_decay": 0.1}, "`weight_decay` goes with `optimizer: adamw`"),
        ({"cycles": 2, "schedule": "constant"}, "`cycles` goes with `schedule: cosine`"),
        ({"progressive": 2, "stop_when_exact": False}, "`progressive` needs `stop_when_exact`"),
        ({"lr": 0.0}, "greater than 0"),
        ({"lr": math.inf}, "finite"),
        ({"steps": 0}, "greater than or equal to 1"),
        ({"slots": 4}, "Extra inputs are not permitted"),
    ],
)
def test_recipes_that_are_none(options: dict[str, Any], said: str):
    with pytest.raises(ValidationError, match=said):
        FitRecipe(**options)
