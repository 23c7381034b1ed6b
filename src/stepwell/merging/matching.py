"""What an adapter changes in a base, tensor by tensor, and everything that speaks against merging it."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from stepwell.merging.adapter import Adapter, Pair
from stepwell.merging.files import FLOATS, Weights
from stepwell.merging.layout import Layout

CODES: Mapping[str, str] = MappingProxyType(
    {
        "quantised-base": "the adapter was trained on quantised weights, and would be added to others",
        "base-in-4-bits": "the base's own weights are quantised",
        "other-base": "the adapter was trained on other weights than these",
        "unmatched-key": "a tensor of the adapter belongs to nothing in the model",
        "used-twice": "two tensors of the adapter belong to the same place",
        "half-pair": "A without B, or B without A",
        "rank-mismatch": "the matrices have another rank than the configuration says, or than each other",
        "shape-mismatch": "the tensors do not fit the base's",
        "not-finite": "NaN or infinity in the adapter",
        "no-effect": "the adapter changes nothing",
        "dead-pair": "a low-rank pair is zero, and changes nothing",
    }
)
"""What each finding means."""

OVERRIDABLE = frozenset({"quantised-base", "other-base", "unmatched-key", "used-twice", "no-effect"})
HARMLESS = frozenset({"dead-pair"})
"""Findings of an audit that do not stop a merge."""

_QUANTISED_NAME = re.compile(
    r"(?i)bnb|(?<![a-z0-9])[48][-_]?bit|int[48](?![0-9])|gptq|awq|gguf|nf4|fp4|exl2|hqq|(?<![a-z0-9])q[2-8]_[0-9k]"
)
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One kind of finding.

    Attributes:
        code: see `CODES`.
        count: how often it was found.
        example: the first of them.
    """

    code: str
    count: int
    example: str

    def to_json(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return {"code": self.code, "count": self.count, "what": CODES[self.code], "example": self.example}


@dataclass(kw_only=True)
class Edit:
    """What is done to one parameter.

    Attributes:
        pairs: low-rank updates to add.
        saved: the adapter's tensor that takes the base's place; None = the base's stays.
        biases: (tensor of the adapter, module) of biases of B to add.
    """

    pairs: list[Pair] = field(default_factory=list)
    saved: str | None = None
    biases: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Output:
    """One tensor to write.

    Attributes:
        place: its name in the files.
        source: the base's tensor that it starts from.
        edit: what is done to it; None = nothing.
        kind: of the module, which says how its weights lie; None for what no pair is on.
    """

    place: str
    source: str
    edit: Edit | None
    kind: str | None


@dataclass(frozen=True, kw_only=True)
class Match:
    """An adapter laid on a base.

    Attributes:
        outputs: the tensors of the merged model, in the base's order.
        unties: whether embedding and head were one tensor in the base and are two afterwards.
        faults: what was found.
    """

    outputs: tuple[Output, ...]
    unties: bool
    faults: tuple[Fault, ...]


class Findings:
    """Findings as they come, counted by code."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, str] = {}

    def add(self, code: str, example: str) -> None:
        """One more."""
        self.counts[code] += 1
        self.examples.setdefault(code, example)

    def faults(self) -> tuple[Fault, ...]:
        """All kinds, in the order of `CODES`."""
        return tuple(Fault(code=code, count=self.counts[code], example=self.examples[code])
                     for code in CODES if self.counts[code])  # fmt: skip


def match(adapter: Adapter, tensors: Weights, base: Weights, layout: Layout) -> Match:
    """Find the place of every tensor of an adapter.

    Args:
        adapter: the adapter.
        tensors: its tensors (`adapter.open()`).
        base: the base's.
        layout: of the base.
    """
    found = Findings()
    for name in adapter.strays:
        found.add("unmatched-key", name)
    edits = _edits(adapter, tensors, base, layout, found)
    shared = {name for group in layout.tied for name in group}
    outputs: dict[str, Output] = {}
    for parameter, place in layout.places.items():
        if parameter not in shared:
            outputs[place] = _output(place, place, parameter, edits, layout)
    unties = False
    for group in layout.tied:
        changed = [name for name in group if name in edits]
        apart = bool(changed) and not _all_alike([edits.get(name) for name in group], tensors)
        unties |= apart
        for name in group if apart else (changed or group)[:1]:
            place = layout.own_place(name) if apart else layout.places[name]
            outputs[place] = _output(place, layout.places[name], name, edits, layout)
    # Whatever else lies in the files goes along, but for a second copy of what is tied.
    outputs |= {
        name: Output(place=name, source=name, edit=None, kind=None)
        for name in base.entries
        if name not in outputs and name not in shared
    }
    order = {name: index for index, name in enumerate(base.entries)}
    ordered = sorted(outputs.values(), key=lambda output: (order[output.source], output.place))
    return Match(outputs=tuple(ordered), unties=unties, faults=found.faults())


def _output(place: str, source: str, parameter: str, edits: Mapping[str, Edit], layout: Layout) -> Output:
    kind = layout.kinds.get(parameter.rpartition(".")[0])
    return Output(place=place, source=source, edit=edits.get(parameter), kind=kind)


def _edits(adapter: Adapter, tensors: Weights, base: Weights, layout: Layout, found: Findings) -> dict[str, Edit]:
    edits: defaultdict[str, Edit] = defaultdict(Edit)
    for pair in adapter.pairs:
        check_pair(adapter, pair, tensors, found)
        parameter = layout.rename(f"{pair.module}.weight")
        module = parameter.removesuffix(".weight")
        if module not in layout.kinds or parameter not in layout.places:
            found.add("unmatched-key", next(iter(pair.names.values())))
            continue
        if not {"A", "B"} <= pair.names.keys():
            continue
        _check_fit(pair, tensors, base.entries[layout.places[parameter]].shape, layout.kinds[module], found)
        if edits[parameter].pairs:
            found.add("used-twice", f"{pair.names['A']} and {edits[parameter].pairs[0].names['A']}")
        edits[parameter].pairs.append(pair)
        if name := pair.names.get("bias"):
            bias = f"{module}.bias"
            if bias in layout.places:
                edits[bias].biases.append((name, pair.module))
            else:
                found.add("shape-mismatch", f"{name}: the base's layer has no bias")
    for saved, name in adapter.saved:
        parameter = layout.rename(saved)
        if parameter not in layout.places:
            found.add("unmatched-key", name)
        elif edits[parameter].saved is not None:
            found.add("used-twice", f"{name} and {edits[parameter].saved}")
        else:
            here, there = tensors.entries[name].shape, base.entries[layout.places[parameter]].shape
            if here != there:
                found.add("shape-mismatch", f"{name} is {here}, and the base's {there}")
            edits[parameter].saved = name
    return dict(edits)


def _all_alike(edits: Sequence[Edit | None], tensors: Weights) -> bool:
    """Whether embedding and head are changed alike, so that they stay one tensor."""
    first, *others = (None if edit is None else _content(edit, tensors) for edit in edits)
    return first is not None and all(
        other is not None and len(other) == len(first) and all(map(torch.equal, first, other)) for other in others
    )


def _content(edit: Edit, tensors: Weights) -> list[Tensor]:
    found = [] if edit.saved is None else [tensors.tensor(edit.saved)]
    for pair in edit.pairs:
        a, b = (tensors.tensor(pair.names[part]) for part in ("A", "B"))
        # An embedding's product is stored as its transpose: (B A)^T = A^T B^T.
        found += [b.T, a.T] if pair.embedding else [a, b]
        found += [tensors.tensor(name) for part, name in pair.names.items() if part == "magnitude"]
    return found


def check_pair(adapter: Adapter, pair: Pair, tensors: Weights, found: Findings) -> None:
    """What can be said of a pair without a base."""
    if lacking := {"A", "B"} - pair.names.keys():
        found.add("half-pair", f"{pair.module} has no {min(lacking)}")
        return
    a, b = (tensors.entries[pair.names[part]] for part in ("A", "B"))
    wanted = adapter.rank(pair.module)
    if len(a.shape) != 2 or len(b.shape) != 2 or not a.shape[0] == b.shape[1] == wanted:
        found.add("rank-mismatch", f"{pair.module}: A {a.shape}, B {b.shape}, rank {wanted} in the configuration")


def _check_fit(pair: Pair, tensors: Weights, shape: tuple[int, ...], kind: str, found: Findings) -> None:
    a, b = (tensors.entries[pair.names[part]].shape for part in ("A", "B"))
    if len(a) != 2 or len(b) != 2:
        return
    wanted = (b[0], a[1]) if kind == "linear" else (a[1], b[0])
    if wanted != shape or pair.embedding != (kind == "embedding"):
        found.add("shape-mismatch", f"{pair.module}: B A is {wanted}, and the base's weight {shape}")
    if (name := pair.names.get("magnitude")) and tensors.entries[name].shape != (b[0],):
        found.add("shape-mismatch", f"{name} is {tensors.entries[name].shape}, not {(b[0],)}")


def check_contents(adapter: Adapter, tensors: Weights, found: Findings) -> None:
    """Read every tensor of an adapter once: NaN, infinity, and zeros where something was to be learnt."""
    dead = 0
    for pair in adapter.pairs:
        zero = False
        for part, name in pair.names.items():
            tensor = tensors.tensor(name)
            if not bool(tensor.isfinite().all()):
                found.add("not-finite", name)
            zero |= part in ("A", "B") and not bool(tensor.any())
        dead += zero
        # A magnitude (DoRA) or a bias may have learnt something even so.
        if zero and not pair.names.keys() & {"bias", "magnitude"}:
            found.add("dead-pair", pair.module)
    for _, name in adapter.saved:
        if tensors.entries[name].dtype in FLOATS and not bool(tensors.tensor(name).isfinite().all()):
            found.add("not-finite", name)
    if not adapter.saved and found.counts["dead-pair"] == len(adapter.pairs):
        del found.counts["dead-pair"]
        found.add("no-effect", f"all {len(adapter.pairs)} pairs are zero")


def check_quantised(adapter: Adapter, found: Findings) -> None:
    """Whether the adapter's own base was quantised, by what it says; by the base's name only where it says nothing."""
    lineage = adapter.lineage
    if lineage.quantised:
        found.add("quantised-base", f"{lineage.base or 'its base'} was in {lineage.trained_in or 'few bits'}")
    elif lineage.quantised is None and lineage.base and (word := _QUANTISED_NAME.search(lineage.base)):
        found.add("quantised-base", f"{lineage.base} ({word[0]!r} in the name)")


def check_names(adapter: Adapter, base: str, folder: Path, found: Findings) -> None:
    """For an adapter without a hash: whether the names and revisions that are known contradict each other."""
    lineage = adapter.lineage
    if lineage.base and not Path(base).is_dir() and not Path(lineage.base).is_dir() and lineage.base != base:
        found.add("other-base", f"trained on {lineage.base}, not on {base}")
    here, there = folder.resolve().name, lineage.revision or ""
    if _COMMIT.fullmatch(here) and _COMMIT.fullmatch(there) and here != there:
        found.add("other-base", f"trained on revision {there[:12]}, not on {here[:12]}")
