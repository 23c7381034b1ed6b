"""Problems with a context: tokens before the mode vector, run once and kept as keys and values.

The reference puts context, mode vector, c and target into one row, without padding and without a cache, at every step.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from fit_models import EOS, MODES, SHAPES, pairs, tiny
from stepwell.backbone import HFBackbone
from stepwell.errors import StepwellError
from stepwell.fitting import FitRecipe, Fitted, Problem, Record, Target, fit, measure
from stepwell.fitting.contexts import Contexts
from stepwell.fitting.measuring import frozen
from stepwell.fitting.result import decode_from, joined
from stepwell.fitting.rows import by_mode, one_pass, pack, rows_of
from stepwell.latents.prompt import begins, lay_out, mode_vectors
from stepwell.small import SmallConfig, SmallLM

RECIPE = FitRecipe(steps=30, restarts=2, lr=0.1)
LENGTHS = (7, 0, 2, 12, 7)
"""Of the contexts: several, none, the same again."""


def in_context(count: int = 5, lengths: Sequence[int] = LENGTHS) -> list[Problem]:
    """`fit_models.pairs` after contexts of these lengths; those of one length are the same."""
    found = []
    for problem, length in zip(pairs(count), itertools.cycle(lengths), strict=False):
        context = torch.randint(2, 50, (length,), generator=torch.Generator().manual_seed(length)).tolist()
        found.append(replace(problem, context=tuple(context)))
    return found


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def plain(backbone: Any, problem: Problem, target: Target, c: torch.Tensor) -> torch.Tensor:
    """Logits (L, V) of one row as a whole: no cache, no padding, no other row."""
    ids = torch.tensor([[*problem.context, MODES[target.mode]]])
    embeds = torch.cat((backbone.embed(ids)[0], c, backbone.embed(torch.tensor([target.ids[:-1]]))[0]))[None]
    positions = torch.arange(embeds.shape[1])[None]
    hidden = backbone(embeds, positions=positions, mask=torch.ones_like(positions, dtype=torch.bool))
    return backbone.logits(hidden)[0, len(problem.context) + len(c) :]


def small() -> Any:
    config = SmallConfig(vocabulary=61, width=32, layers=2, heads=4, max_positions=40, head_bias=("alibi", "previous"),
                         embedding_std=0.25)  # fmt: skip
    return SmallLM(config, seed=1).double().eval()


def model(name: str) -> Any:
    return small() if name == "small" else tiny(name, "fp64")


@pytest.fixture(scope="module")
def backbone() -> Any:
    return tiny("gpt2", "fp64")


@pytest.fixture(scope="module")
def problems() -> list[Problem]:
    return in_context()


@pytest.fixture(scope="module")
def whole(backbone: Any, problems: list[Problem]) -> Fitted:
    return fit(backbone, problems, slots=4, recipe=RECIPE, modes=MODES)


def same(ours: Fitted, theirs: Fitted) -> None:
    known = {(r.id, r.restart): r for r in theirs.records}
    assert ours.records
    for record in ours.records:
        other = known[record.id, record.restart]
        assert (record.end, record.steps, record.exact, record.held) == (
            other.end, other.steps, other.exact, other.held
        )  # fmt: skip
        assert record.nats == pytest.approx(other.nats, rel=1e-7)
        torch.testing.assert_close(
            ours.vectors[record.id][record.restart], theirs.vectors[record.id][record.restart], rtol=1e-7, atol=1e-7
        )


# One pass.


@pytest.mark.parametrize("name", [*SHAPES, "small"])
def test_losses_and_gradients_are_those_of_the_whole_row(name: str):
    """Contexts of three lengths in one pass; gradients by autograd through the row as a whole, and by differences."""
    backbone, problems, recipe = model(name), in_context(5, (7, 3, 12)), FitRecipe()
    modes, vectors = mode_vectors(backbone, MODES), random(5, 4, 32, seed=4)
    with frozen(backbone):
        rows = rows_of(backbone, [p.targets for p in problems], modes, 4, 400, Contexts(backbone).of(problems))
        assert len(rows) == 1 and rows[0].prompt.before is not None and not bool(rows[0].prompt.before.mask.all())
        parts = [one_pass(backbone, each, vectors, lambda inner, case: inner, recipe) for each in rows]
        found = by_mode(parts, rows, 5, 2)

        def loss(row: int, c: torch.Tensor) -> torch.Tensor:  # of each mode
            targets = problems[row].targets
            return torch.stack([
                F.cross_entropy(plain(backbone, problems[row], t, c), torch.tensor(t.ids)) for t in targets
            ])  # fmt: skip

        for row in range(5):
            c = vectors[row].clone().requires_grad_()
            nats = loss(row, c)
            torch.testing.assert_close(found.nats[row], nats.detach(), rtol=1e-10, atol=1e-10)
            (wanted,) = torch.autograd.grad(nats.sum(), c)
            assert found.gradients is not None  # each token's share of its row is in float32
            torch.testing.assert_close(found.gradients[row].sum(0), wanted, rtol=1e-6, atol=1e-7)
            with torch.no_grad():
                direction, step = random(4, 32, seed=row), 1e-5
                ahead, behind = (loss(row, vectors[row] + side * step * direction).sum() for side in (1, -1))
            slope = float(ahead - behind) / (2 * step)
            assert float((found.gradients[row].sum(0) * direction).sum()) == pytest.approx(slope, rel=1e-5)


def test_layers_that_are_recomputed_in_backward_see_the_context():
    kept = tiny("llama", "fp64")
    again = HFBackbone(kept.model, gradient_checkpointing=True)
    problems, modes, vectors = in_context(3, (5, 9)), mode_vectors(kept, MODES), random(3, 4, 32)
    found = []
    for backbone in (tiny("llama", "fp64"), again):
        with frozen(backbone):
            contexts = Contexts(backbone).of(problems)
            (rows,) = rows_of(backbone, [p.targets for p in problems], modes, 4, 400, contexts)
            found.append(one_pass(backbone, rows, vectors, lambda inner, case: inner, FitRecipe()))
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-11)


class Calls:
    """A backbone that notes what it is called with; `room` = columns for which it has memory, cached ones included."""

    def __init__(self, backbone: Any, room: float = float("inf")) -> None:
        self.backbone, self.room = backbone, room
        self.contexts: list[int] = []
        self.passes: list[tuple[int, int, bool]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backbone, name)

    def __call__(self, embeds: torch.Tensor, *, mask: torch.Tensor, cache: Any = None, **rest: Any) -> torch.Tensor:
        if rest.get("skip") == embeds.shape[1]:
            self.contexts.append(embeds.shape[1])
        else:
            self.passes.append((mask.shape[0], mask.shape[1], cache is not None))
        if mask.numel() > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.backbone(embeds, mask=mask, cache=cache, **rest)


def test_rows_without_a_context_are_run_as_ever(backbone: Any):
    """No cache and no mask for them, in passes of their own; and nothing that any row wrote is left in a cache."""
    problems, modes = in_context(), mode_vectors(backbone, MODES)
    contexts = Contexts(backbone).of(problems)
    assert contexts[1] is None and contexts[0] is contexts[4] is not None
    rows = rows_of(backbone, [p.targets for p in problems], modes, 4, 1000, contexts)
    spy, vectors = Calls(backbone), random(5, 4, 32)
    before = [None if c is None else c.length for c in contexts]
    with torch.no_grad():
        for each in rows:
            for _ in range(2):
                each.prompt.hidden(spy, vectors[each.case])  # pyright: ignore[reportArgumentType]
    assert [None if c is None else c.length for c in contexts] == before == [7, None, 2, 12, 7]
    bare = [each for each in rows if each.prompt.before is None]
    assert [each.case.tolist() for each in bare] == [[1, 1]]
    assert sorted(itertools.chain(*(each.case.tolist() for each in rows))) == sorted([0, 1, 2, 3, 4] * 2)
    assert [used for _, _, used in spy.passes] == [each.prompt.before is not None for each in rows for _ in range(2)]
    for each in rows:
        if each.prompt.before is not None:  # one of each context, however many rows have it
            assert len(each.prompt.before.positions) > int(each.prompt.before.rows.max()) + 1


def test_columns_count_the_context_and_rows_with_one_keep_apart():
    generator = torch.Generator().manual_seed(0)
    for slots, columns in ((4, 100), (32, 150), (1, 10)):
        lengths = torch.randint(1, 20, (40,), generator=generator).tolist()
        contexts = (torch.randint(1, 30, (40,), generator=generator) * torch.arange(40).remainder(3).gt(0)).tolist()
        packed = pack(lengths, slots, columns, contexts)
        assert sorted(itertools.chain(*packed)) == list(range(40))
        for rows in packed:
            width = slots + max(lengths[row] for row in rows) + max(contexts[row] for row in rows)
            assert len(rows) == 1 or len(rows) * width <= columns
            assert len({contexts[row] == 0 for row in rows}) == 1
    assert pack([2, 9, 4], 3, 50, [0, 0, 0]) == pack([2, 9, 4], 3, 50)


def test_packing_with_contexts_is_the_cheapest_cut_of_the_order():
    lengths, contexts, slots, columns = [2, 9, 3, 9, 30, 2, 4], [0, 0, 5, 5, 6, 40, 44], 3, 300

    def cost(parts: list[list[int]]) -> float:
        if any(len({contexts[row] == 0 for row in part}) > 1 for part in parts):
            return float("inf")
        widths = [slots + max(lengths[row] for row in part) + max(contexts[row] for row in part) for part in parts]
        return sum(len(part) * width + columns / 8 for part, width in zip(parts, widths, strict=True))

    order = sorted(range(7), key=lambda row: (contexts[row], lengths[row]))
    every = []
    for cuts in itertools.chain.from_iterable(itertools.combinations(range(1, 7), n) for n in range(7)):
        edges = [0, *cuts, 7]
        every.append(cost([order[a:b] for a, b in itertools.pairwise(edges)]))
    assert cost(pack(lengths, slots, columns, contexts)) == min(every)


# A fit.


def reference(backbone: Any, problem: Problem, start: torch.Tensor, recipe: FitRecipe) -> torch.Tensor:
    """The context run anew at every step; torch's autograd and Adam."""
    c = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([c], lr=recipe.lr)
    for _step in range(recipe.steps):
        each = [F.cross_entropy(plain(backbone, problem, t, c), torch.tensor(t.ids)) for t in problem.targets]
        optimizer.zero_grad()
        torch.stack(each).sum().backward()
        torch.nn.utils.clip_grad_norm_(c, 1.0)
        optimizer.step()
    backbone.zero_grad(set_to_none=True)
    return c.detach()


