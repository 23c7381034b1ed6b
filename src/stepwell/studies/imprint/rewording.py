"""The stage `imprint.paraphrase`: other wordings of each text, which become targets beside it."""

from __future__ import annotations

from stepwell.stage import StageContext
from stepwell.studies.imprint.pairs import every_pair, examples
from stepwell.studies.imprint.params import DataParams
from stepwell.tasks.paraphrases import ParaphraseSpec, paraphrase


def reword(params: ParaphraseSpec, ctx: StageContext) -> None:
    """Write the wordings of each text, and what an item lacks; answers of models are kept as they come."""
    ctx.keep_artifacts()
    (data,) = ctx.inputs["data"]
    tier = DataParams.model_validate(dict(data.job.params)).tiers[str(ctx.job.axes["tier"])]
    items = examples(ctx)
    known = [item.id for item in every_pair(tier, data.job.params["draw"])]
    found = paraphrase(
        items, params, cache=ctx.folder / "asked", device=ctx.device, known=known, between=ctx.stop_if_asked
    )
    for id, by_mode in found.texts.items():
        for mode, texts in by_mode.items():
            ctx.write("paraphrase", id=id, mode=mode, texts=list(texts))
    for lack in found.lacks:
        ctx.write("lack", id=lack.id, mode=lack.mode, wanted=lack.wanted, found=lack.found, why=lack.why)
