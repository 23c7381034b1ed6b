"""The stage `thoughts.model`: before any money is spent, does this arm's model learn what its labels say?

The label self-test trains the arm on a toy batch until it decodes it exactly: labels shifted twice, an answer or EOS
left without supervision, or a prompt that differs between training and decoding cannot pass it.
"""

from __future__ import annotations

from typing import Any

import torch

from stepwell.audit.training import Account, account, learns_its_labels, supervised_tokens, unanswered
from stepwell.latents.thoughts import WITH_LATENTS, Arm, Batch
from stepwell.stage import StageContext
from stepwell.studies.thoughts.build import Built, build
from stepwell.studies.thoughts.params import ModelParams, SymbolModel
from stepwell.studies.thoughts.training import ThoughtModel, curriculum_of
from stepwell.tasks.prosqa import generate_graphs, render
from stepwell.tasks.prosqa.reading import Reader

TOY_ITEMS = 3


def check(params: ModelParams, ctx: StageContext) -> None:
    """Run every check of one arm; each is a record, and the gate `setup` reads them."""
    arm: Arm = ctx.job.axes["arm"]
    built = build(params, arm, seed=ctx.seed, device=ctx.device)
    reader = _toy(built)
    curriculum = curriculum_of(params, arm)
    stage = curriculum.stages if curriculum else 0
    batch = reader.train_batch(torch.arange(len(reader)), arm, lambda _: stage, torch.Generator().manual_seed(0))
    found = account(built.thoughts)
    ctx.write("parameters", **vars(found))
    _write(ctx, "parameters-expected", *_expected(built, found))
    _write(ctx, "supervision", *_supervision(built, batch, reader))
    _write(ctx, "one-pass", *_one_pass(params, arm, batch, ctx))
    _write(ctx, "forward-backward", *_gradients(built, reader, batch))
    passed, detail = learns_its_labels(
        ThoughtModel(built=built, steer=reader, seed=0), batch, reader.eos,
        steps=params.selftest_steps, lr=params.selftest_lr,
    )  # fmt: skip
    _write(ctx, "label-self-test", passed, detail)


def _write(ctx: StageContext, name: str, passed: bool, detail: str) -> None:
    ctx.write("check", name=name, passed=passed, detail=detail)


def _toy(built: Built) -> Reader:
    """A few small items; whether labels are aligned does not depend on which."""
    items = generate_graphs("mini", TOY_ITEMS, 0)
    return built.symbols(items) if isinstance(built.params.model, SymbolModel) else built.text(render(items, "mini", 0))


def _expected(built: Built, found: Account) -> tuple[bool, str]:
    """`shared` trains its vector beside the backbone, `frozen` holds one as a buffer, the others have none."""
    arm, width = built.thoughts.arm, built.thoughts.backbone.width
    backbone = account(built.thoughts.backbone).trainable
    trainable = backbone + (width if arm == "shared" else 0)
    buffers = width if arm == "frozen" else 0
    detail = f"{found.trainable} trainable, of which backbone {backbone}; {found.frozen_buffers} in a frozen vector"
    return found.trainable == trainable and found.frozen_buffers == buffers, detail


def _supervision(built: Built, batch: Batch, reader: Reader) -> tuple[bool, str]:
    tokens = supervised_tokens(batch)
    name = _namer(built)
    shown = " | ".join(" ".join(name(token) for token in row) for row in tokens[:2])
    no_latent = not bool((batch.labels[batch.latent] != -100).any())
    return not unanswered(batch, reader) and no_latent, f"supervised: {shown}"


def _namer(built: Built) -> Any:
    if isinstance(built.params.model, SymbolModel):
        return built.symbols(generate_graphs("mini", 1, 0)).layout.name
    return lambda token: built.tokenizer.decode([token]).replace("\n", "\\n")


def _one_pass(params: ModelParams, arm: Arm, batch: Batch, ctx: StageContext) -> tuple[bool, str]:
    """`shared` and `frozen`: one pass against K + 1 passes, on these weights. Why `multipass` is not an arm."""
    if arm not in WITH_LATENTS or arm == "continuous":
        return True, "no vector stands in for thoughts: nothing to compare"
    one, many = (build(params, arm, seed=ctx.seed, device="cpu", multipass=m) for m in (False, True))
    with torch.no_grad():
        worst = float((one.thoughts.eval()(batch) - many.thoughts.eval()(batch)).abs().max())
    return worst < 1e-3, f"largest difference of a hidden state between 1 pass and {batch.thoughts + 1}: {worst:.1e}"


def _gradients(built: Built, reader: Reader, batch: Batch) -> tuple[bool, str]:
    model = ThoughtModel(built=built, steer=reader, seed=0)
    nats, tokens = model.objective(batch)
    nats.backward()
    gradients = [p.grad for p in model.module.parameters() if p.grad is not None]
    finite = bool(torch.isfinite(nats)) and all(bool(torch.isfinite(g).all()) for g in gradients)
    if built.thoughts.arm == "shared" and batch.thoughts:
        finite = finite and built.thoughts.vector.grad is not None
    model.module.zero_grad(set_to_none=True)
    return finite, f"loss {float(nats.detach()) / tokens:.3f} nats a token over {tokens} tokens, gradients finite"
