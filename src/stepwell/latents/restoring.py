"""How a restorer is trained: on the corpus's embeddings alone, then on what the model reads through them.

Phase 1 (objectives `mse` and `cosine`) draws token vectors as often as they occur in the corpus; the model itself is
not run. Phase 2 (`reading`) restores whole prompts, lets the frozen model read them, and adds the next-token loss over
the prompt. A step is an optimizer step, never a micro-batch, and a pure function of the seed, its number and the state;
so a training that is cut in pieces ends with the same weights as one that is not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.utils.checkpoint import checkpoint

from stepwell.errors import StageFailed, StepwellError
from stepwell.latents.restorer import Restorer
from stepwell.latents.restorer_specs import RestoringRecipe
from stepwell.losses import Logged, Summed, Weighing, cosine_rms, reconstruction
from stepwell.losses.weighing import Step as WeighedStep
from stepwell.objectives import IGNORE, cross_entropy, supervised
from stepwell.recipe import too_many_skipped
from stepwell.shapes import Backbone, frozen

STATES = 512
"""Hidden states whose logits (V numbers each) exist at a time."""
POOL = 16
"""Batches whose prompts are sorted by length together: little padding, and an order that stays nearly random."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One optimizer step.

    Attributes:
        step: its number, from 1.
        losses: the terms, unweighted and weighted: `mse`, `cosine`, `next_token`.
        lr: learning rate.
        grad_norm: before clipping.
        tokens: token vectors that were restored.
        skipped: whether the weights were left alone, since a loss or the gradient is not finite.
    """

    step: int
    losses: Logged
    lr: float
    grad_norm: float
    tokens: int
    skipped: bool

    def fields(self) -> dict[str, Any]:
        """Flat, for a record."""
        whole = {name: getattr(self, name) for name in ("step", "lr", "grad_norm", "tokens", "skipped")}
        return whole | self.losses.fields()


def train_restorer(
    restorer: Restorer,
    backbone: Backbone,
    counts: Tensor,
    recipe: RestoringRecipe,
    *,
    prompts: Sequence[Sequence[int]] = (),
    kept: int = 1,
    seed: int = 0,
    state: dict[str, Any] | None = None,
    until: int | None = None,
    on_step: Callable[[Step], None] = lambda step: None,
) -> dict[str, Any]:
    """Train a restorer in place for one phase, or for some steps of it.

    Args:
        restorer: with an adapter that has weights, on the backbone's device.
        backbone: embeds, and in phase 2 reads; in evaluation mode, its weights without gradients, meanwhile.
        counts: (V,), how often each id occurs in the corpus: the training set's prompts, all of them.
        recipe: how.
        prompts: token ids of the training set's prompts, for phase 2; a new order each epoch.
        kept: leading tokens of each prompt that are not compressed, such as BOS.
        seed: of what is drawn.
        state: what an earlier call of this phase gave back; None = begin, with the weights the restorer has.
        until: the last step of this call; None = the recipe's.
        on_step: called after each step.

    Returns:
        The state to go on from: plain numbers and tensors, that share nothing with the restorer.

    Raises:
        StepwellError: an adapter without weights; counts of another vocabulary or none; a compressor that was fitted on
            less than half of them; prompts missing, too short, or too long for the model; a state of another recipe.
        StageFailed: too many steps were not finite.
    """
    _check(restorer, backbone, counts, recipe, prompts, kept)
    loop = _Loop(restorer, backbone, counts, recipe, prompts, kept, seed)
    if state is not None:
        loop.load(state)
    last = recipe.steps if until is None else min(until, recipe.steps)
    with frozen(backbone):
        while loop.step < last:
            on_step(loop.update())
    return loop.state()


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """Some prompts, padded on the right to T columns.

    Attributes:
        ids: (B, T), 0 at padding.
        compressed: (B, T), the tokens that are compressed and restored.
        predicts: (B, T - first + 1), which hidden states from column first - 1 on predict a token.
        targets: (N,), which token each of them predicts.
        first: the first column that is predicted.
        tokens: how many are compressed.
    """

    ids: Tensor
    compressed: Tensor
    predicts: Tensor
    targets: Tensor
    first: int
    tokens: int

    @classmethod
    def of(cls, prompts: Sequence[Sequence[int]], kept: int, device: torch.device) -> _Rows:
        """Lay prompts out; the `kept` first tokens of each are not compressed."""
        longest, first = max(map(len, prompts)), max(kept, 1)
        labels = torch.tensor([[*prompt] + [IGNORE] * (longest - len(prompt)) for prompt in prompts])
        predicts, targets = supervised(labels, first)
        compressed = labels != IGNORE
        compressed[:, :kept] = False
        moved = (each.to(device) for each in (labels.clamp(min=0), compressed, predicts, targets))
        return cls(**dict(zip(("ids", "compressed", "predicts", "targets"), moved, strict=True)),
                   first=first, tokens=int(compressed.sum()))  # fmt: skip


class _Loop:
    """One phase: what is drawn, what is minimised, and everything a resume needs."""

    def __init__(
        self,
        restorer: Restorer,
        backbone: Backbone,
        counts: Tensor,
        recipe: RestoringRecipe,
        prompts: Sequence[Sequence[int]],
        kept: int,
        seed: int,
    ) -> None:
        assert restorer.net is not None
        self.restorer, self.net, self.backbone, self.recipe = restorer, restorer.net, backbone, recipe
        self.prompts, self.kept, self.seed = prompts, kept, seed
        self.device = next(backbone.parameters()).device
        self.upto = counts.cpu().long().cumsum(0)
        self.rows = min(recipe.batch_size, len(prompts))
        # An epoch's order is asked for at every step of it.
        self._epoch = lru_cache(maxsize=1)(self._order)
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
        self.weighing = Weighing(recipe.weights)
        self.step, self.skipped = 0, 0

    def update(self) -> Step:
        """One optimizer step."""
        recipe = self.recipe
        lr = recipe.lr * recipe.lr_factor(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        losses, tokens = self._read() if recipe.objective == "reading" else self._alone()
        limit = math.inf if recipe.clip is None else recipe.clip
        grad_norm = float(clip_grad_norm_(self.net.parameters(), limit))
        sound = losses.finite and math.isfinite(grad_norm)
        if sound:
            self.optimizer.step()
        self.step += 1
        self.skipped += not sound
        if too_many_skipped(self.skipped, self.step, recipe.most_skipped):
            raise StageFailed(
                f"{self.skipped} of {self.step} steps of the restorer were skipped: loss or gradient not finite",
                "Lower `lr`, or look for damaged embeddings; `most_skipped` says how many steps may be skipped.",
            )
        return Step(step=self.step, losses=losses, lr=lr, grad_norm=grad_norm, tokens=tokens, skipped=not sound)

    def _alone(self) -> tuple[Logged, int]:
        """Phase 1: the gradient of a step from token vectors alone; what it was, and of how many."""
        tokens = self.recipe.accumulation * self.recipe.batch_size
        generator = torch.Generator().manual_seed(_mixed(self.seed, self.step))
        # The corpus, sorted by id, need not exist: its n-th token (from 0) is the first id up to which there are more.
        drawn = torch.randint(int(self.upto[-1]), (tokens,), generator=generator)
        ids = torch.searchsorted(self.upto, drawn, right=True).to(self.device)
        name = self.recipe.objective
        unit = self.restorer.unit  # whose precision is the restorer's
        blocks = [self.backbone.embed(block[None]).detach().to(unit) for block in ids.split(self.recipe.batch_size)]
        # A vector of zeros has no direction to compare with.
        present = [(block.square().mean(-1) > 0) | (name != "cosine") for block in blocks]
        step = self._weighed({name: sum(int(real.sum()) for real in present)})
        loss = cosine_rms if name == "cosine" else self._mse
        for vectors, real in zip(blocks, present, strict=True):
            step.loss({name: loss(self.restorer(vectors), vectors, real)}).backward()
        return step.close(), tokens

    def _read(self) -> tuple[Logged, int]:
        """Phase 2: the gradient of a step from prompts that are read; what it was, and of how many tokens."""
        batches = [_Rows.of(prompts, self.kept, self.device) for prompts in self._prompts()]
        tokens = sum(batch.tokens for batch in batches)
        step = self._weighed({"mse": tokens, "next_token": sum(len(batch.targets) for batch in batches)})
        for batch in batches:
            embeds = self.backbone.embed(batch.ids).detach()
            vectors = embeds[batch.compressed]
            restored = self.restorer(vectors)
            real = torch.ones(1, len(vectors), dtype=torch.bool, device=self.device)
            step.loss({
                "mse": self._mse(restored[None], vectors[None].to(restored), real),
                "next_token": self._next_token(batch, embeds, restored),
            }).backward()  # fmt: skip
        return step.close(), tokens

    def _weighed(self, counts: dict[str, int]) -> WeighedStep:
        return self.weighing.step(self.step / self.recipe.steps, counts)

    def _mse(self, restored: Tensor, vectors: Tensor, real: Tensor) -> Summed:
        unit = self.restorer.unit
        return reconstruction(restored / unit, vectors / unit, real)

    def _next_token(self, batch: _Rows, embeds: Tensor, restored: Tensor) -> Summed:
        """Nats of the prompts' tokens, read through their restored embeddings."""
        embeds = embeds.masked_scatter(batch.compressed[..., None], restored.to(embeds))
        # Padded on the right: no real column sees a padded one, and attention takes its fast causal path.
        positions = torch.arange(embeds.shape[1], device=self.device).expand(len(embeds), -1)
        mask = torch.ones_like(positions, dtype=torch.bool)
        hidden = self.backbone(embeds, positions=positions, mask=mask, skip=batch.first - 1)
        return Summed(sum=_nats(self.backbone, hidden[batch.predicts], batch.targets), count=len(batch.targets))

    def _prompts(self) -> Iterator[list[Sequence[int]]]:
        """The micro-batches of this step."""
        an_epoch = len(self.prompts) // self.rows
        for number in range(self.step * self.recipe.accumulation, (self.step + 1) * self.recipe.accumulation):
            epoch, inside = divmod(number, an_epoch)
            yield [self.prompts[i] for i in self._epoch(epoch)[inside]]

    def _order(self, epoch: int) -> list[list[int]]:
        """The whole micro-batches of an epoch: prompts of like length together, in random order."""
        generator = torch.Generator().manual_seed(_mixed(self.seed, -1 - epoch))
        lengths = torch.tensor([len(prompt) for prompt in self.prompts])
        pools = torch.randperm(len(lengths), generator=generator).split(POOL * self.rows)
        batches = [part for pool in pools for part in pool[lengths[pool].argsort()].split(self.rows)]
        whole = [part.tolist() for part in batches if len(part) == self.rows]
        return [whole[i] for i in torch.randperm(len(whole), generator=generator).tolist()]

    def state(self) -> dict[str, Any]:
        """Everything that the rest of the phase depends on, as copies."""
        return deepcopy({
            "asked": self._asked(),
            "step": self.step,
            "skipped": self.skipped,
            "weighing": self.weighing.state(),
            "net": dict(self.net.state_dict()),
            "optimizer": self.optimizer.state_dict(),
        })  # fmt: skip

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a state. Raises StepwellError where it is of another recipe, seed or number of kept tokens."""
        asked = self._asked()
        if other := [name for name in asked if state["asked"].get(name) != asked[name]]:
            raise StepwellError(
                f"the state is of another training: {other[0]} was {state['asked'].get(other[0])}, and is "
                f"{asked[other[0]]}",
                "go on with what it was begun with, or begin again: state=None",
            )
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(deepcopy(state["optimizer"]))
        self.step, self.skipped = state["step"], state["skipped"]
        self.weighing.restore(state["weighing"])

    def _asked(self) -> dict[str, Any]:
        return self.recipe.model_dump(mode="json") | {"seed": self.seed, "kept": self.kept}


def _nats(backbone: Backbone, hidden: Tensor, targets: Tensor) -> Tensor:
    """The sum of the nats of N targets from N hidden states; logits exist for some states at a time."""
    total = hidden.new_zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32))
    for states, wanted in zip(hidden.split(STATES), targets.split(STATES), strict=True):
        total = total + checkpoint(_nats_of_block, backbone, states, wanted, use_reentrant=False)
    return total


def _nats_of_block(backbone: Backbone, states: Tensor, wanted: Tensor) -> Tensor:
    return cross_entropy(backbone.logits(states), wanted)[0]


def _check(
    restorer: Restorer,
    backbone: Backbone,
    counts: Tensor,
    recipe: RestoringRecipe,
    prompts: Sequence[Sequence[int]],
    kept: int,
) -> None:
    """Refuse what cannot be trained, before anything is."""
    compressor, tokens = restorer.compressor, int(counts.sum())
    if restorer.net is None:
        raise StepwellError("the adapter `pca` has no weights to train", "choose linear, mlp or residual")
    if compressor.width != backbone.width or counts.shape != (backbone.vocabulary,):
        raise StepwellError(
            f"the restorer is of width {compressor.width} and the counts are of {tuple(counts.shape)} ids; the model "
            f"has {backbone.vocabulary} embeddings of {backbone.width}",
            "fit the compressor on this model's embeddings, and count with its tokenizer",
        )
    if not tokens:
        raise StepwellError("the corpus is empty: no token was counted", "give it some text")
    # A fit on a hundred samples and a training on ten thousand was a fault of the study this comes from.
    if 2 * int(compressor.tokens) < tokens:
        raise StepwellError(
            f"the compressor was fitted on {int(compressor.tokens)} tokens, less than half of the {tokens} to train on",
            "fit it on all of them: counts of token ids cost next to nothing",
        )
    if recipe.objective == "reading":
        _check_prompts(backbone, prompts, kept)


def _check_prompts(backbone: Backbone, prompts: Sequence[Sequence[int]], kept: int) -> None:
    if not prompts:
        raise StepwellError("there are no prompts to read", "give the training set's: prompts=...")
    shortest = min(range(len(prompts)), key=lambda i: len(prompts[i]))
    longest = max(range(len(prompts)), key=lambda i: len(prompts[i]))
    if kept < 0 or len(prompts[shortest]) <= max(kept, 1):
        raise StepwellError(
            f"prompt {shortest} has {len(prompts[shortest])} tokens, of which {kept} are kept: nothing is left to "
            "restore and to predict",
            "leave it out, or keep fewer",
        )
    if backbone.max_positions is not None and len(prompts[longest]) > backbone.max_positions:
        raise StepwellError(
            f"prompt {longest} has {len(prompts[longest])} tokens, and the model knows {backbone.max_positions} "
            "positions",
            "cut the context of the prompt",
        )
    for number, prompt in enumerate(prompts):
        if not 0 <= min(prompt) <= max(prompt) < backbone.vocabulary:
            raise StepwellError(
                f"prompt {number} has an unknown id; the model has {backbone.vocabulary} embeddings",
                "tokenize it with the model's own tokenizer",
            )


def _mixed(seed: int, number: int) -> int:
    """One seed out of two numbers, in the 63 bits that a generator takes."""
    return (seed * 1_000_003 + number * 7_919 + 12_345) % (2**63 - 1)
