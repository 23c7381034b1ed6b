"""Token embeddings in fewer dimensions: the exact PCA of a whole corpus from its token counts, and two controls.

A token's embedding depends on its id alone. So how often each id occurs gives the mean and the covariance of all token
vectors of a corpus exactly: one pass over the ids, one weighted product over the embedding table. No sample is drawn,
and memory depends on the table only. `random` (a random subspace) and `truncation` (the leading dimensions) show how
much of a result is owed to the principal subspace rather than to having c numbers a token.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from stepwell.errors import StepwellError
from stepwell.latents.restorer_specs import Subspace

ROWS = 4096
"""Rows of the table that are in float64 at a time."""
PARTS = ("mean", "directions", "scales", "variances", "total", "tokens", "distinct")


class Compressor(nn.Module):
    """(..., D) -> (..., c) and back, through an orthonormal basis of c directions around the corpus's mean.

    z = (x - mean) B^T / s, and x is restored as mean + (z s) B: of all vectors with this z in the affine subspace, the
    nearest. Everything is a buffer: `to` moves it, and nothing in it is trained. It computes and answers in its own
    precision, float32, or float64 where the table was float64, whatever the precision of what it is given.

    Attributes:
        subspace: how the directions were chosen.
        mean: (D,), of the corpus's token vectors.
        directions: (c, D), orthonormal rows B.
        scales: (c,), s: deviations of the coordinates where they are whitened, else ones.
        variances: (c,), of the corpus along each direction, whitened or not.
        total: (), the corpus's variance over all D dimensions together.
        tokens, distinct: (), tokens that were counted, and how many ids occurred among them.
    """

    mean: Tensor
    directions: Tensor
    scales: Tensor
    variances: Tensor
    total: Tensor
    tokens: Tensor
    distinct: Tensor

    def __init__(self, subspace: Subspace, parts: dict[str, Tensor]) -> None:
        super().__init__()
        self.subspace: Subspace = subspace
        for name in PARTS:
            self.register_buffer(name, parts[name])

    @classmethod
    @torch.no_grad()
    def fit(
        cls,
        table: Tensor,
        counts: Tensor,
        dims: int,
        *,
        subspace: Subspace = "pca",
        whiten: bool = False,
        seed: int = 0,
    ) -> Compressor:
        """The compressor of a corpus, all of it.

        Args:
            table: (V, D), the embedding table.
            counts: (V,), how often each id occurs (`token_counts`).
            dims: c.
            subspace: `pca`: the c directions of most variance, the most first (Pearson 1901), each with its largest
                entry positive; `random`: a subspace drawn uniformly; `truncation`: the first c dimensions.
            whiten: coordinates of unit variance that do not correlate. The controls' are turned to the principal axes
                within their subspace for it, which the subspace itself does not notice.
            seed: of the random subspace.

        Raises:
            StepwellError: c below 1, above D, or above the distinct ids - 1 (which the centred vectors span at most);
                counts of another vocabulary, or negative; an empty corpus; an embedding that is not finite; whitening
                along a direction without variance.
        """
        counts = _checked(table, counts, dims)
        mean, covariance = _moments(table, counts)
        directions = _directions(subspace, covariance, dims, seed)
        if whiten and subspace != "pca":
            directions = _principal(directions @ covariance @ directions.T, dims) @ directions
        variances = ((directions @ covariance) * directions).sum(1).clamp(min=0)
        total = covariance.diagonal().sum()
        dtype = torch.promote_types(table.dtype, torch.float32)
        if whiten:
            _require_variance(variances, mean, total, dtype)
        parts = {
            "mean": mean, "directions": directions, "variances": variances, "total": total,
            "scales": variances.sqrt() if whiten else torch.ones_like(variances),
        }  # fmt: skip
        whole = {"tokens": counts.sum(), "distinct": (counts > 0).sum()}
        made = {name: part.to(dtype) for name, part in parts.items()} | whole
        return cls(subspace, {name: part.to(table.device) for name, part in made.items()})

    @property
    def width(self) -> int:
        """D."""
        return self.directions.shape[1]

    @property
    def dims(self) -> int:
        """C, numbers a token."""
        return self.directions.shape[0]

    @property
    def explained(self) -> float | None:
        """The share of the corpus's variance that is kept; None where its vectors do not vary."""
        total = float(self.total)
        return float(self.variances.double().sum()) / total if total > 0 else None

    @property
    def rms(self) -> float:
        """The root of the corpus's mean square entry, sqrt(E |x|^2 / D)."""
        # `total` divides by one token less than there are.
        spread = float(self.total) * (1 - 1 / int(self.tokens))
        return math.sqrt((spread + float(self.mean.double().square().sum())) / self.width)

    def compress(self, vectors: Tensor) -> Tensor:
        """(..., D) -> (..., c). Raises StepwellError for vectors of another width."""
        self._require(vectors, self.width, "vectors")
        return (vectors.to(self.mean) - self.mean) @ self.directions.T / self.scales

    def restore(self, compressed: Tensor) -> Tensor:
        """(..., c) -> (..., D). Raises StepwellError for another c."""
        self._require(compressed, self.dims, "compressed vectors")
        return self.mean + (compressed.to(self.mean) * self.scales) @ self.directions

    def forward(self, vectors: Tensor) -> Tensor:
        """What is left of (..., D) after compressing and restoring."""
        return self.restore(self.compress(vectors))

    def _require(self, given: Tensor, wanted: int, what: str) -> None:
        if given.shape[-1] != wanted:
            raise StepwellError(
                f"{what} have {given.shape[-1]} numbers, and this compressor takes {self.width} to {self.dims}",
                "use the compressor that was fitted on this model's embeddings",
            )

    def save(self, path: Path) -> None:
        """Write one safetensors file, whole or not at all."""
        save_tensors(path, {name: getattr(self, name) for name in PARTS}, {"subspace": self.subspace})

    @classmethod
    def load(cls, path: Path, *, width: int | None = None) -> Compressor:
        """A saved compressor, on the CPU.

        Args:
            path: the file.
            width: D that it must have; None = any.

        Raises:
            StepwellError: a file that cannot be read, that lacks a part or has a spare one, whose parts do not fit
                together, or that is of another width.
        """
        parts, metadata = load_tensors(path)
        made = cls.of_parts(metadata.get("subspace"), parts, path)
        if width is not None and made.width != width:
            raise StepwellError(
                f"the compressor is of width {made.width}, and the model's is {width}",
                "fit a compressor on this model's embeddings",
                path=path,
            )
        return made

    @classmethod
    def of_parts(cls, subspace: str | None, parts: dict[str, Tensor], path: Path) -> Compressor:
        """A compressor of the tensors of the file `path`. Raises StepwellError where they do not make one."""
        if (fault := _fault_of(subspace, parts)) is not None:
            raise StepwellError(f"this is no compressor: {fault}", "name the file that was saved", path=path)
        assert subspace in get_args(Subspace)
        return cls(subspace, parts)  # pyright: ignore[reportArgumentType]


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(held, str(partial), metadata=metadata)
    partial.replace(path)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a safetensors file. Raises StepwellError where it cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise StepwellError(f"it cannot be read: {error}", "name the file that was saved", path=path) from error


