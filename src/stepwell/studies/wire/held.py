"""What is measured on held-out items while a stage trains: first tokens at every look, whole answers now and then."""

from __future__ import annotations

import json
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from stepwell.answers import AnswerRecord, answer_items, majority_first_token
from stepwell.stage import StageContext
from stepwell.stats import wilson
from stepwell.studies.wire.kinds import FIRST
from stepwell.studies.wire.model import Wire
from stepwell.studies.wire.params import HeldParams
from stepwell.tasks.base import QA

SECONDS = 5.0
"""A web hook may take so long."""
MOST_TOKENS = 10
"""Commonest first tokens that a record lists."""


class Held:
    """Looks at one fixed set of held-out items, none of which is trained on.

    Args:
        wire: what is asked.
        items: the held split.
        train: whose commonest first token is the majority baseline.
        params: how often, and how many.
        ctx: where records go.
    """

    def __init__(
        self, wire: Wire, items: Sequence[QA], train: Sequence[QA], params: HeldParams, ctx: StageContext
    ) -> None:
        self.wire, self.params, self.ctx = wire, params, ctx
        self.items = list(items[: params.items] if params.items else items)
        self.answered = self.items[: params.answered]
        token, hits = majority_first_token(wire.contract, train, self.items)
        self.majority_token = self._word(token)
        self._majority = wilson(sum(hits), len(hits))
        self.majority_acc = self._majority.value
        self._firsts = [wire.contract.first_tokens(item) for item in self.items]
        self._gold = Counter(wire.contract.target(item)[0] for item in self.items).most_common(MOST_TOKENS)
        self.told = False

    def first(self, step: int, last: bool) -> dict[str, Any]:
        """The fields `FIRST` of a step: the first token of every held-out item, with intervals; null between looks."""
        if step % self.params.every and not last:
            return dict.fromkeys(sorted(FIRST))
        likely = self._likely()
        one = wilson(sum(five[0] in firsts for five, firsts in self._pairs(likely)), len(likely))
        top = wilson(sum(not firsts.isdisjoint(five) for five, firsts in self._pairs(likely)), len(likely))
        return {
            "n": len(likely), "first_acc": one.value, "first_acc_low": one.low, "first_acc_high": one.high,
            "first_acc_top5": top.value, "first_acc_top5_low": top.low, "first_acc_top5_high": top.high,
            "majority_acc": self._majority.value, "majority_low": self._majority.low,
            "majority_high": self._majority.high,
        }  # fmt: skip

    def answer(self, step: int, last: bool) -> None:
        """Let the model answer from latents, and write what it said; the first F1 above 0 is an alert."""
        if not self.answered or (step % self.params.answer_every and not last):
            return
        wire = self.wire
        with wire.still(), wire.speaking():
            found = list(
                answer_items(
                    wire.backbone, wire.contract, self.answered, batch_size=self.params.batch_size,
                    prefix_of=lambda some: wire.asked(wire.prefix(wire.latents(some))),
                )
            )  # fmt: skip
        self._write(step, found)
        hit = next((place for place, record in enumerate(found) if record.f1 > 0), None)
        if hit is not None and not self.told:
            self.told = True
            self._alert(step, self.answered[hit], found[hit])

    def _write(self, step: int, found: Sequence[AnswerRecord]) -> None:
        n = len(found)
        self.ctx.write(
            "validation", step=step, n=n, f1=sum(one.f1 for one in found) / n, em=sum(one.em for one in found) / n,
            best_f1=max(one.f1 for one in found), distinct=sum(one.distinct for one in found) / n,
            repetition=sum(one.error_mode == "repetition" for one in found) / n,
            answer_tokens=sum(one.tokens for one in found) / n,
        )  # fmt: skip
        for item, one in list(zip(self.answered, found, strict=True))[: self.params.shown]:
            self.ctx.write("sample", step=step, id=item.id, question=item.question, answers=list(item.answers),
                           prediction=one.prediction, f1=one.f1)  # fmt: skip
        # Asked again rather than remembered from the last look, which a resume would not have.
        said = Counter(five[0] for five in self._likely())
        commonest = said.most_common(MOST_TOKENS)
        self.ctx.write(
            "first_tokens", step=step, n=said.total(), tokens=[self._word(token) for token, _ in commonest],
            counts=[count for _, count in commonest], gold_tokens=[self._word(token) for token, _ in self._gold],
            gold_counts=[count for _, count in self._gold], majority=self.majority_token,
        )  # fmt: skip

    def _alert(self, step: int, item: QA, one: AnswerRecord) -> None:
        message = (
            f"step {step}: the latent arm has its first F1 above 0, {one.f1:.2f} for {item.id}: {one.prediction!r} "
            f"where {item.answers[0] if item.answers else 'no answer'!r} is right"
        )
        self.ctx.write("alert", monitor="first-f1", step=step, message=message, stopped=False)
        self.ctx.event("alert", monitor="first-f1", step=step, message=message)
        if self.params.webhook is not None:
            self._post(self.params.webhook, {"job": self.ctx.job.id, "step": step, "message": message})

    def _post(self, url: str, body: dict[str, Any]) -> None:
        request = urllib.request.Request(
            url, data=json.dumps(body).encode(), headers={"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=SECONDS):
                pass
        except (OSError, ValueError) as error:  # whatever it is, it is the hook's
            self.ctx.event("webhook-failed", url=url, error=f"{type(error).__name__}: {error}")

    @torch.no_grad()
    def _likely(self) -> list[list[int]]:
        """The five likeliest first tokens of each item, the likeliest first."""
        wire, size, found = self.wire, self.params.batch_size, []
        with wire.still(), wire.speaking():
            for at in range(0, len(self.items), size):
                latents = wire.latents(self.items[at : at + size])
                hidden = wire.asked(wire.prefix(latents)).read(wire.backbone).hidden
                found += wire.backbone.logits(hidden).float().topk(min(5, wire.backbone.vocabulary)).indices.tolist()
        return found

    def _pairs(self, likely: list[list[int]]) -> Iterator[tuple[list[int], frozenset[int]]]:
        return zip(likely, self._firsts, strict=True)

    def _word(self, token: int) -> str:
        return self.wire.backbone.tokenizer.decode([token])
