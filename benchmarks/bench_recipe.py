"""The recipe that the plan `imprint` ships with, and the one of the study's specification, on the same pairs.

The pairs are some of the facts that come with Stepwell, drawn as the demo draws them, and the model is the demo's,
SmolLM2-135M as `stepwell models pull smollm2-135m` stores it. Both recipes fit one c of --slots vectors a pair, with
one restart from the same seed and at most --steps steps. They differ in rate, schedule and start:

- shipped: Adam at 0.03, constant, from mean and deviation of the embedding table;
- specified: Adam at 1e-3, cosine over the steps, from N(0, .02): the defaults of `FitRecipe`.

A restart retires when it is exact, so the nats of an exact pair are those of that step, not what it could come to.
`--all` also fits with one of the three changed at a time. Compared: what is called exact is what the plain decoder
writes. Decision 0022 rests on this.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

import common
from bench_fit import QUICK_SHAPE, quick_pairs, written
from stepwell.backbone import HFBackbone
from stepwell.fitting import FitRecipe, Fitted, Problem, fit
from stepwell.latents.prompt import problem_of
from stepwell.studies.imprint.pairs import load_pairs
from stepwell.studies.imprint.params import Facts

SHIPPED: Mapping[str, Any] = {"lr": 0.03, "schedule": "constant", "init": "table"}
AIM = "steps until a pair is exact or its steps are taken, shipped / specified"


def recipes(every: bool) -> dict[str, Mapping[str, Any]]:
    """Name -> what differs from the specification's."""
    found: dict[str, Mapping[str, Any]] = {"shipped": SHIPPED, "specified": {}}
    if every:
        found |= {f"specified, {name}: {value}": {name: value} for name, value in SHIPPED.items()}
    return found


def check_decodes(backbone: Any, fitted: Fitted, problems: Sequence[Problem]) -> None:
    """Every pair that was called exact, and no other, is written by the plain decoder, or the benchmark ends."""
    wrong = 0
    for problem in problems:
        best = fitted.best(problem.id)
        c = fitted.vectors[problem.id][best.restart]
        said = [written(backbone, fitted.modes[t.mode], c, len(t.ids)) == t.ids for t in problem.targets]
        wrong += best.all_exact != all(said)
    common.same("exactness and plain greedy decoding", not wrong, f"{len(problems) - wrong} pairs agree")


def tell(name: str, fitted: Fitted, problems: Sequence[Problem], seconds: float) -> float:
    """Print what came of one recipe; its mean number of steps."""
    best = [fitted.best(problem.id) for problem in problems]
    exact = sum(record.all_exact for record in best)
    nats = {mode: mean((record.nats or {})[mode] for record in best) for mode in best[0].nats or {}}
    told = ", ".join(f"{mode} {value:.3f}" for mode, value in nats.items())
    steps = mean(record.steps or 0 for record in best)
    print(f"  {name}: {exact} of {len(best)} pairs exact, nats a token: {told}; {steps:.0f} steps, {seconds:.3g} s")
    return steps


def main(arguments: Sequence[str] | None = None) -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--problems", type=int, default=4, help="pairs (4)")
    parser.add_argument("--steps", type=int, default=100, help="steps at most (100)")
    parser.add_argument("--slots", type=int, default=8, help="vectors a pair (8, as in the demo)")
    parser.add_argument(
        "--all", action="store_true", help="also with one of rate, schedule and start changed at a time"
    )
    parser.add_argument("--model", default="smollm2-135m", help="folder, pulled name or hub id")
    given = parser.parse_args(arguments)
    common.header("bench_recipe", given, arguments)
    with common.threads(given.threads):
        if given.quick:
            backbone = HFBackbone.from_shape(QUICK_SHAPE, device="cpu")
            problems, modes, steps, slots = quick_pairs(2), {"question": 90, "answer": 91}, 20, 4
        else:
            backbone = HFBackbone.load(given.model, device="cpu")
            items, _ = load_pairs(Facts(n=given.problems), 0)
            problems = [problem_of(backbone, item.id, item.targets()) for item in items]
            modes = {mode: problem_of(backbone, mode, f" {mode}").targets[0].ids[0] for mode in ("question", "answer")}
            steps, slots = given.steps, given.slots
        backbone.requires_grad_(False)
        steps_of = {}
        for name, changed in recipes(given.all).items():
            recipe = FitRecipe(steps=steps, restarts=1, **changed)
            began = common.clock(given.clock)
            found = fit(backbone, problems, slots=slots, recipe=recipe, modes=modes, check=False)
            steps_of[name] = tell(name, found, problems, common.clock(given.clock) - began)
            check_decodes(backbone, found, problems)
    common.aim(AIM, steps_of["shipped"] / steps_of["specified"], "<=", 0.5, meant=not given.quick)


if __name__ == "__main__":
    main()
