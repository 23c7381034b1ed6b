"""Training batches by number: the same for a number, every item once an epoch, and little padding."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stepwell.studies.thoughts.streams import ThoughtStream
from stepwell.tasks.prosqa.graphs import generate_graphs
from stepwell.tasks.prosqa.reading import SymbolReader
from stepwell.tasks.prosqa.symbols import SymbolFormat

N, BATCH = 640, 32


@pytest.fixture(scope="module")
def reader() -> SymbolReader:
    return SymbolReader(generate_graphs("id", N, 0), SymbolFormat(prompt="facts", persons=17, concepts=38))


def stream(reader: SymbolReader, seed: int = 0) -> ThoughtStream:
    return ThoughtStream(reader, "continuous", batch_size=BATCH, accumulation=1, seed=seed)


def first_stage(_: torch.Generator) -> int:
    return 1


def test_an_epoch_shows_every_item_once_in_another_order_each_time(reader: SymbolReader) -> None:
    data = stream(reader)
    assert data.steps_per_epoch == N // BATCH
    epochs = [
        torch.cat([data.batches(e * data.steps_per_epoch + step, first_stage)[0].items for step in range(N // BATCH)])
        for e in range(2)
    ]
    assert all(sorted(epoch.tolist()) == list(range(N)) for epoch in epochs)
    assert not torch.equal(*epochs)
    assert not torch.equal(
        epochs[0], torch.cat([stream(reader, 1).batches(s, first_stage)[0].items for s in range(20)])
    )


def test_a_batch_depends_on_its_number_alone(reader: SymbolReader) -> None:
    forwards, backwards = stream(reader), stream(reader)
    expected = [forwards.batches(step, first_stage)[0] for step in range(25)]
    for step in reversed(range(25)):
        found = backwards.batches(step, first_stage)[0]
        assert torch.equal(found.items, expected[step].items) and torch.equal(found.facts, expected[step].facts)


def test_prompts_of_like_length_stand_together(reader: SymbolReader) -> None:
    """Padding is what the batch computes for nothing; in random order it is nearly a half more than the facts."""
    data = stream(reader)

    def padding(batches: list[torch.Tensor]) -> float:
        lengths = [reader.lengths[rows].numpy() for rows in batches]
        return sum(len(x) * x.max() for x in lengths) / sum(x.sum() for x in lengths) - 1

    sorted_ones = [data.batches(step, first_stage)[0].items for step in range(data.steps_per_epoch)]
    assert padding(sorted_ones) < 0.1 < 0.3 < padding(list(torch.randperm(N).split(BATCH)))
    means = np.array([reader.lengths[rows].float().mean() for rows in sorted_ones])
    # Short ones first would be a curriculum of its own.
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.5


def test_a_batch_is_as_wide_as_its_longest_prompt(reader: SymbolReader) -> None:
    batch = stream(reader).batches(3, first_stage)[0]
    assert batch.facts is not None and batch.facts.shape[1] == int(reader.lengths[batch.items].max())
