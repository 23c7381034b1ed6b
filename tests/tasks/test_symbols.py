"""Symbol batches hold the graph under fresh names, and after it exactly what the arm and the stage say."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Literal

import pytest
import torch
from torch import Tensor

from stepwell.latents.thoughts import ARMS, IGNORE, WITH_CURRICULUM, WITH_LATENTS, Arm, Batch
from stepwell.tasks.prosqa import generate_graphs
from stepwell.tasks.prosqa.reading import tensors
from stepwell.tasks.prosqa.symbols import ANSWER, END, EOS, LATENT, QUERY, SPECIAL_NAMES, START, SymbolFormat

FAMILIES = ("id", "mini", "dag", "dense", "no-shortcut")
FIRST_NAME = len(SPECIAL_NAMES)
Prompt = Literal["pairs", "facts"]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@cache
def graphs_of(family: str, n: int = 40) -> tuple[dict[str, Tensor], list[int]]:
    """The arrays that a layout reads, and the number of nodes of each graph."""
    graphs = generate_graphs(family, n, 3)
    return tensors(graphs), graphs.n_nodes.tolist()


def layout_of(family: str, prompt: Prompt = "pairs", **options: object) -> SymbolFormat:
    persons, concepts = (2, 8) if family == "mini" else (17, 38)
    return SymbolFormat(prompt=prompt, persons=persons, concepts=concepts, **options)  # pyright: ignore[reportArgumentType]


def batch_of(family: str, arm: Arm, stage: int, layout: SymbolFormat, n: int = 40, seed: int = 0) -> Batch:
    return layout.batch(graphs_of(family, n)[0], torch.arange(n), arm, stage, seeded(seed))


@pytest.mark.parametrize("family", FAMILIES)
def test_renaming_is_a_bijection_that_respects_persons(family: str):
    graphs, sizes = graphs_of(family)
    layout = layout_of(family)
    names = layout.rename(graphs, seeded())
    for row, size in enumerate(sizes):
        mine, person = names[row, :size].tolist(), graphs["persons"][row, :size].tolist()
        assert len(set(mine)) == size, "two nodes share a name"
        for name, is_person in zip(mine, person, strict=True):
            assert FIRST_NAME <= name < layout.vocabulary
            assert (name < FIRST_NAME + layout.persons) == is_person
            assert layout.name(name)[0] == ("P" if is_person else "c")


def test_every_name_is_given_and_none_is_favoured():
    """A node's name is uniform: over 2,000 draws each of 8 concepts falls on node 9 about 250 times."""
    graphs, _ = graphs_of("mini", 2000)
    names = layout_of("mini").rename(graphs, seeded())
    for node, low, high in ((0, FIRST_NAME, FIRST_NAME + 2), (9, FIRST_NAME + 2, FIRST_NAME + 10)):
        counts = torch.bincount(names[:, node], minlength=high)[low:high]
        assert int(counts.sum()) == 2000
        expected = 2000 / (high - low)
        assert float(((counts - expected) ** 2 / expected).sum()) < 30


def test_names_as_text():
    layout = layout_of("mini")
    shown = [layout.name(token) for token in range(layout.vocabulary)]
    assert shown == [*SPECIAL_NAMES, "P0", "P1", *(f"c{i}" for i in range(8))]


@pytest.mark.parametrize("prompt", ["pairs", "facts"])
def test_the_same_generator_gives_the_same_batch(prompt: Prompt):
    layout = layout_of("id", prompt)
    first, again, other = (batch_of("id", "continuous", 2, layout, seed=seed) for seed in (4, 4, 5))
    held = {name: value for name, value in vars(first).items() if isinstance(value, Tensor)}
    assert all(torch.equal(value, getattr(again, name)) for name, value in held.items())
    assert not torch.equal(first.names, other.names)  # pyright: ignore[reportArgumentType]


def graph_told(batch: Batch, row: int) -> tuple[list[tuple[int, int]], list[int], int]:
    """The facts in the order told, the options and the root, by symbol."""
    if batch.facts is not None:
        assert batch.facts_mask is not None and batch.options is not None and batch.root is not None
        real = batch.facts[row][batch.facts_mask[row]].tolist()
        return [(a, b) for a, b in real], batch.options[row].tolist(), int(batch.root[row])
    tokens = batch.ids[row][batch.mask[row]].tolist()
    at = tokens.index(QUERY)
    facts = list(zip(tokens[0:at:2], tokens[1:at:2], strict=True))
    return facts, tokens[at + 1 : at + 3], tokens[at + 3]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("prompt", ["pairs", "facts"])
def test_the_prompt_tells_the_graph(family: str, prompt: Prompt):
    graphs, sizes = graphs_of(family)
    batch = batch_of(family, "cot", 0, layout_of(family, prompt))
    assert batch.names is not None
    orders, target_first = set(), 0
    for row, size in enumerate(sizes):
        node = {name: i for i, name in enumerate(batch.names[row, :size].tolist())}
        facts, options, root = graph_told(batch, row)
        told = [(node[a], node[b]) for a, b in facts]
        edges = [(a, b) for a, b in graphs["edges"][row].tolist() if a >= 0]
        assert sorted(told) == sorted(edges)
        orders.add(told == edges)
        assert {node[option] for option in options} == {int(graphs["target"][row]), int(graphs["neg_target"][row])}
        assert node[root] == int(graphs["root"][row])
        target_first += node[options[0]] == int(graphs["target"][row])
    assert orders == {False}, "the facts stand in the order of the data"
    assert 8 <= target_first <= 32, "the right option has a place of its own"


