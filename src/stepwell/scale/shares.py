"""What one job takes on several devices, and what of that is no work: starting, repeated work, messages, waiting."""

from __future__ import annotations

import math
from dataclasses import dataclass

from stepwell.devices import FRACTION_OF_LINK, LINKS, Chunks, Device, Memory, Steps, Work
from stepwell.ranks import Ranks, spans

A_MACHINE = 8
"""Devices of a machine. One training has no more: `torchrun --standalone` begins its processes on one machine."""
START_SECONDS = 3.5
"""From nothing to a process that has torch and transformers: measured on the two CPU cores of docs/results."""
LOAD_BYTES_PER_SECOND = 1e9
"""Weights from a disk to a device: assumed, not measured."""
BYTES_OF_A_GRADIENT = 4
"""Sums over devices are of fp32 (stepwell.ranks)."""


@dataclass(frozen=True, kw_only=True)
class Taken:
    """Seconds of one job on so many devices, one part after the other.

    Args:
        devices: that it holds.
        work: its share, if all devices had the same.
        start: the process and its model; each device has both.
        repeated: what each device does by itself, whatever their number.
        uneven: the device with the largest share goes on for so long.
        messages: sums of gradients over the devices, with nothing computed meanwhile.
    """

    devices: int
    work: float
    start: float
    repeated: float = 0.0
    uneven: float = 0.0
    messages: float = 0.0

    @property
    def seconds(self) -> float:
        """On the wall."""
        return self.work + self.start + self.repeated + self.uneven + self.messages

    @property
    def lost(self) -> dict[str, float]:
        """Device seconds beyond those of the same job on one device, by cause."""
        more = self.devices - 1
        return {
            "starting": more * self.start,
            "repeated work": more * self.repeated,
            "uneven shares": self.devices * self.uneven,
            "messages": self.devices * self.messages,
        }


def can_share(work: Work, device: Device) -> int:
    """The most devices that have something to do in one job."""
    if isinstance(work.shared, Chunks):
        return max(1, math.ceil(work.shared.items / work.shared.size))
    if isinstance(work.shared, Steps) and work.shared.n and device.name in LINKS:
        return min(A_MACHINE, work.shared.batches * work.shared.rows)
    return 1


def taken(work: Work, device: Device, devices: int, threads: int = 1) -> Taken:
    """A job on at most so many devices: fewer where it has no use for them."""
    devices = min(devices, can_share(work, device))
    seconds = device.seconds(work, threads)
    start = START_SECONDS + (work.memory.weights / LOAD_BYTES_PER_SECOND if work.memory is not None else 0.0)
    if devices == 1:
        return Taken(devices=1, work=seconds, start=start)
    if isinstance(work.shared, Chunks):
        items = work.shared.items
        most = evenly(items, work.shared.size, devices)
        return Taken(
            devices=devices, work=seconds / devices, start=start, uneven=seconds * (most / items - 1 / devices)
        )
    assert isinstance(work.shared, Steps)
    return _training(work, work.shared, seconds, start, device, devices)


def _training(work: Work, steps: Steps, seconds: float, start: float, device: Device, devices: int) -> Taken:
    repeated = seconds * steps.repeated / work.flop if work.flop else 0.0
    dealt = seconds - repeated
    most = max(dealt_rows(steps, devices))
    share = most / (steps.batches * steps.rows)
    # A ring sends and takes 2 (N - 1) / N of the message (Patarasuk & Yuan 2009).
    a_message = steps.trained * BYTES_OF_A_GRADIENT * 2 * (devices - 1) / devices
    return Taken(
        devices=devices, work=dealt / devices, start=start, repeated=repeated, uneven=dealt * (share - 1 / devices),
        messages=steps.n * a_message / (LINKS[device.name] * FRACTION_OF_LINK),
    )  # fmt: skip


def dealt_rows(steps: Steps, devices: int) -> list[int]:
    """Rows of a step that each device has, dealt by the code that deals them in a training."""
    batches = [range(steps.rows)] * steps.batches
    return [sum(map(len, Ranks(rank=rank, size=devices).share(batches, _parts))) for rank in range(devices)]


def _parts(rows: range, count: int) -> list[range]:
    return [rows[span] for span in spans(len(rows), count)]


def evenly(items: int, size: int, workers: int) -> int:
    """Items of the worker that has most, where workers take chunks in turn: whole ones, then the rest."""
    whole, rest = divmod(items, size)
    if whole % workers:
        return math.ceil(whole / workers) * size
    return whole // workers * size + rest


def held_by_one(work: Work, devices: int, *, shard: bool) -> float | None:
    """Bytes on each of so many devices; None where the kind does not say. `shard` divides the model's weights.

    Where micro-batches are cut, so are activations and logits.
    """
    memory: Memory | None = work.memory
    if memory is None:
        return None
    cut, held = 1.0, memory.weights + memory.training
    if isinstance(work.shared, Steps) and devices > 1:
        if work.shared.batches % devices:
            cut = math.ceil(work.shared.rows / devices) / work.shared.rows
        held -= (1 - 1 / devices) * (memory.weights + memory.layers) if shard else 0.0
    return held + cut * (memory.activations + memory.logits)
