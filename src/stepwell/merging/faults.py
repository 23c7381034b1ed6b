"""All that speaks against an adapter, with its base or without, and the one refusal that is made of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stepwell.errors import StepwellError
from stepwell.merging.adapter import Adapter
from stepwell.merging.base import BaseIdentity, is_quantised, main_dtype, read_config
from stepwell.merging.files import Weights
from stepwell.merging.layout import Layout
from stepwell.merging.matching import (
    CODES,
    HARMLESS,
    OVERRIDABLE,
    Fault,
    Findings,
    Match,
    check_contents,
    check_names,
    check_pair,
    check_quantised,
    match,
)

WAYS_OUT = {
    "quantised-base": "train it on full-precision weights; or say what is meant: `--merge-base fp` adds it to the "
    "weights as they are, `--merge-base dequantized` to what 4 bits leave of them, and both are measured",
    "base-in-4-bits": "give the full-precision weights that it was made from",
    "other-base": "give the base that it was trained on",
    "unmatched-key": "give the base that it was trained on",
    "used-twice": "save the adapter again, one pair a place",
    "half-pair": "save the adapter again, whole",
    "rank-mismatch": "take the adapter_config.json that was saved with these weights",
    "shape-mismatch": "give the base that it was trained on, with an embedding of the same size",
    "not-finite": "take an earlier checkpoint of the training",
    "no-effect": "take the checkpoint after training, not the one before",
}


def examine(
    adapter: Adapter,
    tensors: Weights,
    *,
    base: tuple[str, Path, Weights, Layout] | None = None,
    meant: bool = False,
) -> Match:
    """Everything about an adapter that can be said before the base's weights are read.

    Args:
        adapter: the adapter.
        tensors: its tensors.
        base: the base as it was named, its folder, weights and layout; None = only the adapter is looked at.
        meant: whether the user has said what is to be done with an adapter that was trained on 4 bits.

    Returns:
        The match; without a base it has no outputs.
    """
    found = Findings()
    if not meant:
        check_quantised(adapter, found)
    matched: Sequence[Fault] = ()
    outputs, unties = (), False
    if base is None:
        for name in adapter.strays:
            found.add("unmatched-key", name)
        for pair in adapter.pairs:
            check_pair(adapter, pair, tensors, found)
        for module in {pair.module for pair in adapter.pairs}:
            if sum(pair.module == module for pair in adapter.pairs) > 1:
                found.add("used-twice", module)
    else:
        name, folder, weights, layout = base
        if is_quantised(folder, weights):
            found.add("base-in-4-bits", f"{name}: {_why_quantised(folder, weights)}")
        # A 4-bit copy has another name than the weights it was made from.
        if adapter.lineage.identity is None and not meant:
            check_names(adapter, name, folder, found)
        laid = match(adapter, tensors, weights, layout)
        matched, outputs, unties = laid.faults, laid.outputs, laid.unties
    check_contents(adapter, tensors, found)
    ordered = sorted((*found.faults(), *matched), key=lambda fault: list(CODES).index(fault.code))
    return Match(outputs=outputs, unties=unties, faults=tuple(ordered))


def other_base(adapter: Adapter, identity: BaseIdentity) -> list[Fault]:
    """Whether an adapter names other weights than these by its hash; nothing is found where it has none."""
    wanted = adapter.lineage.identity
    if wanted is None or wanted.sha256 == identity.sha256:
        return []
    told = f"trained on the weights {wanted.sha256[:12]}, and these are {identity.sha256[:12]}"
    return [Fault(code="other-base", count=1, example=told)]


def _why_quantised(folder: Path, weights: Weights) -> str:
    told = "its config.json has a quantization_config" if "quantization_config" in read_config(folder) else None
    return told or f"most of its weights are {main_dtype(weights.entries.values())}"


def refuse(faults: Sequence[Fault], override: str | None, adapter: Path) -> tuple[Fault, ...]:
    """Raise for what speaks against a merge; return what a reason has overridden.

    Raises:
        StepwellError: something that cannot be overridden, or that no reason was given for.
    """
    serious = [fault for fault in faults if fault.code not in HARMLESS]
    hard = [fault for fault in serious if fault.code not in OVERRIDABLE]
    refused = serious if override is None else hard
    if refused:
        told = "; ".join(f"{CODES[fault.code]} ({fault.count}, first: {fault.example})" for fault in refused)
        ways = list(dict.fromkeys(WAYS_OUT[fault.code] for fault in refused))
        if not hard:
            ways.append('to merge all the same, give the reason: `--override "..."`, which is recorded')
        raise StepwellError(f"the merge is refused: {told}", "; ".join(ways), path=adapter)
    return tuple(serious)
