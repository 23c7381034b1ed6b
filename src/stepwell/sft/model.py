"""A backbone with LoRA as the `Model` of `stepwell.train.Training`: loss on answers only, and memory that runs out.

One call of `objective` computes loss and gradient of a micro-batch, in as many pieces as fit into memory, and hands on
a scalar whose backward pass gives that gradient. So the one training loop needs to know nothing of pieces.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from stepwell.adapt.frozen import weights_sha256
from stepwell.adapt.lora import LoRA
from stepwell.errors import StageFailed, StepwellError
from stepwell.memory import is_out_of_memory
from stepwell.merging.base import is_quantised
from stepwell.merging.files import Weights
from stepwell.monitor import Alert
from stepwell.objectives import cross_entropy, supervised
from stepwell.ranks import spans
from stepwell.sft.flags import Flags
from stepwell.sft.packing import Batch, states
from stepwell.sft.stream import mixed
from stepwell.stage import StageContext

__all__ = ["SftModel", "need_full_precision"]

Result = TypeVar("Result")


class _Trained(nn.Module):
    """The adapter, and what a resumed training must find as it was.

    Attributes:
        pieces: of a micro-batch, after memory ran out.
        steps: optimizer steps begun.
        base: sha256 of the frozen weights.
    """

    pieces: Tensor
    steps: Tensor
    base: Tensor

    def __init__(self, lora: LoRA, base: str) -> None:
        super().__init__()
        self.lora = lora
        self.register_buffer("pieces", torch.tensor(1))
        self.register_buffer("steps", torch.tensor(0))
        self.register_buffer("base", torch.tensor(list(bytes.fromhex(base)), dtype=torch.uint8))

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As torch does. Raises StepwellError where the adapter was trained on another base."""
        if (held := state_dict.get("base")) is not None:
            need_base(_hex(self.base), _hex(held))
        return super().load_state_dict(state_dict, strict=strict, assign=assign)


