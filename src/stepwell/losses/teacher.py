"""A fixed teacher asked once an item: its states where answers are predicted, kept from epoch to epoch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from stepwell.errors import StepwellError
from stepwell.losses.targets import Targets
from stepwell.losses.tokens import Reading
from stepwell.shapes import Backbone


class TeacherStates:
    """Remembers (n, D) states of each item, n the tokens of its answer; the logits follow from them through the head.

    States and not logits: they are V / D times smaller, and nothing is lost. Right only while the teacher's weights
    stay as they are: the model without its adapter, never the one in training.

    Args:
        backbone: whose head is applied.
        device: where the states are kept.
    """

    def __init__(self, backbone: Backbone, *, device: str = "cpu") -> None:
        self.backbone, self.device = backbone, device
        self._known: dict[str, tuple[tuple[int, ...], Tensor]] = {}

    @torch.no_grad()
    def read(self, ids: Sequence[str], targets: Targets, forward: Callable[[], Tensor]) -> Reading:
        """What the teacher says of these items.

        Args:
            ids: of the items, row by row.
            targets: where the teacher predicts their answers.
            forward: gives its hidden states (B, T, D); called only where an item, or its answer, is new.

        Raises:
            StepwellError: ids that are not one a row, or not one an item.
        """
        if len(set(ids)) != len(targets.rows) or len(ids) != len(targets.rows):
            raise StepwellError(
                f"{len(ids)} ids ({len(set(ids))} of them differ) are given for {len(targets.rows)} rows",
                "give every item an id of its own",
            )
        for name, row in zip(ids, targets.rows, strict=True):
            if name not in self._known or self._known[name][0] != row:
                return self._learned(ids, targets, forward())
        states = torch.cat([self._known[name][1] for name in ids]).to(targets.index.device)
        return Reading(targets, states, self.backbone.logits(states))

    def _learned(self, ids: Sequence[str], targets: Targets, hidden: Tensor) -> Reading:
        reading = Reading.of(self.backbone, hidden, targets)
        parts = reading.hidden.split([len(row) for row in targets.rows])
        for name, row, states in zip(ids, targets.rows, parts, strict=True):
            # A copy: a view would keep the whole batch alive.
            self._known[name] = (row, states.to(self.device, copy=True))
        return reading
