"""Measuring this machine: matmul rates and memory bandwidth, kept in the user's cache folder for estimates."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import Any

from stepwell.devices import DEVICES, Device, calibrated
from stepwell.errors import StepwellError
from stepwell.models import home


def calibrate(device: str = "auto") -> Device:
    """Measure matmul rates (fp32, bf16) and memory bandwidth of a device, keep them for estimates, and return them.

    On a CPU one core is measured. Medians of several runs of about a tenth of a second. Raises StepwellError when there
    is no such device or the result cannot be stored.
    """
    import torch

    kind = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    if kind not in ("cpu", "cuda") or (kind == "cuda" and not torch.cuda.is_available()):
        raise StepwellError(
            f"device `{device}` cannot be measured here", "Measure `cpu`, or `cuda` where there is one."
        )
    name = _table_name(torch.cuda.get_device_name()) if kind == "cuda" else "cpu"
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        rates = {"fp32": _matmul_rate(kind, torch.float32), "bf16": _matmul_rate(kind, torch.bfloat16)}
        bandwidth = _bandwidth(kind)
    finally:
        torch.set_num_threads(threads)
    measured = Device(name=name, flop_per_second=rates, bytes_per_second=bandwidth, measured=True, cores=kind == "cpu")
    path = home() / "calibration.json"
    entries = {each: asdict(found) for each, found in (calibrated() | {name: measured}).items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise StepwellError(
            f"the calibration cannot be stored: {error.strerror}", "Set STEPWELL_HOME to a folder of yours.", path=path
        ) from None
    return measured


def _table_name(model: str) -> str:
    """`NVIDIA H100 80GB HBM3` -> h100, so that a measured device takes the place of the one in the table."""
    plain = model.lower().replace(" ", "")
    found = next((name for name in DEVICES if name in plain), None)
    return found or "-".join(model.lower().split())


def _matmul_rate(device: str, dtype: Any) -> float:
    import torch

    side = 8192 if device == "cuda" else 1024
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / _median_seconds(device, lambda: left @ right)


def _bandwidth(device: str) -> float:
    import torch

    source = torch.zeros((1 << 30) // 4 if device == "cuda" else (1 << 26) // 4, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / _median_seconds(device, lambda: target.copy_(source))


def _median_seconds(device: str, work: Any, repeats: int = 7) -> float:
    import torch

    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return sorted(times[1:])[repeats // 2]  # the first call loads the kernels
