"""Memory that runs out: how it is known, whatever device it was asked of."""

from __future__ import annotations

from typing import Any

import torch


def is_out_of_memory(error: Any) -> bool:
    """Whether an error says that a device or the machine has no memory left."""
    # Of the machine's own memory torch's allocator says so in words alone.
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )
