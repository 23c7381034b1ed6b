"""A PEFT adapter as it lies on disk: its configuration, the base it was trained on, and what each of its tensors is.

Formats: PEFT's adapter_config.json and adapter_model.safetensors (github.com/huggingface/peft), and Stepwell's own
stepwell.json beside them, which names the base by its hash. No pickle is opened.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from stepwell.errors import StepwellError
from stepwell.merging.base import BaseIdentity
from stepwell.merging.files import Weights
from stepwell.models import PICKLES

CONFIG, WEIGHTS, LINEAGE = "adapter_config.json", "adapter_model.safetensors", "stepwell.json"
PREFIX = "base_model.model."

# Options under which a merge is more, or other, than adding a product of two matrices.
UNSUPPORTED = (
    "alora_invocation_tokens", "arrow_config", "kasa_config", "layer_replication", "monteclora_config",
    "target_parameters", "trainable_token_indices", "use_bdlora", "use_qalora", "velora_config",
)  # fmt: skip
PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Values of `init_lora_weights` that leave the base as it was; the others change its weights before training."""

_PART = re.compile(
    r"(?P<module>.+)\.(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)"
    r"(?:\.(?P<adapter>[^.]+?))??(?:\.(?P<kind>weight|bias))?"
)
_SAVED = re.compile(r"(?P<module>.+?)(?:\.base_layer|\.modules_to_save(?:\.[^.]+)?)?\.(?P<kind>[^.]+)")

Part = Literal["A", "B", "bias", "magnitude"]
PARTS: Mapping[str, Part] = {
    "lora_A": "A", "lora_B": "B", "lora_embedding_A": "A", "lora_embedding_B": "B",
    "lora_magnitude_vector": "magnitude",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """What an adapter says of its base.

    Attributes:
        base: name or folder; None where it does not say.
        revision: of the base.
        identity: the base's hash and dtype; None for an adapter that Stepwell did not save.
        trained_in: dtype of the base's weights while the adapter was trained, such as `bfloat16`.
        quantised: whether they were quantised then; None where it does not say.
    """

    base: str | None
    revision: str | None
    identity: BaseIdentity | None
    trained_in: str | None
    quantised: bool | None

    def to_json(self) -> dict[str, Any]:
        """As stepwell.json holds it."""
        return {
            "format": 1,
            "base": self.base,
            "revision": self.revision,
            "base_sha256": self.identity and self.identity.sha256,
            "base_dtype": self.identity and self.identity.dtype,
            "trained_in": self.trained_in,
            "quantised": self.quantised,
        }


@dataclass(frozen=True, kw_only=True)
class Pair:
    """The tensors of one low-rank update, by their names in the adapter.

    Attributes:
        module: the module they belong to, as the model calls it.
        names: part -> name.
        embedding: whether it belongs to an embedding.
    """

    module: str
    names: Mapping[Part, str]
    embedding: bool


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """An adapter on disk; no tensor of it is held.

    Attributes:
        folder: where it lies.
        config: adapter_config.json.
        lineage: what it says of its base.
        pairs: its low-rank updates.
        saved: (parameter's name in the model, name in the adapter) of tensors that take the place of the base's.
        strays: names that no part of an adapter has, and why.
    """

    folder: Path
    config: Mapping[str, Any]
    lineage: Lineage
    pairs: tuple[Pair, ...]
    saved: tuple[tuple[str, str], ...]
    strays: tuple[str, ...]

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the configuration and the names of the tensors.

        Raises:
            StepwellError: files that are missing, broken, truncated or pickles; another kind of adapter than LoRA;
                a base that is named in two ways which do not agree.
        """
        config = _config(folder)
        with Weights.of_file(_weights_file(folder)) as weights:
            names, metadata = list(weights.entries), weights.metadata
        pairs, saved, strays = _sorted_out(names)
        return cls(folder=folder, config=config, lineage=_lineage(folder, config, metadata), pairs=pairs,
                   saved=saved, strays=strays)  # fmt: skip

    def open(self) -> Weights:
        """Its tensors, to be read one by one."""
        return Weights.of_file(self.folder / WEIGHTS)

    def rank(self, module: str) -> int:
        """The rank that its configuration gives to a module."""
        return int(_by_pattern(self.config.get("rank_pattern") or {}, module, self.config.get("r", 8)))

    def scale(self, module: str, rank: int) -> float:
        """What B A is multiplied by: alpha / r, or alpha / sqrt(r) for rsLoRA (Kalajdzievski 2023)."""
        alpha = float(_by_pattern(self.config.get("alpha_pattern") or {}, module, self.config.get("lora_alpha", 8)))
        return alpha / math.sqrt(rank) if self.config.get("use_rslora") else alpha / rank


def _by_pattern(patterns: Mapping[str, Any], module: str, otherwise: Any) -> Any:
    # As PEFT does it: the first key, itself a regular expression, that is the end of the module's name.
    for key, value in patterns.items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return otherwise


def _config(folder: Path) -> dict[str, Any]:
    file = folder / CONFIG
    if not file.is_file():
        raise StepwellError(f"there is no {CONFIG}", "name the folder of an adapter saved by PEFT", path=folder)
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        kind = config.get("peft_type")
    except (ValueError, AttributeError) as error:
        raise StepwellError(f"{CONFIG} is broken: {error}", "save the adapter again", path=folder) from error
    if kind != "LORA":
        raise StepwellError(f"this is an adapter of the kind {kind}", "only LoRA adapters can be merged", path=folder)
    if used := [name for name in UNSUPPORTED if config.get(name)]:
        raise StepwellError(
            f"the adapter uses {', '.join(used)}, which this merge does not know",
            "merge it with PEFT, or keep base and adapter apart", path=folder,
        )  # fmt: skip
    if (start := config.get("init_lora_weights", True)) not in PLAIN_STARTS or config.get("loftq_config"):
        raise StepwellError(
            f"the adapter was started by {start!r}, which changes the base's weights before training",
            "convert it to plain LoRA: `save_pretrained(..., path_initial_model_for_weight_conversion=...)` of PEFT",
            path=folder,
        )
    return config


def _weights_file(folder: Path) -> Path:
    file = folder / WEIGHTS
    if not file.is_file():
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
        if pickles:
            raise StepwellError(
                f"the weights are only there as a pickle ({pickles[0]}), which can run code when it is loaded",
                "ask for safetensors; where you trust the file, load it with PEFT and save it again",
                path=folder,
            )
        raise StepwellError(f"there is no {WEIGHTS}", "save the adapter again, or copy the whole folder", path=folder)
    return file


def _sorted_out(names: Iterable[str]) -> tuple[tuple[Pair, ...], tuple[tuple[str, str], ...], tuple[str, ...]]:
    parts: dict[tuple[str, str], dict[Part, str]] = {}
    saved: list[tuple[str, str]] = []
    strays: list[str] = []
    for name in sorted(names):
        inner = name.removeprefix(PREFIX)
        if found := _PART.fullmatch(inner):
            part: Part = "bias" if found["kind"] == "bias" else PARTS[found["part"]]
            # The name that an adapter had in memory is in its keys where a state dict was saved as it was.
            held = parts.setdefault((found["module"], found["adapter"] or ""), {})
            held[part] = name
        elif "lora_" not in inner and (kept := _SAVED.fullmatch(inner)):
            saved.append((f"{kept['module']}.{kept['kind']}", name))
        else:
            strays.append(name)
    pairs = tuple(
        Pair(module=module, names=held, embedding=any("lora_embedding" in name for name in held.values()))
        for (module, _), held in parts.items()
    )
    return pairs, tuple(saved), tuple(strays)


def _lineage(folder: Path, config: Mapping[str, Any], metadata: Mapping[str, str]) -> Lineage:
    base, revision = config.get("base_model_name_or_path") or None, config.get("revision")
    file = folder / LINEAGE
    told = metadata.get("stepwell")
    try:
        inside = None if told is None else json.loads(told)
        beside = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
        if inside is not None and beside is not None and inside != beside:
            raise StepwellError(
                f"{LINEAGE} and the metadata of {WEIGHTS} name different bases",
                "one of them is of another adapter: copy the whole folder from where it was saved", path=folder,
            )  # fmt: skip
        found = inside or beside
        if found is None:
            return Lineage(base=base, revision=revision, identity=None, trained_in=None, quantised=None)
        identity = BaseIdentity(sha256=found["base_sha256"], dtype=found["base_dtype"], quantised=found["quantised"])
        return Lineage(base=found["base"], revision=found["revision"], identity=identity,
                       trained_in=found["trained_in"], quantised=found["quantised"])  # fmt: skip
    except (ValueError, KeyError, TypeError) as error:
        raise StepwellError(f"{LINEAGE} is broken: {error}", "save the adapter again", path=folder) from error
