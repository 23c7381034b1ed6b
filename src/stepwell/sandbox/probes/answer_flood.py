"""Returns a value that takes more than is allowed."""

from __future__ import annotations

from typing import Any


def escape(arena: dict[str, Any]) -> str:
    """A value of so many bytes."""
    return "x" * (64 * arena["output_kib"] << 10)