class _Known(torch.autograd.Function):
    """A scalar whose gradient is known already."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: Sequence[Tensor], *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        (scale,) = upstream
        return (None, None, *(scale * gradient for gradient in ctx.gradients))


class SftModel:
    """What the training loop trains and asks.

    Dropout is drawn anew for each micro-batch from its own seed, so it depends neither on what ran before nor on which
    process runs it. Where memory runs out, each micro-batch is computed in twice as many pieces from then on: without
    dropout the same sums, with it the same in distribution.

    Args:
        lora: on the backbone; the base is frozen, and known by its hash.
        ctx: where events go: `oom`, `red-flag`, and now and then `throughput` in real tokens a second.
        held_out: batches for `validate`.
        base: the hash that the base must have; None = any.
        every: steps between two events of throughput.

    Raises:
        StepwellError: the base is not the one asked for.
    """

    def __init__(
        self,
        lora: LoRA,
        *,
        ctx: StageContext,
        held_out: Sequence[Batch] = (),
        base: str | None = None,
        every: int = 10,
    ) -> None:
        self.backbone, self.ctx, self.held_out, self.every = lora.backbone, ctx, held_out, every
        found = weights_sha256(self.backbone)
        if base is not None:
            need_base(found, base)
        self._module = _Trained(lora, found)
        self._parameters = tuple(lora.parameters())
        self._flags, self._meter = Flags(), _Meter()

    alike = True

    @property
    def module(self) -> nn.Module:
        """The adapter alone: all that is trained, and all of the model that is in a checkpoint."""
        return self._module

    @property
    def base_sha256(self) -> str:
        """Of the frozen weights (`adapt.frozen.weights_sha256`), 64 hex digits."""
        return _hex(self._module.base)

    def supervised(self, batch: Batch) -> int:
        """Tokens that are learnt in a micro-batch."""
        return self.learnt(batch).supervised

    def learnt(self, batch: Batch) -> Batch:
        """The rows of a micro-batch that the loss is over: all of them."""
        return batch

    def parts(self, batch: Batch, count: int) -> list[Batch]:
        """A micro-batch in so many parts of its rows at most, each with a dropout of its own."""
        cut = [batch.rows(part) for part in spans(len(batch.ids), count)]
        return [replace(part, seed=mixed(part.seed, number)) if number else part for number, part in enumerate(cut)]

    def objective(self, batch: Batch) -> tuple[Tensor, int]:
        """The sum of nats over the answers' tokens, and their number.

        Raises:
            StageFailed: a single row does not fit into memory.
        """
        began = _mark(self.backbone.device)
        nats, gradients = self.compute(batch)
        count = self.supervised(batch)
        self._meter.add(batch, count, (began, _mark(self.backbone.device)))
        return _Known.apply(nats, gradients, *self._parameters), count  # pyright: ignore[reportReturnType]

    def compute(self, batch: Batch) -> tuple[Tensor, list[Tensor]]:
        """The sum of nats () of a micro-batch in fp32, and its gradient by each of the parameters."""
        return self._in_pieces(batch, lambda pieces: self._gradients(pieces, self._parameters))

    def _in_pieces(self, batch: Batch, work: Callable[[list[Batch]], Result]) -> Result:
        """What `work` makes of a micro-batch, in as many pieces as it takes to fit into memory."""
        while True:
            rows = -(-len(batch.ids) // int(self._module.pieces))
            try:
                return work(batch.parts(rows))
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
            # Only here, where nothing of the pass that failed is held any more, can its memory be given back.
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self._halve(batch, rows)

    def _gradients(self, pieces: Sequence[Batch], by: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        device = self.backbone.device
        nats = torch.zeros((), device=device)
        gradients = [torch.zeros_like(parameter) for parameter in by]
        with self._dropout(pieces[0].seed):
            for piece in pieces:
                value, _ = cross_entropy(*self._read(piece))
                # A backward pass has the precisions of its forward pass already.
                with torch.autocast(device.type, enabled=False):
                    found = torch.autograd.grad(value, by, allow_unused=True)
                nats += value.detach()
                for held, new in zip(gradients, found, strict=True):
                    if new is not None:
                        held += new
        return nats, gradients

    @contextmanager
    def _dropout(self, seed: int) -> Iterator[None]:
        """In the block, dropout is drawn from a seed; the global random state is left alone."""
        device = self.backbone.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            yield

    def _halve(self, batch: Batch, rows: int) -> None:
        if self.ctx.shard:
            raise StageFailed(
                "memory ran out, and processes that hold the model in parts must all compute equally often",
                "lower `batch_size`, raise `accumulation` as much, or take more `devices`", stage=self.ctx.job.id,
            )  # fmt: skip
        if rows == 1:
            raise StageFailed(
                f"memory ran out on a single row of {batch.ids.shape[1]} tokens",
                "lower `max_tokens`, switch gradient checkpointing on, or take a larger device",
                stage=self.ctx.job.id,
            )
        self._module.pieces *= 2
        step, pieces = int(self._module.steps) + 1, int(self._module.pieces)
        self.ctx.event("oom", step=step, rows=-(-len(batch.ids) // pieces), pieces=pieces)

    def _read(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits (N, V) where the N supervised tokens are predicted, and these."""
        device = self.backbone.device
        mask, targets = supervised(batch.labels, 1)
        hidden = states(self.backbone, batch.ids.to(device), batch.positions.to(device))
        chosen = hidden.flatten(0, 1)[mask.flatten().nonzero().flatten().to(device)]
        return self.backbone.logits(chosen), targets.to(device)

    @torch.no_grad()
    def validate(self, stage: int) -> tuple[int, int]:
        """How many tokens of the held-out answers are the likeliest after those before them, and of how many.

        Their mean nats are a record `held-out`.
        """
        measured = [self._in_pieces(batch, self._measured) for batch in self.held_out]
        nats, right, n = (sum(part) for part in zip((0.0, 0, 0), *measured, strict=True))
        if n:
            self.ctx.write("held-out", step=int(self._module.steps), loss=nats / n, tokens=n, right=right)
        self._meter.pause()
        return right, n

    def _measured(self, pieces: Sequence[Batch]) -> tuple[float, int, int]:
        """Nats, tokens that are the likeliest, and tokens."""
        nats, right, n = 0.0, 0, 0
        for piece in pieces:
            logits, targets = self._read(piece)
            value, count = cross_entropy(logits, targets)
            nats, right, n = nats + float(value), right + int((logits.argmax(-1) == targets).sum()), n + count
        return nats, right, n

    def stepped(self, loss: float) -> None:
        """Look for red flags in a step's mean loss and its time, and tell the throughput now and then.

        The loss has been read from the device, so all that the step's micro-batches computed there is done.
        """
        self._module.steps += 1
        step, meter = int(self._module.steps), self._meter
        alerts: list[Alert] = self._flags.loss(step, loss)
        if (whole := meter.whole_seconds()) is not None:
            alerts += self._flags.time(step, meter.busy_seconds(), whole)
            if step % self.every == 0:
                # Each process has about as many.
                tokens = meter.tokens * self.ctx.ranks.size
                self.ctx.event("throughput", step=step, tokens_per_second=round(tokens / whole, 1))
        for alert in alerts:
            self.ctx.event("red-flag", monitor=alert.monitor, step=alert.step, message=alert.message)
        meter.restart()


