"""The mathematics of fitting, piece by piece, against independent references."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from scipy import stats
from torch.nn import functional as F

from fit_models import EOS, MODES, SHAPES, pairs, tiny
from stepwell.fitting import FitRecipe, Target
from stepwell.fitting.gradients import clipped, cosines, pull_slope, without_conflict
from stepwell.fitting.noise import mixed, normal, seed_of
from stepwell.fitting.objective import at_targets
from stepwell.fitting.rows import by_mode, one_pass, pack, rows_of
from stepwell.fitting.state import Space, State, advance, noise_now, principal, rate, rests
from stepwell.latents.prompt import mode_vectors

OBJECTIVES = [{}, {"temperature": 0.25}, {"margin": 2.0, "margin_weight": 0.7},
              {"temperature": 1.7, "margin": 5.0, "margin_weight": 2.0}]  # fmt: skip


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def plain(
    logits: torch.Tensor,
    tokens: torch.Tensor,
    temperature: float = 1.0,
    margin: float = 0.0,
    margin_weight: float = 0.0,
) -> torch.Tensor:
    """The objective of each position as it is written down, for autograd."""
    own = logits.gather(1, tokens[:, None])[:, 0]
    others = logits.scatter(1, tokens[:, None], float("-inf")).amax(1)
    hinge = (margin - (own - others)).clamp(min=0)
    return F.cross_entropy(logits / temperature, tokens, reduction="none") + margin_weight * hinge


# What is asked at the targets.


@pytest.mark.parametrize("options", OBJECTIVES, ids=str)
@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_slopes_are_the_gradients_of_the_objective(options: dict[str, float], chunk: int):
    backbone, tokens = tiny("pythia", "fp64"), torch.tensor([3, 60, 0, 7, 7])
    hidden = random(5, 32).requires_grad_()
    found = at_targets(backbone, hidden, tokens, chunk=chunk, **options)
    logits = backbone.logits(hidden)
    (wanted,) = torch.autograd.grad(plain(logits, tokens, **options).sum(), hidden)
    torch.testing.assert_close(found.slope, wanted, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.nats, F.cross_entropy(logits, tokens, reduction="none").detach())
    for row, token in enumerate(tokens.tolist()):
        others = [z for i, z in enumerate(logits[row].tolist()) if i != token]
        assert float(found.lead[row]) == pytest.approx(logits[row].tolist()[token] - max(others))
    assert torch.equal(found.lead > 0, logits.argmax(1) == tokens)
    bare = at_targets(backbone, hidden, tokens, slopes=False)
    assert bare.slope is None
    torch.testing.assert_close((bare.nats, bare.lead), (found.nats, found.lead))


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("options", OBJECTIVES[::3], ids=str)
def test_gradient_of_c_by_finite_differences(name: str, options: dict[str, float]):
    """The whole chain by hand: layout, share of each token, weight, slope, backward through the model, by mode."""
    backbone, recipe = tiny(name, "fp64"), FitRecipe(**options)
    backbone.requires_grad_(False)
    modes = mode_vectors(backbone, MODES)
    targets = (
        Target(ids=(4, 9, EOS), mode="ask", weight=0.5),
        Target(ids=(8, EOS), mode="say"),
        Target(ids=(5, 6, 7, EOS), mode="say", weight=3),
    )
    vectors = random(1, 3, 32, seed=4)

    def loss(c: torch.Tensor) -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for target in targets:
            embeds = torch.cat((modes[target.mode][None, None], c, backbone.embed(torch.tensor([target.ids[:-1]]))), 1)
            logits = backbone.model(inputs_embeds=embeds).logits[0, 3:]
            total = total + target.weight * plain(logits, torch.tensor(target.ids), **options).mean()
        return total

    def of(*chosen: Target) -> Any:
        rows = rows_of(backbone, [chosen], modes, 3, 20)
        parts = [one_pass(backbone, each, vectors, lambda inner, case: inner, recipe) for each in rows]
        return by_mode(parts, rows, 1, 2)

    found, alone = of(*targets), of(targets[0])
    with torch.no_grad():
        for seed in range(3):
            direction, step = random(1, 3, 32, seed=10 + seed), 1e-5
            wanted = float(loss(vectors + step * direction) - loss(vectors - step * direction)) / (2 * step)
            assert float((found.gradients.sum(1) * direction).sum()) == pytest.approx(wanted, rel=1e-5)
    torch.testing.assert_close(found.gradients[:, 0], alone.gradients[:, 0], rtol=1e-8, atol=1e-10)
    leaf = vectors.clone().requires_grad_()
    (exactly,) = torch.autograd.grad(loss(leaf), leaf)
    torch.testing.assert_close(found.gradients.sum(1), exactly, rtol=1e-10, atol=1e-13)
    assert alone.present.tolist() == [[True, False]] and bool(alone.nats[0, 1].isnan())


def test_paraphrases_are_weighed_and_the_best_counts_for_exactness():
    backbone = tiny("gpt2", "fp64")
    backbone.requires_grad_(False)
    modes = mode_vectors(backbone, MODES)
    targets = (Target(ids=(4, 9, EOS), mode="ask", weight=0.5), Target(ids=(5, 6, 7, EOS), mode="ask", weight=2.0))
    vectors, recipe = random(1, 3, 32, seed=4), FitRecipe()

    def of(*chosen: Target) -> Any:
        rows = rows_of(backbone, [chosen], modes, 3, 20)
        parts = [one_pass(backbone, each, vectors, lambda inner, case: inner, recipe) for each in rows]
        return by_mode(parts, rows, 1, 2)

    both, one, other = of(*targets), of(targets[0]), of(targets[1])
    assert float(both.nats[0, 0]) == pytest.approx((0.5 * float(one.nats[0, 0]) + 2 * float(other.nats[0, 0])) / 2.5)
    assert float(both.own[0, 0]) == pytest.approx(float(one.nats[0, 0]))
    assert bool(both.own[0, 1].isnan()) and float(of(*targets[::-1]).own[0, 0]) == pytest.approx(
        float(other.nats[0, 0])
    )
    assert float(both.lead[0, 0]) == pytest.approx(max(float(one.lead[0, 0]), float(other.lead[0, 0])))
    torch.testing.assert_close(both.gradients, one.gradients + other.gradients)


# Gradients of many problems.


def test_conflict_surgery_against_the_paper_row_by_row():
    gradients = random(6, 3, 8)
    gradients[4, 2] = 0  # a problem without the third mode
    found = without_conflict(gradients)
    for row in range(6):
        total = torch.zeros(8, dtype=torch.float64)
        for i in range(3):
            kept = gradients[row, i].clone()
            for j in ((i + 1) % 3, (i + 2) % 3):
                other = gradients[row, j]
                if (inner := float(kept @ other)) < 0:
                    kept -= inner / float(other @ other) * other
            total += kept
        torch.testing.assert_close(found[row], total)


def test_conflict_surgery_leaves_what_agrees_and_parts_what_opposes():
    agree = torch.tensor([[[1.0, 0.0], [1.0, 1.0]]], dtype=torch.float64)
    assert torch.equal(without_conflict(agree), agree.sum(1))
    oppose = torch.tensor([[[1.0, 0.0], [-1.0, 1.0]]], dtype=torch.float64)
    torch.testing.assert_close(without_conflict(oppose), torch.tensor([[0.5, 1.5]], dtype=torch.float64))
    # Neither mode gets worse along the sum, to first order.
    assert bool(((without_conflict(oppose)[:, None] * oppose).sum(-1) >= 0).all())


def test_cosines_between_the_modes_that_there_are():
    gradients = random(5, 3, 8)
    gradients[1, 2] = 0
    gradients[2, 1:] = 0
    found = cosines(gradients)
    for row, modes in ((0, 3), (1, 2), (3, 3)):
        pairs_of = itertools.combinations(range(modes), 2)
        each = [float(F.cosine_similarity(gradients[row, i], gradients[row, j], dim=0)) for i, j in pairs_of]
        assert float(found[row]) == pytest.approx(sum(each) / len(each))
    assert bool(found[2].isnan())


def test_clipping_is_of_each_problem_by_itself():
    gradient = random(3, 2, 4) * torch.tensor([0.01, 1.0, 100.0], dtype=torch.float64)[:, None, None]
    found = clipped(gradient, 1.0)
    for ours, theirs in zip(found, gradient, strict=True):
        parameter = torch.zeros_like(theirs, requires_grad=True)
        parameter.grad = theirs.clone()
        torch.nn.utils.clip_grad_norm_(parameter, 1.0)
        torch.testing.assert_close(ours, parameter.grad, rtol=1e-5, atol=1e-8)


def test_the_pull_is_the_gradient_of_the_distance_by_finite_differences():
    vectors, table = random(2, 3, 4), random(11, 4, seed=1)

    def distance(c: torch.Tensor) -> float:
        apart = ((c[:, :, None] - table) ** 2).sum(-1).amin(-1)  # (R, K)
        return float((apart.sum(1) / 12 / table.var()).sum())

    slope = pull_slope(vectors, table, table.var(), chunk=2)
    for seed in range(4):
        direction, step = random(2, 3, 4, seed=20 + seed), 1e-6
        wanted = (distance(vectors + step * direction) - distance(vectors - step * direction)) / (2 * step)
        assert float((slope * direction).sum()) == pytest.approx(wanted, rel=1e-6)


# Updates.


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_updates_are_those_of_torch_for_each_problem_at_its_own_step(optimizer: str):
    decay = 0.1 if optimizer == "adamw" else 0.0
    recipe = FitRecipe(steps=12, optimizer=optimizer, weight_decay=decay, lr=0.05, warmup_steps=3, clip=None,
                       stop_when_exact=False, cycles=2, floor=0.1)  # fmt: skip
    state = None
    begins = random(2, 3, 4)
    space = Space(basis=None, offset=None, middle=begins[0, 0], spread=begins[0, 0], table=None, variance=None)
    parameters, optimizers = [], []
    for row in range(2):
        parameters.append(begins[row].clone().requires_grad_())
        kind = torch.optim.AdamW if decay else torch.optim.Adam
        optimizers.append(kind([parameters[-1]], lr=0.05, weight_decay=decay))
    for step in range(12):
        if step in (0, 4):  # the second problem comes four steps later
            row = int(step == 4)
            new = State.begin(begins[row : row + 1], torch.tensor([row]), points=3, modes=1)
            state = new if state is None else state.join(new)
        assert state is not None
        count = len(state.inner)
        gradients = random(count, 1, 3, 4, seed=step + 50)
        found = by_mode_like(gradients)
        advance(state, found, recipe, space)
        for row in range(count):
            own = step - 4 * row
            optimizers[row].param_groups[0]["lr"] = float(rate(recipe, torch.tensor([float(own)]).double()))
            parameters[row].grad = gradients[row, 0].clone()
            optimizers[row].step()
            torch.testing.assert_close(state.inner[row], parameters[row].detach(), rtol=1e-8, atol=1e-9)
    assert state is not None and state.taken.tolist() == [12, 8]


def by_mode_like(gradients: torch.Tensor, lead: float = -1.0, nats: float = 1.0) -> Any:
    from stepwell.fitting.rows import ByMode

    shape = gradients.shape[:2]
    return ByMode(nats=gradients.new_full(shape, nats), own=gradients.new_full(shape, nats),
                  lead=gradients.new_full(shape, lead), held=torch.zeros(shape, dtype=torch.long),
                  present=torch.ones(shape, dtype=torch.bool), gradients=gradients)  # fmt: skip


def test_a_case_that_is_held_broken_or_full_stands_still():
    recipe = FitRecipe(steps=2, margin=0.5, lr=0.1)
    begins = random(4, 3, 4)
    space = Space(basis=None, offset=None, middle=begins[0, 0], spread=begins[0, 0], table=None, variance=None)
    state = State.begin(begins, torch.arange(4), points=3, modes=1)
    for _step in range(4):
        found = by_mode_like(random(4, 1, 3, 4, seed=3))
        found.lead[0], found.lead[1] = 0.5, 0.49
        found.gradients[2] = float("nan")
        advance(state, found, recipe, space)
    assert (state.held.tolist(), state.broken.tolist(), state.full.tolist()) == (
        [True, False, False, False], [False, False, True, False], [False, True, False, True],
    )  # fmt: skip
    assert state.taken.tolist() == [0, 2, 0, 2]
    assert torch.equal(state.inner[[0, 2]], begins[[0, 2]]) and bool(state.inner.isfinite().all())


def test_rates_of_the_schedules():
    step = torch.arange(8.0).double()
    assert rate(FitRecipe(lr=2, schedule="constant"), step).tolist() == [2.0] * 8
    cosine = rate(FitRecipe(lr=1, steps=8), step)
    wanted = [torch.optim.lr_scheduler.CosineAnnealingLR(torch.optim.SGD([torch.zeros(1)], lr=1), T_max=8)]
    for value in cosine.tolist():
        assert value == pytest.approx(wanted[0].get_last_lr()[0])
        wanted[0].optimizer.step()
        wanted[0].step()
    assert rate(FitRecipe(lr=1, steps=8, cycles=2), step).tolist() == pytest.approx(
        [*rate(FitRecipe(lr=1, steps=4), step[:4]).tolist()] * 2
    )
    assert rate(FitRecipe(lr=1, schedule="constant", warmup_steps=4), step).tolist() == pytest.approx(
        [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]
    )
    end = torch.tensor([8.0 - 1e-9], dtype=torch.float64)
    assert float(rate(FitRecipe(lr=1, steps=8, floor=0.3), end)) == pytest.approx(0.3)


# Random numbers.


def test_the_hash_is_splitmix64():
    """The first outputs of splitmix64 with seed 1234567, as published with the algorithm's reference code."""
    gamma, mask = 0x9E3779B97F4A7C15, (1 << 64) - 1
    states = [(1234567 + gamma * i) & mask for i in range(1, 6)]
    signed = torch.tensor([s - (1 << 64) if s >> 63 else s for s in states])
    assert [value & mask for value in mixed(signed).tolist()] == [
        6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821,
    ]  # fmt: skip


