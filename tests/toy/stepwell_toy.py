"""Toy stage kinds, found by plans through `extensions: [stepwell_toy]` when this folder is on PYTHONPATH."""

from __future__ import annotations

from stepwell.kinds import Kind, register
from stepwell.spec import DataFile, Spec


class WalkParams(Spec):
    """A random walk, saved every few steps."""

    steps: int = 20
    save_every: int = 4
    start: float = 0.0
    fail_at: int | None = None
    die_at: int | None = None
    deaths: int = 0
    fill_bytes: int = 0
    data: DataFile | None = None


class SumParams(Spec):
    """One item for each step of the walks."""

    threshold: float = 0.0
    note: str = ""


class TrainParams(Spec):
    """Of a linear map, by AdamW."""

    steps: int = 12


class ChunkParams(Spec):
    """Items that are squared in chunks, with faults planted at some of them."""

    items: int = 20
    chunk: int = 4
    raises: tuple[int, ...] = ()
    kills: tuple[int, ...] = ()
    kills_once: tuple[int, ...] = ()
    loads: str = "well"
    seconds: float = 0.0


register(
    Kind(
        name="toy.chunks",
        params=ChunkParams,
        run="stepwell_toy_chunks:deal",
        yields={"square": frozenset({"item", "value", "why"})},
        parallel="chunks",
    )
)
register(
    Kind(
        name="toy.walk",
        params=WalkParams,
        run="stepwell_toy_stages:walk",
        yields={"step": frozenset({"step", "value"})},
    )
)
register(
    Kind(
        name="toy.sum",
        params=SumParams,
        run="stepwell_toy_stages:total",
        yields={"item": frozenset({"id", "correct"})},
    )
)
register(
    Kind(
        name="toy.train",
        params=TrainParams,
        run="stepwell_toy_torch:train",
        yields={"step": frozenset({"step", "loss"})},
    )
)
register(
    Kind(
        name="toy.timed",
        params=WalkParams,
        run="stepwell_toy_stages:walk",
        yields={"step": frozenset({"step", "value"})},
        estimate="stepwell_toy_stages:walk_hours",
    )
)
