"""What every benchmark shares: interleaved pairs, ratios of medians with their spread, aims, and the machine's line."""

from __future__ import annotations

import argparse
import io
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

HERE = Path(__file__).resolve().parent
SOURCE = HERE.parent / "src"
if str(SOURCE) not in sys.path:
    sys.path.insert(0, str(SOURCE))


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Seconds of two pieces of work that were run in turn, A B A B, so that a slow minute slows both."""

    a: tuple[float, ...]
    b: tuple[float, ...]

    @property
    def ratios(self) -> tuple[float, ...]:
        """A over B, pair by pair, in ascending order."""
        return tuple(sorted(x / y for x, y in zip(self.a, self.b, strict=True)))

    @property
    def ratio(self) -> float:
        """The median of A over the median of B."""
        return statistics.median(self.a) / statistics.median(self.b)


def clock(kind: str) -> float:
    """Seconds so far: of `wall`, or of `cpu`, the processor time of this process and of the children it waited for."""
    if kind == "wall":
        return time.perf_counter()
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def timed(work: Callable[[], Any], kind: str = "wall") -> float:
    """Seconds of one call."""
    began = clock(kind)
    work()
    return clock(kind) - began


def matmul_peak(threads: int) -> float:
    """Matrix-product FLOP/s of this machine with so many threads, measured now."""
    import torch

    left, right = torch.randn(1024, 1024), torch.randn(1024, 1024)
    left @ right
    seconds = min(timed(lambda: left @ right) for _ in range(10))
    return 2 * 1024**3 / seconds


def in_pairs(a: Callable[[], Any], b: Callable[[], Any], *, pairs: int, kind: str) -> Pairs:
    """Time A and B in turn; warm both up before, where that is wanted."""
    seconds = [(timed(a, kind), timed(b, kind)) for _ in range(pairs)]
    return Pairs(a=tuple(x for x, _ in seconds), b=tuple(y for _, y in seconds))


def show_pairs(what: str, names: tuple[str, str], found: Pairs) -> None:
    """Print both medians and the ratio A / B with the smallest and the largest of the pairs."""
    low, high = found.ratios[0], found.ratios[-1]
    for name, seconds in zip(names, (found.a, found.b), strict=True):
        print(f"  {name}: median {statistics.median(seconds):.4g} s, {min(seconds):.4g} to {max(seconds):.4g}")
    print(f"  {what}: {found.ratio:.3g} (ratio of medians; single pairs {low:.3g} to {high:.3g}, {len(found.a)} pairs)")


def aim(what: str, value: float, comparison: Literal["<=", ">="], bound: float, *, meant: bool = True) -> bool:
    """Print whether an aim is met. `meant` is False for a shape that the aim is not about (--quick)."""
    met = value <= bound if comparison == "<=" else value >= bound
    verdict = ("met" if met else "MISSED") if meant else "not judged at this size"
    print(f"  aim: {what} {comparison} {bound:g}: {verdict} ({value:.3g})")
    return met


def same(what: str, ok: bool, detail: str) -> None:
    """Print that two results are the same; leave with exit code 1 where they are not: the times would mean nothing."""
    print(f"  compared: {what}: {'the same' if ok else 'DIFFERENT'} ({detail})")
    if not ok:
        sys.exit(1)


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--quick", action="store_true", help="a small shape, seconds: shows that it works, not how fast")
    made.add_argument("--pairs", type=int, help="interleaved pairs")
    made.add_argument("--threads", type=int, default=2, help="threads of torch (2)")
    made.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall",
        help="cpu: processor time, for a machine that others use too; give it one thread, for waiting threads spin",
    )  # fmt: skip
    return made


def header(name: str, given: argparse.Namespace, arguments: Sequence[str] | None) -> None:
    """Print what was run, where and at which commit."""
    words = sys.argv[1:] if arguments is None else arguments
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # a part that takes minutes is seen when it is done
    print(f"benchmarks/{name}.py {' '.join(words)}".rstrip())
    print(f"  machine: {machine(given.threads)}; clock: {given.clock}")
    print(f"  commit: {commit()}")


def machine(threads: int) -> str:
    """Processor, cores, threads, versions, and how busy the machine was."""
    load = os.getloadavg()[0]
    torch = sys.modules.get("torch")
    versions = f"Python {platform.python_version()}" + (f", torch {torch.__version__}" if torch else "")
    return f"{_processor()}, {os.cpu_count()} cores, {threads} threads, {versions}, load {load:.1f} before the start"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def commit() -> str:
    """The commit of this checkout, and whether it was changed since."""
    git = ["git", "-C", str(HERE), "describe", "--always", "--dirty", "--abbrev=10"]
    found = subprocess.run(git, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "no git checkout"


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Torch with so many threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
