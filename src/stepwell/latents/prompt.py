"""A fitted prompt in place of a text: the sequence [mode vector, c, target embeddings], and what predicts what in it.

c is a set of K vectors that stands for one example; the mode vector before it says which of the example's targets the
model is to write. Every target ends with its EOS. A row's columns are

    0        mode vector
    1 ... K  c
    K+1 ...  the target's tokens but the last, which has nothing left to predict

so the L states of the columns K ... K + L - 1 predict the L tokens of the target. The shift is `objectives.supervised`,
and there is no other. Rows are padded on the right: under causal attention no real column sees a padded one, so the
mask is all true, and attention takes its fast causal path.

A problem may have a context: tokens that stand before the mode vector in all its rows, and that nothing is asked of.
The model is frozen, so the keys and values of a context never change: rows take them from a cache, left-padded where
contexts of different lengths share a pass, and only the columns above are run. A pass has contexts in all its rows or
in none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stepwell.errors import StepwellError
from stepwell.objectives import IGNORE, supervised
from stepwell.shapes import Backbone, Cache


@dataclass(frozen=True, kw_only=True)
class Target:
    """What the model is to write in one mode.

    Attributes:
        ids: the tokens, with the EOS at their end.
        mode: name of the mode.
        weight: of its loss (mean nats a token) in the problem's loss. Several targets of one mode are paraphrases.
    """

    ids: tuple[int, ...]
    mode: str
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One example: all its targets share one c.

    Attributes:
        id: unique in a fit.
        targets: what is to be written, in one mode each.
        context: tokens before the mode vector, the same for all targets; never written, never in a loss.
    """

    id: str
    targets: tuple[Target, ...]
    context: tuple[int, ...] = ()

    @property
    def longest(self) -> int:
        """Tokens of the longest target."""
        return max((len(target.ids) for target in self.targets), default=0)

    def widths(self, slots: int) -> list[int]:
        """Columns of each target's row: context, mode vector, K slots, and the target but its last token."""
        return [len(self.context) + slots + len(target.ids) for target in self.targets]


@dataclass(frozen=True, kw_only=True)
class Before:
    """The contexts of B rows, as keys and values of the U different ones among them.

    Attributes:
        cache: of U rows and S columns, left-padded to the longest; nothing in it has a gradient.
        rows: (B,), which of the U a row has.
        positions: (B, T), of the columns after the context.
        mask: (B, S + T), False where a context is padded.
    """

    cache: Cache
    rows: Tensor
    positions: Tensor
    mask: Tensor


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """B rows without their c, laid out once for many forward passes.

    Attributes:
        heads: (B, 1, D), the mode vectors.
        tails: (B, L - 1, D), the target embeddings but the last; L of the longest row.
        states: (N,), which of the B x L states after the mode vector and c (flattened) predict a token.
        tokens: (N,), which token each of them predicts.
        counts: (B,), tokens of each row.
        longest: L.
        before: the rows' contexts; None where they have none.
    """

    heads: Tensor
    tails: Tensor
    states: Tensor
    tokens: Tensor
    counts: Tensor
    longest: int
    before: Before | None

    def hidden(self, backbone: Backbone, vectors: Tensor) -> Tensor:
        """The states (N, D) that predict, in the order of `tokens`, with `vectors` (B, K, D) as c."""
        slots = vectors.shape[1]
        embeds = torch.cat((self.heads, vectors.to(self.heads.dtype), self.tails), 1)
        if self.before is None:
            rows, columns = embeds.shape[:2]
            positions = torch.arange(columns, device=embeds.device).expand(rows, columns)
            mask = torch.ones(rows, columns, dtype=torch.bool, device=embeds.device)
            states = backbone(embeds, positions=positions, mask=mask, skip=slots)
        else:
            before = self.before
            # A copy for each row, which lives as long as this pass: between passes there is one of each context.
            cache = before.cache.select(before.rows)
            states = backbone(embeds, positions=before.positions, mask=before.mask, cache=cache, skip=slots)
        return states.flatten(0, 1)[self.states]

    def by_row(self, values: Tensor, fill: float | bool) -> Tensor:
        """Values (N,) as (B, L), `fill` where a row has no token."""
        padded = values.new_full((len(self.counts) * self.longest,), fill)
        padded[self.states] = values
        return padded.view(len(self.counts), self.longest)


