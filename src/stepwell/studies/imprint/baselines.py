"""The stage `imprint.baselines`: what each target costs without a fit, and the bar for "converged"."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from stepwell.errors import StepwellError
from stepwell.fitting.measuring import measure
from stepwell.fitting.noise import mixed, seed_of
from stepwell.fitting.recipe import FitRecipe
from stepwell.fitting.state import Space
from stepwell.latents.prompt import Problem, Target, fault_of, problem_of
from stepwell.shapes import embedded
from stepwell.stage import StageContext
from stepwell.studies.imprint.models import loaded
from stepwell.studies.imprint.pairs import context_of, examples
from stepwell.studies.imprint.params import BaselineParams
from stepwell.tasks.base import QA


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One target after one beginning: a context, a first vector (D,) and those that follow (K, D), K from 0."""

    key: tuple[str, str, str]
    target: Target
    first: Tensor
    rest: Tensor
    context: tuple[int, ...]


def baselines(params: BaselineParams, ctx: StageContext) -> None:
    """Write one record a pair and mode. What cannot be measured is null, and says why."""
    backbone, modes = loaded(ctx)
    space = Space.of(backbone, FitRecipe(init="table"))
    asked: list[Asked] = []
    rows: list[tuple[QA, str, int | None, str]] = []
    shown = context_of(ctx)
    for item in examples(ctx):
        context = shown(item)
        for mode in item.targets():
            target, fault = target_of(backbone, item, mode, modes, params.slots, context)
            rows.append((item, mode, target and len(target.ids), fault))
            if target is not None:
                asked += _beginnings(params, ctx, backbone, space, item, target, modes, tuple(_ids(backbone, context)))
    nats = _nats(backbone, asked)
    for item, mode, tokens, fault in rows:
        _write(params, ctx, item, mode, tokens, nats.get((item.id, mode), {}), fault)


def target_of(
    backbone: Any, item: QA, mode: str, modes: Mapping[str, Tensor], slots: int, context: str = ""
) -> tuple[Target | None, str]:
    """The target of one mode, or None and what makes it impossible, after a context where there is one."""
    try:
        problem = problem_of(backbone, item.id, {mode: item.targets()[mode]}, context=context)
    except StepwellError as error:
        return None, error.cause
    fault = fault_of(backbone, problem, modes, slots)
    return (problem.targets[0], "") if fault is None else (None, fault)


def _beginnings(
    params: BaselineParams, ctx: StageContext, backbone: Any, space: Space, item: QA, target: Target,
    modes: Mapping[str, Tensor], context: tuple[int, ...],
) -> list[Asked]:  # fmt: skip
    """Everything that the target is measured after; what does not fit into the model's positions is left out.

    All of it stands after the same context, so that none of it is compared with a fit that knows more or less.
    """
    mode, first = target.mode, modes[target.mode]
    seeds = torch.tensor([seed_of(ctx.seed, f"{item.id}/{mode}", draw) for draw in range(params.draws)])
    drawn = space.begin(seeds.to(first.device), params.slots)
    token = int(mixed(seeds[:1])[0] % backbone.vocabulary)
    found = [(f"random-{draw}", first, rest) for draw, rest in enumerate(drawn)]
    found += [("nothing", first, drawn[0, :0]), ("random_token", first, embedded(backbone, [token]))]
    if mode == "answer" and item.question:
        found.append(("full_context", first, embedded(backbone, _ids(backbone, item.question))))
    prompt = params.prompts.get(target.mode)
    if prompt and item.question:
        ids = _ids(backbone, prompt.replace("{question}", item.question).replace("{answer}", item.answer or ""))
        prompt = embedded(backbone, ids)
        found.append(("text_prompt", prompt[0], prompt[1:]))
    known = backbone.max_positions
    return [
        Asked(key=(item.id, mode, name), target=target, first=start, rest=rest, context=context)
        for name, start, rest in found
        if known is None or len(context) + len(rest) + len(target.ids) <= known
    ]  # fmt: skip


def _ids(backbone: Any, text: str) -> list[int]:
    return list(backbone.tokenizer.encode(text, add_special_tokens=False))


def _nats(backbone: Any, asked: Sequence[Asked]) -> dict[tuple[str, str], dict[str, float]]:
    """(pair, mode) -> beginning -> mean nats a token, EOS included."""
    groups: dict[tuple[int, str, bytes], list[Asked]] = defaultdict(list)
    for each in asked:
        groups[len(each.rest), each.target.mode, each.first.float().cpu().numpy().tobytes()].append(each)
    found: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    for (_, mode, _), group in groups.items():
        problems = [
            Problem(id="/".join(each.key), targets=(each.target,), context=each.context) for each in group
        ]  # fmt: skip
        numbers = measure(backbone, problems, [each.rest for each in group], modes={mode: group[0].first})
        for each, one in zip(group, numbers, strict=True):
            found[each.key[:2]][each.key[2]] = one.nats[mode]
    return found


def _write(
    params: BaselineParams, ctx: StageContext, item: QA, mode: str, tokens: int | None, nats: Mapping[str, float],
    fault: str,
) -> None:  # fmt: skip
    drawn = [value for name, value in nats.items() if name.startswith("random-")]
    random, context = mean(drawn) if drawn else None, nats.get("full_context")
    bar, why = bar_of(params, random, context)
    if why and not item.question:
        why = "no full context and no text prompt: this is a text by itself, without a question"
    ctx.write(
        "baseline", id=item.id, mode=mode, tokens=tokens, random=random, random_low=min(drawn, default=None),
        random_high=max(drawn, default=None), full_context=context, random_token=nats.get("random_token"),
        text_prompt=nats.get("text_prompt"), nothing=nats.get("nothing"), bar=bar, why=fault or why,
    )  # fmt: skip


def bar_of(params: BaselineParams, random: float | None, context: float | None) -> tuple[float | None, str]:
    """The bar in nats a token, and what was left out of it.

    Below .3 x random or below 2 x full context, by default. Where the context helps so little that the second bar lies
    above the random vectors themselves, everything would count as converged: then it does not count.
    """
    if random is None:
        return None, ""
    bars, why = [params.below_random * random], ""
    if context is None:
        why = "no full context: only the answer has one, the question before it"
    elif params.below_full_context * context < random:
        bars.append(params.below_full_context * context)
    else:
        why = f"{params.below_full_context:g} x full context is no bar: random vectors lie below it"
    return max(bars), why


def bars_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Pair -> mode -> nats a token below which a fit counts as converged, from baseline records."""
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for row in rows:
        if row["bar"] is not None:
            found[row["id"]][row["mode"]] = row["bar"]
    return dict(found)
