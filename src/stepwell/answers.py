"""Questions asked through the prompt contract, from tokens or from embeddings: one layout to train and to evaluate.

`Asked` is everything up to the anchor, for rows of any lengths; `Taught` goes on with the answers, and says which state
predicts which token; `answer_items` lets the model answer, scores it, and knows nothing of the gold answers while it
does: not their words, not their number, not their length.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from stepwell.answering import Read, carried_on
from stepwell.decode import Decoded, left_padded, right_padded
from stepwell.errors import StepwellError
from stepwell.latents.contract import Contract
from stepwell.objectives import IGNORE, supervised
from stepwell.shapes import Backbone, evaluating
from stepwell.tasks.base import QA, Scorer
from stepwell.tasks.qa_scores import score_squad, squad_form
from stepwell.writing import GoOn, own

ErrorMode = Literal["", "empty", "repetition", "too long", "wrong"]

REPEATED = re.compile(r"([^\s\d][^\d]{0,60}?)\1{2,}")
"""A unit without digits (a million has its noughts by right), three times in a row or more."""
SHORTEST_REPETITION = 9
"""Characters, as of "thethethe"."""
WINDOW = 8
"""Batches of texts that are sorted by length together, so that rows of like lengths share a batch."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """B rows up to their anchors, padded on the left.

    Attributes:
        embeds: (B, T, D); zeros at padding.
        mask: (B, S + T), True where a column is real, S of them in the cache.
        positions: (B, T), counted from a row's first real column.
        cache: S columns that come before, such as a deep prefix; never changed. None = none.
    """

    embeds: Tensor
    mask: Tensor
    positions: Tensor
    cache: Any = None

    @classmethod
    def of_ids(cls, backbone: Backbone, rows: Sequence[Sequence[int]]) -> Asked:
        """Rows of tokens, each of one token at least, such as `Contract.text` gives them."""
        ids, mask = left_padded(rows, device=next(backbone.parameters()).device)
        embeds = backbone.embed(ids) * mask[..., None]
        return cls(embeds=embeds, mask=mask, positions=_counted(mask))

    @classmethod
    def of_embeds(cls, rows: Sequence[Tensor]) -> Asked:
        """Rows (T_i, D) of embeddings, whatever they were made from; of one width, precision and device."""
        longest = max(map(len, rows), default=0)
        embeds = torch.stack([F.pad(row, (0, 0, longest - len(row), 0)) for row in rows])
        lengths = torch.tensor([len(row) for row in rows], device=embeds.device)
        mask = torch.arange(longest, device=embeds.device) >= longest - lengths[:, None]
        return cls(embeds=embeds, mask=mask, positions=_counted(mask))

    @classmethod
    def of_prefix(cls, contract: Contract, prefix: Tensor) -> Asked:
        """BOS, a prefix (B, M, D) and the anchor."""
        embeds = contract.around(prefix)
        mask = torch.ones(embeds.shape[:2], dtype=torch.bool, device=embeds.device)
        return cls(embeds=embeds, mask=mask, positions=_counted(mask))

    def read(self, backbone: Backbone) -> Read:
        """The state of the anchor's last token, over a cache of all columns."""
        cache = backbone.new_cache() if self.cache is None else self.cache.clone()
        skip = self.embeds.shape[1] - 1
        hidden = backbone(self.embeds, positions=self.positions, mask=self.mask, cache=cache, skip=skip)[:, -1]
        return Read(hidden=hidden, cache=cache, mask=self.mask, positions=self.positions[:, -1] + 1)

    def taught(self, backbone: Backbone, answers: Sequence[Sequence[int]]) -> Taught:
        """The rows with their answers after the anchors.

        Args:
            backbone: embeds the answers.
            answers: one a row, as `Contract.target` gives them, EOS among the tokens.

        Raises:
            StepwellError: an answer without a token, or answers for other rows.
        """
        if len(answers) != len(self.embeds) or not all(answers):
            raise StepwellError(
                f"there are {len(answers)} answers for {len(self.embeds)} rows, {sum(not a for a in answers)} empty",
                "give each row its answer, which is EOS at least",
            )
        ids, real = right_padded(answers, device=self.embeds.device)
        predicts, targets = _labelled(ids, real)
        ids, real, columns = ids[:, :-1], real[:, :-1], self.embeds.shape[1]
        after = self.positions[:, -1:] + 1 + torch.arange(ids.shape[1], device=ids.device)
        return Taught(
            embeds=torch.cat((self.embeds, backbone.embed(ids)), 1), mask=torch.cat((self.mask, real), 1),
            positions=torch.cat((self.positions, after.where(real, 0)), 1), cache=self.cache, start=columns,
            predicts=predicts, targets=targets,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Taught:
    """B rows with their answers: prompts padded on the left, answers on the right.

    Attributes:
        embeds: (B, T + L - 1, D); an answer's last token has nothing left to predict, and is not read.
        mask: (B, S + T + L - 1), True where a column is real.
        positions: (B, T + L - 1).
        cache: as of `Asked`.
        start: T, the column of the first answer token.
        predicts: (B, L), which state predicts an answer token: never one of padding, whatever token it is padded with.
        targets: (N,), which token each of these states predicts, EOS among them, in the order of `hidden`.
    """

    embeds: Tensor
    mask: Tensor
    positions: Tensor
    cache: Any
    start: int
    predicts: Tensor
    targets: Tensor

    @property
    def places(self) -> Tensor:
        """(N,), the place of each target in its answer, from 0: the first tokens have 0, the first K are below K."""
        return self.predicts.nonzero()[:, 1]

    @property
    def rows(self) -> Tensor:
        """(N,), the row of each target."""
        return self.predicts.nonzero()[:, 0]

    def hidden(self, backbone: Backbone) -> Tensor:
        """The states (N, D) that predict `targets`, in one forward."""
        cache = None if self.cache is None else self.cache.clone()
        states = backbone(self.embeds, positions=self.positions, mask=self.mask, cache=cache, skip=self.start - 1)
        return states[self.predicts]


@dataclass(frozen=True, kw_only=True)
class AnswerRecord:
    """One item's answer, and how good it is.

    Attributes:
        id: of the item.
        prediction: what was answered; "" = nothing, or that there is no answer.
        em, f1: exact match and F1, the best over all gold answers.
        first_token: the likeliest first token of the answer.
        first_top1, first_top5: whether it, or one of the five likeliest, begins a gold answer.
        nll_per_token: mean nats of the tokens of the first gold answer and its EOS.
        nll_tokens: how many these are.
        tokens: written, EOS not counted.
        distinct: different ones among the first 10 written.
        stopped: whether it came to its end, rather than to the limit.
        error_mode: "" where `em`; else `empty`, `repetition` (thethethe), `too long` (a gold answer with more around
            it, or no end), or `wrong`.
        columns: real columns that were read before the answer, cached ones among them.
    """

    id: str
    prediction: str
    em: bool
    f1: float
    first_token: int
    first_top1: bool
    first_top5: bool
    nll_per_token: float
    nll_tokens: int
    tokens: int
    distinct: int
    stopped: bool
    error_mode: ErrorMode
    columns: int

    def to_record(self) -> dict[str, Any]:
        """The fields as literals."""
        return asdict(self)


@torch.no_grad()
def answer_items(
    backbone: Backbone,
    contract: Contract,
    items: Sequence[QA],
    prefix_of: Callable[[Sequence[QA]], Tensor | Asked] | None = None,
    batch_size: int = 16,
    *,
    text_of: Callable[[QA], Sequence[int]] | None = None,
    score: Scorer = score_squad,
    go_on: GoOn = own,
) -> Iterator[AnswerRecord]:
    """Ask every item, greedily, under one limit for all; the same whatever the batch.

    Who makes the prompts is given the items without their answers. The prompts are made here, batch by batch: whoever
    times the iteration times the encoder too.

    Args:
        backbone: it answers in evaluation mode; its mode is put back after each batch.
        contract: of this backbone.
        items: with questions; those without an answer are right when nothing is answered, or `no_answer`.
        prefix_of: items -> a prefix (B, M, D), or rows laid out otherwise; None = the items' text.
        batch_size: rows at a time.
        text_of: item -> the tokens up to its anchor, such as a control's; None = `Contract.text`.
        score: of the task.
        go_on: writes the answers after the rows that `backbone` read.

    Yields:
        One record an item, in order.

    Raises:
        StepwellError: both `prefix_of` and `text_of`, a prefix that is not finite or for other rows, a text without
            room; otherwise as `Contract.text` and `Contract.around`.
    """
    if prefix_of is not None and text_of is not None:
        raise StepwellError("an item is asked by its text or by a prefix", "give `prefix_of` or `text_of`, not both")
    text_of = contract.text if text_of is None else text_of
    window = batch_size * (WINDOW if prefix_of is None else 1)
    for start in range(0, len(items), window):
        some = items[start : start + window]
        bare = [replace(item, answers=()) for item in some]
        texts = [text_of(item) for item in bare] if prefix_of is None else [()] * len(bare)
        order = sorted(range(len(some)), key=lambda row: len(texts[row]))
        found: dict[int, AnswerRecord] = {}
        for at in range(0, len(order), batch_size):
            rows = order[at : at + batch_size]
            if prefix_of is None:
                asked = Asked.of_ids(backbone, [texts[row] for row in rows])
            else:
                given = prefix_of([bare[row] for row in rows])
                asked = given if isinstance(given, Asked) else Asked.of_prefix(contract, given)
            made = _answered(backbone, contract, [some[row] for row in rows], asked, score, go_on)
            found |= zip(rows, made, strict=True)
        yield from (found[row] for row in range(len(some)))


def _answered(
    backbone: Backbone, contract: Contract, items: Sequence[QA], asked: Asked, score: Scorer, go_on: GoOn
) -> list[AnswerRecord]:
    if len(asked.embeds) != len(items):
        raise StepwellError(f"there are {len(asked.embeds)} prefixes for {len(items)} items", "give one an item")
    with evaluating(backbone):
        read = asked.read(backbone)
        likely = _precise(backbone.logits(read.hidden))
        if not bool(likely.isfinite().all()):
            worst = items[int((~likely.isfinite()).any(1).nonzero()[0])]
            raise StepwellError(
                f"item {worst.id!r}: what stands in place of its text makes the model's logits not finite",
                "look for NaN in the prefix or in the adapter's weights",
            )
        written = go_on(backbone, read, asked.embeds, stop=contract.stops, limit=contract.params.max_answer_tokens)
        nats = answer_nats(backbone, read, [contract.target(item) for item in items])
    best = likely.argmax(-1).tolist()
    five = likely.topk(min(5, likely.shape[1])).indices.tolist()
    columns = asked.mask.sum(1).tolist()
    return [
        _record(contract, item, one, score, nats=nats[row], best=best[row], five=five[row], columns=columns[row])
        for row, (item, one) in enumerate(zip(items, written, strict=True))
    ]


def _record(
    contract: Contract, item: QA, one: Decoded, score: Scorer, *, nats: tuple[float, int], best: int,
    five: Sequence[int], columns: int,
) -> AnswerRecord:  # fmt: skip
    prediction, stopped = contract.said(one.ids, one.stopped)
    scored, firsts = score(item, prediction), contract.first_tokens(item)
    return AnswerRecord(
        id=item.id, prediction=prediction, em=scored.exact, f1=scored.partial or 0.0, first_token=best,
        first_top1=best in firsts, first_top5=not firsts.isdisjoint(five), nll_per_token=nats[0], nll_tokens=nats[1],
        tokens=len(one.ids), distinct=len(set(one.ids[:10])), stopped=stopped,
        error_mode=error_mode(item, prediction, exact=scored.exact, stopped=stopped), columns=columns,
    )  # fmt: skip


def answer_nats(backbone: Backbone, read: Read, answers: Sequence[Sequence[int]]) -> list[tuple[float, int]]:
    """Mean nats a token, and tokens, of one answer a row that follows what was read, whose cache is not changed."""
    ids, real = right_padded(answers, device=read.hidden.device)
    predicts, targets = _labelled(ids, real)
    states = read.hidden[:, None]
    if ids.shape[1] > 1:
        later = carried_on(backbone, replace(read, cache=read.cache.clone()), ids[:, :-1], real[:, :-1])
        states = torch.cat((states, later), 1)
    nats = F.cross_entropy(_precise(backbone.logits(states[predicts])), targets, reduction="none").double()
    counts = predicts.sum(1)
    total = nats.new_zeros(len(ids)).index_add_(0, predicts.nonzero()[:, 0], nats)
    return list(zip((total / counts).tolist(), counts.tolist(), strict=True))


def _labelled(ids: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """Which of the L states from the anchor's last on predict (B, L), and what (N,). By `real`, not by the pad's id."""
    labels = F.pad(ids.masked_fill(~real, IGNORE), (1, 0), value=IGNORE)
    predicts, targets = supervised(labels, 1)
    # The state of the last answer column would predict what comes after EOS.
    return predicts[:, :-1], targets


def _precise(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _counted(mask: Tensor) -> Tensor:
    return (mask.cumsum(1) - 1).clamp(min=0)


def error_mode(item: QA, prediction: str, *, exact: bool, stopped: bool) -> ErrorMode:
    """What is wrong with an answer, by the first that applies of: nothing, empty, repetition, too long, wrong."""
    if exact:
        return ""
    if not prediction:
        return "empty"
    if is_repetition(prediction):
        return "repetition"
    said = f" {squad_form(prediction)} "
    holds = any(f" {squad_form(gold)} " in said for gold in item.answers if squad_form(gold))
    return "too long" if holds or not stopped else "wrong"


def is_repetition(text: str) -> bool:
    """Whether at least half of a text is one unit, three times in a row or more: "thethethe", "the the the"."""
    text = " ".join(text.split()) + " "
    longest = max((len(found[0]) for found in REPEATED.finditer(text)), default=0)
    return longest >= max(SHORTEST_REPETITION, len(text) / 2)


def nll_alarm(records: Iterable[AnswerRecord | Mapping[str, Any]], vocabulary: int) -> str:
    """What is wrong with the likelihood of gold answers after a TEXT prompt; "" where nothing is.

    A language model that reads the text is worse than a uniform guess (ln V nats a token) only where labels or states
    are shifted: the tell-tale of tokens trained or scored as their neighbour's. Of an arm in training it means nothing.

    Args:
        records: of the text arm, with `nll_per_token` and `nll_tokens`.
        vocabulary: V.
    """
    rows = [one.to_record() if isinstance(one, AnswerRecord) else one for one in records]
    tokens = sum(row["nll_tokens"] for row in rows)
    if not tokens:
        return ""
    mean = sum(row["nll_per_token"] * row["nll_tokens"] for row in rows) / tokens
    if mean <= math.log(vocabulary):
        return ""
    return (
        f"the text baseline needs {mean:.2f} nats a token for the gold answers, more than a uniform guess over "
        f"{vocabulary} tokens ({math.log(vocabulary):.2f}): labels are shifted against states, or the template is wrong"
    )


def majority_first_token(contract: Contract, train: Iterable[QA], held_out: Sequence[QA]) -> tuple[int, list[bool]]:
    """The baseline of first-token accuracy: always the commonest first token.

    Args:
        contract: makes the tokens.
        train: whose first gold answers are counted.
        held_out: which are judged, by all gold answers.

    Returns:
        The token, and for each held-out item whether it begins a gold answer.

    Raises:
        StepwellError: nothing to count.
    """
    counts = Counter(contract.target(item)[0] for item in train)
    if not counts:
        raise StepwellError("there are no items to count first tokens of", "give the training set")
    token = max(counts, key=lambda known: (counts[known], -known))
    return token, [token in contract.first_tokens(item) for item in held_out]
