"""What fitted vectors hold, in bits and bytes; how robust they are; where they lie; how few of them do.

The measures of one problem's vectors, (K, D), take a `Measure`: a function from many candidate sets of vectors to one
number each, such as the total loss of the problem's target in nats, or 1 where it is decoded exactly. So they know
nothing of models, and the same functions measure losses and rates. Undefined is None, with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stepwell.stats import Estimate, bootstrap_mean

Vectors = Float[Tensor, "K D"]
Measure = Callable[[Float[Tensor, "N K D"]], Float[Tensor, " N"]]
"""From N sets of vectors to N numbers. Losses are totals over a target's tokens and its EOS, in nats."""

BITS = {"float32": 32, "bfloat16": 16, "int8": 8, "int4": 4}
SCALE_BYTES = 4
"""One float32 for each quantised vector."""
COLUMNS = 4096
"""Tokens whose distances are held at once."""


@dataclass(frozen=True, kw_only=True)
class Gain:
    """Information gained about a target by its vectors, in bits: (nats without them - nats with them) / ln 2.

    Negative where the vectors make the target less likely. None where a loss is not finite; `why` then says which.
    """

    bits: float | None
    bits_per_slot: float | None
    bits_per_token: float | None
    why: str = ""


def information_gain(nats_without: float, nats_with: float, *, slots: int, tokens: int) -> Gain:
    """The gain from total losses in nats, over `tokens` targets (the EOS is one) and `slots` vectors.

    Without means: the same model on the same target with no vectors at all (Kuratov et al. 2025, arXiv 2502.13063).

    Raises:
        ValueError: slots or tokens is below 1.
    """
    if slots < 1 or tokens < 1:
        raise ValueError(f"{slots} slots and {tokens} tokens")
    broken = [name for name, nats in (("without", nats_without), ("with", nats_with)) if not math.isfinite(nats)]
    if broken:
        why = f"the loss {' and '.join(broken)} the vectors is not finite"
        return Gain(bits=None, bits_per_slot=None, bits_per_token=None, why=why)
    bits = (nats_without - nats_with) / math.log(2)
    return Gain(bits=bits, bits_per_slot=bits / slots, bits_per_token=bits / tokens)


@dataclass(frozen=True, kw_only=True)
class Storage:
    """Bytes that a text takes, and those of the vectors that hold it.

    Attributes:
        text: UTF-8.
        ids: token ids in the smallest whole number type (1, 2, 4 or 8 bytes each).
        packed_ids: token ids in ceil(log2 V) bits each.
        vectors: by type; the whole number types with one float32 scale a vector.
    """

    text: int
    ids: int
    packed_ids: int
    vectors: Mapping[str, int]

    def times_ids(self, kind: str) -> float | None:
        """Bytes of the vectors for one of the packed ids; above 1 the vectors take more. None for an empty text."""
        return self.vectors[kind] / self.packed_ids if self.packed_ids else None


