"""Contexts of a frozen model: their keys and values, computed once each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from stepwell.latents.prompt import Problem
from stepwell.shapes import Cache


class Contexts:
    """The keys and values of contexts while they are in use, one row each, without gradients.

    Args:
        backbone: frozen, in evaluation mode.
    """

    def __init__(self, backbone: Any) -> None:
        self.backbone = backbone
        self.known: dict[tuple[int, ...], Cache] = {}

    def of(self, problems: Iterable[Problem]) -> list[Cache | None]:
        """Those of some problems; None for one without a context. Problems with the same context share them."""
        return [self._of(problem.context) if problem.context else None for problem in problems]

    def keep(self, problems: Iterable[Problem]) -> None:
        """Drop all but those of some problems."""
        wanted = {problem.context for problem in problems}
        self.known = {ids: cache for ids, cache in self.known.items() if ids in wanted}

    @torch.no_grad()
    def _of(self, ids: tuple[int, ...]) -> Cache:
        if ids not in self.known:
            embeds = self.backbone.embed(torch.tensor([ids], device=next(self.backbone.parameters()).device))
            positions = torch.arange(len(ids), device=embeds.device)[None]
            cache = self.backbone.new_cache()
            mask = torch.ones_like(positions, dtype=torch.bool)
            self.backbone(embeds, positions=positions, mask=mask, cache=cache, skip=len(ids))
            self.known[ids] = cache
        return self.known[ids]
