"""The state of the cases that are being fitted, side by side on the device, and one update of all of them.

A case that is held, that is not finite or that has taken all its steps stands still from that very step on, on the
device; so it does not matter when the host looks, nor what else is in the batch.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from stepwell.fitting.gradients import clipped, cosines, pull_slope, without_conflict
from stepwell.fitting.noise import normal
from stepwell.fitting.recipe import FitRecipe
from stepwell.fitting.rows import ByMode
from stepwell.shapes import embedding_table

EPSILON = 1e-8


@dataclass(kw_only=True)
class State:
    """R cases.

    Attributes:
        inner: (R, K, P), what is fitted: c itself, or its coordinates.
        first, second: (R, K, P), Adam's moments.
        taken: (R,), updates so far; `stage`: (R,), those since the stage began.
        seeds: (R,).
        held, broken, full: (R,), why a case stands still: all modes held, not finite, all steps taken.
        kept: (R, K, P), what was fitted at the end of the last stage that was held (progressive targets).
        cosine, opposed: (R,), sums over the updates of the modes' cosine, and of its being negative.
        curve: (R, points, M), nats; NaN where there is none.
    """

    inner: Tensor
    first: Tensor
    second: Tensor
    taken: Tensor
    stage: Tensor
    seeds: Tensor
    held: Tensor
    broken: Tensor
    full: Tensor
    kept: Tensor
    cosine: Tensor
    opposed: Tensor
    curve: Tensor

    @classmethod
    def begin(cls, inner: Tensor, seeds: Tensor, *, points: int, modes: int) -> State:
        """Cases before their first step."""
        count = len(inner)
        zeros, counts = inner.new_zeros(count), seeds.new_zeros(count)
        return cls(
            inner=inner, first=torch.zeros_like(inner), second=torch.zeros_like(inner), taken=counts,
            stage=counts.clone(), seeds=seeds, held=counts.bool(), broken=counts.bool(), full=counts.bool(),
            kept=inner.clone(), cosine=zeros, opposed=zeros.clone(),
            curve=inner.new_full((count, points, modes), float("nan")),
        )  # fmt: skip

    def select(self, rows: Tensor) -> State:
        """Some cases."""
        return State(**{each.name: getattr(self, each.name)[rows] for each in fields(self)})

    def join(self, other: State) -> State:
        """These cases, then others."""
        return State(**{f.name: torch.cat((getattr(self, f.name), getattr(other, f.name))) for f in fields(self)})


@dataclass(frozen=True, kw_only=True)
class Space:
    """Where c lies: c = offset + inner B, or c = inner.

    Attributes:
        basis: (P, D), orthonormal rows; None = c itself.
        offset: (D,), where there is a basis.
        middle, spread: (P,), mean and deviation of the start.
        table, variance: (V, D) and (): the embedding table, where the recipe pulls towards it.
    """

    basis: Tensor | None
    offset: Tensor | None
    middle: Tensor
    spread: Tensor
    table: Tensor | None
    variance: Tensor | None

    @classmethod
    def of(cls, backbone: Any, recipe: FitRecipe) -> Space:
        """The space of a recipe on the backbone's device, in float32, or float64 for such a model."""
        parameter = next(backbone.parameters())
        dtype = torch.promote_types(parameter.dtype, torch.float32)
        width = backbone.width
        needed = recipe.init == "table" or recipe.rank is not None or recipe.pull
        table = embedding_table(backbone).to(dtype) if needed else None
        basis = offset = None
        middle, spread = parameter.new_zeros(width, dtype=dtype), parameter.new_full((width,), recipe.init_scale,
                                                                                     dtype=dtype)  # fmt: skip
        if table is not None and recipe.rank is not None:
            offset = table.mean(0)
            basis, deviations = principal(table, recipe.rank)
            middle = middle[: len(basis)]
            spread = deviations if recipe.init == "table" else spread[: len(basis)]
        elif table is not None and recipe.init == "table":
            middle, spread = table.mean(0), table.std(0)
        pulled = table if recipe.pull else None
        variance = None if pulled is None else pulled.var()
        return cls(basis=basis, offset=offset, middle=middle, spread=spread, table=pulled, variance=variance)

    def begin(self, seeds: Tensor, slots: int) -> Tensor:
        """The start (R, K, P) of cases with these seeds."""
        return self.middle + self.spread * normal(seeds, 0, (slots, len(self.spread))).to(self.spread)

    def vectors(self, inner: Tensor) -> Tensor:
        """(R, K, P) -> c (R, K, D)."""
        if self.basis is None or self.offset is None:
            return inner
        return self.offset + inner @ self.basis

    def pull(self, inner: Tensor) -> Tensor:
        """The gradient (R, K, P) of the distance to the nearest token embeddings."""
        assert self.table is not None and self.variance is not None
        slope = pull_slope(self.vectors(inner), self.table, self.variance)
        return slope if self.basis is None else slope @ self.basis.T


