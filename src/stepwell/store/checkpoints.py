"""Checkpoints: one file a job, replaced whole, that loads without unpickling code and knows whose it is."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from stepwell.errors import StepwellError
from stepwell.store.files import is_disk_full, replacing

SCALARS = (str, int, float, bool, type(None))
ZIP = b"PK"


def save_checkpoint(path: Path, header: dict[str, Any], state: dict[str, Any]) -> None:
    """Replace a checkpoint, flushed to the disk, at once or not at all.

    A state of plain JSON types is written as JSON, anything with tensors by torch; a stage without tensors so needs no
    torch. Raises TypeError for values that `torch.load(weights_only=True)` would refuse, naming where they are, and
    OSError with ENOSPC when the disk is full.
    """
    content = {"stepwell": header, "state": state}
    with replacing(path) as file:
        if _is_json(state, "state"):
            file.write(json.dumps(content).encode())
            return
        import torch

        try:
            torch.save(content, file)
        except RuntimeError as error:
            free = shutil.disk_usage(path.parent).free
            if is_disk_full(error) or free < 1 << 20:  # torch does not always hand on why it could not write
                raise OSError(28, "No space left on device", str(path)) from error
            raise


def load_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Header and state of a checkpoint, tensors on the CPU. Raises StepwellError for a file that is none."""
    try:
        if path.read_bytes()[:2] != ZIP:
            content = json.loads(path.read_bytes())
        else:
            import torch

            content = torch.load(path, map_location="cpu", weights_only=True)
        return content["stepwell"], content["state"]
    except (MemoryError, OSError):
        raise
    except Exception as error:  # torch raises many types for a damaged file, some of them not public
        raise StepwellError(
            f"the checkpoint cannot be read: {str(error).splitlines()[0] if str(error) else type(error).__name__}",
            "Delete this file: the job then starts from its beginning.",
            path=path,
        ) from error


def _is_json(value: Any, place: str) -> bool:
    """Whether JSON gives a value back unchanged. TypeError for what torch's restricted loader would refuse."""
    kind = type(value)
    if kind in SCALARS:
        return True
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor | torch.Size | torch.dtype | torch.device):
        return False
    if isinstance(value, dict):
        for key in value:
            if type(key) not in SCALARS:
                raise TypeError(f"{place}: a checkpoint cannot hold the key {key!r} of type {type(key).__name__}")
        # No short cut: every value is looked at, so that a refused one is found when saving, not when loading.
        plain = [_is_json(item, f"{place}.{key}") for key, item in value.items()]
        return all(plain) and kind is dict and all(type(key) is str for key in value)
    if kind in (list, tuple):
        plain = [_is_json(item, f"{place}[{index}]") for index, item in enumerate(value)]
        return all(plain) and kind is list
    raise TypeError(
        f"{place}: a checkpoint cannot hold {kind.__module__}.{kind.__qualname__}; "
        "use tensors, numbers, texts, lists and dicts"
    )
