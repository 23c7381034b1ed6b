"""The stage `imprint.controls`: vectors that should hold nothing, and what fitted ones do to other questions.

A c may be found that writes anything at all, or that ruins the model: so each pair is read from a random c of the same
mean and deviation and from another pair's c; and other questions are asked with a c before them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from stepwell.answers import Asked, answer_nats
from stepwell.decode import greedy
from stepwell.fitting.measuring import measure
from stepwell.fitting.noise import normal, seed_of
from stepwell.latents.prompt import Problem, problem_of
from stepwell.shapes import embedded, evaluating
from stepwell.stage import StageContext
from stepwell.studies.imprint.fits import best_vectors, fitted
from stepwell.studies.imprint.models import loaded
from stepwell.studies.imprint.pairs import context_of, examples, scorer
from stepwell.studies.imprint.params import ControlParams
from stepwell.tasks.base import QA


@dataclass(frozen=True, kw_only=True)
class Row:
    """A question that is asked with something before it.

    Attributes:
        pair: whose c stands before the question; None without one.
        condition: `without`, `own` (a fitted c) or `random`.
        embeds: (T, D) of c and the question.
    """

    item: QA
    pair: str | None
    condition: str
    embeds: Tensor


def controls(params: ControlParams, ctx: StageContext) -> None:
    """Write one record a pair, mode and control, and one a question asked and condition."""
    backbone, modes = loaded(ctx)
    every = examples(ctx)
    found = fitted(ctx, backbone)
    known = {record.id for record in found.records}
    items = [item for item in every if item.id in known]
    items = items[: params.items] if params.items else items
    vectors = best_vectors(found, items)
    random = {name: matched(c, seed_of(ctx.seed, name, 0)) for name, c in vectors.items()}
    usable = [item for item in items if item.id in vectors]
    for item in items:
        if item.id not in vectors:
            for mode in item.targets():
                ctx.write("control", id=item.id, mode=mode, control="own", donor=None, nats=None, exact=False, held=0)
    _controls(ctx, backbone, modes, usable, vectors, random)
    ctx.stop_if_asked()
    rows = list(_rows(params, backbone, every, usable, vectors, random))
    score, done = scorer(ctx), 0
    for start in range(0, len(rows), params.batch_size):
        part = rows[start : start + params.batch_size]
        for row, (nats, text) in zip(part, answered(backbone, part, params.limit), strict=True):
            ctx.write(
                "capability", id=row.item.id, pair=row.pair, condition=row.condition, nats=nats, written=text,
                correct=score(row.item, text).exact,
            )  # fmt: skip
        done += len(part)
        ctx.progress(done, len(rows))


def matched(vectors: Tensor, seed: int) -> Tensor:
    """Normal vectors (K, D) with the mean and the deviation of given ones."""
    drawn = normal(torch.tensor([seed]), 0, tuple(vectors.shape))[0].to(vectors)
    return vectors.mean() + vectors.std() * drawn


def donors_of(items: Sequence[QA]) -> dict[str, str]:
    """Pair -> the pair whose c it is read from: the next in a ring with which it shares no text.

    A c that holds the same answer, as those of 2+3 and 4+1 do, would write it rightly and say nothing.
    """
    found = {}
    for place, item in enumerate(items):
        mine = set(item.targets().values())
        ring = [*items[place + 1 :], *items[:place]]
        donor = next((other.id for other in ring if not mine & set(other.targets().values())), None)
        if donor is not None:
            found[item.id] = donor
    return found


def _controls(
    ctx: StageContext, backbone: Any, modes: Mapping[str, Tensor], items: Sequence[QA], vectors: Mapping[str, Tensor],
    random: Mapping[str, Tensor],
) -> None:  # fmt: skip
    donors, shown = donors_of(items), context_of(ctx)
    asked: list[tuple[Problem, str, str | None, Tensor]] = []
    for item in items:
        problem = problem_of(backbone, item.id, item.targets(), context=shown(item))
        asked += [(problem, "own", None, vectors[item.id]), (problem, "random", None, random[item.id])]
        if item.id in donors:
            asked.append((problem, "shuffled", donors[item.id], vectors[donors[item.id]]))
    numbers = measure(backbone, [each[0] for each in asked], [each[3] for each in asked], modes=dict(modes))
    for (problem, control, donor, _), one in zip(asked, numbers, strict=True):
        for mode in one.nats:
            ctx.write(
                "control", id=problem.id, mode=mode, control=control, donor=donor, nats=one.nats[mode],
                exact=one.exact[mode], held=one.held[mode],
            )  # fmt: skip


def _rows(
    params: ControlParams, backbone: Any, every: Sequence[QA], items: Sequence[QA], vectors: Mapping[str, Tensor],
    random: Mapping[str, Tensor],
) -> Iterator[Row]:  # fmt: skip
    """Each question that is asked: once without a c, and after the c of each pair it goes with.

    Questions that do not fit into the model's positions behind a c are asked of nobody.
    """
    asked: dict[str, Tensor] = {}
    slots = max((len(c) for c in vectors.values()), default=0)
    for place, item in enumerate(items):
        at = next(i for i, other in enumerate(every) if other.id == item.id)
        others = [other for other in [*every[at + 1 :], *every[:at]] if other.question and other.answer]
        fitting = (other for other in others if _fits(params, backbone, other, slots))
        for other in islice(fitting, params.questions):
            if other.id not in asked:
                asked[other.id] = embedded(backbone, _prompt_ids(backbone, params.prompt, other))
                yield Row(item=other, pair=None, condition="without", embeds=asked[other.id])
            for condition, c in (("own", vectors[item.id]), ("random", random[item.id])):
                embeds = torch.cat((c.to(asked[other.id]), asked[other.id]))
                yield Row(item=other, pair=items[place].id, condition=condition, embeds=embeds)


def _fits(params: ControlParams, backbone: Any, item: QA, slots: int) -> bool:
    """Whether c, the question and either answer, the gold one and the written one, have positions."""
    if backbone.max_positions is None:
        return True
    longest = max(params.limit, 1 + len(_gold(backbone, item)))
    return slots + len(_prompt_ids(backbone, params.prompt, item)) + longest <= backbone.max_positions


def _prompt_ids(backbone: Any, prompt: str, item: QA) -> list[int]:
    context = f"{item.context}\n" if item.context else ""
    text = prompt.replace("{question}", item.question).replace("{context}", context)
    return list(backbone.tokenizer.encode(text, add_special_tokens=False))


def _gold(backbone: Any, item: QA) -> list[int]:
    return list(backbone.tokenizer.encode(f" {item.answer}", add_special_tokens=False))


@torch.no_grad()
def answered(backbone: Any, rows: Sequence[Row], limit: int) -> list[tuple[float, str]]:
    """Of each row: nats a token of the gold answer (after a space), and what is written instead.

    Of that the first line, where the gold answer has one; grids have several. At most `limit` tokens, or as many as the
    gold answer has, and one more.
    """
    golds = [_gold(backbone, row.item) for row in rows]
    limits = [max(limit, 1 + len(gold)) for gold in golds]
    with evaluating(backbone):
        read = Asked.of_embeds([row.embeds for row in rows]).read(backbone)
        written = greedy(
            backbone, read.hidden, cache=read.cache, mask=read.mask, positions=read.positions,
            stop=(backbone.tokenizer.eos_token_id,), limit=limits,
        )  # fmt: skip
        nats = [each for each, _ in answer_nats(backbone, read, golds)]
    texts = [backbone.tokenizer.decode(decoded.ids).strip() for decoded in written]
    shown = [
        text if "\n" in (row.item.answer or "") else text.partition("\n")[0]
        for row, text in zip(rows, texts, strict=True)
    ]
    return list(zip(nats, shown, strict=True))
