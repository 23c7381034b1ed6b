"""The stage `tune.merge`: an adapter into its base, proved."""

from __future__ import annotations

from stepwell.merging.merge import Merged, merge
from stepwell.stage import StageContext
from stepwell.studies.tune.base import ADAPTER, MERGED, base_of
from stepwell.studies.tune.data import one_input
from stepwell.studies.tune.params import MergeParams


def merge_adapter(params: MergeParams, ctx: StageContext) -> None:
    """Merge; one record a changed tensor, one for the proof, and the texts that were compared."""
    base = base_of(ctx)
    adapter = one_input(ctx, "tune.train").folder / ADAPTER
    found = merge(base.folder, adapter, ctx.folder / MERGED, precision=params.precision, device=ctx.device)
    for change in found.changes:
        ctx.write("layer", name=change.name, delta_share=change.delta_share, survived=change.survived)
    _write(found, base.name, params, ctx)


def _write(found: Merged, base: str, params: MergeParams, ctx: StageContext) -> None:
    proof = found.proof
    ctx.write(
        "merged", base=base, base_sha256=found.base.sha256, merged_sha256=found.merged.sha256,
        dtype=found.merged.dtype, verified=found.verified, advice=found.advice, reason=found.reason,
        survived=found.survived, columns=proof.columns, max_logit_difference=proof.max_logit_difference,
        largest_logit=proof.largest_logit, kl_nats=proof.kl_nats, effect_kl_nats=proof.effect_kl_nats,
        top1_agreement=proof.top1_agreement, greedy_agreement=proof.greedy_agreement,
    )  # fmt: skip
    for each in proof.continuations:
        ctx.write("continuation", prompt=each.prompt, text=each.text, agreed=each.agreed, tokens=each.tokens)
    ctx.write("check", name="base-verified", passed=found.verified, detail=f"the base is {found.base.sha256[:12]}")
    kept = found.survived is not None and found.survived >= params.least_survived
    detail = f"{found.survived:.3f} of the change survived" if found.survived is not None else "nothing changed"
    ctx.write("check", name="change-survived", passed=kept, detail=f"{detail}; {params.least_survived:g} is asked for")
    ctx.write("check", name="merge-advised", passed=found.advice == "good", detail=found.reason)