def test_normal_numbers_are_normal_and_belong_to_their_seed():
    seeds = torch.tensor([seed_of(0, f"p{i}", r) for i in range(40) for r in range(5)])
    assert len(set(seeds.tolist())) == 200 and bool((seeds >= 0).all())
    found = normal(seeds, 0, (8, 40)).double()
    assert stats.kstest(found.flatten().numpy(), "norm").pvalue > 0.01
    assert stats.kstest(found.sum((1, 2)).numpy() / 320**0.5, "norm").pvalue > 0.01  # no row leans to a side
    correlated = torch.corrcoef(found.flatten(1)) - torch.eye(200, dtype=torch.float64)
    assert float(correlated.abs().max()) < 0.3  # 200 rows of 320: five deviations
    assert torch.equal(normal(seeds[7:8], 3, (8, 40))[0], normal(seeds, 3, (8, 40))[7])
    other = normal(seeds, torch.arange(200) % 2, (8, 40))
    assert torch.equal(other[0].double(), found[0]) and not torch.equal(other[1].double(), found[1])
    assert abs(float((found * normal(seeds, 1, (8, 40))).mean())) < 0.02


def test_noise_rests_at_its_steps_and_at_the_end():
    recipe = FitRecipe(steps=7, noise=0.5, noise_rest=3)
    state = State.begin(torch.zeros(8, 200, 3), torch.arange(8), points=1, modes=1)
    state.stage = state.taken = torch.arange(8)
    assert rests(recipe, state).tolist() == [True, False, False, True, False, False, True, True]
    noise = noise_now(recipe, state, (200, 3))
    assert [bool(row.any()) for row in noise] == [False, True, True, False, True, True, False, False]
    assert float(noise[[1, 2, 4, 5]].std()) == pytest.approx(0.5, rel=0.1)


