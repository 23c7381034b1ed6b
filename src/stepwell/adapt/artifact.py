"""Trained parts as one artifact, whole or not at all: `parts.safetensors` and `artifact.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from stepwell.errors import StepwellError
from stepwell.fingerprint import canonical, of_file
from stepwell.models import whole_folder

WEIGHTS, MANIFEST = "parts.safetensors", "artifact.json"
FORMAT = 1


def save_artifact(
    folder: Path, parts: Mapping[str, nn.Module], *, base: str | None = None, about: Mapping[str, Any] | None = None
) -> None:
    """Save the state of all parts together; a folder that was there is replaced at once.

    Args:
        folder: of the artifact.
        parts: name (without `:`) -> module; its state dict is saved, so a frozen model that a part only uses must not
            be in it.
        base: hash of the model that the parts belong to (`frozen.weights_sha256`); None where there is none.
        about: literals that whoever loads it needs, such as parameters, the contract's fingerprint, the step.

    Raises:
        StepwellError: no parts, a part without tensors, tensors that share memory, a name with `:`, something in
            `about` that is no literal, or a folder that cannot be written.
    """
    if not parts:
        raise StepwellError("there are no parts to save", "name what was trained", path=folder)
    tensors: dict[str, Tensor] = {}
    for name, part in parts.items():
        tensors |= {f"{name}:{key}": tensor for key, tensor in _state(name, part, folder).items()}
    pointers: dict[int, str] = {}
    for key, tensor in tensors.items():
        if tensor.numel() and (other := pointers.setdefault(tensor.untyped_storage().data_ptr(), key)) != key:
            raise StepwellError(
                f"{key} shares its memory with {other}", "save a tensor in one part, under one name", path=folder
            )
    manifest = {
        "format": FORMAT,
        "base": base,
        "about": json.loads(canonical(dict(about or {}))),
        "parts": {name: type(part).__name__ for name, part in parts.items()},
    }
    with whole_folder(folder) as new:
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, new / WEIGHTS)
        manifest["sha256"] = of_file(new / WEIGHTS)
        (new / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def read_about(folder: Path) -> dict[str, Any]:
    """What `save_artifact` was told about an artifact; loads no weights. Raises as `load_artifact`."""
    return _manifest(folder)["about"]


def load_artifact(folder: Path, parts: Mapping[str, nn.Module], *, base: str | None = None) -> dict[str, Any]:
    """Load every part of an artifact, or nothing at all.

    Args:
        folder: of the artifact.
        parts: name -> module, built as when it was saved; exactly the parts that were.
        base: hash of the model that the parts are to be used with.

    Returns:
        `about`, as it was saved.

    Raises:
        StepwellError: files that are missing, broken or changed; another base; parts, or tensors of parts, that are
            missing, spare, or of another shape or dtype. One error tells all of it, and no part is changed.
    """
    manifest = _manifest(folder)
    weights = folder / WEIGHTS
    if not weights.is_file():
        raise StepwellError(f"{WEIGHTS} is missing", "copy the whole folder", path=folder)
    if of_file(weights) != manifest["sha256"]:
        raise StepwellError(f"{WEIGHTS} is not as it was saved", "copy the folder again, whole", path=folder)
    faults = [] if base == manifest["base"] else [_other_base(manifest["base"], base)]
    held = manifest["parts"].keys()
    faults += [f"part {name} is missing from it" for name in parts if name not in held]
    faults += [f"it has a part {name}, which nothing here takes" for name in held if name not in parts]
    found = _read(weights)
    for name in parts:
        if name in held:
            faults += _misfits(name, parts[name], found.get(name, {}))
    if faults:
        raise StepwellError(
            f"the artifact does not fit: {'; '.join(faults)}",
            "build the parts and the base with the parameters it was trained with (`about` in its artifact.json)",
            path=folder,
        )
    for name, part in parts.items():
        part.load_state_dict(found[name])
    return manifest["about"]


def _state(name: str, part: nn.Module, folder: Path) -> dict[str, Tensor]:
    state = part.state_dict()
    if ":" in name or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise StepwellError(
            f"part {name!r} cannot be saved: {'its name has a colon' if ':' in name else 'its state is no tensors'}",
            "name parts without colons, and leave out what has no weights",
            path=folder,
        )
    return state


def _manifest(folder: Path) -> dict[str, Any]:
    file = folder / MANIFEST
    if not file.is_file():
        raise StepwellError(
            f"there is no {MANIFEST}, so this is no artifact", "name the artifact's folder", path=folder
        )
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        known = {"format", "base", "about", "parts", "sha256"} <= manifest.keys() and manifest["format"] == FORMAT
    except (ValueError, AttributeError):
        known, manifest = False, {}
    if not known:
        raise StepwellError(f"{MANIFEST} is broken, or of another format than {FORMAT}", "save it again", path=folder)
    return manifest


def _read(weights: Path) -> dict[str, dict[str, Tensor]]:
    found: dict[str, dict[str, Tensor]] = {}
    try:
        with safe_open(weights, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 - a safetensors file is no mapping
                name, _, inner = key.partition(":")
                found.setdefault(name, {})[inner] = file.get_tensor(key)
    except SafetensorError as error:
        raise StepwellError(f"the weights cannot be read: {error}", "save them again", path=weights) from error
    return found


def _misfits(name: str, part: nn.Module, found: Mapping[str, Tensor]) -> list[str]:
    wanted = part.state_dict()
    faults = []
    for word, keys in (("lacks", wanted.keys() - found.keys()), ("has spare", found.keys() - wanted.keys())):
        if keys:
            faults.append(f"part {name} {word} {len(keys)} tensors, first {min(keys)}")
    for key in sorted(wanted.keys() & found.keys()):
        here, there = _kind(wanted[key]), _kind(found[key])
        if here != there:
            return [*faults, f"part {name}: {key} is {there} there and {here} here"]
    return faults


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _other_base(there: str | None, here: str | None) -> str:
    told = [("no base" if digest is None else f"base {digest[:12]}") for digest in (there, here)]
    return f"it was trained on {told[0]}, and is loaded on {told[1]}"