def token_counts(ids: Iterable[Sequence[int] | Tensor], vocabulary: int) -> Tensor:
    """How often each id occurs, (V,) int64, on the CPU; one pass, and only V numbers are kept.

    Args:
        ids: pieces of the corpus, such as the tokens of one prompt each; without padding, which would be counted too.
        vocabulary: V.

    Raises:
        StepwellError: an id outside 0 ... V - 1, with the piece it is in; ids that are no whole numbers.
    """
    counts = torch.zeros(vocabulary, dtype=torch.int64)
    one = torch.ones((), dtype=torch.int64)
    for number, piece in enumerate(ids):
        block = torch.as_tensor(piece).flatten().cpu()
        if not len(block):
            continue
        if block.is_floating_point() or block.is_complex() or block.dtype == torch.bool:
            raise StepwellError(f"piece {number} of the corpus holds {block.dtype}", "give whole numbers: token ids")
        block = block.long()
        low, high = (int(bound) for bound in block.aminmax())
        if low < 0 or high >= vocabulary:
            raise StepwellError(
                f"piece {number} of the corpus has the unknown id {low if low < 0 else high}; the embedding table has "
                f"{vocabulary} rows",
                "tokenize the corpus with the model's own tokenizer, and leave out what marks ignored labels",
            )
        counts.scatter_add_(0, block, one.expand(len(block)))
    return counts


