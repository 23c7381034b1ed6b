"""The stage `tune.train`: an adapter on the base, from the training set or from failures with a share of it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence

from stepwell.adapt.lora import LoRA
from stepwell.errors import StepwellError
from stepwell.merging.base import BaseIdentity
from stepwell.sft.conversations import Conversation
from stepwell.sft.cost import Cost, cost, need_free_disk
from stepwell.sft.meta import MetaModel
from stepwell.sft.model import SftModel, need_full_precision
from stepwell.sft.packing import Batch, Corpus, prove_packing
from stepwell.sft.render import ChatFormat
from stepwell.sft.stream import SftStream
from stepwell.sharding import shard
from stepwell.stage import StageContext
from stepwell.studies.tune.base import ADAPTER, Base, base_of
from stepwell.studies.tune.data import Drawn
from stepwell.studies.tune.lint import set_sha256
from stepwell.studies.tune.mining import trained_on
from stepwell.studies.tune.params import TuneTrainParams
from stepwell.train import Training

HELD_ROWS = 8


def train(params: TuneTrainParams, ctx: StageContext) -> None:
    """Train, and save the adapter in PEFT's format with the identity of its base."""
    state, base, data = ctx.restored(), base_of(ctx), Drawn.of(ctx)
    need_full_precision(base.folder, allowed=base.params.allow_quantised)
    identity = BaseIdentity.of(base.folder)
    _need_recorded(base, identity, ctx)
    first = data.train
    chosen, replayed = trained_on(first, params.replay, ctx)
    _need_linted(chosen, ctx)
    # What no device holds whole is loaded beside it, and moved there in parts.
    backbone = base.load("cpu" if ctx.shard else ctx.device)
    if params.pack:
        prove_packing(backbone)
    form = ChatFormat.of(backbone.tokenizer)
    _need_template(form, ctx)
    categories = None if params.meta is None else categories_of(chosen, first)
    corpus = Corpus.of(chosen, form, params.max_tokens)
    stream = SftStream(
        corpus, max_tokens=params.max_tokens, batch_size=params.batch_size, accumulation=params.accumulation,
        seed=ctx.seed, pack=params.pack, categories=categories,
    )  # fmt: skip
    lora = LoRA(backbone, params.lora, name="tuned", seed=ctx.seed)
    need_free_disk(ctx.folder, lora)
    held = Corpus.of(data.held, form, params.max_tokens)
    model, whole = _model(lora, stream, batches(held), params, ctx)
    if state is None:
        ctx.write(
            "training-set", n=len(corpus), left_out=len(corpus.left_out), replayed=replayed,
            rows=len(stream.rows), tokens=whole.tokens, supervised_tokens=whole.supervised_tokens,
            padding_share=whole.padding_share, steps=whole.steps, base=base.name,
            base_sha256=identity.sha256, trainable=lora.parameter_count(),
        )  # fmt: skip
        _write_categories(stream, categories or {}, ctx)
    if ctx.shard:
        ctx.event("sharded", **shard(backbone, ctx.ranks, ctx.device, but=lora.parameters()))
    began = time.perf_counter()
    Training(
        model=model, stream=stream, recipe=params, curriculum=None, monitors=params.monitors, ctx=ctx,
        seed=ctx.seed,
    ).run(state)  # fmt: skip
    _save(lora, base, identity, ctx)
    ctx.event("trained", seconds=round(time.perf_counter() - began, 1), tokens=whole.tokens)


def categories_of(chosen: Sequence[Conversation], first: Sequence[Conversation]) -> dict[str, str | None]:
    """Of the conversations by their ids, for tasks.

    A failure has the benchmark's category: it is trained on as the problem that it was in the training set.
    """
    known = {one.id: one.category for one in first}
    return {one.id: known.get(one.id, one.category) for one in chosen}


def batches(corpus: Corpus) -> Sequence[Batch]:
    """Rows of one example each, for a loss on held-out conversations."""
    numbers = sorted(range(len(corpus)), key=corpus.lengths.__getitem__)
    return [corpus.batch([(number,) for number in numbers[at : at + HELD_ROWS]])
            for at in range(0, len(numbers), HELD_ROWS)]  # fmt: skip


def _need_recorded(base: Base, identity: BaseIdentity, ctx: StageContext) -> None:
    """The wrong base is a red flag: the plan's other stages graded, and will merge into, the weights of the record."""
    merged = ctx.made_by("tune.merge")
    made, kind, field = (
        (merged[-1], "merged", "merged_sha256") if merged else (ctx.inputs["model"][0], "base", "sha256")
    )
    for record in made.records(kind):
        if record[field] != identity.sha256:
            raise StepwellError(
                f"wrong base: the weights of {base.name} are {identity.sha256[:12]}..., and {made.job.id} recorded "
                f"{record[field][:12]}...: they were changed since",
                "put the weights back, or run the plan in a new folder, where all its stages have the new ones",
                stage=ctx.job.id, path=base.folder,
            )  # fmt: skip


def _need_linted(chosen: Sequence[Conversation], ctx: StageContext) -> None:
    """A linter that passed other conversations than those at hand has said nothing of them."""
    looked = ctx.made_by("tune.lint")
    if looked and set_sha256(chosen) not in {row["sha256"] for made in looked for row in made.records("linted")}:
        names = ", ".join(made.job.id for made in looked)
        raise StepwellError(
            f"{names} looked at other conversations than the {len(chosen)} that are to be trained on",
            f"let it need the `tune.mine` or `tune.correct` that `{ctx.job.stage}` needs, with the same `replay`",
            stage=ctx.job.id,
        )


def _need_template(form: ChatFormat, ctx: StageContext) -> None:
    """The template is no part of the weights' hash, and the model is linted and graded in that of the record."""
    made, template = ctx.inputs["model"][0], form.fingerprint()
    for record in made.records("base"):
        if record["template"] != template:
            raise StepwellError(
                f"the chat template is {template[:12]}..., and {made.job.id} recorded {record['template'][:12]}...",
                "put the template back, or run the plan in a new folder, where all its stages have the new one",
                stage=ctx.job.id,
            )


def _model(
    lora: LoRA, stream: SftStream, held: Sequence[Batch], params: TuneTrainParams, ctx: StageContext
) -> tuple[SftModel, Cost]:
    """What is trained, and what that comes to."""
    meta = params.meta
    if meta is None:
        model = SftModel(lora, ctx=ctx, held_out=held)
        return model, cost(stream, params)
    whole = cost(stream, params, learnt=1 - meta.support_rows(stream.batch_size) / stream.batch_size)
    model = MetaModel(lora, meta, ctx=ctx, steps=whole.steps, log_every=params.log_every, held_out=held)
    return model, whole


def _write_categories(stream: SftStream, categories: Mapping[str, str | None], ctx: StageContext) -> None:
    """How many rows and tasks an epoch has of each category: none of one with too few rows for a task."""
    for name, n in sorted(Counter(categories[one] for one in stream.corpus.names if categories).items()):
        rows = len(stream.groups[name])
        ctx.write("category", category=name, n=n, rows=rows, tasks=rows // stream.batch_size)


def _save(lora: LoRA, base: Base, identity: BaseIdentity, ctx: StageContext) -> None:
    name, revision = base.origin()
    lora.save_peft(ctx.folder / ADAPTER, base=name, identity=identity, revision=revision)
    ctx.write("check", name="adapter-saved", passed=True, detail=f"{lora.parameter_count():,} weights on {base.name}")
