"""Before every fit: do labels, states and decoding mean the same tokens?

A target whose labels were shifted twice reaches zero loss and full teacher-forced exactness all the same; only what is
written tells. So the tokens' losses are compared with those of writing the target one token at a time over a cache,
and a toy target whose tokens all differ is fitted and written freely.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stepwell.fitting.loop import fit
from stepwell.fitting.measuring import measure
from stepwell.fitting.noise import mixed, normal
from stepwell.fitting.recipe import FitRecipe
from stepwell.latents.prompt import Problem, Target, begins
from stepwell.shapes import embedding_table, frozen

RECIPES = tuple(FitRecipe(steps=100, restarts=1, lr=lr, schedule="constant", init="table") for lr in (0.03, 0.3))


@dataclass(frozen=True, kw_only=True)
class SelfTest:
    """Whether labels, states and decoding agree, and a sentence that says how that was seen."""

    passed: bool
    detail: str


def toy(vocabulary: int, tokens: int = 4) -> Problem:
    """A target of tokens that all differ, spread over the vocabulary by a hash: no text is likely to contain it."""
    spread = (mixed(torch.arange(1, 4 * tokens)) % vocabulary).tolist()
    ids = tuple(dict.fromkeys(spread))[: min(tokens, vocabulary)]
    return Problem(id="toy", targets=(Target(ids=ids, mode="toy"),))


def self_test(backbone: Any, *, slots: int = 4) -> SelfTest:
    """Score the toy target against writing it token by token; then fit it, and decode it greedily.

    A model that cannot be fitted (one of random weights, say) is judged by the scores alone.

    Args:
        backbone: its weights are not changed.
        slots: K.
    """
    problem = toy(backbone.vocabulary)
    table = embedding_table(backbone).float()
    fault = _misscored(backbone, problem, table, slots)
    if fault is not None:
        return SelfTest(passed=False, detail=fault)
    return _decoded(backbone, problem, table.mean(0), slots)


def _misscored(backbone: Any, problem: Problem, table: Tensor, slots: int) -> str | None:
    """What is wrong with the loss of the toy target after random vectors, if anything is."""
    mode = table.mean(0)
    seed = torch.tensor([0], device=table.device)
    vectors = normal(seed, 0, (slots, backbone.width))[0] * table.std(0) + mode
    (scored,) = measure(backbone, [problem], [vectors], modes={"toy": mode})
    with frozen(backbone), torch.no_grad():
        stepwise = _written(backbone, begins(mode, vectors[None]), problem.targets[0].ids)
    # bf16 rounds coarsely; a target that is shifted by one has another loss altogether.
    tolerance = 0.02 if next(backbone.parameters()).dtype == torch.bfloat16 else 1e-3
    if abs(scored.nats["toy"] - stepwise) <= tolerance * max(1.0, stepwise):
        return None
    detail = f"a toy target has {scored.nats['toy']:.4f} nats a token, but {stepwise:.4f} when written token by token"
    return f"{detail}: a state is scored for another token than it predicts"


def _decoded(backbone: Any, problem: Problem, mode: Tensor, slots: int) -> SelfTest:
    """Fit the toy target, and write it."""
    wanted = list(problem.targets[0].ids)
    for recipe in RECIPES:
        found = fit(backbone, [problem], slots=slots, recipe=recipe, modes={"toy": mode}, check=False)
        (record,) = found.records
        if record.all_exact:
            break
    else:
        return SelfTest(
            passed=True, detail=f"the toy target of {len(wanted)} tokens has the right loss; it could not be fitted"
        )
    said = found.decode("toy")["toy"]
    written = [*said.ids, *(wanted[-1:] if said.stopped else [])]
    detail = f"a toy target of {len(wanted)} tokens was fitted in {record.steps} steps"
    if written == wanted:
        return SelfTest(passed=True, detail=f"{detail}, and is written exactly by greedy decoding")
    return SelfTest(passed=False, detail=f"{detail}, but greedy decoding writes {written}, not {wanted}")


def _written(backbone: Any, prompt: Tensor, wanted: Sequence[int]) -> float:
    """Mean nats of tokens that are written one after another, over a cache, from a prompt (1, T, D)."""
    dtype, cache = next(backbone.parameters()).dtype, backbone.new_cache()
    embeds, nats, done = prompt.to(dtype), [], 0
    for token in wanted:
        end = done + embeds.shape[1]
        positions = torch.arange(done, end, device=embeds.device)[None]
        mask = torch.ones(1, end, dtype=torch.bool, device=embeds.device)
        hidden = backbone(embeds, positions=positions, mask=mask, cache=cache)
        nats.append(-backbone.logits(hidden[:, -1]).float().log_softmax(-1)[0, token])
        embeds, done = backbone.embed(torch.tensor([[token]], device=embeds.device)), end
    return float(torch.stack(nats).mean())
