"""Interventions: every edit against one made by hand, every answer under one against a full sequence in float64."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from reference_thoughts import Slow, backbone_of
from stepwell.evaluate import Intervened, asked, collect, intervened
from stepwell.latents.conditions import FAMILIES, Intervention, interventions
from stepwell.latents.interventions import NOBODY, Material, applies, edit, material, put_in, unchanged
from stepwell.latents.thoughts import Arm, Thoughts
from stepwell.tasks.prosqa import WordTokenizer, generate_graphs, generate_items
from stepwell.tasks.prosqa.reading import Reader, SymbolReader, TextReader
from stepwell.tasks.prosqa.symbols import SymbolFormat

HOPS = [3, 3, 4, 5, 4, 3, 4, 6, 3]
ROWS = torch.tensor([4, 0, 7])


@cache
def chains() -> Tensor:
    """Nine items, four thoughts each, positions of different size and mean."""
    found = torch.randn(9, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return found * torch.tensor([0.1, 1.0, 3.0, 10.0])[:, None] + torch.tensor([5.0, 0.0, -2.0, 1.0])[:, None]


@cache
def given() -> Material:
    return material(chains(), HOPS, seed=3)


def every(latents: int = 4, **changes: Any) -> tuple[Intervention, ...]:
    how = {"families": FAMILIES, "scales": (1.0, 2.0), "propagates": (True, False), "counts": (0, 2, 4, 8), **changes}
    return interventions(latents, **how)


# Specs


def test_conditions_are_distinct_and_stable():
    names = [what.condition for what in every()]
    assert len(set(names)) == len(names) and names[0] == "clean"
    wanted = {
        "zeroed", "averaged", "last-zeroed", "noise-first k=3 x1 propagating", "noise-first k=3 x2 afterwards",
        "noise-last k=4 x1 afterwards", "noise-single position=2 x1 propagating", "order", "swap position=3", "between",
        "transplant-matched", "transplant-unmatched", "thoughts 0", "thoughts 8",
    }  # fmt: skip
    assert wanted <= set(names) and "thoughts 4" not in names, "the number that it has is `clean`"
    # Three families of noise at four k, two scales, two ways; three swaps; three numbers; seven single ones; clean.
    assert len(names) == 3 * 4 * 2 * 2 + 3 + 3 + 7 + 1


@pytest.mark.parametrize("latents", range(5))
def test_what_needs_more_thoughts_than_there_are_is_not_asked(latents: int):
    for what in every(latents):
        assert (what.k or 0) <= latents and (what.position or 0) <= latents
        assert set(what.touched(latents)) <= set(range(latents))
    found = Counter(what.family for what in every(latents))
    assert found["noise-first"] == found["noise-last"] == found["noise-single"] == 4 * latents
    assert found["swap"] == max(0, latents - 1) and found["order"] == (latents > 1)
    assert found["zeroed"] == found["between"] == (latents > 0)


def test_only_the_families_asked_for():
    found = every(families=("swap", "thoughts"))
    assert {what.family for what in found} == {"clean", "swap", "thoughts"}
    assert all(what.propagates for what in every(families=("noise-last",), propagates=(True,))[1:])


# Material


def test_noise_is_in_units_of_the_thoughts_own_standard_deviation():
    for k in range(4):
        values = chains()[:, k].flatten().tolist()
        mean = sum(values) / len(values)
        wanted = math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))
        assert float(given().std[k]) == pytest.approx(wanted, rel=1e-12)
    many = material(torch.randn(400, 2, 50) * torch.tensor([0.5, 4.0])[:, None], [3] * 400, seed=0)
    for scale in (0.5, 2.0):
        what = Intervention(family="noise-first", k=2, scale=scale, propagates=False)
        moved = put_in(what, many, torch.arange(400)) - many.thoughts
        for k, size in enumerate((0.5, 4.0)):
            assert float(moved[:, k].std()) == pytest.approx(scale * size, rel=0.03)
            assert abs(float(moved[:, k].mean())) < 0.03 * scale * size


def test_a_vector_that_all_items_share_has_a_standard_deviation_too():
    vector = torch.tensor([1.0, 2.0, 6.0])
    found = material(vector.expand(7, 2, 3), [3] * 7, seed=0)
    torch.testing.assert_close(found.std, torch.full((2,), float(vector.std(correction=0)), dtype=torch.float64))


def test_the_same_item_gets_the_same_noise_everywhere():
    by = {what.condition: put_in(what, given(), ROWS) - chains()[ROWS] for what in every()[1:] if what.count is None}
    first = by["noise-first k=4 x1 afterwards"]
    for k in range(1, 5):
        torch.testing.assert_close(by[f"noise-first k={k} x1 afterwards"][:, :k], first[:, :k], rtol=0, atol=1e-12)
        last = by[f"noise-last k={k} x1 afterwards"]
        torch.testing.assert_close(last[:, 4 - k :], first[:, 4 - k :], rtol=0, atol=1e-12)
        single = by[f"noise-single position={k} x1 afterwards"]
        torch.testing.assert_close(single[:, k - 1], first[:, k - 1], rtol=0, atol=1e-12)
        assert Counter((single.abs().amax((0, 2)) > 0).tolist()) == {True: 1, False: 3}
    torch.testing.assert_close(by["noise-first k=4 x2 afterwards"], 2 * first, rtol=1e-12, atol=1e-12)
    again = material(chains(), HOPS, seed=3)
    torch.testing.assert_close(again.noise, given().noise, rtol=0, atol=0)
    assert (material(chains(), HOPS, seed=4).noise - again.noise).abs().max() > 0.1


def test_donors_are_never_the_item_itself_and_have_the_hops_they_must_have():
    for seed in range(40):
        found = material(chains(), HOPS, seed=seed).donors
        for family, donors in found.items():
            for item, donor in enumerate(donors.tolist()):
                assert donor != item, family
                if family == "transplant-matched":
                    alone = HOPS.count(HOPS[item]) == 1
                    assert (donor == NOBODY) == alone, "the only item of 5 and of 6 hops have no donor"
                    assert alone or HOPS[donor] == HOPS[item]
                else:
                    assert 0 <= donor < len(HOPS)
                if family == "transplant-unmatched":
                    assert HOPS[donor] != HOPS[item]
        for family in ("between", "transplant-matched"):
            chosen = [donor for donor in found[family].tolist() if donor != NOBODY]
            assert len(set(chosen)) == len(chosen), "every chain is given once"
    unmatched = Counter(int(material(chains(), HOPS, seed=s).donors["transplant-unmatched"][0]) for s in range(400))
    assert set(unmatched) == {i for i, hops in enumerate(HOPS) if hops != 3}
    assert min(unmatched.values()) > 400 / 5 * 0.6, "all of another number of hops are alike"


def test_items_without_a_donor_are_left_out_and_nothing_else():
    for what in every():
        wanted = [True, True, what.family != "transplant-matched"]  # item 7 is the only one of six hops
        assert applies(what, given(), ROWS) == wanted, what.condition
    same = material(chains(), [3] * 9, seed=0)
    assert applies(Intervention(family="transplant-unmatched", k=4), same, ROWS) == [False] * 3
    lonely = material(chains()[:1], [3], seed=0)
    for family in ("between", "transplant-matched", "transplant-unmatched"):
        what = Intervention(family=family, k=4)
        assert applies(what, lonely, torch.tensor([0])) == [False]
        torch.testing.assert_close(put_in(what, lonely, torch.tensor([0])), chains()[:1], rtol=0, atol=0)


def test_an_order_is_a_permutation_and_never_the_identity():
    for latents in (2, 3, 4):
        found = material(torch.randn(300, latents, 2), [3] * 300, seed=latents).order
        assert bool((found.sort(1).values == torch.arange(latents)).all())
        assert not bool((found == torch.arange(latents)).all(1).any())
    assert len({tuple(row) for row in found.tolist()}) == 23, "every other order of four is drawn"
    assert material(torch.randn(3, 1, 2), [3] * 3, seed=0).order.tolist() == [[0]] * 3
    assert material(torch.randn(3, 0, 2), [3] * 3, seed=0).order.shape == (3, 0)


# Edits, by hand


def by_hand(what: Intervention, thoughts: Tensor, found: Material, row: int) -> Tensor:
    """What stands in the columns of one item when the edit is put in afterwards, thought by thought."""
    own = [thoughts[row, k] for k in range(thoughts.shape[1])]
    last = len(own) - 1
    if what.family == "zeroed":
        own = [torch.zeros_like(one) for one in own]
    elif what.family == "averaged":
        own = [torch.stack([one[k] for one in thoughts]).sum(0) / len(thoughts) for k in range(last + 1)]
    elif what.family == "last-zeroed":
        own[last] = torch.zeros_like(own[last])
    elif what.family == "order":
        own = [own[int(place)] for place in found.order[row]]
    elif what.family == "swap":
        at = what.position or 0
        own[at - 1], own[at] = own[at], own[at - 1]
    elif what.family in found.donors:
        donor = int(found.donors[what.family][row])
        own = own if donor == NOBODY else [thoughts[donor, k] for k in range(last + 1)]
    else:
        for k, more in added_by_hand(what, found, row, last + 1).items():
            own[k] = own[k] + more
    return torch.stack(own)


def added_by_hand(what: Intervention, found: Material, row: int, latents: int) -> dict[int, Tensor]:
    """Thought -> the noise that is put on it."""
    touched = {
        "noise-first": [k for k in range(latents) if k < (what.k or 0)],
        "noise-last": [k for k in range(latents) if k >= latents - (what.k or 0)],
        "noise-single": [(what.position or 0) - 1],
    }[what.family]
    return {k: (what.scale or 0) * float(found.std[k]) * found.noise[row, k].double() for k in touched}


def test_every_edit_is_the_one_made_by_hand():
    before = chains().clone()
    for what in every()[1:]:
        if what.count is not None:
            continue
        edited = put_in(what, given(), ROWS)
        for place, row in enumerate(ROWS.tolist()):
            wanted = by_hand(what, chains(), given(), row)
            torch.testing.assert_close(edited[place], wanted, rtol=1e-12, atol=1e-12, msg=what.condition)
        assert put_in(what, replace(given(), thoughts=chains().float()), ROWS).dtype == torch.float32
        if what.scale is None:
            with pytest.raises(ValueError, match=f"{what.family} is put in after the thoughts were computed, never"):
                edit(what, given(), ROWS)
    torch.testing.assert_close(chains(), before, rtol=0, atol=0)


def test_what_is_left_as_it_was_is_seen():
    own = chains()[:3]
    moved = own.clone()
    moved[1, 2, 3] += 1e-3
    moved[2] *= 1 + 1e-9
    assert unchanged(moved, own).tolist() == [True, False, True]
    assert unchanged(own.flip(1), own).tolist() == [False] * 3
    assert unchanged(own[:, :0], own[:, :0]).tolist() == [True] * 3
    nan = own.clone()
    nan[0, 0, 0] = torch.nan
    assert unchanged(nan, own).tolist() == [False, True, True]


# Answers under interventions


@cache
def reader_for(name: str) -> Reader:
    if name == "gpt2":
        words = WordTokenizer()
        markers = [words.get_vocab()[token] for token in ("<|start-latent|>", "<|latent|>", "<|end-latent|>")]
        return TextReader(generate_items("mini", 5, 0), words, markers, thoughts_per_step=1, pad_to_max=True)
    layout = SymbolFormat(prompt="pairs", persons=17, concepts=38)
    if name != "pairs":
        layout = replace(layout, prompt="facts", markers=False)
    return SymbolReader(generate_graphs("mini", 5, 0), layout)


def model_of(name: str, arm: Arm) -> Thoughts:
    vector = torch.randn(16, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    return Thoughts(backbone_of(name), arm, vector=vector if arm != "continuous" else None).eval()


def answers(
    model: Thoughts, reader: Reader, what: tuple[Intervention, ...], stage: int, **options: Any
) -> tuple[Tensor, Material, dict[str, list[Intervened]]]:
    asking = {"stage": stage, "seed": 3, "batch_size": 3}
    thoughts = collect(model, reader, **asking)
    found = material(thoughts, [reader.identity(row)[1] for row in range(len(thoughts))], seed=5)
    by: dict[str, list[Intervened]] = {one.condition: [] for one in what}
    for batch in intervened(model, reader, what, found, **asking, **options):
        for one in batch:
            by[one.what.condition].append(one)
    return thoughts, found, by


@pytest.mark.parametrize(("name", "arm"), [
    ("gpt2", "continuous"), ("pairs", "continuous"), ("facts", "continuous"), ("pairs", "shared"),
])  # fmt: skip
@torch.no_grad()
def test_answers_under_every_intervention_are_those_of_a_full_sequence(name: str, arm: Arm):
    """Cached, batched, resumed at the first thought touched; against one item at a time, recomputed from its start."""
    model, reader, latents = model_of(name, arm), reader_for(name), 3
    what = every(latents, scales=(1.5,), counts=(0, 2, 5))
    thoughts, found, by = answers(model, reader, what, latents, decode=False)
    slow: dict[int, tuple[Any, int]] = {}
    for rows, batch in asked(model, reader, stage=latents, seed=3, batch_size=3):
        slow |= {row: (batch, place) for place, row in enumerate(rows.tolist())}
    chain = torch.stack([torch.stack(Slow(model, *slow[row]).thoughts) for row in range(5)])
    torch.testing.assert_close(thoughts, chain, rtol=0, atol=1e-11)
    for one in what:
        kept = [row for row in range(5) if applies(one, found, torch.tensor([row]))[0]]
        assert [answer.row for answer in by[one.condition]] == kept
        for answer in by[one.condition]:
            batch, place = slow[answer.row]
            if one.family in ("clean", "thoughts"):
                wanted = Slow(model, batch, place, count=one.count)
            elif one.propagates and one.scale is not None:
                wanted = Slow(model, batch, place, added=added_by_hand(one, found, answer.row, latents))
            else:
                wanted = Slow(model, batch, place, by_hand(one, chain, found, answer.row))
            right, wrong = reader.options(batch, place)
            margin = wanted.nats((), right) - wanted.nats((), wrong)
            assert math.isclose(answer.margin, margin, rel_tol=1e-5, abs_tol=1e-5), (one.condition, answer.row)
            assert answer.latents == (latents if one.count is None else one.count) and answer.changed is None
            clean = by["clean"][answer.row]
            assert answer.flipped == ((margin > 0) != (clean.margin > 0)) and answer.answer is None
            same = arm == "shared" and one.family in ("averaged", "order", "swap", "between") | found.donors.keys()
            assert answer.vacuous == same, one.condition
            if same:
                assert answer.margin == pytest.approx(clean.margin, abs=1e-6) and not answer.flipped
            assert answer.donor == (int(found.donors[one.family][answer.row]) if one.family in found.donors else None)
    margins = {name: [one.margin for one in rows] for name, rows in by.items()}
    some = "noise-first k=1 x1.5 "
    heard = [abs(a - b) for a, b in zip(margins[f"{some}propagating"], margins[f"{some}afterwards"], strict=True)]
    assert min(heard) > 1e-4 if arm == "continuous" else max(heard) < 1e-6, "only recycled content hears of it"
    # Nothing comes after the last thought: there the two are one.
    for condition in ("noise-last k=1 x1.5 ", "noise-single position=3 x1.5 "):
        assert margins[f"{condition}propagating"] == pytest.approx(margins[f"{condition}afterwards"], abs=1e-5)


@torch.no_grad()
def test_what_is_written_under_an_intervention_is_decoded_from_it():
    model, reader, latents = model_of("pairs", "continuous"), reader_for("pairs"), 2
    what = every(latents, families=("zeroed", "noise-first", "thoughts"), scales=(3.0,), counts=(0,))
    thoughts, found, by = answers(model, reader, what, latents)
    differ = 0
    for rows, batch in asked(model, reader, stage=latents, seed=3, batch_size=3):
        for place, row in enumerate(rows.tolist()):
            for one in what:
                answer, clean = by[one.condition][row], by["clean"][row]
                if one.scale is not None and one.propagates:
                    slow = Slow(model, batch, place, added=added_by_hand(one, found, row, latents))
                elif one.family in ("clean", "thoughts"):
                    slow = Slow(model, batch, place, count=one.count)
                else:
                    slow = Slow(model, batch, place, by_hand(one, thoughts, found, row))
                wanted = reader.answer(batch, place, slow.decode(reader.eos, 2 * reader.longest_tail))
                assert answer.answer == wanted and clean.answer is not None, one.condition
                right, wrong = reader.options(batch, place)
                margin = slow.nats(wanted.steps, right) - slow.nats(wanted.steps, wrong)
                assert math.isclose(answer.margin, margin, rel_tol=1e-5, abs_tol=1e-4)
                assert answer.changed == (wanted.text != clean.answer.text)
                differ += wanted.steps != clean.answer.steps
    assert differ, "some interventions change what is written"
    assert not any(one.changed or one.flipped for one in by["clean"])


def test_the_question_is_read_once_for_all_interventions():
    """However many there are, each batch passes its question through the model once."""
    model, reader = model_of("pairs", "continuous"), reader_for("pairs")
    what = every(3, counts=(0, 2, 5))
    thoughts = collect(model, reader, stage=3, seed=0, batch_size=5)
    found = material(thoughts, [3] * 5, seed=0)
    columns: list[int] = []
    with model.backbone.register_forward_pre_hook(lambda _, given: columns.append(given[0].shape[1])):
        given = list(intervened(model, reader, what, found, stage=3, seed=0, batch_size=5, decode=False))
    assert len(given) == len(what) > 40
    longest = next(asked(model, reader, stage=3, seed=0, batch_size=5))[1].first
    assert longest > 20 and [count for count in columns if count > 6] == [longest]


def test_the_batch_size_changes_nothing_for_text():
    model, reader = model_of("gpt2", "continuous"), reader_for("gpt2")
    what = every(2, scales=(1.0,), counts=(0,))
    thoughts = collect(model, reader, stage=2, seed=0, batch_size=5)
    found = material(thoughts, [reader.identity(row)[1] for row in range(5)], seed=0)
    by: list[dict[tuple[str, int], float]] = []
    for size in (1, 5):
        every_batch = intervened(model, reader, what, found, stage=2, seed=0, batch_size=size, decode=False)
        by.append({(one.what.condition, one.row): one.margin for batch in every_batch for one in batch})
    assert by[0].keys() == by[1].keys()
    assert all(math.isclose(by[0][key], by[1][key], rel_tol=1e-5, abs_tol=1e-5) for key in by[0])


def test_a_model_that_never_left_the_first_stage_has_no_thoughts_to_touch():
    model, reader = model_of("pairs", "continuous"), reader_for("pairs")
    what = every(0, counts=(0, 2))
    assert [one.condition for one in what] == ["clean", "thoughts 2"]
    thoughts = collect(model, reader, stage=0, seed=0, batch_size=5)
    assert thoughts.shape == (5, 0, 16)
    found = material(thoughts, [3] * 5, seed=0)
    clean, two = intervened(model, reader, what, found, stage=0, seed=0, batch_size=5, decode=False)
    assert [one.latents for one in clean] == [0] * 5 and [one.latents for one in two] == [2] * 5
    assert not any(one.vacuous for one in (*clean, *two))