# Where c lies.


def test_principal_directions_are_those_of_the_singular_values():
    table = random(50, 6) @ random(6, 6, seed=2)
    basis, deviations = principal(table, 3)
    _, singular, right = torch.linalg.svd(table - table.mean(0), full_matrices=False)
    torch.testing.assert_close((basis @ right[:3].T).abs(), torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(deviations, singular[:3] / 49**0.5)
    assert all(float(row[row.abs().argmax()]) > 0 for row in basis)


@pytest.mark.parametrize("rank", [None, 5])
@pytest.mark.parametrize("init", ["normal", "table"])
def test_the_start_has_the_deviations_that_were_asked_for(rank: int | None, init: Any):
    backbone = tiny("gpt2", "fp64")
    space = Space.of(backbone, FitRecipe(init=init, rank=rank, init_scale=0.02))
    inner = space.begin(torch.arange(300), 20)
    vectors = space.vectors(inner)
    table = backbone.embed(torch.arange(61)[None])[0].detach()
    assert inner.shape == (300, 20, rank or 32) and vectors.shape == (300, 20, 32)
    if init == "normal":
        assert float(inner.std()) == pytest.approx(0.02, rel=0.02)
    elif rank is None:
        torch.testing.assert_close(vectors.flatten(0, 1).std(0), table.std(0), rtol=0.06, atol=0)
        torch.testing.assert_close(vectors.flatten(0, 1).mean(0), table.mean(0), rtol=0, atol=0.02)
    if rank is not None:
        flat = vectors.flatten(0, 1) - table.mean(0)
        assert int(torch.linalg.matrix_rank(flat)) == rank
        pulled = FitRecipe(init=init, rank=rank, pull=1.0)
        assert Space.of(backbone, pulled).pull(inner[:2]).shape == (2, 20, rank)


# Rows.


def test_rows_are_packed_whole_within_the_columns():
    generator = torch.Generator().manual_seed(0)
    for slots, columns in ((4, 100), (32, 64), (1, 10)):
        lengths = torch.randint(1, 30, (40,), generator=generator).tolist()
        packed = pack(lengths, slots, columns)
        assert sorted(itertools.chain(*packed)) == list(range(40))
        for rows in packed:
            assert len(rows) == 1 or len(rows) * (slots + max(lengths[row] for row in rows)) <= columns
    assert pack([], 4, 100) == []


def test_packing_is_the_cheapest_cut_of_the_sorted_lengths():
    lengths, slots, columns = [2, 2, 3, 9, 9, 10, 25], 3, 400

    def cost(parts: list[list[int]]) -> float:
        return sum(len(part) * (slots + max(lengths[row] for row in part)) + columns / 8 for part in parts)

    order = sorted(range(7), key=lambda row: lengths[row])
    every = []
    for cuts in itertools.chain.from_iterable(itertools.combinations(range(1, 7), n) for n in range(7)):
        edges = [0, *cuts, 7]
        every.append(cost([order[a:b] for a, b in itertools.pairwise(edges)]))
    assert cost(pack(lengths, slots, columns)) == min(every)
    # Where a pass costs little, short rows are not padded to long ones.
    assert sorted(map(len, pack([2] * 50 + [40] * 50, slots, 8000))) == [50, 50]
    assert sorted(map(len, pack([2, 3], slots, 8000))) == [2]


def test_a_problem_keeps_the_rows_of_its_own_vectors():
    backbone = tiny("gpt2", "fp64")
    problems = pairs(3)
    modes = mode_vectors(backbone, MODES)
    for rows in rows_of(backbone, [problem.targets for problem in problems], modes, 2, 16):
        for row, (case, mode) in enumerate(zip(rows.case.tolist(), rows.mode.tolist(), strict=True)):
            target = problems[case].targets[mode]
            tokens = rows.prompt.by_row(rows.prompt.tokens, -1)[row].tolist()
            assert tuple(t for t in tokens if t >= 0) == target.ids and list(MODES)[mode] == target.mode
