"""Devices and how long they take over a piece of work: rates from makers' data sheets, or as measured on this machine.

Time = the larger of FLOP / (attained FLOP/s) and bytes / bandwidth. Attained is the measured matmul rate where
`stepwell calibrate` has measured the device, else the data sheet's peak, times the fraction that training reaches.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from stepwell.errors import StepwellError
from stepwell.models import home

Precision = Literal["fp32", "bf16"]
FRACTION_OF_PEAK = 0.30
"""Of a data sheet's peak, what training of small models reaches on GPUs (nanoGPT's and PaLM's MFU: .2 to .5)."""
FRACTION_OF_MATMUL = 0.50
"""Of a measured matmul rate, what a whole training step reaches: norms, attention and the optimizer take the rest."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What one job holds at its peak, in bytes, as if all rows were as long as they may be.

    Args:
        weights: of models that are not trained.
        training: trained parameters with their gradients and the optimizer's state.
        layers: of `training`, what belongs to the layers of the model itself: several processes can hold it in parts.
        activations: kept for the backward pass, or at work in a forward pass, with its cache.
        logits: with everything of their size that the losses make of them.
        host: kept in the machine's own memory, beside the device's.
    """

    weights: float = 0.0
    training: float = 0.0
    layers: float = 0.0
    activations: float = 0.0
    logits: float = 0.0
    host: float = 0.0

    @property
    def device(self) -> float:
        """All that the device holds; allocator, kernels and fragments come on top of it."""
        return self.weights + self.training + self.activations + self.logits


@dataclass(frozen=True, kw_only=True)
class Steps:
    """How several devices share the work of a training: a step's rows are dealt out, and gradients summed once a step.

    Args:
        n: optimizer steps.
        batches: micro-batches of a step.
        rows: of a micro-batch.
        trained: parameters whose gradients are summed, about.
        repeated: FLOP that each device spends by itself, however many there are: looks at held-out items.
    """

    n: int
    batches: int
    rows: int
    trained: float
    repeated: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Chunks:
    """How several devices share the work on many items: each takes a chunk, then the next one.

    Args:
        items: of the job.
        size: items of a chunk.
    """

    items: int
    size: int


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one job has to do.

    Args:
        flop: floating-point operations (a multiply-add counts 2), forward and backward.
        bytes: traffic between memory and the device's cores.
        tokens: positions processed, padding included.
        precision: of the matmuls.
        seconds: overrides the arithmetic where the time does not depend on the device, or was measured.
        memory: what it holds; None = not known.
        shared: how several devices would share it; None = one device does it all.
    """

    flop: float = 0.0
    bytes: float = 0.0
    tokens: int = 0
    precision: Precision = "fp32"
    seconds: float | None = None
    memory: Memory | None = None
    shared: Steps | Chunks | None = None


@dataclass(frozen=True, kw_only=True)
class Device:
    """A device to compute on.

    Args:
        flop_per_second: dense matmul rate by precision; for a CPU that of one core.
        bytes_per_second: memory bandwidth.
        measured: by `stepwell calibrate` on this machine, rather than taken from the maker's data sheet.
        cores: True where the rates are those of one core, and a job uses several.
        memory_bytes: of the device; None = not known.
    """

    name: str
    flop_per_second: Mapping[str, float]
    bytes_per_second: float
    measured: bool = False
    cores: bool = False
    memory_bytes: float | None = None

    @property
    def fraction(self) -> float:
        """The fraction of the rate that a whole training step is taken to attain."""
        return FRACTION_OF_MATMUL if self.measured else FRACTION_OF_PEAK

    def seconds(self, work: Work, threads: int = 1) -> float:
        """How long this device takes over a piece of work. Bandwidth is shared by the cores."""
        if work.seconds is not None:
            return work.seconds
        rate = self.flop_per_second[work.precision] * (threads if self.cores else 1) * self.fraction
        return max(work.flop / rate, work.bytes / self.bytes_per_second)


def _sheet(
    name: str, fp32: float, bf16: float, bandwidth: float, memory: float | None, *, cores: bool = False
) -> Device:
    rates = {"fp32": fp32, "bf16": bf16}
    return Device(name=name, flop_per_second=rates, bytes_per_second=bandwidth, cores=cores, memory_bytes=memory)


DEVICES: dict[str, Device] = {
    # Makers' data sheets: dense rates without sparsity; fp32 without TF32. HBM or GDDR bandwidth and size.
    "h200": _sheet("h200", 67e12, 989e12, 4.8e12, 141e9),
    "h100": _sheet("h100", 67e12, 989e12, 3.35e12, 80e9),
    "a100": _sheet("a100", 19.5e12, 312e12, 2.04e12, 80e9),
    "l40s": _sheet("l40s", 91.6e12, 362e12, 0.864e12, 48e9),
    "l4": _sheet("l4", 30.3e12, 121e12, 0.30e12, 24e9),
    "rtx4090": _sheet("rtx4090", 82.6e12, 165e12, 1.008e12, 24e9),
    "t4": _sheet("t4", 8.1e12, 8.1e12, 0.32e12, 16e9),
    # One core with AVX2 at 3 GHz: 2 FMA units x 8 lanes x 2. Without matrix units, bf16 is no faster.
    "cpu": _sheet("cpu", 96e9, 96e9, 15e9, None, cores=True),
}


LINKS: dict[str, float] = {
    # Bytes per second from one device to the others of its machine, one way, as makers' data sheets have it: NVLink,
    # else PCIe with 16 lanes.
    "h200": 450e9,
    "h100": 450e9,
    "a100": 300e9,
    "l40s": 32e9,
    "l4": 32e9,
    "rtx4090": 32e9,
    "t4": 16e9,
}
FRACTION_OF_LINK = 0.80
"""Of a link's rate, what a sum over devices reaches: protocol takes the rest (NCCL's authors: github.com/NVIDIA/
nccl-tests/issues/212, 370 of 450 GB/s)."""


def find_device(name: str) -> Device:
    """A device by name: as measured on this machine, else from the table. StepwellError lists those that are known."""
    measured = calibrated()
    if name in measured:
        return measured[name]
    if name not in DEVICES:
        names = sorted({*DEVICES, *measured})
        close = difflib.get_close_matches(name, names, n=1)
        hint = f" (did you mean `{close[0]}`?)" if close else ""
        raise StepwellError(
            f"unknown device `{name}`{hint}; devices: {', '.join(names)}",
            "Name one of them, or run `stepwell calibrate` on the machine itself.",
        )
    return DEVICES[name]


def calibrated() -> dict[str, Device]:
    """The devices measured on this machine. A calibration file that is damaged raises StepwellError."""
    path = home() / "calibration.json"
    if not path.exists():
        return {}
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return {name: Device(**entry) for name, entry in entries.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise StepwellError(
            f"not a calibration: {error}", "Delete the file, and run `stepwell calibrate`.", path=path
        ) from None
