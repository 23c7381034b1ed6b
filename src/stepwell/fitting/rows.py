"""Rows of many problems in few forward passes: how they are packed, and what one pass over them says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stepwell.fitting.objective import AtTargets, at_targets
from stepwell.fitting.recipe import FitRecipe
from stepwell.latents.prompt import Prompt, Target, lay_out
from stepwell.shapes import Backbone, Cache


def pack(lengths: Sequence[int], slots: int, columns: int, contexts: Sequence[int] | None = None) -> list[list[int]]:
    """Rows put together so that few columns are padding, and no more than `columns` stand in one pass.

    Rows of like length share a pass; a pass of its own is worth it where it saves more padded columns than an eighth of
    `columns`, below which a pass does not use the machine well. Exact among the cuts of the rows' order (by context,
    then by target), by dynamic programming. Rows with a context and rows without one never share a pass.

    Args:
        lengths: tokens of each row's target.
        slots: K; a row has context + K + length columns.
        columns: at most; a row that is longer stands alone.
        contexts: tokens of each row's context; None where no row has one.

    Returns:
        Indices of the rows, one list a pass.
    """
    keys = list(zip([0] * len(lengths) if contexts is None else contexts, lengths, strict=True))
    known = sorted(Counter(keys).items())
    best: list[tuple[float, int]] = [(0.0, 0)]
    for end in range(1, len(known) + 1):
        context, rows, longest, choices = known[end - 1][0][0], 0, 0, []
        for begin in range(end - 1, -1, -1):
            (shorter, length), count = known[begin]
            if context and not shorter:
                break
            rows, longest = rows + count, max(longest, length)
            choices.append((best[begin][0] + rows * (context + slots + longest) + columns / 8, begin))
        best.append(min(choices))
    cuts, end = [], len(known)
    while end:
        cuts.append((best[end][1], end))
        end = best[end][1]
    packed = []
    for begin, end in reversed(cuts):
        within = {key for key, _ in known[begin:end]}
        rows_here = [row for row, key in enumerate(keys) if key in within]
        rows_here.sort(key=lambda row: keys[row])
        size = max(1, columns // (slots + known[end - 1][0][0] + max(length for _, length in within)))
        packed += [rows_here[at : at + size] for at in range(0, len(rows_here), size)]
    return packed


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Targets of several cases (a case: one c) that share a pass.

    Attributes:
        prompt: the rows, without their c.
        case: (B,), index of the case whose c a row takes.
        mode: (B,), index of the row's mode.
        own: (B,), whether the target is the first of its mode; those after it are its paraphrases.
        weight: (B,), of the row's mean nats.
    """

    prompt: Prompt
    case: Tensor
    mode: Tensor
    own: Tensor
    weight: Tensor

    def each(self, found: AtTargets) -> tuple[Tensor, Tensor, Tensor]:
        """Of each row (B,): mean nats a token, smallest lead, and tokens before the first that does not lead."""
        prompt = self.prompt
        nats = prompt.by_row(found.nats, 0.0).sum(1) / prompt.counts
        wrong = prompt.by_row(found.lead <= 0, True)
        held = torch.minimum((wrong.int().cumsum(1) == 0).sum(1), prompt.counts)
        return nats, prompt.by_row(found.lead, float("inf")).amin(1), held


def rows_of(
    backbone: Backbone,
    targets: Sequence[Sequence[Target]],
    modes: Mapping[str, Tensor],
    slots: int,
    columns: int,
    contexts: Sequence[Cache | None] = (),
) -> list[Rows]:
    """The rows of several cases, packed.

    Args:
        backbone: embeds the targets.
        targets: those of each case.
        modes: a vector (D,) for each mode.
        slots: K.
        columns: of one pass at most, contexts included.
        contexts: the keys and values of each case's context, None for a case without; none at all where no case has
            one.
    """
    flat = [(case, target) for case, each in enumerate(targets) for target in each]
    first: dict[tuple[int, str], int] = {}
    own = [first.setdefault((case, target.mode), row) == row for row, (case, target) in enumerate(flat)]
    numbers = {name: number for number, name in enumerate(modes)}
    device = next(backbone.parameters()).device
    found = []
    before = [contexts[case] if contexts else None for case, _ in flat]
    lengths = [0 if context is None else context.length for context in before]
    for part in pack([len(target.ids) for _, target in flat], slots, columns, lengths):
        chosen = [flat[i] for i in part]
        shown = [context for i in part if (context := before[i]) is not None]
        found.append(
            Rows(
                prompt=lay_out(backbone, [target for _, target in chosen], modes, slots, shown),
                case=torch.tensor([case for case, _ in chosen], device=device),
                mode=torch.tensor([numbers[target.mode] for _, target in chosen], device=device),
                own=torch.tensor([own[i] for i in part], device=device),
                weight=torch.tensor([target.weight for _, target in chosen], device=device),
            )
        )
    return found


