"""Several processes that train one model together, as `torchrun` starts them: data parallel, one message a step.

Each process has the whole of what is trained. A step's micro-batches are dealt out among them, and what they found is
added up once, after the last one. So a step is the sum that one process would compute, whatever a forward pass looks
like: the K + 1 passes of continuous thoughts too, which wrappers that count backward hooks take for several.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self, TypeVar

from stepwell.errors import StepwellError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["PeerLost", "Ranks", "spans"]

Batch = TypeVar("Batch")
MESSAGE = 1 << 24
"""Numbers in one message at most: 64 MiB in fp32."""


class PeerLost(StepwellError):
    """Another process of the training is gone, so this one cannot go on."""

    def __init__(self, error: Exception) -> None:
        super().__init__(
            f"another process of this training is gone ({type(error).__name__})",
            "Read its log; then run the same command again: it goes on from the last checkpoint.",
        )


def spans(rows: int, count: int) -> list[slice]:
    """So many rows in so many parts, none of them empty, whose lengths differ by one at most."""
    count = min(count, rows)
    return [slice(rows * part // count, rows * (part + 1) // count) for part in range(count)]


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """Which of how many processes this is; one alone by default.

    Every method but `seed` and `share` is a message to all the others, so all must call it, in the same order.

    Attributes:
        rank: from 0; only 0 writes records, checkpoints and artifacts.
        size: processes.

    Raises:
        PeerLost: from each method, when another process is gone.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    @contextmanager
    def joined(cls, device: str = "auto") -> Iterator[Self]:
        """The processes of a run by `torchrun`, connected in the block; one alone where there is no such run.

        Args:
            device: `cpu` connects by gloo, even where there are GPUs; each process has a GPU of its own otherwise.

        Raises:
            StepwellError: they are not as many as were started.
        """
        wanted = int(os.environ.get("WORLD_SIZE", "1"))
        if wanted == 1:
            yield cls()
            return
        import torch
        from accelerate import PartialState

        state = PartialState(cpu=device == "cpu" or not torch.cuda.is_available())
        try:
            # Accelerate takes what it cannot connect for a process alone, and each would do the whole work.
            if state.num_processes != wanted:
                raise StepwellError(
                    f"{wanted} processes were started, and {state.num_processes} are connected",
                    "Look at `device`, and at what `accelerate env` says of this machine.",
                )
            yield cls(rank=state.process_index, size=state.num_processes)
        finally:
            state.destroy_process_group()

    def seed(self, seed: int, step: int) -> None:
        """Draw dropout anew in each step, in each of several processes; one alone goes on with its own state.

        Rows are dealt out: what is dropped must differ between the processes, and must not depend on the past.
        """
        if self.size > 1:
            import torch

            torch.manual_seed(seed * 1_000_003 + step * self.size + self.rank)

    def share(
        self, batches: Sequence[Batch], parts: Callable[[Batch, int], Sequence[Batch]], *,
        equally: bool = False, alike: bool = True,
    ) -> list[Batch]:  # fmt: skip
        """This process's part of a step's micro-batches: whole ones where that is even, else a part of each.

        Args:
            batches: of the whole step, the same in every process.
            parts: a micro-batch in so many parts, or fewer where it has not so many rows.
            equally: every process has to run the model's layers equally often.
            alike: each micro-batch runs them equally often. Else the parts of each do, and it must be cut.

        Raises:
            StepwellError: a micro-batch has too few rows for all processes to compute equally often.
        """
        if self.size == 1:
            return list(batches)
        if len(batches) % self.size == 0 and (alike or not equally):
            return list(batches[self.rank :: self.size])
        cut = [parts(batch, self.size) for batch in batches]
        if equally and (few := [len(own) for own in cut if len(own) < self.size]):
            raise StepwellError(
                f"a micro-batch of {few[0]} rows is too small for {self.size} processes, which hold the model in parts "
                "and must compute equally often",
                "raise `batch_size`" + (", or make `accumulation` a multiple of `devices`" if alike else ""),
            )
        # A batch with too few rows must not always leave the same process idle.
        return [own[place] for n, own in enumerate(cut) if (place := (self.rank + n) % self.size) < len(own)]

    def add_up(self, parameters: Iterable[Tensor], numbers: Sequence[float] = ()) -> list[float]:
        """Replace each gradient by its sum over the processes, and give the sums of some numbers.

        A parameter without a gradient in any process keeps none: an optimizer passes over it, as it would alone.
        """
        if self.size == 1:
            return list(numbers)
        import torch

        held = list(parameters)
        device = held[0].device if held else torch.device("cpu")
        has = [float(parameter.grad is not None) for parameter in held]
        told = torch.tensor([*has, *numbers], dtype=torch.float64, device=device)
        self._sum(told)
        found = told.tolist()
        wanted = [parameter for parameter, n in zip(held, found, strict=False) if n]
        for some in _messages(wanted):
            self._add_up(some)
        return found[len(held) :]

    def _add_up(self, parameters: Sequence[Tensor]) -> None:
        import torch

        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        # One message for many: an adapter has hundreds of small matrices. In fp32, whatever the gradients are in.
        flat = torch.cat([gradient.detach().flatten().float() for gradient in gradients])
        self._sum(flat)
        for gradient, summed in zip(gradients, flat.split([each.numel() for each in gradients]), strict=True):
            gradient.copy_(summed.view_as(gradient))

    def any(self, flag: bool) -> bool:
        """Whether it is so in any process."""
        return bool(self.add_up((), [float(flag)])[0]) if self.size > 1 else flag

    def meet(self) -> None:
        """Wait until all processes are here."""
        self.any(False)

    def _sum(self, numbers: torch.Tensor) -> None:
        import torch.distributed as distributed

        # NCCL adds up what lies on a GPU only.
        moved = numbers.cuda() if distributed.get_backend() == "nccl" else numbers
        try:
            distributed.all_reduce(moved)
        except RuntimeError as error:  # what gloo and NCCL raise is one of its subclasses, or itself
            raise PeerLost(error) from error
        if moved is not numbers:
            numbers.copy_(moved)


def _messages(parameters: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Groups of parameters that make a message each."""
    group: list[Tensor] = []
    held = 0
    for parameter in parameters:
        if group and held + parameter.numel() > MESSAGE:
            yield group
            group, held = [], 0
        group.append(parameter)
        held += parameter.numel()
    if group:
        yield group
