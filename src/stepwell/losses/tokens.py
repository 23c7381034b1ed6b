"""Losses on tokens: all from what one forward pass says where tokens are predicted, and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from stepwell.errors import StepwellError
from stepwell.losses.summed import Summed, wide
from stepwell.losses.targets import Targets
from stepwell.shapes import Backbone


@dataclass(frozen=True)
class Reading:
    """What a model says at the N states that predict the tokens of `targets`.

    Attributes:
        targets: which states, which tokens.
        hidden: (N, D), after the final norm.
        logits: (N, V).
    """

    targets: Targets
    hidden: Float[Tensor, "N D"]
    logits: Float[Tensor, "N V"]

    @classmethod
    def of(cls, backbone: Backbone, hidden: Float[Tensor, "B T D"], targets: Targets) -> Self:
        """Read one forward pass: the head is applied to the predicting states only.

        Raises:
            StepwellError: hidden states of another shape than the targets were built for.
        """
        states = targets.select(hidden)
        return cls(targets, states, backbone.logits(states))

    @cached_property
    def nats(self) -> Float[Tensor, " N"]:
        """Negative log-probability of each token."""
        return F.cross_entropy(wide(self.logits), self.targets.tokens, reduction="none")

    @property
    def predicted(self) -> Int[Tensor, " N"]:
        """The likeliest token of each state."""
        return self.logits.detach().argmax(-1)


def teacher_forced_ce(reading: Reading) -> Summed:
    """Cross-entropy in nats over all tokens of the answers, the end token among them."""
    return Summed(sum=reading.nats.sum(), count=len(reading.targets))


def k_token_ce(reading: Reading, k: int) -> Summed:
    """Cross-entropy in nats over the first k tokens of each answer, all from the one forward pass.

    Raises:
        StepwellError: k below 1.
    """
    if k < 1:
        raise StepwellError(f"the cross-entropy of the first {k} tokens is asked for", "give k of at least 1")
    # Not a selection by mask, whose size a GPU would have to tell first.
    chosen = torch.where(reading.targets.order < k, reading.nats, 0.0)
    return Summed(sum=chosen.sum(), count=reading.targets.within(k))


def first_token_ce(reading: Reading) -> Summed:
    """Cross-entropy in nats of each answer's first token."""
    return k_token_ce(reading, 1)


def kd(student: Reading, teacher: Reading, *, temperature: float = 2.0) -> Summed:
    """tau^2 KL(teacher || student) in nats a token, both softened by tau (Hinton et al. 2015, arXiv 1503.02531).

    The factor keeps the size of the gradient independent of tau. The teacher gets no gradient.

    Raises:
        StepwellError: they read different answers, or speak different vocabularies.
    """
    _need_same_tokens(student, teacher)
    if student.logits.shape != teacher.logits.shape:
        raise StepwellError(
            f"student and teacher have {student.logits.shape[-1]} and {teacher.logits.shape[-1]} logits",
            "take a teacher of the same vocabulary",
        )
    says = F.log_softmax(wide(student.logits) / temperature, -1)
    knows = F.log_softmax(wide(teacher.logits.detach()) / temperature, -1)
    divergence = F.kl_div(says, knows, reduction="none", log_target=True).sum(-1)
    return Summed(sum=temperature**2 * divergence.sum(), count=len(student.targets))


def hidden_kd(student: Reading, teacher: Reading) -> Summed:
    """Mean square over D between the states that predict the same token of the same answer. No gradient to the teacher.

    Raises:
        StepwellError: they read different answers, or have other widths.
    """
    _need_same_tokens(student, teacher)
    if student.hidden.shape != teacher.hidden.shape:
        raise StepwellError(
            f"student and teacher are {student.hidden.shape[-1]} and {teacher.hidden.shape[-1]} wide",
            "take a teacher of the same width, or leave the hidden-state loss out",
        )
    error = wide(student.hidden) - wide(teacher.hidden.detach())
    return Summed(sum=error.square().mean(-1).sum(), count=len(student.targets))


def _need_same_tokens(student: Reading, teacher: Reading) -> None:
    # The columns may differ, since a prompt is longer than a prefix; the tokens, row by row, may not.
    if student.targets.rows != teacher.targets.rows:
        raise StepwellError(
            "student and teacher do not predict the same tokens",
            "build both targets from the same `Answers`, each after its own columns",
        )
