"""Prints without end."""

from __future__ import annotations

import os
from typing import Any


def escape(arena: dict[str, Any]) -> str:
    """How much it printed."""
    for _ in range(4 * arena["output_kib"]):
        os.write(1, b"x" * 1024)
        os.write(2, b"x" * 1024)
    return f"{8 * arena['output_kib']} KiB"
