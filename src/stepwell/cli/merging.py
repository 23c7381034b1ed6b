"""Commands about merging: merge, audit adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from stepwell.merging.merge import Merged
    from stepwell.merging.proof import Proof


def add_to(app: typer.Typer) -> None:
    """Add `merge`, and `adapter` to the group `audit`, which is there already."""
    app.command("merge")(merge)
    (group,) = (each.typer_instance for each in app.registered_groups if each.name == "audit")
    assert group is not None
    group.command("adapter")(audit_adapter)


def merge(
    base: Annotated[str, typer.Argument(metavar="BASE", help="A folder, a pulled name or a hub id.")],
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help="The folder of a PEFT adapter.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write; must not be there.")],
    dtype: Annotated[
        Literal["fp32", "bf16", "fp16"] | None, typer.Option("--dtype", help="Of OUT; by default the base's.")
    ] = None,
    merge_base: Annotated[
        Literal["fp", "dequantized"] | None,
        typer.Option("--merge-base", help="For an adapter trained on 4 bits: into which weights. Both are measured."),
    ] = None,
    override: Annotated[
        str | None, typer.Option("--override", metavar="REASON", help="Merge in spite of a refusal; is recorded.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> int:
    """Merge an adapter into its base, tensor by tensor, and prove the result against base + adapter.

    Exit code: 0 merged and good, 1 merged, but another dtype or no merge is advised, 3 refused.
    """
    from stepwell.merging.merge import merge as merge_folders

    found = merge_folders(base, adapter, out, precision=dtype, merge_base=merge_base, override=override)
    if as_json:
        print(json.dumps(found.to_json(), indent=1, ensure_ascii=False))
    else:
        _show(found, merge_base)
    return 0 if found.advice == "good" else 1


def audit_adapter(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a PEFT adapter.")],
    base: Annotated[str | None, typer.Option("--base", help="The base it is to be merged into.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print {adapter, lineage, base_sha256, pairs, ok, findings}.")
    ] = False,
) -> int:
    """Audit an adapter: what it was trained on, and all that speaks against merging it, with its base or without.

    Exit code: 0 clean, 1 findings.
    """
    from stepwell.cli import show
    from stepwell.merging.auditing import audit
    from stepwell.merging.matching import CODES

    found = audit(folder, base)
    if as_json:
        print(json.dumps(found.to_json(), indent=1, ensure_ascii=False))
        return 0 if found.ok else 1
    output = show.console()
    output.print(f"{folder}: {found.pairs} pairs, {'clean' if found.ok else f'{len(found.faults)} kinds of fault'}")
    lineage = found.lineage
    told = f"{lineage.base or 'not named'}, {lineage.identity.sha256[:12] if lineage.identity else 'without a hash'}"
    output.print(f"trained on: {told}")
    if found.faults:
        rows = [(fault.code, fault.count, CODES[fault.code], fault.example) for fault in found.faults]
        output.print(show.table(("finding", "found", "what it is", "example"), rows, right=("found",)))
    return 0 if found.ok else 1


def _show(found: Merged, merge_base: str | None) -> None:
    from stepwell.cli import show

    output = show.console()
    checked = "as the adapter says" if found.verified else "the adapter does not say which"
    output.print(f"base {found.base.sha256[:12]} ({checked}); merged {found.merged.sha256[:12]}, {found.merged.dtype}")
    for fault in found.overridden:
        output.print(f"overridden: {fault.code}, {fault.example}")
    rows = [(each.name, show.number(each.delta_share, ".2%"), show.number(each.survived, ".1%"))
            for each in found.changes]  # fmt: skip
    output.print(show.table(("changed tensor", "change / weight", "survived the cast"), rows,
                            right=("change / weight", "survived the cast")))  # fmt: skip
    proofs = [("merged" if merge_base is None else f"merged into {merge_base}", found.proof)]
    if found.other is not None:
        proofs.append((f"had it been {'dequantized' if merge_base == 'fp' else 'fp'}", found.other))
    output.print(show.table(
        ("against base + adapter", "largest difference", "KL", "the adapter's own KL", "same first choice", "greedy"),
        [(name, *_numbers(proof)) for name, proof in proofs],
    ))  # fmt: skip
    output.print(f"{found.advice}: {found.reason}")
    output.print(str(found.folder))


def _numbers(proof: Proof) -> tuple[str, ...]:
    return (f"{proof.max_logit_difference:.3g} of {proof.largest_logit:.3g}", f"{proof.kl_nats:.2g} nats",
            f"{proof.effect_kl_nats:.2g} nats", f"{proof.top1_agreement:.1%} of {proof.columns}",
            f"{proof.greedy_agreement:.1%}")  # fmt: skip
