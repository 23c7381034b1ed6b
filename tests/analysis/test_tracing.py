"""Tracing: every patched probability is that of a slow, hand-written run; patches with a known result have it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from slow_states import slowly
from torch import Tensor

from reference_thoughts import louder
from stepwell.analysis.tracing import Place, Tracer, effect, lines
from stepwell.latents.thoughts import Arm, Batch, Thoughts
from stepwell.small import SmallConfig, SmallLM
from stepwell.studies.thoughts.data import swapped
from stepwell.studies.thoughts.others import others
from stepwell.tasks.prosqa import WordTokenizer, generate_graphs, render
from stepwell.tasks.prosqa.reading import SymbolReader, TextReader
from stepwell.tasks.prosqa.symbols import ANSWER, EOS, SymbolFormat

ROWS = torch.arange(4)


def other_roots(graphs: Any) -> list[int | None]:
    found = [
        others(
            [(a, b) for a, b in graphs.edges[row].tolist() if a >= 0], np.flatnonzero(graphs.persons[row]).tolist(),
            int(graphs.root[row]), int(graphs.target[row]), int(graphs.neg_target[row]),
        )
        for row in range(len(graphs))
    ]  # fmt: skip
    return [fit[0] if fit else None for fit in found]


def tracer_of(prompt: Any, arm: Arm, *, markers: bool = False, decode: bool = True) -> Tracer:
    """A random model of two layers on four `mini` graphs."""
    graphs = generate_graphs("mini", 4, 3)
    layout = SymbolFormat(prompt=prompt, persons=2, concepts=8, markers=markers)
    roots = other_roots(graphs)
    assert None not in roots
    readers = (
        SymbolReader(graphs, layout),
        SymbolReader(replace(graphs, root=np.array(roots, np.int16)), layout),
    )
    config = SmallConfig(
        vocabulary=layout.vocabulary, width=16, layers=2, heads=4, facts=prompt == "facts", embedding_std=0.7,
        max_positions=0 if prompt == "facts" else 120,
    )  # fmt: skip
    backbone = louder(SmallLM(config, seed=1).double().eval())
    vector = torch.linspace(-1, 1, 16, dtype=torch.float64)
    model = Thoughts(backbone, arm, vector=vector if arm == "shared" else None)
    clean, corrupt = (reader.ask(ROWS, arm, 2, torch.Generator().manual_seed(5)) for reader in readers)
    return Tracer(model, readers, clean, corrupt, steps=3, decode=decode)


def place_named(tracer: Tracer, name: str) -> Place:
    return next(place for place in tracer.places if place.name == name)


ARMS: tuple[Arm, ...] = ("cot", "direct", "continuous", "shared", "removal")


@pytest.mark.parametrize("prompt", ["pairs", "facts"])
@pytest.mark.parametrize("arm", ARMS)
def test_what_a_patch_must_do(prompt: str, arm: Arm) -> None:
    tracer = tracer_of(prompt, arm)
    assert not torch.allclose(tracer.clean, tracer.corrupt)
    person = tracer.patch(0, place_named(tracer, "the person")).probability
    torch.testing.assert_close(person, tracer.clean, msg="with the person's input given back, the run is the clean one")
    if prompt == "pairs":
        for layer in range(3):
            before = tracer.patch(layer, place_named(tracer, "before the person")).probability
            torch.testing.assert_close(before, tracer.corrupt, msg="columns before the person know nothing of it")
    last = tracer.patch(2, place_named(tracer, "answer begins")).probability
    torch.testing.assert_close(last, tracer.clean, msg="the last state before the answer decides it")


@pytest.mark.parametrize(
    ("arm", "names"),
    [
        ("direct", []),
        ("removal", []),
        ("continuous", ["thought 1", "thought 2"]),
        ("shared", ["thought 1", "thought 2"]),
    ],
)
def test_places_have_names_roles_and_an_order(arm: Arm, names: list[str]) -> None:
    for markers in (False, True):
        tracer = tracer_of("pairs", arm, markers=markers)
        found = [(place.name, place.role) for place in tracer.places if not place.name.startswith("step")]
        marked = markers and bool(names)
        assert found == [
            ("before the person", "prompt"), ("the person", "prompt"),
            *([("after the person", "prompt")] if marked else []),
            *((name, "reasoning") for name in names), *([("end marker", "answer")] if marked else []),
            ("answer begins", "answer"),
        ]  # fmt: skip
        numbers = [place.number for place in tracer.places]
        assert numbers == sorted(set(numbers))


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("prompt", ["pairs", "facts"])
@pytest.mark.parametrize("arm", ["continuous", "cot"])
@torch.no_grad()
def test_a_patched_run_is_the_slow_one(arm: Arm, prompt: str, layer: int) -> None:
    """Prompt, thoughts, written steps: everything after the patch is computed, and written, anew."""
    tracer = tracer_of(prompt, arm)
    checked = 0
    for place in tracer.places:
        if place.stage == "answer":
            continue
        found = tracer.patch(layer, place).probability
        for row in range(2):
            wanted = traced_slowly(tracer, row, layer, place)
            if wanted is None:
                assert found[row].isnan() and not place.rows[row]
            else:
                assert float(found[row]) == pytest.approx(wanted, abs=1e-6), "nats are summed in float32"
                checked += place.role == "reasoning"
    assert checked >= 2


def traced_slowly(tracer: Tracer, row: int, layer: int, place: Place) -> float | None:
    """The same by passes over one row from its start, the clean states taken from such passes, too."""
    columns = [int(c) for c in place.columns[row] if c >= 0]
    if not columns:
        return None
    model, (clean, corrupt) = tracer.model, tracer.batches
    real = model.placed(corrupt)[0][row].nonzero()[:, 0].tolist()
    prompt = tracer.prompt_columns
    written = _written_slowly(model, clean, row, {}, ())
    states = _states(model, clean, row, {}, written)
    patch = {(layer, real.index(c) if c < prompt else len(real) + c - prompt): None for c in columns}
    patch = {key: states[key[0]][key[1]] for key in patch}
    kept: tuple[int, ...] = ()
    if place.stage == "step":
        kept = _written_slowly(model, corrupt, row, {}, ())[: columns[-1] + 1 - prompt]
    steps = _written_slowly(model, corrupt, row, patch, kept)
    right, wrong = tracer.readers[1].options(corrupt, row)
    nats = []
    for option in (right, wrong):
        hidden = model.backbone.norm(_states(model, corrupt, row, patch, (*steps, *option))[-1])
        scores = model.backbone.logits(hidden).log_softmax(-1)
        begin = len(hidden) - len(option)
        nats.append(sum(float(scores[begin + i - 1, token]) for i, token in enumerate(option)))
    return 1 / (1 + float(np.exp(nats[1] - nats[0])))


def _states(model: Thoughts, batch: Batch, row: int, patch: dict[Any, Tensor], tail: tuple[int, ...]) -> list[Tensor]:
    """States of a row's real columns and of tokens after them; a patch is put in wherever its column exists."""
    more = torch.tensor([tail], dtype=torch.long)
    longer = replace(
        batch, ids=torch.cat((batch.ids[row : row + 1], more), 1),
        mask=torch.cat((batch.mask[row : row + 1], torch.ones_like(more, dtype=torch.bool)), 1),
        latent=torch.cat((batch.latent[row : row + 1], torch.zeros_like(more, dtype=torch.bool)), 1),
        **{
            name: None if value is None else value[row : row + 1]
            for name in ("facts", "facts_mask", "options", "root") for value in [getattr(batch, name)]
        },
    )  # fmt: skip
    return slowly(model.backbone, "small", longer, 0, patch)


