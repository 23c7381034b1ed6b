"""Takes more memory than is allowed, in one process."""

from __future__ import annotations

from typing import Any


def escape(arena: dict[str, Any]) -> str:
    """How much it took."""
    taken = bytearray(b"x" * (arena["memory_mib"] * 3 // 2 << 20))
    return f"{len(taken) >> 20} MiB"