def storage(text: str, *, tokens: int, vocabulary: int, slots: int, width: int) -> Storage:
    """The bytes of a text of `tokens` tokens, and of `slots` vectors of `width` numbers.

    Raises:
        ValueError: a size is below 1; tokens may be 0.
    """
    if tokens < 0 or min(vocabulary, slots, width) < 1:
        raise ValueError(f"{tokens} tokens of {vocabulary}, {slots} slots of width {width}")
    # Ids 0 to V - 1; a vocabulary of one token still takes a bit.
    bits = max(1, (vocabulary - 1).bit_length())
    whole = next(size for size in (1, 2, 4, 8) if 8 * size >= bits)
    return Storage(
        text=len(text.encode()),
        ids=tokens * whole,
        packed_ids=-(-tokens * bits // 8),
        vectors={kind: vector_bytes(slots, width, kind) for kind in BITS},
    )


def vector_bytes(slots: int, width: int, kind: str) -> int:
    """Bytes of `slots` vectors of `width` numbers; `kind` is a key of BITS."""
    scales = SCALE_BYTES * slots if kind.startswith("int") else 0
    return -(-slots * width * BITS[kind] // 8) + scales


def quantised(vectors: Float[Tensor, "*N K D"], bits: int) -> Float[Tensor, "*N K D"]:
    """The vectors as they come back from `bits`-bit whole numbers: symmetric, one scale a vector, nearest value.

    The scale is the largest magnitude over 2^(bits - 1) - 1. A vector of zeros stays one. No number moves by more than
    half its vector's scale.

    Raises:
        ValueError: bits is not 2 to 8.
    """
    if not 2 <= bits <= 8:
        raise ValueError(f"{bits} bits; 2 to 8 can be had")
    most = 2 ** (bits - 1) - 1
    scale = vectors.abs().amax(-1, keepdim=True) / most
    steps = torch.where(scale > 0, vectors / scale, torch.zeros_like(vectors)).round().clamp(-most, most)
    return steps * scale


@dataclass(frozen=True, kw_only=True)
class Quantised:
    """What is left at some bits a number: the measure, its change against the vectors as they are, and the bytes."""

    bits: int
    value: float
    change: float
    bytes: int


def quantisation(measure: Measure, vectors: Vectors, bits: Sequence[int] = (8, 4)) -> tuple[Quantised, ...]:
    """The measure of one problem's vectors after quantisation (`quantised`) to each number of bits."""
    slots, width = vectors.shape
    values = _measured(measure, torch.stack([vectors, *(quantised(vectors, each) for each in bits)]))
    return tuple(
        Quantised(
            bits=each,
            value=value,
            change=value - values[0],
            bytes=-(-slots * width * each // 8) + SCALE_BYTES * slots,
        )
        for each, value in zip(bits, values[1:], strict=True)
    )


@dataclass(frozen=True, kw_only=True)
class Noisy:
    """The measure under noise: its mean over draws with an interval, and the mean change against no noise.

    `scale` is the noise's standard deviation over the root mean square of the problem's vectors.
    """

    scale: float
    value: Estimate
    change: float


def noise_robustness(
    measure: Measure,
    vectors: Vectors,
    *,
    scales: Sequence[float] = (0.01, 0.03, 0.1, 0.3),
    draws: int = 16,
    seed: int = 0,
    rows: int = 16,
) -> tuple[Noisy, ...]:
    """The measure of one problem's vectors plus normal noise, at each scale.

    The draws of all scales are the same up to their size, so that scales are compared on the same noise. At most
    `rows` sets of vectors are measured at once.

    Raises:
        ValueError: fewer than one draw or row, a negative scale, or a measure that is not finite.
    """
    if draws < 1 or rows < 1 or any(scale < 0 for scale in scales):
        raise ValueError(f"{draws} draws, {rows} rows, scales {tuple(scales)}")
    generator = torch.Generator().manual_seed(seed)
    # Drawn on the CPU, so that a seed means the same noise on every device.
    noise = torch.randn((draws, *vectors.shape), generator=generator).to(vectors)
    size = vectors.square().mean().sqrt()
    clean = _measured(measure, vectors[None])[0]
    found = []
    for scale in scales:
        parts = (vectors + scale * size * part for part in noise.split(rows))
        values = [value for part in parts for value in _measured(measure, part)]
        mean = bootstrap_mean(values, seed=seed)
        found.append(Noisy(scale=scale, value=mean, change=sum(values) / draws - clean))
    return tuple(found)


@dataclass(frozen=True, kw_only=True)
class Line:
    """The measure along the line from one set of vectors to another.

    Attributes:
        fractions: of the way; 0 is the first, 1 the second.
        values: the measure there.
        barrier: the largest excess over the straight line between the values at the ends (Frankle et al. 2020, arXiv
            1912.05671), 0 where there is none; of a loss, how high the hill between two restarts is.
    """

    fractions: tuple[float, ...]
    values: tuple[float, ...]
    barrier: float


def interpolation(measure: Measure, first: Vectors, second: Vectors, *, points: int = 11, rows: int = 16) -> Line:
    """The measure at evenly spaced points between two sets of vectors, the ends included.

    Raises:
        ValueError: fewer than 3 points, or vectors of different shapes.
    """
    if points < 3 or first.shape != second.shape:
        raise ValueError(f"{points} points between shapes {tuple(first.shape)} and {tuple(second.shape)}")
    fractions = torch.linspace(0, 1, points, dtype=torch.float64)
    weights = fractions.to(first)[:, None, None]
    sets = (1 - weights) * first + weights * second
    values = [value for part in sets.split(rows) for value in _measured(measure, part)]
    straight = [values[0] + float(fraction) * (values[-1] - values[0]) for fraction in fractions]
    barrier = max(value - level for value, level in zip(values, straight, strict=True))
    return Line(fractions=tuple(fractions.tolist()), values=tuple(values), barrier=max(0.0, barrier))


@dataclass(frozen=True, kw_only=True)
class TokenDistance:
    """Where vectors lie among the embeddings of tokens, one number a vector.

    Attributes:
        nearest: the token at the smallest distance.
        distance: to it, Euclidean.
        cosine: the largest cosine with any token; None for a vector of zeros.
        norm: the vector's length over the mean length of the tokens' embeddings; None where all of these are zero.
    """

    nearest: tuple[int, ...]
    distance: tuple[float, ...]
    cosine: tuple[float | None, ...]
    norm: tuple[float | None, ...]


def token_distance(vectors: Vectors, table: Float[Tensor, "V D"]) -> TokenDistance:
    """The distance of each vector to the token manifold: the embedding table, read some thousand rows at a time.

    Raises:
        ValueError: the table is empty, or of another width.
    """
    if table.ndim != 2 or len(table) == 0 or table.shape[1] != vectors.shape[1]:
        raise ValueError(f"vectors of shape {tuple(vectors.shape)} and a table of shape {tuple(table.shape)}")
    exact = vectors.double()
    norms = exact.norm(dim=1)
    distance = torch.full_like(norms, torch.inf)
    cosine = torch.full_like(norms, -torch.inf)
    nearest: Int[Tensor, " K"] = torch.zeros_like(norms, dtype=torch.long)
    total = 0.0
    for start in range(0, len(table), COLUMNS):
        part = table[start : start + COLUMNS].double()
        lengths = part.norm(dim=1)
        total += float(lengths.sum())
        # Not by way of products: the difference of squares loses the digits of small distances.
        closest, place = torch.cdist(exact, part, compute_mode="donot_use_mm_for_euclid_dist").min(1)
        nearest = torch.where(closest < distance, place + start, nearest)
        distance = torch.minimum(distance, closest)
        # A token of length 0 has no direction.
        alike = (exact @ part.T / (norms[:, None] * lengths)).nan_to_num(-torch.inf).amax(1)
        cosine = torch.maximum(cosine, alike)
    mean = total / len(table)
    return TokenDistance(
        nearest=tuple(nearest.tolist()),
        distance=tuple(distance.tolist()),
        cosine=tuple(value if math.isfinite(value) else None for value in cosine.tolist()),
        norm=tuple((norms / mean).tolist()) if mean else (None,) * len(norms),
    )


@dataclass(frozen=True, kw_only=True)
class Similarity:
    """How alike the vectors of different problems are.

    Attributes:
        ids: the problems, in the order of the rows.
        cosines: (N, N), the cosine of two problems' vectors slot by slot, averaged over slots.
        mean: over pairs of different problems; None where there are fewer than two.
    """

    ids: tuple[str, ...]
    cosines: Float[Tensor, "N N"]
    mean: float | None


def similarity(vectors: Mapping[str, Vectors]) -> Similarity:
    """The cosines between problems. A vector of zeros has cosine 0 with everything.

    Raises:
        ValueError: there are no vectors, or of different shapes.
    """
    if len({tuple(each.shape) for each in vectors.values()}) != 1:
        raise ValueError(f"vectors of shapes {sorted({tuple(each.shape) for each in vectors.values()})}")
    stacked = torch.nn.functional.normalize(torch.stack([each.double() for each in vectors.values()]), dim=-1)
    cosines = torch.einsum("mkd,nkd->mn", stacked, stacked) / stacked.shape[1]
    n = len(stacked)
    mean = float(cosines.sum() - cosines.diagonal().sum()) / (n * (n - 1)) if n > 1 else None
    return Similarity(ids=tuple(vectors), cosines=cosines, mean=mean)


@dataclass(frozen=True, kw_only=True)
class SmallestSlots:
    """The fewest slots that were found to do.

    Attributes:
        slots: None where none up to the highest did.
        tried: slots -> whether they did, in the order of the search.
        why: why there are none; "" where there are.
    """

    slots: int | None
    tried: Mapping[int, bool]
    why: str = ""


def smallest_slots(holds: Callable[[int], bool], *, highest: int, lowest: int = 1) -> SmallestSlots:
    """Search the fewest slots for which `holds(slots)` is true: doubling from `lowest`, then halving the gap.

    It asks about 2 log2(slots) times, each number once, and takes for granted that more slots do whenever fewer do;
    where that is not so (fits fail by chance), the answer does, one fewer does not, but still fewer might.

    Raises:
        ValueError: unless 1 <= lowest <= highest.
    """
    if not 1 <= lowest <= highest:
        raise ValueError(f"slots from {lowest} to {highest}")
    tried: dict[int, bool] = {}
    # `below` does not, or is out of the question.
    below, slots = lowest - 1, lowest
    while not tried.setdefault(slots, holds(slots)):
        if slots == highest:
            return SmallestSlots(slots=None, tried=tried, why=f"not even {highest} slots do")
        below, slots = slots, min(2 * slots, highest)
    while slots - below > 1:
        middle = (below + slots) // 2
        tried[middle] = holds(middle)
        below, slots = (below, middle) if tried[middle] else (middle, slots)
    return SmallestSlots(slots=slots, tried=tried)


def _measured(measure: Measure, sets: Float[Tensor, "N K D"]) -> list[float]:
    """The measure of each set, as plain numbers. ValueError for another shape than (N,) or what is not finite."""
    with torch.no_grad():
        found = measure(sets)
    if found.shape != (len(sets),):
        raise ValueError(f"a measure of {len(sets)} sets of vectors has shape {tuple(found.shape)}")
    if not torch.isfinite(found).all():
        raise ValueError(f"{int((~torch.isfinite(found)).sum())} of {len(sets)} measures are not finite")
    return [float(value) for value in found.double().tolist()]
