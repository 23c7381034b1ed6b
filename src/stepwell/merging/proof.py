"""Whether the merged model computes what base and adapter compute: logits and greedy text on fixed prompts.

Base + adapter run through PEFT, which shares no code with the merge. Both sides compute in fp32, so that what differs
comes from the merge and its cast, not from the arithmetic of a forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stepwell.merging.streamed import Streamed

PROMPTS = (
    "The capital of France is a city on the river Seine, and its name, as everybody knows, is",
    "Question: Tom has 12 apples and gives 5 of them to his sister. How many apples does Tom have left? Answer:",
    'def fibonacci(n: int) -> int:\n    """Return the n-th number of the Fibonacci sequence."""\n    if n < 2:',
    "Write a short and polite letter to a landlord, in which you ask for the repair of a broken window. Dear",
    "1, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233, 377, 610, 987, 1597, 2584, 4181,",
    "Der Hund lief durch den Garten und bellte, weil am Zaun eine schwarze Katze sass, die ihn",
)
PROMPT_TOKENS, NEW_TOKENS = 16, 12
"""Columns of every prompt, cut to the same length so that there is no padding; greedy tokens after it."""


@dataclass(frozen=True, kw_only=True)
class Continuation:
    """Greedy text of one prompt.

    Attributes:
        prompt: as it was cut.
        text: what base + adapter write; ids where there is no tokenizer.
        agreed: of its tokens, how many the merged model writes too before the first other one.
        tokens: how many there are.
    """

    prompt: str
    text: str
    agreed: int
    tokens: int


@dataclass(frozen=True, kw_only=True)
class Proof:
    """The merged model against base + adapter, over all columns of the prompts and their continuations.

    Attributes:
        columns: how many predictions were compared.
        max_logit_difference: the largest.
        largest_logit: of base + adapter, by absolute value: the scale of the above.
        kl_nats: mean KL(base + adapter || merged).
        effect_kl_nats: mean KL(base + adapter || base): what the adapter does at all.
        top1_agreement: share of columns in which both prefer the same token.
        continuations: greedy text.
    """

    columns: int
    max_logit_difference: float
    largest_logit: float
    kl_nats: float
    effect_kl_nats: float
    top1_agreement: float
    continuations: tuple[Continuation, ...]

    @property
    def greedy_agreement(self) -> float:
        """Share of the greedy tokens that the merged model writes too, up to its first other one."""
        return sum(each.agreed for each in self.continuations) / sum(each.tokens for each in self.continuations)

    @property
    def exact(self) -> bool:
        """Whether what differs is no more than what fp32 rounds away in a forward pass."""
        return self.max_logit_difference <= 1e-3 * max(self.largest_logit, 1.0)

    def to_json(self) -> dict[str, Any]:
        """As the manifest and `--json` hold it."""
        found = {name: getattr(self, name) for name in
                 ("columns", "max_logit_difference", "largest_logit", "kl_nats", "effect_kl_nats", "top1_agreement",
                  "greedy_agreement")}  # fmt: skip
        return found | {"continuations": [vars(each) for each in self.continuations]}


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What base + adapter write and predict.

    Attributes:
        ids: (B, T) prompts and greedy continuations.
        prompt_tokens: of the T columns.
        logits: (B, T - 1, V) of base + adapter, for all columns but the last.
        effect: KL (B, T - 1) in nats, base + adapter against base.
    """

    ids: Tensor
    prompt_tokens: int
    logits: Tensor
    effect: Tensor


def ask(adapted: Streamed, base: Streamed) -> Reference:
    """Let base + adapter continue the prompts, and say how far they are from the base alone."""
    ids, new = _prompts(adapted)
    prompt_tokens = ids.shape[1]
    for _ in range(new):
        ids = torch.cat((ids, adapted.logits(ids, last=1).argmax(-1)), dim=1)
    logits = adapted.logits(ids, last=ids.shape[1])[:, :-1]
    without = base.logits(ids, last=ids.shape[1])[:, :-1]
    return Reference(ids=ids, prompt_tokens=prompt_tokens, logits=logits, effect=_kl(logits, without))


def compare(reference: Reference, merged: Streamed) -> Proof:
    """One pass of the merged model over what base + adapter wrote.

    Up to its first other token the merged model's greedy text is base + adapter's: each prediction there was made
    after the same tokens.
    """
    logits = merged.logits(reference.ids, last=reference.ids.shape[1])[:, :-1]
    theirs = reference.logits
    same = logits.argmax(-1) == theirs.argmax(-1)
    agreed = same[:, reference.prompt_tokens - 1 :].long().cumprod(1).sum(1).tolist()
    return Proof(
        columns=same.numel(),
        max_logit_difference=float((logits - theirs).abs().max()),
        largest_logit=float(theirs.abs().max()),
        kl_nats=float(_kl(theirs, logits).mean()),
        effect_kl_nats=float(reference.effect.mean()),
        top1_agreement=float(same.float().mean()),
        continuations=_texts(reference, merged.tokenizer, agreed),
    )


def _prompts(model: Streamed) -> tuple[Tensor, int]:
    positions = getattr(model.config, "max_position_embeddings", None) or PROMPT_TOKENS + NEW_TOKENS
    columns = min(PROMPT_TOKENS, max(1, positions // 2))
    new = min(NEW_TOKENS, positions - columns)
    if model.tokenizer is not None:
        rows = [model.tokenizer(prompt)["input_ids"][:columns] for prompt in PROMPTS]
        columns = min(map(len, rows))
        return torch.tensor([row[:columns] for row in rows]), new
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, model.config.vocab_size, (len(PROMPTS), columns), generator=generator), new


def _kl(theirs: Tensor, ours: Tensor) -> Tensor:
    """KL(theirs || ours) in nats, (B, T), a row at a time: logits of a large vocabulary are large."""
    rows = []
    for p, q in zip(theirs, ours, strict=True):
        log_p = p.log_softmax(-1)
        rows.append((log_p.exp() * (log_p - q.log_softmax(-1))).sum(-1).clamp(min=0))
    return torch.stack(rows)


def _texts(reference: Reference, tokenizer: Any, agreed: Sequence[int]) -> tuple[Continuation, ...]:
    def told(ids: Tensor) -> str:
        return " ".join(map(str, ids.tolist())) if tokenizer is None else tokenizer.decode(ids.tolist())

    start = reference.prompt_tokens
    tokens = reference.ids.shape[1] - start
    return tuple(
        Continuation(prompt=told(row[:start]), text=told(row[start:]), agreed=int(count), tokens=tokens)
        for row, count in zip(reference.ids, agreed, strict=True)
    )