@dataclass(frozen=True, kw_only=True)
class ByMode:
    """What all rows say of R cases in M modes.

    Attributes:
        nats, own, lead, held: (R, M), see `result.Record`; NaN, NaN, -inf and 0 where a case lacks the mode.
        present: (R, M), whether a case has the mode.
        gradients: (R, M, K, P), of the weighted mean nats of the mode's rows; None where not asked for.
    """

    nats: Tensor
    own: Tensor
    lead: Tensor
    held: Tensor
    present: Tensor
    gradients: Tensor | None

    def numbers(self) -> Tensor:
        """(R, 4, M): nats, own, lead and held together, to be read at once."""
        return torch.stack((self.nats, self.own, self.lead, self.held.to(self.nats)), 1)


def one_pass(
    backbone: Backbone, rows: Rows, inner: Tensor, vectors: Callable[[Tensor, Tensor], Tensor], recipe: FitRecipe
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Forward and backward of the rows of one pass.

    Args:
        backbone: frozen, in evaluation mode.
        rows: of the pass.
        inner: (R, K, P), what is fitted, of all cases.
        vectors: what is fitted of some cases (B, K, P), and which cases (B,) -> their c (B, K, D).
        recipe: for the objective.

    Returns:
        Nats, lead, held (B,), and each row's own gradient (B, K, P), of its weighted objective.
    """
    leaf = inner[rows.case].detach().requires_grad_()
    with torch.enable_grad():
        hidden = rows.prompt.hidden(backbone, vectors(leaf, rows.case))
    found = at_targets(
        backbone, hidden, rows.prompt.tokens, temperature=recipe.temperature, margin=recipe.margin,
        margin_weight=recipe.margin_weight,
    )  # fmt: skip
    assert found.slope is not None
    row = rows.prompt.states // rows.prompt.longest
    # In the precision of what is fitted: a third is another number in float32.
    share = (rows.weight.to(inner) / rows.prompt.counts)[row]
    (gradient,) = torch.autograd.grad(hidden, leaf, found.slope * share[:, None].to(found.slope))
    return *rows.each(found), gradient


def by_mode(parts: Sequence[tuple[Tensor, ...]], rows: Sequence[Rows], cases: int, modes: int) -> ByMode:
    """What the passes found, (nats, lead, held[, gradient]) each, brought together by case and mode."""
    index = torch.cat([each.case * modes + each.mode for each in rows])
    nats, lead, held, *rest = (torch.cat(columns) for columns in zip(*parts, strict=True))
    weight = torch.cat([each.weight for each in rows]).to(nats)
    own = torch.where(torch.cat([each.own for each in rows]), nats, 0)
    shape = (cases * modes,)
    total = nats.new_zeros(shape).index_add_(0, index, weight)
    gradients = None
    if rest:
        gradients = rest[0].new_zeros(*shape, *rest[0].shape[1:]).index_add_(0, index, rest[0])
        gradients = gradients.view(cases, modes, *rest[0].shape[1:])
    return ByMode(
        nats=(nats.new_zeros(shape).index_add_(0, index, weight * nats) / total).view(cases, modes),
        own=(nats.new_zeros(shape).index_add_(0, index, own) / (total > 0)).view(cases, modes),
        lead=lead.new_full(shape, float("-inf")).scatter_reduce_(0, index, lead, "amax").view(cases, modes),
        held=held.new_zeros(shape).scatter_reduce_(0, index, held, "amax").view(cases, modes),
        present=(total > 0).view(cases, modes),
        gradients=gradients,
    )