def principal(table: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The leading principal directions (rank, D) of a table (V, D), and the deviations (rank,) along them.

    Each direction's largest entry is positive, so that its sign is no matter of chance.
    """
    centred = (table - table.mean(0)).double()
    values, directions = torch.linalg.eigh(centred.T @ centred / (len(table) - 1))
    leading = directions.flip(1)[:, :rank].T
    signs = leading.gather(1, leading.abs().argmax(1, keepdim=True)).sign()
    deviations = values.flip(0)[:rank].clamp(min=0).sqrt()
    return (leading * signs).to(table), deviations.to(table)


def rate(recipe: FitRecipe, step: Tensor) -> Tensor:
    """The learning rate (R,) after `step` (R,) updates of a stage; `step` in floating point."""
    factor = torch.ones_like(step)
    if recipe.schedule == "cosine":
        done = torch.remainder(step * recipe.cycles / recipe.steps, 1.0)
        factor = recipe.floor + (1 - recipe.floor) * 0.5 * (1 + torch.cos(torch.pi * done))
    if recipe.warmup_steps:
        factor = factor * ((step + 1) / recipe.warmup_steps).clamp(max=1)
    return recipe.lr * factor


def noise_now(recipe: FitRecipe, state: State, shape: tuple[int, ...]) -> Tensor:
    """Noise (R, *shape) on c for this step; zero for cases whose step is one of rest."""
    drawn = normal(state.seeds, state.taken + 1, shape).to(state.inner)
    return torch.where(rests(recipe, state)[:, None, None], 0, recipe.noise * drawn)


def rests(recipe: FitRecipe, state: State) -> Tensor:
    """(R,), whether this step of a case is without noise."""
    return (state.stage % recipe.noise_rest == 0) | (state.stage >= recipe.steps)


def advance(state: State, found: ByMode, recipe: FitRecipe, space: Space) -> None:
    """Decide which cases stand still from here on, and update the others; nothing waits for the device."""
    assert found.gradients is not None
    present, gradients = found.present, found.gradients.flatten(2)
    going = ~(state.held | state.broken | state.full)
    sound = (found.nats.isfinite() | ~present).all(1) & gradients.isfinite().all(-1).all(-1)
    if recipe.stop_when_exact:
        reached = ((found.lead > 0) & (found.lead >= recipe.margin) | ~present).all(1)
        reached = reached & rests(recipe, state) if recipe.noise else reached
        state.held = state.held | (going & sound & reached)
    state.broken = state.broken | (going & ~sound)
    state.full = state.full | (going & sound & ~state.held & (state.stage >= recipe.steps))
    _draw(state, found.nats, recipe, going)
    going = ~(state.held | state.broken | state.full)
    if gradients.shape[1] > 1:
        between = cosines(gradients)
        state.cosine = torch.where(going, state.cosine + between, state.cosine)
        state.opposed = torch.where(going, state.opposed + (between < 0), state.opposed)
    gradient = without_conflict(gradients) if recipe.surgery else gradients.sum(1)
    gradient = gradient.view_as(state.inner)
    if recipe.pull:
        gradient = gradient + recipe.pull * space.pull(state.inner)
    _adam(state, gradient if recipe.clip is None else clipped(gradient, recipe.clip), recipe, going)


def _draw(state: State, nats: Tensor, recipe: FitRecipe, going: Tensor) -> None:
    """The curves' points of this step, of the cases that were going when it began."""
    row = torch.arange(len(nats), device=nats.device)
    at = state.taken // recipe.curve_every
    due = (going & (state.taken % recipe.curve_every == 0) & (at < state.curve.shape[1]))[:, None]
    at = at.clamp(max=state.curve.shape[1] - 1)
    state.curve[row, at] = torch.where(due, nats, state.curve[row, at])


def _adam(state: State, gradient: Tensor, recipe: FitRecipe, going: Tensor) -> None:
    """Adam (Kingma & Ba 2015, arXiv 1412.6980) of each case by its own step count; AdamW's decay where asked for."""
    beta1, beta2 = recipe.betas
    move = going[:, None, None]
    count = (state.taken + 1).to(gradient)[:, None, None]
    lr = rate(recipe, state.stage.to(gradient))[:, None, None]
    first = beta1 * state.first + (1 - beta1) * gradient
    second = beta2 * state.second + (1 - beta2) * gradient * gradient
    scale = lr / (1 - beta1**count)
    size = (second / (1 - beta2**count)).sqrt() + EPSILON
    decayed = state.inner * (1 - lr * recipe.weight_decay) if recipe.weight_decay else state.inner
    state.inner = torch.where(move, decayed - scale * first / size, state.inner)
    state.first = torch.where(move, first, state.first)
    state.second = torch.where(move, second, state.second)
    state.taken, state.stage = state.taken + going, state.stage + going
