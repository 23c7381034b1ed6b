"""Checkpoints of other projects' code, read as plain tensors only."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from stepwell.errors import StepwellError

if TYPE_CHECKING:
    from stepwell.backbone import HFBackbone


def load_coconut_checkpoint(path: Path, backbone: HFBackbone, markers: Sequence[str] = ()) -> tuple[int, ...]:
    """Load a checkpoint of the COCONUT code (Hao et al. 2024, arXiv 2412.06769) into a backbone, in place.

    Its state dict has the keys `base_causallm.*` and `embedding.weight` (the same tensor as the input embedding); for
    the arms without thoughts it is the bare causal LM's. Only tensors are read (`weights_only`).

    Args:
        path: the file, without extension in that code.
        backbone: of the same shape.
        markers: tokens to add to the model, in the order of the checkpoint's last rows, which have no names. That code
            adds none for the arms without thoughts: then they are added to what was loaded, as it does itself.

    Returns:
        The markers' ids.

    Raises:
        StepwellError: not a state dict of tensors; keys missing, unexpected or of another shape, which it names.
    """
    if not path.is_file():
        raise StepwellError("there is no such checkpoint", "give the file that training wrote", path=path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch promises no one class for a file that is not what it should be
        raise StepwellError(
            "the checkpoint is not a plain state dict of tensors; anything else is not loaded, since it could run code",
            "save `model.state_dict()` alone, with torch.save",
            path=path,
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise StepwellError(
            "the checkpoint is not a state dict of tensors", "save `model.state_dict()` alone", path=path
        )
    prefix = "base_causallm."
    if any(key.startswith(prefix) for key in state):
        outer = {key for key in state if not key.startswith(prefix)}
        inner = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        shared = state.get("embedding.weight")
        if outer - {"embedding.weight"}:
            raise _mismatch(path, "unexpected", outer - {"embedding.weight"})
    else:
        inner, shared = dict(state), None
    if _rows(inner, backbone.model) == backbone.vocabulary:
        _load_inner(path, inner, shared, backbone.model)
        return backbone.add_tokens(markers)
    ids = backbone.add_tokens(markers)
    _load_inner(path, inner, shared, backbone.model)
    return ids


def _rows(inner: dict[str, Any], model: Any) -> int | None:
    """How many tokens a checkpoint knows; None where it has no embedding."""
    found = inner.get(_embedding(model))
    return None if found is None else len(found)


def _embedding(model: Any) -> str:
    weight = model.get_input_embeddings().weight
    return next(key for key, value in model.named_parameters() if value is weight)


def _load_inner(path: Path, inner: dict[str, Any], shared: Any, model: Any) -> None:
    wanted = model.state_dict()
    ignored = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_unexpected or ()]
    # Old versions of transformers also saved buffers that are no weights, such as GPT-2's causal masks.
    inner = {k: v for k, v in inner.items() if k in wanted or not any(pattern.search(k) for pattern in ignored)}
    tied = set(model.all_tied_weights_keys)
    if missing := wanted.keys() - inner.keys() - tied:
        raise _mismatch(path, "missing", missing)
    if unexpected := inner.keys() - wanted.keys():
        raise _mismatch(path, "unexpected", unexpected)
    for key, value in inner.items():
        if value.shape != wanted[key].shape:
            raise StepwellError(
                f"{key} is {tuple(value.shape)} in the checkpoint and {tuple(wanted[key].shape)} in the model",
                "choose the same model; with markers it has 3 more rows than the base model, without as many",
                path=path,
            )
    name = _embedding(model)
    if shared is not None and not torch.equal(shared, inner[name]):
        raise StepwellError(
            f"embedding.weight differs from {name}", "the checkpoint is inconsistent: save it again", path=path
        )
    model.load_state_dict(inner, strict=False)


def _mismatch(path: Path, what: str, keys: set[str]) -> StepwellError:
    shown = ", ".join(sorted(keys)[:5])
    return StepwellError(
        f"the checkpoint has {len(keys)} {what} keys: {shown}{', ...' if len(keys) > 5 else ''}",
        "choose the model and the layout that it was trained with",
        path=path,
    )