def tail_by_hand(batch: Batch, graphs: dict[str, Tensor], row: int, removed: int) -> list[int]:
    assert batch.names is not None
    name = batch.names[row].tolist()
    path = [node for node in graphs["path"][row].tolist() if node >= 0]
    return [*(name[node] for node in path[1 + removed :]), ANSWER, name[int(graphs["target"][row])], EOS]


@pytest.mark.parametrize("prompt", ["pairs", "facts"])
@pytest.mark.parametrize("markers", [True, False])
@pytest.mark.parametrize("per_step", [1, 2])
@pytest.mark.parametrize("arm", ARMS)
def test_what_follows_the_prompt(arm: Arm, per_step: int, markers: bool, prompt: Prompt):
    """Every arm at every stage, row by row: latents, the steps that remain, `###`, the answer, EOS; labels there."""
    graphs, _ = graphs_of("id", 15)
    layout = layout_of("id", prompt, markers=markers, thoughts_per_step=per_step)
    for stage in (0, 1, 3, 4, 7):
        batch = batch_of("id", arm, stage, layout, n=15)
        thoughts = stage * per_step if arm in WITH_LATENTS else 0
        middle = [LATENT] * thoughts
        middle = [START, *middle, END] if markers and arm in WITH_LATENTS else middle
        removed = stage if arm in WITH_CURRICULUM else 0 if arm == "cot" else 99
        assert batch.thoughts == thoughts and batch.items.tolist() == list(range(15))
        for row in range(15):
            tail = tail_by_hand(batch, graphs, row, removed)
            ids = batch.ids[row][batch.mask[row]].tolist()
            assert ids[len(ids) - len(tail) - len(middle) :] == [*middle, *tail]
            supervised = batch.labels[row] != IGNORE
            assert batch.labels[row][supervised].tolist() == tail
            assert torch.equal(batch.ids[row][supervised], batch.labels[row][supervised])
            assert torch.equal(batch.ids[row] == LATENT, batch.latent[row])
            assert not bool((supervised & (batch.latent[row] | ~batch.mask[row])).any())
            if thoughts:
                assert int(batch.latent[row].int().argmax()) == batch.first
            elif prompt == "facts" and not (markers and arm in WITH_LATENTS):
                assert batch.first == 0 and len(ids) == len(tail)


@pytest.mark.parametrize("prompt", ["pairs", "facts"])
def test_columns_are_padded_on_the_left_before_the_latents_and_on_the_right_after_them(prompt: Prompt):
    batch = batch_of("id", "continuous", 2, layout_of("id", prompt))
    before, after = batch.mask[:, : batch.first], batch.mask[:, batch.first :]
    assert bool((before.int().diff(dim=1) >= 0).all()) and bool((after.int().diff(dim=1) <= 0).all())
    assert bool(batch.mask[:, batch.first - 1].all())
    assert bool(batch.mask.any(0).all()), "a column in which no row has anything"
    if batch.facts_mask is not None:
        assert bool((batch.facts_mask.int().diff(dim=1) >= 0).all()) and bool(batch.facts_mask.any(0).all())


@pytest.mark.parametrize("prompt", ["pairs", "facts"])
@pytest.mark.parametrize("arm", ARMS)
def test_a_prompt_does_not_tell_the_hops(arm: Arm, prompt: Prompt):
    """Two sets that differ in their gold paths alone have the same prompts; items of 3 to 6 hops the same latents."""
    graphs, _ = graphs_of("id")
    shorter = graphs | {"hops": torch.ones_like(graphs["hops"]), "path": graphs["path"].roll(1, 0)}
    layout = layout_of("id", prompt, thoughts_per_step=2)
    assert len(set(graphs["hops"].tolist())) > 2
    # A stage that leaves at least one step of every item.
    for stage in (0, 2):
        here, there = (layout.batch(g, torch.arange(40), arm, stage, seeded()).prompt() for g in (graphs, shorter))
        for name in ("ids", "mask", "latent", "facts", "facts_mask", "options", "root"):
            a, b = getattr(here, name), getattr(there, name)
            assert (a is b is None) or torch.equal(a, b), name  # pyright: ignore[reportArgumentType]
        assert set(here.latent.sum(1).tolist()) == {2 * stage if arm in WITH_LATENTS else 0}


class Leaking(SymbolFormat):
    """Planted: as many latents as the item has steps, at most the stage's."""

    def batch(self, graphs, rows, arm, stage, generator):  # pyright: ignore[reportIncompatibleMethodOverride]
        sound = super().batch(graphs, rows, arm, stage, generator)
        kept = torch.minimum(graphs["hops"][rows], torch.tensor(stage))[:, None]
        column = torch.arange(sound.ids.shape[1])[None] - sound.first
        return replace(
            sound,
            latent=sound.latent & (column < kept),
            labels=sound.labels.where(column < stage, IGNORE).where(column != kept, ANSWER),
        )


def test_latents_that_tell_the_hops_are_refused():
    layout = Leaking(prompt="pairs", persons=17, concepts=38, markers=False)
    leaking = batch_of("id", "continuous", 5, layout)
    with pytest.raises(ValueError, match="decode with the same number of latents for all"):
        leaking.prompt()
    batch_of("id", "continuous", 5, layout_of("id", markers=False)).prompt()