def _written_slowly(
    model: Thoughts, batch: Batch, row: int, patch: dict[Any, Tensor], kept: tuple[int, ...]
) -> tuple[int, ...]:
    """Steps that a row writes, after those that are kept: greedily, up to the marker of the answer."""
    ids = list(kept)
    limit = 2 * 6  # twice the longest tail: three hops, marker, answer and EOS
    while len(ids) < limit:
        hidden = model.backbone.norm(_states(model, batch, row, patch, tuple(ids))[-1])
        token = int(model.backbone.logits(hidden[-1]).argmax())
        if token in (ANSWER, EOS):
            break
        ids.append(token)
    return tuple(ids)


@torch.no_grad()
def test_without_decoding_the_options_follow_at_once() -> None:
    tracer = tracer_of("pairs", "cot", decode=False)
    assert not [place for place in tracer.places if place.stage == "step"]
    for row in range(4):
        wanted = []
        for option in tracer.readers[0].options(tracer.batches[0], row):
            states = _states(tracer.model, tracer.batches[0], row, {}, tuple(option))[-1]
            scores = tracer.model.backbone.logits(tracer.model.backbone.norm(states)).log_softmax(-1)
            wanted.append(float(scores[-3, option[0]] + scores[-2, option[1]]))
        assert float(tracer.clean[row]) == pytest.approx(1 / (1 + np.exp(wanted[1] - wanted[0])), abs=1e-6)


