"""Where a model's parameters lie in its files: what the architecture calls them, and what the files do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from torch import nn

from stepwell.backbone import Conv1D, renaming, skeleton
from stepwell.errors import StepwellError
from stepwell.merging.files import Weights

Kind = Literal["linear", "conv1d", "embedding"]
KINDS: tuple[tuple[type[nn.Module], Kind], ...] = (
    (nn.Linear, "linear"), (Conv1D, "conv1d"), (nn.Embedding, "embedding"),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The parameters of a model and their places.

    Attributes:
        places: parameter's name -> tensor's name in the files; tied parameters share a place.
        kinds: module's name -> what it is, for those that an adapter can be on.
        tied: groups of names of one parameter.
        rename: from a name on disk to the one that `places` has.
        quantisable: places of the linear maps that a 4-bit base has in 4 bits: all but the head.
    """

    places: Mapping[str, str]
    kinds: Mapping[str, Kind]
    tied: tuple[tuple[str, ...], ...]
    rename: Callable[[str], str]
    quantisable: frozenset[str]

    @classmethod
    def of(cls, folder: Path, weights: Weights) -> Self:
        """The layout of a model folder; no weights are read.

        Raises:
            StepwellError: an unknown architecture, or parameters that are in none of the files.
        """
        model, _ = skeleton(folder)
        return cls.of_model(model, weights, folder)

    @classmethod
    def of_model(cls, model: Any, weights: Weights, folder: Path) -> Self:
        """As `of`, for a model whose parameters are on `meta`."""
        groups: dict[int, list[str]] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            groups.setdefault(id(parameter), []).append(name)
        prefix = f"{model.base_model_prefix}."
        rename = renaming(model)
        on_disk = {rename(name): name for name in weights.entries}
        places: dict[str, str] = {}
        lost: list[str] = []
        for names in groups.values():
            held = [place for name in names if (place := _place(name, prefix, on_disk)) is not None]
            places |= dict.fromkeys(names, held[0]) if held else {}
            lost += [] if held else names[:1]
        if lost:
            raise StepwellError(
                f"{len(lost)} of {len(places) + len(lost)} parameters are in none of the weight files, first {lost[0]}",
                "fetch the model again, whole; where it is whole, load it and save it again under the present names",
                path=folder,
            )
        kinds: dict[str, Kind] = {name: kind for name, module in model.named_modules() for type_, kind in KINDS
                 if isinstance(module, type_)}  # fmt: skip
        head = model.get_output_embeddings()
        linears = {
            name for name, module in model.named_modules() if isinstance(module, nn.Linear) and module is not head
        }
        return cls(
            places=places,
            kinds=kinds,
            tied=tuple(tuple(names) for names in groups.values() if len(names) > 1),
            rename=rename,
            quantisable=frozenset(places[f"{name}.weight"] for name in linears),
        )

    def own_place(self, parameter: str) -> str:
        """Where a tied parameter is to lie when it gets a tensor of its own, beside the one it shared."""
        place = self.places[parameter]
        # GPT-2 as published leaves out its prefix.
        return place if parameter == place or parameter.endswith(f".{place}") else parameter


def _place(name: str, prefix: str, on_disk: Mapping[str, str]) -> str | None:
    return next((on_disk[key] for key in (name, name.removeprefix(prefix)) if key in on_disk), None)
