"""Audits before a training: what is trainable, what is supervised, and whether the labels mean what they should."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from stepwell.latents.thoughts import IGNORE, Batch
from stepwell.tasks.prosqa.reading import Reader


@dataclass(frozen=True, kw_only=True)
class Account:
    """Numbers of scalars: trainable, in all parameters, and in the frozen vector of the arm that has one."""

    trainable: int
    total: int
    frozen_buffers: int


def account(module: nn.Module) -> Account:
    """Count a module's parameters, shared ones once."""
    parameters = list(module.parameters())
    vector = dict(module.named_buffers()).get("vector")
    return Account(
        trainable=sum(p.numel() for p in parameters if p.requires_grad),
        total=sum(p.numel() for p in parameters),
        frozen_buffers=0 if vector is None else vector.numel(),
    )


def supervised_tokens(batch: Batch) -> list[list[int]]:
    """The labels of each row, in order: exactly what the loss is computed on."""
    return [row[row != IGNORE].tolist() for row in batch.labels]


def unanswered(batch: Batch, reader: Reader) -> list[int]:
    """Rows whose supervised tokens, read back as if a model had written them, are not the right answer and then EOS.

    The label self-test alone could miss an answer without supervision: EOS, which is taught, may be written instead.
    """
    return [
        row
        for row, tokens in enumerate(supervised_tokens(batch))
        if tokens[-1:] != [reader.eos] or not reader.answer(batch, row, tokens[:-1]).correct
    ]


def learns_its_labels(model: Any, batch: Batch, eos: int, *, steps: int, lr: float) -> tuple[bool, str]:
    """Overfit a toy batch, then decode it freely: exact, or the labels are not what the model is asked for.

    A hidden state that is taught its own token, or the one after the next (labels shifted twice), reaches zero loss all
    the same; free decoding tells.

    Args:
        model: with `module` and `objective`; its weights are changed.
        batch: the toy batch.
        eos: the token that ends a row.
        steps: optimizer steps at most.
        lr: of Adam.

    Returns:
        Whether all rows decode exactly, and a sentence that says so.
    """
    module = model.module
    optimizer = torch.optim.Adam((p for p in module.parameters() if p.requires_grad), lr=lr)
    wanted = supervised_tokens(batch)
    module.eval()  # dropout would have to be overfitted too
    loss, step = float("nan"), 0
    for step in range(1, steps + 1):
        nats, tokens = model.objective(batch)
        optimizer.zero_grad(set_to_none=True)
        (nats / tokens).backward()
        optimizer.step()
        loss = float(nats.detach()) / tokens
        if loss < 0.02 and step >= 10:
            break
    wrong = _decoded_wrong(module, batch, eos, wanted)
    exact = len(wanted) - len(wrong)
    detail = f"{exact} of {len(wanted)} toy items decode exactly after {step} steps, loss {loss:.4f} nats a token"
    if wrong:
        detail += f"; item {wrong[0]} does not: a hidden state does not predict the token it is asked for"
    return not wrong, detail


def _decoded_wrong(module: Any, batch: Batch, eos: int, wanted: list[list[int]]) -> list[int]:
    from stepwell.decode import greedy

    with torch.no_grad():
        prompt = batch.prompt()
        cache = module.backbone.new_cache()
        hidden = module(prompt, cache=cache)[:, -1]
        mask, positions = module.placed(prompt)
        found = greedy(
            module.backbone, hidden, cache=cache, mask=mask, positions=positions, stop=(eos,),
            limit=max(map(len, wanted)),
        )  # fmt: skip
    return [i for i, (row, decoded) in enumerate(zip(wanted, found, strict=True)) if [*decoded.ids, eos] != row]
