"""Which interventions on thoughts there are, as specs: nothing here needs torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

Family = Literal[
    "zeroed", "averaged", "last-zeroed", "noise-first", "noise-last", "noise-single", "order", "swap",
    "between", "transplant-matched", "transplant-unmatched", "thoughts",
]  # fmt: skip
FAMILIES: tuple[Family, ...] = get_args(Family)
NOISE: frozenset[str] = frozenset({"noise-first", "noise-last", "noise-single"})
BY_HOPS: frozenset[str] = frozenset({"transplant-matched", "transplant-unmatched"})
DONATED: frozenset[str] = frozenset({"between"}) | BY_HOPS


@dataclass(frozen=True, kw_only=True)
class Intervention:
    """One thing that is done to every item's thoughts.

    Attributes:
        family: `clean` (nothing), `zeroed`, `averaged` (the mean thought of that position over all items),
            `last-zeroed`, noise on the first k, the last k or a single one, `order` (permuted within the item), `swap`
            (two neighbours), `between` (another item's chain whole), `transplant-matched` and `-unmatched` (the chain
            of an item with the same, or another, number of hops), `thoughts` (another number of them).
        k: how many thoughts are touched; None where that means nothing.
        position: which one (the first of two neighbours), counted from 1.
        scale: noise in units of the standard deviation of the thoughts at that position.
        propagates: whether it is put in while the chain is computed; None where no thought is left to hear of it.
        count: of `thoughts`: their number.
    """

    family: Family | Literal["clean"]
    k: int | None = None
    position: int | None = None
    scale: float | None = None
    propagates: bool | None = None
    count: int | None = None

    @property
    def condition(self) -> str:
        """A label that no other intervention has, such as `noise-first k=3 x1 propagating`."""
        parts: list[str] = [self.family]
        if self.count is not None:
            parts.append(str(self.count))
        if self.family in ("noise-first", "noise-last"):
            parts.append(f"k={self.k}")
        if self.position is not None:
            parts.append(f"position={self.position}")
        if self.scale is not None:
            parts += [f"x{self.scale:g}", "propagating" if self.propagates else "afterwards"]
        return " ".join(parts)

    def touched(self, latents: int) -> range:
        """The latent columns (from 0) that it changes in a chain of `latents`."""
        k = self.k or 0
        if self.family in ("noise-last", "last-zeroed"):
            return range(latents - k, latents)
        start = 0 if self.position is None else self.position - 1
        return range(start, start + k)


def interventions(
    latents: int, *, families: Sequence[str], scales: Sequence[float], propagates: Sequence[bool], counts: Sequence[int]
) -> tuple[Intervention, ...]:
    """All interventions of these families on items with `latents` thoughts, `clean` first; none that lacks thoughts.

    Args:
        latents: K.
        families: which, besides `clean`.
        scales: of noise.
        propagates: noise while the chain is computed (True), afterwards (False), or both.
        counts: of `thoughts`; `latents` itself is `clean`.
    """
    whole, some = latents, range(1, latents + 1)
    noise = [{"scale": scale, "propagates": put_in} for scale in scales for put_in in propagates]
    chains = [{"k": whole}] if whole else []
    every: dict[Family, list[dict[str, Any]]] = {
        "zeroed": chains,
        "averaged": chains,
        "last-zeroed": [{"k": 1}] if whole else [],
        "noise-first": [{"k": k, **how} for how in noise for k in some],
        "noise-last": [{"k": k, **how} for how in noise for k in some],
        "noise-single": [{"k": 1, "position": at, **how} for how in noise for at in some],
        "order": [{"k": whole, "propagates": False}] if whole > 1 else [],
        "swap": [{"k": 2, "position": at, "propagates": False} for at in some[:-1]],
        "between": chains,
        "transplant-matched": chains,
        "transplant-unmatched": chains,
        "thoughts": [{"count": count} for count in counts if count != latents],
    }
    made = [Intervention(family=family, **spec) for family in every if family in families for spec in every[family]]  # pyright: ignore[reportArgumentType]
    return (Intervention(family="clean"), *made)
