"""The stages `squeeze.restore` and `squeeze.refine`: compressors of the whole corpus, restorers behind them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from stepwell.answers import Asked, answer_items
from stepwell.errors import StepwellError
from stepwell.latents.compressor import Compressor, token_counts
from stepwell.latents.contract import Contract
from stepwell.latents.restorer import Restorer, reconstruction
from stepwell.latents.restorer_specs import RestoringRecipe
from stepwell.latents.restoring import Step, train_restorer
from stepwell.latents.wirebytes import quantise_latents
from stepwell.shapes import embedding_table
from stepwell.stage import StageContext
from stepwell.studies.qa.data import read_split
from stepwell.studies.qa.models import loaded
from stepwell.studies.qa.text import laid_out, prompt_embeddings
from stepwell.studies.squeeze.params import TERMS, Bottleneck, RefineParams, RestoreParams
from stepwell.tasks.base import QA

FILE = "restorer.safetensors"
MEASURED = ("held", "test")
TOKENS = 4096
"""Restored at a time, when they are measured."""


def restore(params: RestoreParams, ctx: StageContext) -> None:
    """Fit the job's compressor and train its restorer; measure what is left of held-out prompts, real tokens only."""
    state = ctx.restored()
    contract, arm = loaded(ctx), chosen(params, ctx)
    backbone, prompts = contract.backbone, prompts_of(contract, ctx, "train")
    counts = token_counts([prompt[len(contract.bos) :] for prompt in prompts], backbone.vocabulary)
    dims = int(ctx.job.axes.get("dims", params.dims))
    compressor = Compressor.fit(
        embedding_table(backbone), counts, dims, subspace=arm.subspace, whiten=params.whiten, seed=ctx.seed
    )
    restorer = Restorer(compressor, arm.restorer)
    if state is None:
        ctx.write(
            "compressor", subspace=arm.subspace, dims=dims, width=compressor.width, explained=compressor.explained,
            corpus_tokens=int(counts.sum()), distinct=int((counts > 0).sum()),
        )  # fmt: skip
    if arm.recipe is not None:
        _train(params, ctx, contract, restorer, counts, prompts, arm.recipe, state)
    _finish(ctx, contract, restorer)


def refine(params: RefineParams, ctx: StageContext) -> None:
    """Phase 2 from the restorer that phase 1 left."""
    state, contract = ctx.restored(), loaded(ctx)
    (before,) = ctx.inputs["restore"]
    restorer = Restorer.load(before.folder / FILE).to(next(contract.backbone.parameters()).device)
    prompts = prompts_of(contract, ctx, "train")
    counts = token_counts([prompt[len(contract.bos) :] for prompt in prompts], contract.backbone.vocabulary)
    _train(params, ctx, contract, restorer, counts, prompts, params.recipe, state)
    _finish(ctx, contract, restorer)


def chosen(params: RestoreParams, ctx: StageContext) -> Bottleneck:
    """The job's arm. Raises StepwellError where the plan does not say what it is."""
    name = str(ctx.job.axes["arm"])
    if name not in params.arms:
        raise StepwellError(f"there is no arm `{name}`; arms: {', '.join(params.arms)}", "name some in `axes.arm`")
    return params.arms[name]


def prompts_of(contract: Contract, ctx: StageContext, name: str) -> list[tuple[int, ...]]:
    """The prompts of a split, as every arm reads them."""
    (data,) = ctx.inputs["data"]
    return [contract.prompt(item) for item in read_split(data.folder, name)]


def _train(
    params: RestoreParams | RefineParams, ctx: StageContext, contract: Contract, restorer: Restorer, counts: Tensor,
    prompts: Sequence[Sequence[int]], recipe: RestoringRecipe, state: dict[str, Any] | None,
) -> None:  # fmt: skip
    def on_step(step: Step) -> None:
        if step.step % params.log_every == 0 or step.step == recipe.steps or step.skipped:
            ctx.write("step", **(dict.fromkeys(sorted(TERMS)) | step.fields()))
        ctx.progress(step.step, recipe.steps, loss=round(step.losses.loss, 4))

    while state is None or state["step"] < recipe.steps:
        done = 0 if state is None else state["step"]
        state = train_restorer(
            restorer, contract.backbone, counts, recipe, prompts=prompts, kept=len(contract.bos), seed=ctx.seed,
            state=state, until=done + params.checkpoint_every, on_step=on_step,
        )  # fmt: skip
        _look(params, ctx, contract, restorer, state["step"])
        ctx.save(state)
        ctx.stop_if_asked()
    if state["step"] == recipe.steps:  # after a resume at the very end, the weights are in the state alone
        train_restorer(restorer, contract.backbone, counts, recipe, prompts=prompts, kept=len(contract.bos),
                       seed=ctx.seed, state=state)  # fmt: skip


def _look(
    params: RestoreParams | RefineParams, ctx: StageContext, contract: Contract, restorer: Restorer, step: int
) -> None:
    """Answers to a few held-out items, as they are scored in the end: losses do not say whether answers survive."""
    (data,) = ctx.inputs["data"]
    items = read_split(data.folder, "held", params.answered) if params.answered else []
    found = list(answer_items(contract.backbone, contract, items, partial(through, contract, restorer, bits=32)))
    if found:
        f1, em = (sum(values) / len(found) for values in ([one.f1 for one in found], [one.em for one in found]))
        ctx.write("look", step=step, n=len(found), f1=f1, em=em)


@torch.no_grad()
def through(contract: Contract, restorer: Restorer, items: Sequence[QA], bits: int) -> Asked:
    """Prompts after they went over the wire: compressed, quantised, restored."""
    prefixes = []
    for item in items:
        sent = restorer.encode(prompt_embeddings(contract, item))
        prefixes.append(restorer.decode(sent if bits == 32 else quantise_latents(sent, bits)))
    return laid_out(contract, prefixes)


def _finish(ctx: StageContext, contract: Contract, restorer: Restorer) -> None:
    for name in MEASURED:
        ids = torch.tensor([i for prompt in prompts_of(contract, ctx, name) for i in prompt[len(contract.bos) :]])
        found, device = None, next(contract.backbone.parameters()).device
        for part in ids.split(TOKENS):
            vectors = contract.backbone.embed(part[None].to(device)).detach()
            with torch.no_grad():
                restored = restorer(vectors)
            one = reconstruction(restored, vectors, torch.ones(1, len(part), dtype=torch.bool, device=device))
            found = one if found is None else found + one
        assert found is not None
        ctx.write("reconstruction", set=name, tokens=len(ids), **found.means())
    restorer.save(ctx.folder / FILE)
