"""Tasks: rows of one category, what is learnt of them, padding, and what is refused."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from meta_toys import CATEGORIES, FORM, categories_of, prepared, talks
from pydantic import TypeAdapter, ValidationError
from sft_toys import LIMIT

from stepwell.errors import StageFailed, StepwellError
from stepwell.objectives import IGNORE
from stepwell.sft.conversations import Conversation
from stepwell.sft.cost import cost
from stepwell.sft.packing import PADDING, Batch, Corpus
from stepwell.sft.recipe import Anil, Maml, Meta, SftRecipe
from stepwell.sft.stream import SftStream
from stepwell.studies.tune.params import TuneTrainParams


def stream_of(some: list[Conversation], **options) -> SftStream:
    given = {"max_tokens": LIMIT, "batch_size": 3, "accumulation": 2, "seed": 11, "pack": False}
    given |= {"categories": categories_of(some)} | options
    return SftStream(Corpus.of(some, FORM, LIMIT), **given)


def epoch_of(stream: SftStream, epoch: int = 0) -> list[tuple[int, ...]]:
    """The first example of each row, by micro-batch."""
    steps = range(epoch * stream.steps_per_epoch, (epoch + 1) * stream.steps_per_epoch)
    return [tuple(batch.examples[:, 0].tolist()) for step in steps for batch in stream.batches(step, lambda _: 0)]


@pytest.mark.parametrize("pack", [True, False])
def test_a_task_is_of_one_category_and_a_category_weighs_as_its_rows(pack: bool):
    some = [one for one in talks(90) if one.category != "minus" or int(one.id[1:]) < 45]
    stream = stream_of(some, pack=pack, batch_size=2)
    assert {name: len(rows) for name, rows in stream.groups.items()}.keys() == set(CATEGORIES)
    assert sorted(number for row in stream.rows for number in row) == list(range(len(some)))
    shown = Counter()
    for step in range(stream.steps_per_epoch):
        for batch in stream.batches(step, lambda _: 0):
            found = {some[number].category for number in batch.examples.flatten().tolist() if number != PADDING}
            assert len(found) == 1 and len(batch.ids) == 2
            shown[found.pop()] += 1
    whole = {name: len(rows) // 2 for name, rows in stream.groups.items()}
    left = sum(whole.values()) - sum(shown.values())
    assert 0 <= left < 2 and all(0 <= whole[str(name)] - n <= left for name, n in shown.items())
    assert whole["minus"] < whole["plus"]


def test_an_epoch_shows_a_row_at_most_once_and_other_tasks_next():
    stream = stream_of(talks(60))
    first, second = epoch_of(stream), epoch_of(stream, 1)
    for epoch in (first, second):
        rows = [row for task in epoch for row in task]
        assert len(rows) == len(set(rows)) == 18 * 3
    assert set(first) != set(second) and epoch_of(stream_of(talks(60))) == first
    order = [str(talks(60)[task[0]].category) for task in first]
    assert order != sorted(order), "categories take turns in no order"


def test_without_categories_the_order_is_what_it_was():
    stream = stream_of(talks(20), categories=None, batch_size=3, accumulation=2)
    assert list(stream.groups) == [None] and stream.steps_per_epoch == 3
    assert epoch_of(stream)[:2] == [(5, 8, 19), (6, 14, 0)]


def test_a_category_with_too_few_rows_is_left_out_and_known_to_be():
    some = [one for one in talks(60) if one.category != "minus" or int(one.id[1:]) < 6]
    stream = stream_of(some)
    assert {name: len(rows) for name, rows in stream.groups.items()} == {"minus": 0, "plus": 20, "times": 20}
    assert "minus" not in {some[row].category for task in epoch_of(stream) for row in task}


def test_what_can_be_no_tasks_is_refused():
    some = talks(60)
    with pytest.raises(StepwellError, match=r"1 of 60 conversations have no category, t7 for one\n.*`category`"):
        stream_of([replace(one, category=None) if one.id == "t7" else one for one in some])
    with pytest.raises(StepwellError, match=r"1 of 1 categories \(plus\) have the 3 rows of a task, and two at least"):
        stream_of([one for one in some if one.category == "plus"])
    with pytest.raises(StepwellError, match=r"0 of 3 categories \(minus, plus, times\) have the 30 rows of a task"):
        stream_of(some, batch_size=30)
    with pytest.raises(StepwellError, match=r"fill 3 micro-batches of one category each, and a step has 4"):
        stream_of(some, batch_size=20, accumulation=4)
    run = prepared()
    with pytest.raises(StageFailed, match="a task of one row has nothing to adapt to, or nothing to learn from"):
        run.model.compute(run.task().parts(1)[0])


def test_the_spec_says_what_a_task_needs():
    read = TypeAdapter(Meta).validate_python
    assert read({"kind": "maml"}) == Maml() and read({"kind": "anil"}) == Anil(head_layers=1)
    for wrong in ({"kind": "maml", "head_layers": 1}, {"kind": "anil", "support": 1.0}, {"kind": "reptile"}):
        with pytest.raises(ValidationError):
            read(wrong)
    assert [Maml(support=0.5).support_rows(rows) for rows in (2, 3, 8)] == [1, 2, 4]
    assert Maml(support=0.01).support_rows(8) == 1 and Maml(support=0.99).support_rows(8) == 7
    assert TuneTrainParams(steps=1).meta is None
    with pytest.raises(ValidationError, match="`batch_size` is 2 at least: one row to adapt to, and one to learn from"):
        TuneTrainParams(steps=1, batch_size=1, meta=Maml())


def test_only_the_query_counts_as_learnt():
    run = prepared()
    batch = run.task()
    support, query = run.model.support(batch), run.model.learnt(batch)
    assert (len(support.ids), len(query.ids)) == (2, 3)
    assert torch.equal(torch.cat([support.ids, query.ids]), batch.ids)
    assert run.model.supervised(batch) == query.supervised == batch.supervised - support.supervised
    recipe = SftRecipe(epochs=1, batch_size=5, accumulation=2)
    whole, some = cost(run.stream, recipe), cost(run.stream, recipe, learnt=0.6)
    assert some.supervised_tokens == pytest.approx(0.6 * whole.supervised_tokens, abs=1)
    assert some.tokens == whole.tokens


def padded(batch: Batch, columns: int) -> Batch:
    """More padding on the right of each row."""
    more = (len(batch.ids), columns)
    fill = {"ids": 0, "labels": IGNORE, "examples": PADDING}
    made = {name: torch.cat([getattr(batch, name), torch.full(more, value)], 1) for name, value in fill.items()}
    positions = torch.cat([batch.positions, torch.arange(columns).expand(more)], 1)
    return replace(batch, **made, positions=positions)


def test_padding_is_no_target_however_much_of_it_there_is():
    run = prepared(accumulation=1)
    batch = run.task()
    wide = padded(batch, 100)
    assert (wide.examples == PADDING).float().mean() > 0.8
    assert run.model.supervised(wide) == run.model.supervised(batch) == run.model.learnt(batch).supervised
    (wanted, expected), (nats, gradients) = run.model.compute(batch), run.model.compute(wide)
    assert float(nats) == pytest.approx(float(wanted), rel=1e-3)
    for one, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-2)


def test_padding_among_the_targets_is_refused():
    run = prepared(accumulation=1)
    wide = padded(run.task(), 100)
    labels = torch.where(wide.examples == PADDING, 0, wide.labels)
    real, pads = run.task().supervised, int((wide.examples == PADDING).sum())
    assert pads > 0.95 * (pads + real), "as it was in the original, whose loss was .02"
    with pytest.raises(StageFailed, match=f"{pads} of the {pads + real} targets of a task are padding"):
        run.model.objective(replace(wide, labels=labels))
