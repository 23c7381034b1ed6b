"""`stepwell merge`: an adapter into its base, refused or proved, as a folder that is there whole or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import stepwell
from stepwell.errors import StepwellError
from stepwell.fingerprint import fingerprint, of_file
from stepwell.merging.adapter import CONFIG, WEIGHTS, Adapter
from stepwell.merging.arithmetic import Merger
from stepwell.merging.base import BaseIdentity, main_dtype, read_config
from stepwell.merging.checking import MANIFEST, check_files, write_manifest
from stepwell.merging.faults import examine, other_base, refuse
from stepwell.merging.files import INDEX, Weights, entry_bytes
from stepwell.merging.layout import Layout
from stepwell.merging.matching import Fault, Match
from stepwell.merging.proof import Proof, ask, compare
from stepwell.merging.streamed import Streamed, from_files, from_merger
from stepwell.merging.writing import Change, Precision, Written, share_survived, stored_as, write_weights
from stepwell.models import MANIFEST as PULLED
from stepwell.models import TOKENIZER_FILES, has_tokenizer, locate, whole_folder
from stepwell.shapes import pick_device

MergeBase = Literal["fp", "dequantized"]
COPIED = (".json", ".txt", ".model", ".jinja")
TOKENIZER = (*TOKENIZER_FILES, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
             "merges.txt", "chat_template.jinja", "chat_template.json")  # fmt: skip

ENOUGH = 0.5
"""Share of the change that has to survive the cast, or another dtype is advised."""
LITTLE_LOST = 0.25
"""KL of the merged model at most, as a share of the KL that the adapter itself makes."""

Advice = Literal["good", "write fp32", "do not merge"]


@dataclass(frozen=True, kw_only=True)
class Merged:
    """A merge that was written and compared.

    Attributes:
        folder: of the merged model.
        base: the base's identity.
        merged: the merged weights' identity, which an adapter trained on them will name.
        verified: whether the adapter named its base by a hash, and it was this one.
        changes: of every tensor that the adapter changes.
        proof: against base + adapter.
        other: for an adapter trained on 4 bits, the proof of the other way of merging it; None for any other.
        overridden: what would have been refused.
        advice: whether to use it.
        reason: of the advice.
    """

    folder: Path
    base: BaseIdentity
    merged: BaseIdentity
    verified: bool
    changes: tuple[Change, ...]
    proof: Proof
    other: Proof | None
    overridden: tuple[Fault, ...]
    advice: Advice
    reason: str

    @property
    def survived(self) -> float | None:
        """Share of the whole change that the cast left; None where nothing changed."""
        return _survived(self.changes)

    def to_json(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return {
            "out": str(self.folder),
            "base_sha256": self.base.sha256,
            "merged_sha256": self.merged.sha256,
            "verified": self.verified,
            "advice": self.advice,
            "reason": self.reason,
            "survived": self.survived,
            "proof": self.proof.to_json(),
            "other_base": self.other and self.other.to_json(),
            "overridden": [fault.to_json() for fault in self.overridden],
            "layers": [change.to_json() for change in self.changes],
        }


def merge(
    base: str | Path,
    adapter: Path,
    out: Path,
    *,
    precision: Precision | None = None,
    merge_base: MergeBase | None = None,
    override: str | None = None,
    device: str = "auto",
) -> Merged:
    """Merge an adapter into the weights that it was trained on, and prove it.

    At most the rows of one tensor at a time, and one pair of the adapter, are held while merging; the proof holds one
    module.

    Args:
        base: folder, pulled name or hub id.
        adapter: folder of a PEFT adapter.
        out: folder to write; must not be there, or be empty.
        precision: of the floats that are written; None = each as the base has it.
        merge_base: for an adapter trained on 4 bits: into the weights as they are (`fp`), or as they come back from
            NF4, which is what the adapter saw (`dequantized`). Giving it says that this is meant.
        override: the reason for merging in spite of a refusal, which is recorded.
        device: where the proof computes.

    Raises:
        StepwellError: a refusal, with how to override it where that can be done; files that are missing, broken or
            pickles; a merge in fp32 that does not compute what base and adapter compute. OUT is then not there.
    """
    folder = locate(base)
    held = Adapter.read(adapter)
    _need_empty(out)
    with ExitStack() as stack:
        weights, tensors = stack.enter_context(Weights.of_model(folder)), stack.enter_context(held.open())
        _need_room(weights, out, precision)
        _need_four_bits(held, merge_base)
        layout = Layout.of(folder, weights)
        found = examine(held, tensors, base=(str(base), folder, weights, layout), meant=merge_base is not None)
        overridden = list(refuse(found.faults, override, adapter))
        four_bit = layout.quantisable if merge_base == "dequantized" else frozenset[str]()
        merger = Merger(held, tensors, weights, four_bit)
        with whole_folder(out) as new:
            written = write_weights(merger, found.outputs, new, precision=precision)
            identity = BaseIdentity.of_hashes(written.base_hashes, weights, folder)
            late = _late_faults(held, identity, written)
            overridden += refuse(late, override, adapter)
            _write_config(folder, new, found, precision, weights)
            _copy_rest(folder, adapter, new)
            proof, other = _prove(merger, found, layout, folder, new, device, meant=merge_base)
            if _is_full(new):
                _need_exact(proof, merge_base, adapter)
            advice, reason = advise(written.changes, proof, full=_is_full(new))
            merged = BaseIdentity(sha256=fingerprint(dict(written.hashes)), dtype=_dtype(new), quantised=False)
            result = Merged(
                folder=out, base=identity, merged=merged, verified=_is_verified(held, identity), proof=proof,
                other=other, changes=written.changes, overridden=tuple(overridden), advice=advice, reason=reason,
            )  # fmt: skip
            told = _told(result, held, base=str(base), override=override, merge_base=merge_base)
            write_manifest(new, told, written.hashes)
            check_files(new)
    return result


def advise(changes: Sequence[Change], proof: Proof, *, full: bool) -> tuple[Advice, str]:
    """What to do with a merge, and why.

    Args:
        changes: of the tensors that the adapter changes.
        proof: of the merged model.
        full: whether the weights are in fp32, so that nothing wider is left to be advised.
    """
    survived = _survived(changes)
    lost = proof.kl_nats > LITTLE_LOST * proof.effect_kl_nats
    if (survived is None or survived >= ENOUGH) and not lost:
        return "good", "the merged model computes what base and adapter compute"
    told = []
    if survived is not None and survived < ENOUGH:
        told.append(f"{survived:.0%} of the change survived the cast")
    if lost:
        told.append(
            f"the merged model is {proof.kl_nats:.2g} nats from base + adapter, which are {proof.effect_kl_nats:.2g} "
            "from the base"
        )
    if full:
        return "do not merge", f"{'; '.join(told)}: keep base and adapter apart"
    return "write fp32", f"{'; '.join(told)}: write it with --dtype fp32, or do not merge: keep base and adapter apart"


def _survived(changes: Sequence[Change]) -> float | None:
    delta = sum(change.delta_norm**2 for change in changes) ** 0.5
    return share_survived(delta, sum(change.lost_norm**2 for change in changes) ** 0.5)


def _need_empty(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise StepwellError("there is something there already", "name another folder, or delete it", path=out)


def _need_room(weights: Weights, out: Path, precision: Precision | None) -> None:
    needed = sum(entry_bytes(stored_as(entry, precision), entry.shape) for entry in weights.entries.values())
    place = next(parent for parent in out.absolute().parents if parent.is_dir())
    if (free := shutil.disk_usage(place).free) < needed:
        raise StepwellError(
            f"{needed / 1e9:.1f} GB are needed, and {free / 1e9:.1f} are free", "free space, or write elsewhere",
            path=place,
        )  # fmt: skip


def _need_four_bits(adapter: Adapter, merge_base: MergeBase | None) -> None:
    if merge_base is not None and adapter.lineage.quantised is False:
        raise StepwellError(
            "the adapter was trained on full-precision weights, so there is no choice of what to merge it into",
            "leave --merge-base out", path=adapter.folder,
        )  # fmt: skip


def _late_faults(adapter: Adapter, identity: BaseIdentity, written: Written) -> list[Fault]:
    """What is known only when all weights have been read."""
    faults = other_base(adapter, identity)
    if all(change.delta_norm <= 1e-6 * change.base_norm for change in written.changes):
        faults.append(Fault(code="no-effect", count=1, example=f"{len(written.changes)} tensors are as they were"))
    return faults


def _write_config(folder: Path, new: Path, match: Match, precision: Precision | None, weights: Weights) -> None:
    config = read_config(folder)
    if precision is not None:
        config["dtype"] = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}[precision]
        config.pop("torch_dtype", None)
    if match.unties:
        config["tie_word_embeddings"] = False
    (new / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _copy_rest(folder: Path, adapter: Path, new: Path) -> None:
    """Tokenizer, template and generation configuration; the tokenizer that lies with the adapter where one does."""
    apart = {"config.json", INDEX, PULLED, MANIFEST}
    files = [file for file in folder.iterdir() if file.suffix in COPIED and file.is_file() and file.name not in apart]
    if has_tokenizer(adapter):
        files = [file for file in files if file.name not in TOKENIZER]
        files += [adapter / name for name in TOKENIZER if (adapter / name).is_file()]
    for file in files:
        shutil.copyfile(file, new / file.name)


def _prove(
    merger: Merger, match: Match, layout: Layout, folder: Path, new: Path, device: str, *, meant: MergeBase | None
) -> tuple[Proof, Proof | None]:
    """The proof of what was written, and for a 4-bit adapter that of the other way, which is not written."""
    place = pick_device(device)
    # An adapter trained on 4 bits is at home on what they leave: that is what both ways are measured against.
    seen = layout.quantisable if meant is not None else frozenset[str]()
    load = from_files(merger.base, layout, seen)
    base = Streamed(folder, load, device=place)
    reference = ask(Streamed(folder, load, device=place, adapter=merger.adapter.folder), base)
    with Weights.of_model(new) as weights:
        made = Layout.of(new, weights)
        proof = compare(reference, Streamed(new, from_files(weights, made), device=place))
    if meant is None:
        return proof, None
    other = Merger(merger.adapter, merger.tensors, merger.base, frozenset() if merger.four_bit else layout.quantisable)
    outputs = {output.place: output for output in match.outputs}
    places = {name: outputs[at] for name, at in made.places.items()}
    return proof, compare(reference, Streamed(new, from_merger(other, places), device=place))


def _need_exact(proof: Proof, merge_base: MergeBase | None, adapter: Path) -> None:
    if merge_base != "fp" and not proof.exact:
        raise StepwellError(
            f"the merged model does not compute what base and adapter compute: logits differ by "
            f"{proof.max_logit_difference:.3g} (the largest is {proof.largest_logit:.3g}), "
            f"{proof.top1_agreement:.1%} of the predictions agree",
            "keep base and adapter apart, and report this: in fp32 they should agree",
            path=adapter,
        )


def _is_verified(adapter: Adapter, identity: BaseIdentity) -> bool:
    return adapter.lineage.identity is not None and adapter.lineage.identity.sha256 == identity.sha256


def _dtype(folder: Path) -> str:
    with Weights.of_model(folder) as weights:
        return main_dtype(weights.entries.values())


def _is_full(folder: Path) -> bool:
    return _dtype(folder) in ("F32", "F64")


def _told(
    result: Merged, adapter: Adapter, *, base: str, override: str | None, merge_base: MergeBase | None
) -> dict[str, Any]:
    """What the manifest says beside the files and their hashes."""
    return {
        "stepwell": stepwell.__version__,
        "base": {"name": base, **vars(result.base)},
        "adapter": {
            "name": adapter.folder.name,
            "sha256": of_file(adapter.folder / WEIGHTS),
            "config_sha256": of_file(adapter.folder / CONFIG),
            "lineage": adapter.lineage.to_json(),
        },
        "merge_base": merge_base,
        "override": override,
        **{key: value for key, value in result.to_json().items() if key != "out"},
    }
