"""The stage `imprint.check`: what the model writes, greedily, from each fitted c. The loss alone has fooled people."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from stepwell.decode import Decoded
from stepwell.fitting.result import Fitted, decode_from
from stepwell.similarity import Alike, similarities
from stepwell.stage import StageContext
from stepwell.studies.imprint.asking import Wordings, wordings
from stepwell.studies.imprint.fits import fit_input, fitted
from stepwell.studies.imprint.models import loaded
from stepwell.studies.imprint.pairs import examples, in_words, scorer
from stepwell.studies.imprint.params import CheckParams
from stepwell.tasks.base import QA, Scorer
from stepwell.tasks.qa_scores import f1, squad_form


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """How a written text compares with what was to be written.

    Attributes:
        verdict: `pass`, `partial` or `fail`.
        how: what it passed by: `exact`, `normalised`, `similar`; `overlap` where it is partly right; else `none`.
        similarity: in [0, 1]; None where it was not asked for or is undefined.
        why: why it is undefined, or what limits it.
    """

    verdict: str
    how: str
    similarity: float | None = None
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class Said:
    """What was written in one mode, and what was to be: the text, then its paraphrases. None without vectors."""

    item: QA
    mode: str
    targets: tuple[str, ...]
    text: str | None
    stopped: bool | None
    exact: bool


def check(params: CheckParams, ctx: StageContext) -> None:
    """Decode every pair in every mode; one record each, a pair without vectors included."""
    ctx.keep_artifacts()
    backbone, _ = loaded(ctx)
    found, score = fitted(ctx, backbone), scorer(ctx)
    converged = {row["id"]: row["converged"] for row in fit_input(ctx).records("pair")}
    items = [item for item in examples(ctx) if item.id in converged]
    said = list(_said(params, backbone, found, items, wordings(ctx)))
    words = in_words(ctx)
    verdicts = [judged(one, score=score, words=words, partial=params.partial) for one in said]
    for one, verdict in zip(said, _by_similarity(params, ctx, said, verdicts), strict=True):
        ctx.write(
            "spot", id=one.item.id, mode=one.mode, target=one.targets[0], written=one.text, stopped=one.stopped,
            exact_decode=one.exact, verdict=verdict.verdict, how=verdict.how, similarity=verdict.similarity,
            why=verdict.why, converged=converged[one.item.id], passed=verdict.verdict == "pass",
        )  # fmt: skip


def judged(one: Said, *, score: Scorer, words: bool, partial: float) -> Verdict:
    """Exact, the same after normalisation, partly right, or not.

    An answer is the same where the task's own scorer says so. Texts in words are compared without case, punctuation and
    articles; sums and grids but for the blanks around them, for there every sign is part of what is said.
    """
    if one.exact:
        return Verdict(verdict="pass", how="exact")
    if one.text is None or not one.text.strip():
        return Verdict(verdict="fail", how="none")
    form: Callable[[str], str] = squad_form if words else str.strip
    same = bool(form(one.text)) and any(form(one.text) == form(target) for target in one.targets)
    if same or (one.mode == "answer" and score(one.item, one.text).exact):
        return Verdict(verdict="pass", how="normalised")
    if words and any(f1(target, one.text) >= partial for target in one.targets):
        return Verdict(verdict="partial", how="overlap")
    return Verdict(verdict="fail", how="none")


def _by_similarity(
    params: CheckParams, ctx: StageContext, said: Sequence[Said], verdicts: Sequence[Verdict]
) -> list[Verdict]:
    """The verdicts, those that are no pass compared by their meaning where the plan asks for it."""
    open_ones = [place for place, verdict in enumerate(verdicts) if verdict.verdict != "pass" and said[place].text]
    if params.similarity is None or not open_ones:
        return list(verdicts)
    asked = [(place, target) for place in open_ones for target in said[place].targets]
    found = similarities(
        params.similarity, [(target, said[place].text or "") for place, target in asked],
        cache=ctx.folder / "judged", device=ctx.device, between=ctx.stop_if_asked,
    )  # fmt: skip
    compared: dict[int, Alike] = {}
    for (place, _), alike in zip(asked, found, strict=True):
        best = compared.get(place)
        if best is None or (alike.value is not None and (best.value is None or alike.value > best.value)):
            compared[place] = alike
    return [_compared(verdict, compared.get(place), params.bar) for place, verdict in enumerate(verdicts)]


def _compared(verdict: Verdict, alike: Alike | None, bar: float) -> Verdict:
    if alike is None:
        return verdict
    if alike.value is not None and alike.value >= bar:
        return Verdict(verdict="pass", how="similar", similarity=alike.value, why=alike.why)
    return replace(verdict, similarity=alike.value, why=alike.why)


def _said(params: CheckParams, backbone: Any, found: Fitted, items: Sequence[QA], more: Wordings) -> Iterator[Said]:
    written = dict(_written(params, found, items))
    for item in items:
        for mode, target in item.targets().items():
            decoded = written.get((item.id, mode))
            targets = (target, *more.get(item.id, {}).get(mode, ()))
            known = {tuple(backbone.tokenizer.encode(text, add_special_tokens=False)) for text in targets}
            yield Said(
                item=item, mode=mode, targets=targets,
                text=None if decoded is None else backbone.tokenizer.decode(decoded.ids),
                stopped=None if decoded is None else decoded.stopped,
                exact=decoded is not None and decoded.stopped and decoded.ids in known,
            )  # fmt: skip


def _written(params: CheckParams, found: Fitted, items: Sequence[QA]) -> Iterator[tuple[tuple[str, str], Decoded]]:
    """What is written for each (pair, mode) that has vectors."""
    asked = [
        (item.id, mode, found.best(item.id))
        for item in items
        if any(record.nats is not None for record in found.of(item.id))
        for mode in item.targets()
    ]
    for start in range(0, len(asked), params.batch_size):
        part = asked[start : start + params.batch_size]
        prompts = [found.prompt(id, mode, best.restart)[0] for id, mode, best in part]
        limits = [(best.tokens or {})[mode] + params.beyond for _, mode, best in part]
        known = found.backbone.max_positions
        if known is not None:
            # The last token is written, never read: it needs no position.
            limits = [min(limit, known + 1 - len(prompt)) for limit, prompt in zip(limits, prompts, strict=True)]
        decoded = decode_from(found.backbone, prompts, stops=found.stops, limits=limits)
        yield from zip([(id, mode) for id, mode, _ in part], decoded, strict=True)
