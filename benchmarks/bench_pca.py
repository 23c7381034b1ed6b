"""The PCA of a corpus's token embeddings from token counts, against scikit-learn's IncrementalPCA over its vectors.

2 million tokens with Zipf-distributed ids, 49,152 embeddings of 576 numbers in fp32, 144 directions. IncrementalPCA
gets the vectors batch by batch, in its default batch size, and keeps all 576 components: with 144 it forgets in every
batch, and ends elsewhere. Compared: the subspaces, by their largest principal angle. Aim: at least 50 times as fast.
Also printed: how much memory ours takes for a quarter of the corpus and for all of it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.linalg import subspace_angles
from sklearn.decomposition import IncrementalPCA
from sklearn.utils import gen_batches
from threadpoolctl import threadpool_limits
from torch import Tensor

import common
from stepwell.latents.compressor import Compressor, token_counts

PIECE = 4096
"""Ids that are counted at a time: as if they came as documents."""


@dataclass(frozen=True, kw_only=True)
class Size:
    tokens: int
    vocabulary: int
    width: int
    dims: int


FULL = Size(tokens=2_000_000, vocabulary=49_152, width=576, dims=144)
QUICK = Size(tokens=40_000, vocabulary=2000, width=48, dims=12)


class Work:
    """A corpus, and both ways to its principal directions."""

    def __init__(self, size: Size) -> None:
        self.size = size
        generator = torch.Generator().manual_seed(0)
        # Real tables have a spectrum that falls, axes of no special direction, and a mean.
        deviations = 0.1 * torch.arange(1.0, size.width + 1) ** -0.5
        turned = torch.linalg.qr(torch.randn(size.width, size.width, generator=generator))[0]
        self.table = torch.randn(size.vocabulary, size.width, generator=generator) * deviations @ turned
        self.table += 0.03 * torch.randn(size.width, generator=generator)
        zipf = 1 / torch.arange(1.0, size.vocabulary + 1)
        ranks = torch.randperm(size.vocabulary, generator=generator)
        self.ids = torch.multinomial(zipf[ranks], size.tokens, replacement=True, generator=generator)
        self.found: dict[str, np.ndarray] = {}

    def from_counts(self, ids: Tensor | None = None) -> None:
        """Ours."""
        counts = token_counts((self.ids if ids is None else ids).split(PIECE), self.size.vocabulary)
        compressor = Compressor.fit(self.table, counts, self.size.dims)
        self.found["counts"] = compressor.directions.double().numpy()

    def from_vectors(self) -> None:
        """Theirs."""
        table, ids, pca = self.table.numpy(), self.ids.numpy(), IncrementalPCA()
        for rows in gen_batches(len(ids), 5 * self.size.width, min_batch_size=self.size.width):
            pca.partial_fit(table[ids[rows]])
        self.found["vectors"] = pca.components_[: self.size.dims].astype(np.float64)

    def compare(self) -> None:
        """Both found the same subspace."""
        angle = float(subspace_angles(self.found["counts"].T, self.found["vectors"].T).max())
        common.same("subspaces", angle < 1e-3, f"{self.size.dims} directions, largest principal angle {angle:.1e}")


def memory(work: Work) -> None:
    """Print by how much ours raises the process's peak, for a quarter of the corpus and for all of it."""
    raised = [_raised(work, ids) for ids in (work.ids[: len(work.ids) // 4], work.ids)]
    shown = " and ".join("not measured" if each is None else f"{each / 2**20:,.0f} MiB" for each in raised)
    vectors = work.size.tokens * work.size.width * 4 / 2**20
    print(f"  memory besides table and ids, for a quarter of the corpus and for all of it: {shown}")
    print(f"  (its vectors are {vectors:,.0f} MiB, the table {work.table.nbytes / 2**20:,.0f} MiB)")


def _raised(work: Work, ids: Tensor) -> int | None:
    status = Path("/proc/self/status")
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what was freed before would serve again, and not be seen
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
        before = _bytes(status, "VmRSS")
        work.from_counts(ids)
        return _bytes(status, "VmHWM") - before
    except (OSError, AttributeError):  # only Linux has these
        return None


def _bytes(status: Path, name: str) -> int:
    lines = status.read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def main(arguments: Sequence[str] | None = None) -> None:
    given = common.parser(__doc__).parse_args(arguments)
    common.header("bench_pca", given, arguments)
    size = QUICK if given.quick else FULL
    with common.threads(given.threads), threadpool_limits(given.threads):
        work = Work(size)
        print(f"{size.tokens:,} tokens, {size.vocabulary:,} embeddings of {size.width} numbers, {size.dims} directions")
        work.from_counts()
        memory(work)
        found = common.in_pairs(work.from_vectors, work.from_counts, pairs=given.pairs or 1, kind=given.clock)
        work.compare()
        common.show_pairs("IncrementalPCA / counts", ("IncrementalPCA", "counts"), found)
        common.aim("times as fast", found.ratio, ">=", 50, meant=not given.quick)


if __name__ == "__main__":
    main()