def test_an_effect_is_the_share_of_the_corruption_that_is_undone() -> None:
    assert effect(0.9, 0.1, 0.5) == pytest.approx(0.5)
    assert effect(0.9, 0.1, 0.9) == 1 and effect(0.9, 0.1, 0.1) == 0
    assert effect(0.9, 0.1, 0.0) == pytest.approx(-0.125), "a patch may make it worse"
    assert effect(0.4, 0.4, 0.9) is None and effect(0.3, 0.4, 0.9) is None
    assert effect(0.5, 0.46, 0.48, smallest_gap=0.05) is None
    assert effect(0.5, 0.44, 0.47, smallest_gap=0.05) == pytest.approx(0.5)


def test_the_other_person_is_one_for_whom_the_other_option_is_right() -> None:
    graphs = generate_graphs("id", 60, 1)
    items = render(graphs, "id", 1)
    for row, other in enumerate(other_roots(graphs)):
        assert (other is None) == (swapped(items[row]) is None)
        if other is not None:
            pairs = [(a, b) for a, b in graphs.edges[row].tolist() if a >= 0]
            reached = {other}
            for a, b in sorted(pairs):  # edges go from a lower to a higher index
                if a in reached:
                    reached.add(b)
            assert graphs.persons[row, other] and other != graphs.root[row]
            assert int(graphs.neg_target[row]) in reached and int(graphs.target[row]) not in reached


def test_nobody_is_found_where_nobody_else_leads_to_the_wrong_option() -> None:
    assert others([(0, 2), (1, 2), (1, 3), (0, 3)], [0, 1], 0, 2, 3) == []
    assert others([(0, 2), (1, 3)], [0, 1], 0, 2, 3) == [1]


def test_written_steps_are_lines_or_symbols() -> None:
    items = render(generate_graphs("mini", 2, 1), "mini", 1)
    tokenizer = WordTokenizer()
    vocabulary = tokenizer.get_vocab()
    reader = TextReader(
        items, tokenizer, [vocabulary[f"<|{name}|>"] for name in ("start-latent", "latent", "end-latent")],
        thoughts_per_step=1, pad_to_max=True,
    )  # fmt: skip
    first, second = (tokenizer.encode(step + "\n") for step in ("Tom is a gerpus.", "Every gerpus is a lempus."))
    spans = [(0, len(first)), (len(first), len(first) + len(second))]
    assert lines(reader, [*first, *second]) == spans
    assert lines(reader, [*first, *second[:-1]]) == [spans[0], (len(first), len(first) + len(second) - 1)]
    assert lines(reader, []) == []
    symbols = SymbolReader(generate_graphs("mini", 2, 1), SymbolFormat(prompt="pairs", persons=2, concepts=8))
    assert lines(symbols, [9, 8]) == [(0, 1), (1, 2)]