@torch.no_grad()
def lay_out(
    backbone: Backbone,
    targets: Sequence[Target],
    modes: Mapping[str, Tensor],
    slots: int,
    contexts: Sequence[Cache] = (),
) -> Prompt:
    """The rows of some targets on the backbone's device.

    Args:
        backbone: embeds the targets.
        targets: one a row, each of one token at least.
        modes: a vector (D,) for each mode.
        slots: K.
        contexts: the keys and values of each row's context, of one row each; none at all where no row has one.
    """
    parameter = next(backbone.parameters())
    longest, first = max(len(target.ids) for target in targets), slots + 1
    labels = torch.tensor(
        [[IGNORE] * first + [*target.ids] + [IGNORE] * (longest - len(target.ids)) for target in targets]
    )
    predicts, tokens = supervised(labels, first)
    inputs = labels[:, first:-1].clamp(min=0).to(parameter.device)
    heads = torch.stack([modes[target.mode] for target in targets])[:, None]
    counts = torch.tensor([len(target.ids) for target in targets], device=parameter.device)
    return Prompt(
        heads=heads.to(device=parameter.device, dtype=parameter.dtype),
        tails=backbone.embed(inputs).detach(),
        # The state of the last target column would predict what comes after EOS: it is not computed.
        states=predicts[:, :longest].flatten().nonzero()[:, 0].to(parameter.device),
        tokens=tokens.to(parameter.device),
        counts=counts,
        longest=longest,
        before=_before(contexts, first + counts - 1, first + longest - 1) if contexts else None,
    )


def _before(contexts: Sequence[Cache], own: Tensor, columns: int) -> Before:
    """The contexts of rows with so many `own` columns (B,), padded to `columns`."""
    different = list({id(context): context for context in contexts}.values())
    at = {id(context): row for row, context in enumerate(different)}
    longest, device = max(context.length for context in different), own.device
    lengths = torch.tensor([context.length for context in contexts], device=device)
    real = torch.arange(longest + columns, device=device) >= (longest - lengths)[:, None]
    # At padding on the right the last position is repeated: counted on, it could be one that the model does not know.
    positions = torch.minimum(torch.arange(columns, device=device), own[:, None] - 1) + lengths[:, None]
    return Before(
        cache=different[0].join(different[1:]),
        rows=torch.tensor([at[id(context)] for context in contexts], device=device),
        positions=positions,
        mask=real,
    )


def mode_vectors(backbone: Any, modes: Mapping[str, int | str | Tensor] | Sequence[str]) -> dict[str, Tensor]:
    """The vector (D,) of each mode, detached.

    Args:
        backbone: with a tokenizer where a mode is given by text.
        modes: name -> token id, text of ONE token, or a vector (D,). A sequence of names takes the first token of each
            name.

    Raises:
        StepwellError: a token that is none, a vector of another width or not finite, two modes that are the same.
    """
    found: dict[str, Tensor] = {}
    for name in modes:
        given = modes[name] if isinstance(modes, Mapping) else _ids(backbone, name)[0]
        if isinstance(given, Tensor):
            vector = given.detach().flatten()
        else:
            vector = _embedding(backbone, _token(backbone, name, given))
        if len(vector) != backbone.width or not bool(vector.isfinite().all()):
            raise StepwellError(
                f"mode `{name}` has a vector of {len(vector)} numbers, or one that is not finite",
                f"give a token, or a finite vector of the model's width, {backbone.width}",
            )
        twin = next((other for other, known in found.items() if bool((known == vector.to(known)).all())), None)
        if twin is not None:
            raise StepwellError(
                f"the modes `{twin}` and `{name}` have the same vector, so the model cannot tell them apart",
                "give each mode its own token or vector: modes={...}",
            )
        found[name] = vector.to(next(backbone.parameters()).device)
    return found


@torch.no_grad()
def _embedding(backbone: Any, token: int) -> Tensor:
    return backbone.embed(torch.tensor([[token]], device=next(backbone.parameters()).device))[0, 0].detach()