def _checked(table: Tensor, counts: Tensor, dims: int) -> Tensor:
    """The counts in int64 on the table's device, where everything fits together."""
    vocabulary, width = table.shape
    if counts.shape != (vocabulary,):
        raise StepwellError(
            f"the counts are of {tuple(counts.shape)} ids, and the embedding table has {vocabulary} rows",
            "count with the same vocabulary: token_counts(ids, len(table))",
        )
    if bool((counts < 0).any()):
        raise StepwellError("a count is negative", "count with token_counts")
    counts = counts.to(device=table.device, dtype=torch.int64)
    if not (distinct := int((counts > 0).sum())):
        raise StepwellError("the corpus is empty: no token was counted", "give it some text")
    most = min(width, distinct - 1)
    if not 1 <= dims <= most:
        bound = f"the embeddings have {width}" if most == width else f"{distinct} distinct tokens were seen"
        way_out = f"ask for 1 to {most}" if most else "fit on a corpus of two distinct tokens at least"
        raise StepwellError(f"{dims} dimensions are asked for, but {bound}", way_out)
    return counts


def _moments(table: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and covariance (D, D) of the corpus, divided by its tokens - 1, both in float64.

    The vectors are centred before they are multiplied: E xx^T - mean mean^T would cancel where the mean is large.
    Raises StepwellError for an embedding that is not finite.
    """
    # MPS has no float64.
    device = table.device if table.device.type in ("cpu", "cuda") else torch.device("cpu")
    seen, width = counts.nonzero()[:, 0], table.shape[1]
    mean = torch.zeros(width, dtype=torch.float64, device=device)
    covariance = torch.zeros(width, width, dtype=torch.float64, device=device)
    blocks = seen.split(ROWS)
    tokens = int(counts.sum())
    for rows in blocks:
        mean += counts[rows].to(device).double() @ table[rows].to(device).double()
    mean /= tokens
    if not bool(mean.isfinite().all()):  # no finite embeddings add up to that in float64
        raise StepwellError("an embedding of the corpus is not finite", "the model's weights are damaged: pull it anew")
    for rows in blocks:
        weights = counts[rows].to(device).double().div(tokens - 1).sqrt()
        centred = (table[rows].to(device).double() - mean) * weights[:, None]
        covariance.addmm_(centred.T, centred)
    return mean, covariance


def _directions(subspace: Subspace, covariance: Tensor, dims: int, seed: int) -> Tensor:
    """The orthonormal directions (c, D), float64."""
    width = len(covariance)
    if subspace == "pca":
        return _principal(covariance, dims)
    if subspace == "truncation":
        return torch.eye(width, dtype=torch.float64, device=covariance.device)[:dims]
    # Without the signs of R's diagonal, Q would not be uniform over the subspaces' frames (Mezzadri 2007).
    drawn = torch.randn(width, dims, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    q, r = torch.linalg.qr(drawn)
    return (q * r.diagonal().sign()).T.contiguous().to(covariance.device)


def _principal(covariance: Tensor, dims: int) -> Tensor:
    """The leading eigenvectors (dims, n) of a covariance (n, n), each with its largest entry positive."""
    leading = torch.linalg.eigh(covariance).eigenvectors.flip(1)[:, :dims].T
    return leading * leading.gather(1, leading.abs().argmax(1, keepdim=True)).sign()


def _require_variance(variances: Tensor, mean: Tensor, total: Tensor, dtype: torch.dtype) -> None:
    """Refuse to whiten what is rounding: of the vectors in their precision, or of the covariance in float64."""
    of_vectors = torch.finfo(dtype).eps ** 2 * (total + mean.square().sum())
    of_covariance = len(mean) * torch.finfo(torch.float64).eps * total
    floor = torch.maximum(of_vectors, of_covariance)
    if flat := int((variances <= floor).sum()):
        raise StepwellError(
            f"the corpus's token vectors do not vary along {flat} of the {len(variances)} directions, which cannot be "
            "scaled to unit variance",
            f"ask for {len(variances) - flat} dimensions, or do not whiten",
        )


def _fault_of(subspace: str | None, parts: dict[str, Any]) -> str | None:
    """What makes the content of a file no compressor; None where nothing does."""
    if subspace not in get_args(Subspace):
        return f"its subspace is {subspace!r}"
    if missing := sorted(set(PARTS) - parts.keys()):
        return f"it lacks {', '.join(missing)}"
    if spare := sorted(parts.keys() - set(PARTS)):
        return f"it has {', '.join(spare)} besides"
    if parts["directions"].dim() != 2:
        return f"its directions are of shape {tuple(parts['directions'].shape)}"
    dims, width = parts["directions"].shape
    shapes = {"mean": (width,), "scales": (dims,), "variances": (dims,), "total": (), "tokens": (), "distinct": ()}
    wrong = [name for name, shape in shapes.items() if parts[name].shape != shape]
    return f"{wrong[0]} has the shape {tuple(parts[wrong[0]].shape)}" if wrong else None