@pytest.mark.parametrize("name", [*SHAPES, "small"])
def test_the_kept_context_gives_the_vectors_of_one_that_is_run_at_every_step(name: str):
    backbone, problems = model(name), in_context(3)
    recipe = FitRecipe(steps=5, restarts=1, lr=0.01, schedule="constant", stop_when_exact=False)
    barely = recipe.model_copy(update={"steps": 1, "lr": 1e-300})
    start = fit(backbone, problems, slots=4, recipe=barely, modes=MODES, check=False).vectors
    found = fit(backbone, problems, slots=4, recipe=recipe, modes=MODES, check=False)
    for problem in problems:
        wanted = reference(backbone, problem, start[problem.id][0], recipe)
        torch.testing.assert_close(found.vectors[problem.id][0], wanted, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(start[problem.id], fit(
            backbone, [replace(problem, context=())], slots=4, recipe=barely, modes=MODES, check=False
        ).vectors[problem.id])  # fmt: skip
    without = fit(
        backbone, [replace(p, context=()) for p in problems], slots=4, recipe=recipe, modes=MODES, check=False
    )
    gaps = [float((found.vectors[p.id] - without.vectors[p.id]).abs().max()) for p in problems]
    assert gaps[1] == pytest.approx(0, abs=1e-9) and min(gaps[0], gaps[2]) > 1e-3  # a context does matter


def test_the_batch_the_order_and_the_look_change_nothing(whole: Fitted, backbone: Any, problems: list[Problem]):
    same(fit(backbone, problems, slots=4, recipe=RECIPE, modes=MODES, columns=30), whole)
    same(fit(backbone, problems[::-1], slots=4, recipe=RECIPE, modes=MODES, columns=90, look_every=7), whole)
    shards = [fit(backbone, part, slots=4, recipe=RECIPE, modes=MODES) for part in (problems[:2], problems[2:])]
    same(joined(shards), whole)
    assert joined(shards).contexts == whole.contexts == {p.id: p.context for p in problems if p.context}


def greedy_after(backbone: Any, problem: Problem, mode: str, c: torch.Tensor, most: int) -> tuple[int, ...]:
    """Greedy decoding by the model as a whole, a new row for each token."""
    ids = torch.tensor([[*problem.context, MODES[mode]]])
    embeds, said = torch.cat((backbone.embed(ids), c[None].to(backbone.embed(ids))), 1), []
    while len(said) < most and EOS not in said:
        said.append(int(backbone.model(inputs_embeds=embeds).logits[0, -1].argmax()))
        embeds = torch.cat((embeds, backbone.embed(torch.tensor([said[-1:]]))), 1)
    return tuple(said)


@pytest.mark.parametrize("name", SHAPES)
@torch.no_grad()
def test_exact_is_what_is_written_after_the_context(name: str):
    backbone, problems, seen = tiny(name), in_context(4), set()
    for steps in (1, 12, 50):
        found = fit(backbone, problems, slots=4, recipe=RECIPE.model_copy(update={"steps": steps}), modes=MODES)
        for problem, target in ((p, t) for p in problems for t in p.targets):
            for record in found.of(problem.id):
                written = greedy_after(
                    backbone, problem, target.mode, found.vectors[problem.id][record.restart], len(target.ids)
                )
                said = found.decode(problem.id, record.restart)[target.mode]
                assert (*said.ids, *((EOS,) if said.stopped else ())) == written
                assert (record.exact or {})[target.mode] == (written == target.ids)
                seen.add(written == target.ids)
    assert seen == {True, False}


def test_measured_as_fitted_many_at_a_time(whole: Fitted, backbone: Any, problems: list[Problem]):
    by_id = {problem.id: problem for problem in problems}
    asked, given = [by_id[r.id] for r in whole.records], [whole.vectors[r.id][r.restart] for r in whole.records]
    spy: Any = Calls(backbone)
    for record, one in zip(whole.records, measure(spy, asked, given, modes=MODES), strict=True):
        assert record.nats == pytest.approx(one.nats, rel=1e-8)
        assert (record.exact, record.held) == (one.exact, one.held)
    assert sorted(spy.contexts) == [2, 7, 12]  # one of 7 for two problems of two restarts each


# The cache.


def test_a_context_is_run_once_and_dropped_with_its_problem(backbone: Any, monkeypatch: pytest.MonkeyPatch):
    """Few columns, so that problems come and go; restarts one after another and side by side."""
    held: list[int] = []
    keep = Contexts.keep

    def watched(self: Contexts, problems: Any) -> None:
        keep(self, problems)
        held.append(len(self.known))

    monkeypatch.setattr(Contexts, "keep", watched)
    problems = in_context(4, (3, 4, 5, 6))
    for until_exact in (True, False):
        spy, recipe = (
            Calls(backbone),
            RECIPE.model_copy(update={"steps": 12, "restarts": 3, "until_exact": until_exact}),
        )
        held.clear()
        found = fit(spy, problems, slots=4, recipe=recipe, modes=MODES, columns=60, check=False)
        assert sorted(spy.contexts) == [3, 4, 5, 6]
        assert max(held) <= 3 and held[-1] == 0
        same(found, fit(backbone, problems, slots=4, recipe=recipe, modes=MODES))


def test_out_of_memory_halves_the_batch_and_keeps_the_contexts(whole: Fitted, backbone: Any, problems: list[Problem]):
    spy = Calls(backbone, room=60)
    same(fit(spy, problems, slots=4, recipe=RECIPE, modes=MODES, check=False), whole)
    assert sorted(spy.contexts) == [2, 7, 12]
    assert sum(rows * columns > 60 for rows, columns, _ in spy.passes) <= 6
    with pytest.raises(
        StepwellError, match=r"no memory for a single row of 20 columns[\s\S]*shorter targets or contexts"
    ):
        fit(Calls(backbone, room=8), problems[3:4], slots=4, recipe=RECIPE, modes=MODES, check=False)
    given = [whole.vectors[problem.id][0] for problem in problems]
    tight: Any = Calls(backbone, room=50)
    for ours, theirs in zip(measure(tight, problems, given, modes=MODES),
                            measure(backbone, problems, given, modes=MODES), strict=True):  # fmt: skip
        assert ours.nats == pytest.approx(theirs.nats) and ours.held == theirs.held


def test_a_target_that_grows_by_stages_is_measured_after_its_context(backbone: Any):
    problems = in_context(3, (6, 9))
    recipe = FitRecipe(steps=60, restarts=1, lr=0.1, progressive=2)
    spy = Calls(backbone)
    found = fit(spy, problems, slots=4, recipe=recipe, modes=MODES, check=False)
    assert sorted(spy.contexts) == [6, 9]
    given = [found.vectors[problem.id][0] for problem in problems]
    for record, one in zip(found.records, measure(backbone, problems, given, modes=MODES), strict=True):
        assert record.nats == pytest.approx(one.nats, rel=1e-8) and record.exact == one.exact


def test_a_long_context_beside_a_long_target_stays_within_the_positions():
    """Neither row is too long, but the padding of the first would stand beyond the last position."""
    long = Problem(id="long", context=tuple(range(2, 32)), targets=(Target(ids=(5, EOS), mode="ask"),))
    short = Problem(id="short", context=(9,), targets=(Target(ids=(*[4, 6] * 17, EOS), mode="ask"),))
    vectors = random(2, 4, 32)
    for name in ("gpt2", "small"):
        backbone = model(name)
        modes = mode_vectors(backbone, MODES)
        contexts = [c for c in Contexts(backbone).of([long, short]) if c is not None]
        prompt = lay_out(backbone, [long.targets[0], short.targets[0]], modes, 4, contexts)
        with torch.no_grad():
            logits = backbone.logits(prompt.hidden(backbone, vectors))
            wanted = [plain(backbone, p, p.targets[0], c) for p, c in zip((long, short), vectors, strict=True)]
        torch.testing.assert_close(logits, torch.cat(wanted), rtol=1e-9, atol=1e-9)


# What comes of it.


def test_another_context_is_another_problem(whole: Fitted, backbone: Any, problems: list[Problem]):
    ended: list[tuple[Record, torch.Tensor]] = []

    def finished(record: Record, vectors: torch.Tensor) -> None:
        ended.append((record, vectors))
        if len(ended) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(backbone, problems, slots=4, recipe=RECIPE, modes=MODES, columns=60, finished=finished)
    later: list[tuple[str, int]] = []
    again = fit(backbone, problems, slots=4, recipe=RECIPE, modes=MODES, resume=ended,
                finished=lambda record, vectors: later.append((record.id, record.restart)))  # fmt: skip
    assert not set(later) & {(record.id, record.restart) for record, _ in ended} and len(later) == 6
    same(again, whole)
    assert again.contexts == whole.contexts
    other = [replace(problems[0], context=(*problems[0].context[:-1], 50)), *problems[1:]]
    with pytest.raises(StepwellError, match="restart 0 of problem `p0` was fitted otherwise: its context, targets"):
        fit(backbone, other, slots=4, recipe=RECIPE, modes=MODES, resume=again.ended())
    assert [r.seed for r in again.records] == [r.seed for r in fit(
        backbone, other, slots=4, recipe=RECIPE.model_copy(update={"steps": 1}), modes=MODES).records]  # fmt: skip


def test_saved_and_loaded_with_its_contexts(whole: Fitted, backbone: Any, problems: list[Problem], tmp_path: Path):
    whole.save(tmp_path / "fit")
    found = Fitted.load(tmp_path / "fit", backbone)
    assert found.contexts == whole.contexts and found.records == whole.records
    assert [found.decode(p.id) for p in problems] == [whole.decode(p.id) for p in problems]
    alone = Fitted.load(tmp_path / "fit")
    assert torch.equal(alone.prompt("p1", "ask"), whole.prompt("p1", "ask"))  # it has no context
    with pytest.raises(StepwellError, match="problem `p0` has a context of 7 tokens, and there is no model to embed"):
        alone.prompt("p0", "ask")


def test_a_prompt_and_an_adapter_hold_the_context_as_vectors(tmp_path: Path):
    backbone, problems = tiny("llama"), in_context(1, (6,))
    recipe = FitRecipe(steps=150, restarts=5, lr=0.1, until_exact=True)
    found = fit(backbone, problems, slots=4, recipe=recipe, modes=MODES)
    assert found.best("p0").all_exact
    for target in problems[0].targets:
        prompt = found.prompt("p0", target.mode)
        assert prompt.shape == (1, 6 + 1 + 4, 32)
        assert torch.equal(
            prompt[:, 6:], begins(found.modes[target.mode], found.vectors["p0"][[found.best("p0").restart]])
        )
        written = backbone.model.generate(
            inputs_embeds=prompt, attention_mask=torch.ones(prompt.shape[:2]), do_sample=False, eos_token_id=EOS,
            pad_token_id=0, max_new_tokens=12,
        )  # fmt: skip
        assert tuple(written[0].tolist()) == target.ids
        found.to_peft(tmp_path / target.mode, "p0", target.mode, base_model="tiny")
        vectors = load_file(tmp_path / target.mode / "adapter_model.safetensors")["prompt_embeddings"]
        assert torch.equal(vectors, prompt[0]) and '"num_virtual_tokens": 11' in (
            tmp_path / target.mode / "adapter_config.json"
        ).read_text()  # fmt: skip


@pytest.mark.parametrize("name", [*SHAPES, "small"])
def test_prompts_of_different_lengths_are_written_on_from_as_each_alone(name: str, monkeypatch: pytest.MonkeyPatch):
    backbone = model(name)
    prompts = [random(length, 32, seed=length) for length in (9, 1, 20, 9, 4)]
    limits = [5, 8, 3, 6, 0]
    alone = [
        decode_from(backbone, [prompt], stops=(EOS,), limits=[limit])[0]
        for prompt, limit in zip(prompts, limits, strict=True)
    ]
    assert decode_from(backbone, prompts, stops=(EOS,), limits=limits) == alone
    monkeypatch.setattr("stepwell.fitting.result.columns_of", lambda backbone, columns: 20)
    assert decode_from(backbone, prompts, stops=(EOS,), limits=limits) == alone
    assert decode_from(backbone, [], stops=(EOS,), limits=[]) == []


@pytest.mark.parametrize(
    ("context", "said"),
    [
        ((4, 61), "its context has the unknown token 61; the model knows 61"),
        ((-1,), "its context has the unknown token -1; the model knows 61"),
        ((4,) * 34, "needs 41 positions with its 4 slots and its context of 34 tokens, and the model knows 40"),
    ],
)
def test_contexts_that_cannot_be(backbone: Any, context: tuple[int, ...], said: str):
    bad = Problem(id="bad", targets=(Target(ids=(4, 5, EOS), mode="ask"),), context=context)
    with pytest.raises(StepwellError, match=f"problem `bad`: .*{said}"):
        fit(backbone, [bad], slots=4, modes=MODES)
    with pytest.raises(StepwellError, match=f"problem `bad`: .*{said}"):
        measure(backbone, [bad], [random(4, 32)], modes=MODES)
    good = in_context(1, (5,))
    found = fit(backbone, [bad, *good], slots=4, recipe=RECIPE, modes=MODES, impossible="record")
    assert {r.end for r in found.of("bad")} == {"impossible"} and said in str(found.of("bad")[0].detail)
    assert found.contexts.keys() == {"p0"}


def test_a_context_that_fills_the_positions_can_be_fitted_and_written(backbone: Any):
    full = Problem(id="full", targets=(Target(ids=(4, 5, EOS), mode="ask"),), context=(*range(2, 35),))
    found = fit(backbone, [full], slots=4, recipe=RECIPE.model_copy(update={"steps": 100}), modes=MODES)
    assert found.best("full").all_exact
    assert found.decode("full")["ask"].ids == (4, 5) and found.decode("full")["ask"].stopped
