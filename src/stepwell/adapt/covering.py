"""Every trained parameter is in the optimizer once, and under the clip."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stepwell.errors import StepwellError


def assert_covered(
    optimizers: Sequence[torch.optim.Optimizer], parts: Mapping[str, nn.Module], *, others: Iterable[nn.Module] = ()
) -> None:
    """Prove that the optimizers train the trainable parameters of the parts, each exactly once, and nothing else.

    Args:
        optimizers: all of the training.
        parts: name -> what is trained (and saved).
        others: modules that take part and are not trained, such as the language model.

    Raises:
        StepwellError: a trainable parameter in no group, in two, or in two parts; one of the groups that belongs to no
            part, or is frozen; a part without anything to train; a trainable parameter of `others` that is in no part.
    """
    owners: dict[int, str] = {}
    for name, part in parts.items():
        trained = [(key, p) for key, p in part.named_parameters() if p.requires_grad]
        if not trained:
            raise StepwellError(f"part {name} has nothing to train", "leave it out, or let it take gradients")
        for key, parameter in trained:
            if id(parameter) in owners:
                raise StepwellError(f"{name}.{key} is also {owners[id(parameter)]}", "give it to one part")
            owners[id(parameter)] = f"{name}.{key}"
    for module in others:
        for key, parameter in module.named_parameters():
            if parameter.requires_grad and id(parameter) not in owners:
                raise StepwellError(f"{key} takes gradients and is in no part", "freeze it, or name its part")
    held = [parameter for optimizer in optimizers for group in optimizer.param_groups for parameter in group["params"]]
    times = Counter(map(id, held))
    if absent := [place for key, place in owners.items() if not times[key]]:
        raise StepwellError(
            f"{len(absent)} of {len(owners)} trained parameters are in no optimizer, first {absent[0]}",
            "build the optimizer from all parts, after the last of them",
        )
    if twice := [(place, times[key]) for key, place in owners.items() if times[key] > 1]:
        raise StepwellError(f"{twice[0][0]} is in the optimizers {twice[0][1]} times", "name it in one group")
    if spare := [parameter for parameter in held if id(parameter) not in owners]:
        raise StepwellError(
            f"the optimizers hold {len(spare)} parameters of no part, or frozen ones, first {tuple(spare[0].shape)}",
            "build the optimizer from the trainable parameters of the parts",
        )


@dataclass(frozen=True, kw_only=True)
class GradientNorms:
    """Euclidean norms of the gradients before clipping.

    Attributes:
        total: over all parts together; what is clipped.
        parts: name -> over its own.
    """

    total: float
    parts: Mapping[str, float]

    @property
    def finite(self) -> bool:
        """Whether a step may be made."""
        return math.isfinite(self.total)


def clip_gradients(parts: Mapping[str, nn.Module], limit: float | None) -> GradientNorms:
    """Scale the gradients of all parts by one factor, so that their norm together is at most `limit`.

    Args:
        parts: name -> module.
        limit: None = measured only. Gradients that are not finite are left as they are.
    """
    gradients = {name: [p.grad for p in part.parameters() if p.grad is not None] for name, part in parts.items()}
    norms = [_norm(tensors) for tensors in gradients.values()]
    # One copy from the device for all of them.
    found = torch.stack([norm.to(norms[0].device) for norm in norms]).tolist() if norms else []
    total = math.hypot(*found)
    if limit is not None and math.isfinite(total) and total > limit:
        parameters = [parameter for part in parts.values() for parameter in part.parameters()]
        nn.utils.clip_grads_with_norm_(parameters, limit, torch.tensor(total))
    return GradientNorms(total=total, parts=dict(zip(parts, found, strict=True)))


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    return nn.utils.get_total_norm(tensors).float() if tensors else torch.zeros(())
