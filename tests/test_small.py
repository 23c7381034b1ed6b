"""Small models: cached = uncached, padded = unpadded, causal after the prefix, and what a hand-written one computes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from stepwell.shapes import Backbone
from stepwell.small import FEW_QUERIES, SmallCache, SmallConfig, SmallLM, _attention

CONFIGS: dict[str, SmallConfig] = {
    "bare": SmallConfig(vocabulary=19, width=16, layers=2, heads=2),
    "positions": SmallConfig(vocabulary=19, width=16, layers=1, heads=4, max_positions=40, activation="gelu"),
    "biased": SmallConfig(
        vocabulary=19, width=16, layers=3, heads=4, max_positions=40, head_bias=("previous", "alibi", "none")
    ),
    "alibi-only": SmallConfig(vocabulary=19, width=16, layers=2, heads=2, head_bias=("alibi", "alibi"), mlp_ratio=2),
    "facts": SmallConfig(vocabulary=19, width=16, layers=1, heads=4, facts=True),
    "deep-facts": SmallConfig(vocabulary=19, width=16, layers=3, heads=4, facts=True, max_positions=40),
}
COLUMNS = 22
"""More than FEW_QUERIES, so that both ways of computing attention are met."""
CUTS = [(COLUMNS,), (21, 1), (1, 21), (17, 1, 1, 1, 2), (4, 1, 5, 2, 10), (1,) * COLUMNS]


def loud(config: SmallConfig, seed: int = 1) -> SmallLM:
    model = SmallLM(config, seed=seed).double().eval()
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 or name.endswith("bias"):
            nn.init.normal_(parameter, std=0.4)
    return model


@pytest.fixture(params=CONFIGS)
def model(request: pytest.FixtureRequest) -> SmallLM:
    return loud(CONFIGS[request.param])


@pytest.fixture
def graphs() -> SmallLM:
    return loud(CONFIGS["deep-facts"])


def left_padded(lengths: Sequence[int] = (COLUMNS, 9, 18, 1), seed: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    ids = torch.randint(19, (len(lengths), COLUMNS), generator=torch.Generator().manual_seed(seed))
    mask = torch.arange(COLUMNS)[None] >= COLUMNS - torch.tensor(lengths)[:, None]
    return ids, (mask.cumsum(1) - 1).clamp(min=0), mask


def in_pieces(
    model: SmallLM, embeds: Tensor, positions: Tensor, mask: Tensor, cut: Sequence[int], prefix: int = 0
) -> Tensor:
    cache, done, hidden = model.new_cache(), 0, []
    for columns in cut:
        end = done + columns
        part = {"positions": positions[:, done:end], "mask": mask[:, :end], "prefix": 0 if done else prefix}
        hidden.append(model(embeds[:, done:end], cache=cache, **part))
        assert cache.length == end
        done = end
    return torch.cat(hidden, 1)


def close(found: Tensor, wanted: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


def by_hand(model: SmallLM, vectors: Tensor, positions: Sequence[int], prefix: int = 0) -> Tensor:
    """One row (T, D) column by column and head by head, from the formulas."""
    config, n = model.config, len(vectors)
    kinds = [*config.head_bias, *["none"] * config.heads][: config.heads]
    size = config.width // config.heads
    x = vectors if model.position is None else vectors + model.position.weight[torch.tensor(positions)]
    for block in model.blocks:
        assert isinstance(block.query, nn.Linear) and isinstance(block.key_value, nn.Linear)
        normed = F.layer_norm(x, (config.width,), block.attention_norm.weight, block.attention_norm.bias)  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
        query = normed @ block.query.weight.T + block.query.bias
        both = normed @ block.key_value.weight.T + block.key_value.bias
        key, value = both[:, : config.width], both[:, config.width :]
        rows = []
        for t in range(n):
            sees = range(max(t + 1, prefix if t < prefix else 0))
            heads = []
            for h, kind in enumerate(kinds):
                part = slice(h * size, (h + 1) * size)
                scores = []
                for s in sees:
                    score = float(0) + (query[t, part] @ key[s, part]) / math.sqrt(size)
                    distance = positions[t] - positions[s]
                    score = score - 0.25 * abs(distance) if kind == "alibi" else score
                    score = score + 5.0 if kind == "previous" and distance == 1 else score
                    scores.append(score)
                weights = torch.stack(scores).exp()
                heads.append((weights / weights.sum()) @ value[list(sees), part])
            rows.append(torch.cat(heads))
        x = x + block.output(torch.stack(rows))  # pyright: ignore[reportCallIssue]
        normed = F.layer_norm(x, (config.width,), block.mlp_norm.weight, block.mlp_norm.bias)  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
        inner = block.up(normed)  # pyright: ignore[reportCallIssue]
        x = x + block.down(inner.clamp(min=0) if config.activation == "relu" else F.gelu(inner))  # pyright: ignore[reportCallIssue]
    return F.layer_norm(x, (config.width,), model.norm.weight, model.norm.bias)


def test_it_is_a_backbone(model: SmallLM):
    assert isinstance(model, Backbone)
    assert (model.width, model.vocabulary, model.max_positions) == (16, 19, model.config.max_positions or None)


@pytest.mark.parametrize("prefix", [0, 5])
def test_it_computes_what_the_formulas_say(model: SmallLM, prefix: int):
    """ALiBi, the previous-token head, positions, prefix and all, against a column-by-column hand-written model."""
    ids, positions, mask = left_padded((COLUMNS, COLUMNS))
    embeds = model.embed(ids)
    found = model(embeds, positions=positions, mask=mask, prefix=prefix)
    for row in range(2):
        close(found[row], by_hand(model, embeds[row], positions[row].tolist(), prefix))


def test_equal_positions_bias_as_the_formulas_say():
    """Columns of a graph all have position 0; distances are those of positions, not of columns."""
    model = loud(CONFIGS["biased"])
    ids, _, mask = left_padded((COLUMNS,))
    positions = torch.tensor([[0] * 6 + list(range(COLUMNS - 6))])
    embeds = model.embed(ids)
    found = model(embeds, positions=positions, mask=mask, prefix=6)
    close(found[0], by_hand(model, embeds[0], positions[0].tolist(), 6))


def test_batched_and_left_padded_is_single(model: SmallLM):
    ids, positions, mask = left_padded()
    hidden = model(model.embed(ids), positions=positions, mask=mask)
    assert torch.isfinite(hidden).all()
    for row in range(len(ids)):
        alone = ids[row, mask[row]][None]
        n = alone.shape[1]
        single = model(model.embed(alone), positions=torch.arange(n)[None], mask=torch.ones(1, n, dtype=torch.bool))
        close(hidden[row, mask[row]], single[0])


def test_right_padding_changes_nothing(model: SmallLM):
    ids, positions, mask = left_padded((18, 12))
    longer, places = torch.cat((ids, ids[:, :3]), 1), torch.cat((positions, positions[:, :3]), 1)
    found = model(model.embed(longer), positions=places, mask=F.pad(mask, (0, 3)))
    close(found[:, :COLUMNS][mask], model(model.embed(ids), positions=positions, mask=mask)[mask])


@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_cached_is_uncached_with_its_gradients(model: SmallLM, cut: tuple[int, ...]):
    ids, positions, mask = left_padded()
    embeds = model.embed(ids).detach().requires_grad_()
    weight = torch.randn(*ids.shape, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    weight = weight * mask[..., None]
    inputs = [embeds, *(p for name, p in model.named_parameters() if name.startswith(("blocks", "norm", "position")))]
    whole = model(embeds, positions=positions, mask=mask)
    pieces = in_pieces(model, embeds, positions, mask, cut)
    close(pieces[mask], whole[mask])
    wanted = torch.autograd.grad((whole * weight).sum(), inputs)
    found = torch.autograd.grad((pieces * weight).sum(), inputs)
    for a, b in zip(found, wanted, strict=True):
        assert torch.isfinite(a).all()
        close(a, b, 1e-9)
    assert not found[0][~mask].any(), "padding got a gradient"


@pytest.mark.parametrize("cut", [(12, 10), (9, 1, 1, 11)], ids=str)
def test_a_cached_prefix_is_an_uncached_one(graphs: SmallLM, cut: tuple[int, ...]):
    ids, positions, mask = left_padded()
    embeds = graphs.embed(ids)
    whole = graphs(embeds, positions=positions, mask=mask, prefix=cut[0])
    close(in_pieces(graphs, embeds, positions, mask, cut, prefix=cut[0])[mask], whole[mask])


def test_a_cache_that_forgets_and_positions_that_shift_are_seen(model: SmallLM):
    """The equalities above would find them."""
    ids, positions, mask = left_padded((COLUMNS, COLUMNS))
    embeds = model.embed(ids)
    wanted = model(embeds, positions=positions, mask=mask)[:, -1]
    cache = model.new_cache()
    model(embeds[:, :9], positions=positions[:, :9], mask=mask[:, :9], cache=cache)
    forgot = model(embeds[:, 9:], positions=positions[:, 9:], mask=mask[:, 9:])[:, -1]
    hole = mask.clone()
    hole[:, 2] = False
    blind = model(embeds[:, 9:], positions=positions[:, 9:], mask=hole, cache=cache.clone())[:, -1]
    for wrong in (forgot, blind):
        assert (wrong - wanted).abs().max() > 1e-3
    if model.position is not None:
        shifted = model(embeds[:, 9:], positions=positions[:, 9:] + 1, mask=mask, cache=cache)[:, -1]
        assert (shifted - wanted).abs().max() > 1e-3


@pytest.mark.parametrize("changed", [0, 5, 18, 21])
def test_it_is_causal(model: SmallLM, changed: int):
    ids, positions, mask = left_padded((COLUMNS, COLUMNS))
    embeds = model.embed(ids)
    other = embeds.clone()
    other[:, changed] = embeds[:, changed].flip(-1)
    a, b = (model(x, positions=positions, mask=mask) for x in (embeds, other))
    close(a[:, :changed], b[:, :changed], 1e-14)
    assert ((a - b)[:, changed:].abs().amax(-1) > 1e-9).all(), "a later column did not hear of it"


def test_a_prefix_sees_itself_in_both_directions_and_nothing_after_it(graphs: SmallLM):
    ids, positions, mask = left_padded((COLUMNS, COLUMNS))
    embeds = graphs.embed(ids)
    before = graphs(embeds, positions=positions, mask=mask, prefix=8)
    for changed in (7, 8, 15):
        other = embeds.clone()
        other[:, changed] = embeds[:, changed].flip(-1)
        moved = (graphs(other, positions=positions, mask=mask, prefix=8) - before).abs().amax(-1) > 1e-9
        heard = torch.zeros(COLUMNS, dtype=torch.bool)
        heard[0 if changed < 8 else changed :] = True
        assert (moved == heard).all()


def question(model: SmallLM, facts: Tensor, options: Tensor, mask: Tensor) -> Tensor:
    """Hidden states of three columns after a graph."""
    graph = model.embed_graph(facts, options, torch.tensor([3] * len(facts)))
    after = model.embed(torch.tensor([[7, 2, 9]] * len(facts)))
    columns = graph.shape[1]
    return model(
        torch.cat((graph, after), 1), positions=torch.tensor([[0] * columns + [0, 1, 2]] * len(facts)),
        mask=torch.cat((mask, torch.ones(len(facts), 5, dtype=torch.bool)), 1), prefix=columns, skip=columns,
    )  # fmt: skip


@pytest.mark.parametrize("config", ["facts", "deep-facts"])
def test_the_order_of_facts_and_of_options_is_not_seen(config: str):
    model, generator = loud(CONFIGS[config]), torch.Generator().manual_seed(4)
    facts = torch.randint(19, (2, 6, 2), generator=generator)
    options, mask = torch.tensor([[4, 5], [6, 8]]), torch.ones(2, 6, dtype=torch.bool)
    wanted = question(model, facts, options, mask)
    order = torch.randperm(6, generator=generator)
    close(question(model, facts[:, order], options.flip(1), mask), wanted)
    # But a fact's direction is, and which facts there are.
    assert (question(model, facts.flip(2), options, mask) - wanted).abs().max() > 1e-3
    assert (question(model, facts[:, :5], options, mask[:, :5]) - wanted).abs().max() > 1e-3
    padded = torch.cat((torch.full((2, 3, 2), 11), facts), 1)
    close(question(model, padded, options, F.pad(mask, (3, 0))), wanted)


def test_a_fact_is_the_sum_of_two_projections(graphs: SmallLM):
    facts, options, root = torch.tensor([[[3, 4], [5, 6]]]), torch.tensor([[7, 8]]), torch.tensor([9])
    e = graphs.embedding.weight
    wanted = [graphs.source(e[3]) + graphs.target(e[4]), graphs.source(e[5]) + graphs.target(e[6])]
    wanted += [graphs.option(e[7]) + graphs.option(e[8]), graphs.root(e[9])]
    close(graphs.embed_graph(facts, options, root)[0], torch.stack(wanted))


@pytest.mark.parametrize("prefix", [0, 6])
@pytest.mark.parametrize("skip", [0, 1, 6, 20, 21, 22])
def test_skip_leaves_out_leading_columns_only(model: SmallLM, skip: int, prefix: int):
    """Hidden states of the rest, and the cache of all: what follows is the same."""
    ids, positions, mask = left_padded()
    embeds, following = model.embed(ids), model.embed(ids[:, :1])
    whole, cache = model.new_cache(), model.new_cache()
    wanted = model(embeds, positions=positions, mask=mask, cache=whole, prefix=prefix)
    found = model(embeds, positions=positions, mask=mask, cache=cache, skip=skip, prefix=prefix)
    close(found[mask[:, skip:]], wanted[:, skip:][mask[:, skip:]])
    assert found.shape == (4, COLUMNS - skip, 16) and cache.length == COLUMNS
    after = [
        model(following, positions=positions[:, -1:] + 1, mask=F.pad(mask, (0, 1), value=True), cache=c)
        for c in (whole, cache)
    ]
    close(after[1], after[0])


def flops_of(model: SmallLM, columns: int, skip: int = 0) -> int:
    """As torch counts the products; few columns, for it does not count the fused kernel of a CPU."""
    assert columns <= FEW_QUERIES
    mask = torch.ones(1, columns, dtype=torch.bool)
    with FlopCounterMode(display=False) as counter:
        model(
            model.embed(torch.zeros(1, columns, dtype=torch.long)), positions=torch.arange(columns)[None], mask=mask,
            skip=skip,
        )  # fmt: skip
    return counter.get_total_flops()


@pytest.mark.parametrize("name", CONFIGS)
def test_flop_per_column_is_what_torch_counts(name: str):
    model = SmallLM(CONFIGS[name])
    assert flops_of(model, 14) == 14 * model.flop_per_column(14)


def test_skipped_columns_cost_keys_and_values_only():
    model, d = SmallLM(CONFIGS["facts"]), 16
    # 14 columns keep keys and values, one also has a query, an output, an MLP of ratio 4, and attends to 14 keys.
    assert flops_of(model, 14, skip=13) == 2 * (14 * 2 * d * d + (2 + 8) * d * d + 2 * 14 * d)


def continued(model: SmallLM, cache: SmallCache, ids: Tensor, start: Tensor, mask: Tensor) -> Tensor:
    places = start[:, None] + torch.arange(ids.shape[1])
    seen = torch.cat((mask, torch.ones_like(ids, dtype=torch.bool)), 1)
    return model(model.embed(ids), positions=places, mask=seen, cache=cache)


@pytest.mark.parametrize("parts", [(COLUMNS,), (20, 2), (20, 1, 1)], ids=str)
def test_select_repeat_and_clone(model: SmallLM, parts: tuple[int, ...]):
    """Rows of a cache continue as they would have; the cache that they come from does not change."""
    ids, positions, mask = left_padded()
    cache, done, embeds = model.new_cache(), 0, model.embed(ids)
    for columns in parts:
        span = slice(done, done + columns)
        model(embeds[:, span], positions=positions[:, span], mask=mask[:, : done + columns], cache=cache)
        done += columns
    start, more = positions[:, -1] + 1, torch.tensor([[3, 5], [1, 1], [8, 2], [0, 4]])
    wanted = continued(model, cache.clone(), more, start, mask)
    assert cache.length == COLUMNS
    rows = torch.tensor([2, 0])
    picked = cache.select(rows)
    close(continued(model, picked, more[rows], start[rows], mask[rows]), wanted[rows])
    assert picked.length == COLUMNS + 2
    twice = torch.arange(4).repeat_interleave(2)
    close(continued(model, cache.repeat(2), more[twice], start[twice], mask[twice]), wanted[twice])
    assert cache.length == COLUMNS
    close(continued(model, cache, more, start, mask), wanted)


def test_an_empty_cache():
    cache = SmallCache()
    assert cache.length == cache.select(torch.tensor([0])).length == cache.repeat(3).length == cache.clone().length == 0


@pytest.mark.parametrize("queries", [1, FEW_QUERIES, FEW_QUERIES + 1, 23])
@pytest.mark.parametrize("cuts", [(40,), (31, 9), (39, 1)], ids=str)
@pytest.mark.parametrize("kind", ["bool", "bool-broadcast", "float"])
def test_attention_is_scaled_dot_product_attention(queries: int, cuts: tuple[int, ...], kind: str):
    generator = torch.Generator().manual_seed(queries)

    def normal(*shape: int) -> Any:
        return torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_()

    query, key, value = normal(3, 2, queries, 8), normal(3, 2, 40, 8), normal(3, 2, 40, 8)
    allowed = torch.rand(3, 1 if kind == "bool-broadcast" else 2, queries, 40, generator=generator) < 0.6
    allowed[..., 0] = True
    bias = allowed if kind != "float" else normal(3, 2, queries, 40).detach().masked_fill(~allowed, -torch.inf)
    parts = list(zip(key.split(cuts, 2), value.split(cuts, 2), strict=True))
    found = _attention(query, parts, bias)
    wanted = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    close(found, wanted)
    weight = torch.randn(wanted.shape, dtype=torch.float64, generator=generator)
    pairs = [torch.autograd.grad((out * weight).sum(), (query, key, value)) for out in (found, wanted)]
    for a, b in zip(*pairs, strict=True):
        close(a, b, 1e-11)


def test_logits_are_tied(model: SmallLM):
    hidden = torch.randn(3, 16, dtype=torch.float64)
    close(model.logits(hidden), F.linear(hidden, model.embedding.weight))
    assert not [name for name, _ in model.named_parameters() if "head" in name or "lm" in name]


def test_a_seed_gives_the_same_weights_and_leaves_the_global_state_alone():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first, again, other = (SmallLM(CONFIGS["biased"], seed=seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["embedding.weight"], other["embedding.weight"])
    assert abs(float(first["embedding.weight"].std()) / 0.02 - 1) < 0.2
    # What follows from the configuration alone is no weight.
    assert not any("slopes" in name or "previous" in name for name in first)