class _Meter:
    """One step's sums, and the clock between two steps' ends."""

    def __init__(self) -> None:
        self.ended: float | None = None
        self._clear()

    def _clear(self) -> None:
        self.tokens = self.supervised = 0
        self._spans: list[tuple[Any, Any]] = []

    def add(self, batch: Batch, supervised: int, span: tuple[Any, Any]) -> None:
        """A micro-batch, and the marks between which it is computed."""
        self.tokens += batch.real_tokens
        self.supervised += supervised
        self._spans.append(span)

    def busy_seconds(self) -> float:
        """Of the device since the last step ended; it has done all that it was asked for."""
        return sum(_seconds(began, ended) for began, ended in self._spans)

    def whole_seconds(self) -> float | None:
        """Since the last step ended; None for the first, and after a pause."""
        return None if self.ended is None else time.perf_counter() - self.ended

    def pause(self) -> None:
        self.ended = None

    def restart(self) -> None:
        self._clear()
        self.ended = time.perf_counter()


def _mark(device: torch.device) -> Any:
    """Now, by the device's clock: seconds on the CPU, elsewhere an event in its queue.

    An accelerator works through what it was told long after the call has returned. An event is read once the step's
    loss was, so that it waits for nothing. Between two of them a device counts as busy, in gaps between kernels too.
    """
    if device.type == "cpu":
        return time.perf_counter()
    event = getattr(torch, device.type).Event(enable_timing=True)
    event.record()
    return event


def _seconds(began: Any, ended: Any) -> float:
    return ended - began if isinstance(began, float) else began.elapsed_time(ended) / 1000


def need_base(found: str, wanted: str) -> None:
    """Raise StepwellError unless the base has the hash that is wanted."""
    if found != wanted:
        raise StepwellError(
            f"the adapter belongs to the base {wanted[:12]}..., and this one is {found[:12]}...",
            "load the model, revision and precision that it was trained on",
        )


def need_full_precision(folder: Path, *, allowed: bool = False) -> bool:
    """Whether the base in a folder is quantised, which is refused unless allowed: a merge ruins an adapter for it.

    Asked before it is loaded, which takes a package that may not be there.

    Raises:
        StepwellError: it is, and that is not allowed; or as `Weights.of_model`.
    """
    with Weights.of_model(folder) as weights:
        quantised = is_quantised(folder, weights)
    if quantised and not allowed:
        raise StepwellError(
            "the base is quantised: an adapter trained on it fits no other weights, and is ruined by a merge",
            "name a base in bf16 or fp32, or allow it, which the adapter's metadata will say",
            path=folder,
        )
    return quantised


def _hex(digest: Tensor) -> str:
    return bytes(digest.tolist()).hex()