def _token(backbone: Any, mode: str, given: int | str) -> int:
    ids = _ids(backbone, given) if isinstance(given, str) else (given,)
    if len(ids) != 1 or not 0 <= ids[0] < backbone.vocabulary:
        raise StepwellError(
            f"mode `{mode}`: {given!r} is not one token of the model's {backbone.vocabulary}",
            "give the id or the text of a single token, or a vector",
        )
    return ids[0]


def _ids(backbone: Any, text: str) -> tuple[int, ...]:
    tokenizer = getattr(backbone, "tokenizer", None)
    if tokenizer is None:
        raise StepwellError(
            f"the model has no tokenizer, so the text {text[:40]!r} has no tokens",
            "give token ids: Problem(id=..., targets=(Target(ids=..., mode=...),)), and modes by id or vector",
        )
    ids = tuple(tokenizer.encode(text, add_special_tokens=False))
    if not ids:
        raise StepwellError("an empty text has no tokens", "give some text")
    if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids:
        raise StepwellError(
            f"the text {text[:40]!r} has a character that the tokenizer does not know",
            "leave it out, or choose a model whose tokenizer knows it: the text could not be read or written back",
        )
    return ids


def problem_of(backbone: Any, id: str, given: str | Mapping[str, str | Sequence[str]], *, context: str = "") -> Problem:
    """A problem from text.

    Args:
        backbone: with a tokenizer that has an EOS token.
        id: of the problem.
        given: a text (one mode, `text`), or mode -> text, or mode -> paraphrases.
        context: what stands before the mode vector; "" = nothing.

    Raises:
        StepwellError: no tokenizer, no EOS, an empty text, a token that is unknown.
    """
    texts = {"text": given} if isinstance(given, str) else given
    targets = []
    for mode, said in texts.items():
        for text in [said] if isinstance(said, str) else said:
            ids = _ids(backbone, text)
            if (eos := backbone.tokenizer.eos_token_id) is None:
                raise StepwellError("the tokenizer has no end token", "give token ids that end with one of your choice")
            targets.append(Target(ids=(*ids, eos), mode=mode))
    return Problem(id=id, targets=tuple(targets), context=_ids(backbone, context) if context else ())


def fault_of(backbone: Backbone, problem: Problem, modes: Mapping[str, Tensor], slots: int) -> str | None:
    """What makes a problem impossible, in one sentence; None where nothing does."""
    if not problem.targets:
        return "it has no targets"
    if (bad := next((i for i in problem.context if not 0 <= i < backbone.vocabulary), None)) is not None:
        return f"its context has the unknown token {bad}; the model knows {backbone.vocabulary}"
    for target, width in zip(problem.targets, problem.widths(slots), strict=True):
        what = f"its target in mode `{target.mode}`"
        if target.mode not in modes:
            return f"{what} has no mode vector; modes: {', '.join(sorted(modes))}"
        if len(target.ids) < 2:
            return f"{what} is empty: it needs one token and the end token at least"
        if (bad := next((i for i in target.ids if not 0 <= i < backbone.vocabulary), None)) is not None:
            return f"{what} has the unknown token {bad}; the model knows {backbone.vocabulary}"
        if target.ids[-1] in target.ids[:-1]:
            return f"{what} has its end token {target.ids[-1]} before its end, where decoding would stop"
        if not (math.isfinite(target.weight) and target.weight > 0):
            return f"{what} has the weight {target.weight}, which is not a positive number"
        if backbone.max_positions is not None and width > backbone.max_positions:
            context = f" and its context of {len(problem.context)} tokens" if problem.context else ""
            return (
                f"{what} needs {width} positions with its {slots} slots{context}, "
                f"and the model knows {backbone.max_positions}"
            )
    return None


def begins(mode: Tensor, vectors: Tensor) -> Tensor:
    """[mode, c] of R rows, (R, 1 + K, D): what `generate(inputs_embeds=...)` or a decoder starts from."""
    return torch.cat((mode.to(vectors).expand(len(vectors), 1, -1), vectors), 1)
