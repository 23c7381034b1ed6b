"""What is asked at the target positions, and its gradient by hand: logits there and nowhere else, a chunk at a time.

The head is frozen, so the gradient of a chunk needs nothing but its own logits. Each chunk's logits (n, V) give losses,
leads and the gradient to the hidden states, and are dropped: memory does not grow with the number of positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stepwell.fitting.recipe import CHUNK_LOGITS
from stepwell.shapes import Backbone


@dataclass(frozen=True, kw_only=True)
class AtTargets:
    """What N states say of the tokens they predict.

    Attributes:
        nats: (N,), -log p(token) at temperature 1.
        lead: (N,), the token's logit less the largest of the others; above 0, greedy decoding takes the token.
        slope: (N, D), gradient of each position's objective with respect to its own state; None where not asked for.
    """

    nats: Tensor
    lead: Tensor
    slope: Tensor | None


def at_targets(
    backbone: Backbone,
    hidden: Tensor,
    tokens: Tensor,
    *,
    temperature: float = 1.0,
    margin: float = 0.0,
    margin_weight: float = 0.0,
    slopes: bool = True,
    chunk: int | None = None,
) -> AtTargets:
    """Losses of N states, and the slopes of -log softmax(z / temperature)[token] + margin_weight max(0, margin - lead).

    Args:
        backbone: gives the logits.
        hidden: (N, D); no gradient flows back through this function.
        tokens: (N,), what each state is to predict.
        temperature, margin, margin_weight: of the objective above.
        slopes: whether they are wanted.
        chunk: positions at a time; None = `CHUNK_LOGITS` over the vocabulary.
    """
    size = chunk or max(1, CHUNK_LOGITS // backbone.vocabulary)
    nats_parts, lead_parts, slope_parts = [], [], []
    for states, wanted in zip(hidden.detach().split(size), tokens.split(size), strict=True):
        with torch.set_grad_enabled(slopes):
            states = states.requires_grad_(slopes)
            raw = backbone.logits(states)
        # Half precision would round the leads; float64 stays what it is.
        logits = raw.detach().to(torch.promote_types(raw.dtype, torch.float32))
        own = logits.gather(1, wanted[:, None])
        rival, which = logits.scatter(1, wanted[:, None], float("-inf")).max(1, keepdim=True)
        nats_parts.append(logits.logsumexp(1) - own[:, 0])
        lead_parts.append(lead := (own - rival)[:, 0])
        if slopes:
            down = (logits / temperature).softmax(1)
            down.scatter_add_(1, wanted[:, None], -torch.ones_like(own)).div_(temperature)
            if margin_weight:
                short = (lead < margin)[:, None].to(logits) * margin_weight
                down.scatter_add_(1, wanted[:, None], -short).scatter_add_(1, which, short)
            slope_parts += torch.autograd.grad(raw, states, down.to(raw.dtype))
    slope = torch.cat(slope_parts) if slopes else None
    return AtTargets(nats=torch.cat(nats_parts), lead=torch.cat(lead_parts), slope=slope)
