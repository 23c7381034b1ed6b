"""Meta-learning: its gradient against one in float64, what the inner loop touches, memory, halves and a resume."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier

import pytest
import torch
from meta_toys import ANIL, MAML, Float64, Run, conversations_in, equal, prepared, weights
from sft_toys import NO_MEMORY, context, out_of_memory_above
from torch import Tensor

from stepwell.errors import Interrupted, StageFailed, StepwellError
from stepwell.ranks import Ranks
from stepwell.sft import model as module
from stepwell.sft.meta import head_of
from stepwell.sft.model import SftModel
from stepwell.sft.recipe import Anil, Maml
from stepwell.stage import Memory

NUMBERS = ("support_before", "support_after", "query")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("meta", [MAML, ANIL], ids=["maml", "anil"])
def test_a_steps_gradient_is_the_one_written_out_in_float64(meta: Maml, pack: bool):
    run = prepared(meta, pack=pack, batch_size=2 if pack else 5)
    reference = Float64(run.lora)
    adapting = [name for name in reference.names if meta is MAML or ".layers.1." in name]
    assert len(adapting) == len(reference.names) // (1 if meta is MAML else 2)
    batches, rows = run.stream.batches(0, lambda _: 0), 1 if pack else 2
    total, tokens = 0.0, 0
    summed, plain = ({name: torch.zeros((), dtype=torch.float64) for name in reference.names} for _ in range(2))
    for batch in batches:
        support, query = (conversations_in(batch.rows(part)) for part in (slice(None, rows), slice(rows, None)))
        assert support and query and len(support) + len(query) == len(conversations_in(batch))
        (before, after, nats), count, gradient = reference.task(meta, support, query, adapting)
        assert after < before
        total, tokens = total + nats, tokens + count
        _, _, there = reference.gradient(reference.begin, query)
        summed = {name: summed[name] + gradient[name] for name in summed}
        plain = {name: plain[name] + there[name] for name in plain}
    assert sum(run.model.supervised(batch) for batch in batches) == tokens
    for batch in batches:
        nats, _ = run.model.objective(batch)
        (nats / tokens).backward()
        total -= float(nats.detach())
    assert total == pytest.approx(0, abs=1e-3)
    for name, parameter in zip(reference.names, run.lora.parameters(), strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad.double(), summed[name] / tokens, rtol=1e-3, atol=1e-4)
    far = max(float((plain[name] - summed[name]).abs().max()) / tokens for name in plain)
    assert far > 0.1, "and adapting makes a difference"


def test_what_is_recorded_are_the_losses_of_the_reference():
    run = prepared(accumulation=1)
    batch = run.task()
    support, query = (conversations_in(part) for part in (run.model.support(batch), run.model.learnt(batch)))
    (before, after, nats), tokens, _ = Float64(run.lora).task(MAML, support, query, Float64(run.lora).names)
    found, count = run.model.objective(batch)
    run.model.stepped(float(found.detach()) / count)
    (record,) = run.records("meta")
    assert record["step"] == 1 and record["query_tokens"] == tokens
    assert record["support_tokens"] == run.model.support(batch).supervised
    found = [record["support_before"], record["support_after"], record["query"]]
    assert found == pytest.approx([before, after, nats / tokens], rel=1e-4)


@pytest.mark.parametrize("meta", [MAML, ANIL], ids=["maml", "anil"])
def test_without_a_step_it_is_the_plain_gradient_over_the_query(meta: Maml):
    run = prepared(meta.model_copy(update={"inner_lr": 0.0}), dropout=0.3, accumulation=1)
    run.lora.backbone.train()
    batch = run.task()
    nats, gradients = run.model.compute(batch)
    plain = SftModel(run.lora, ctx=context(Memory()))
    wanted, expected = plain.compute(run.model.learnt(batch))
    assert torch.equal(nats, wanted) and equal(gradients, expected)
    assert not torch.equal(plain.compute(replace(run.model.learnt(batch), seed=1))[0], wanted), "dropout is on"


def test_the_loop_learns_where_adapting_begins():
    run = prepared(steps=12, batch_size=6, checkpoint_every=12).go()
    told = run.records("meta")
    assert [record["step"] for record in told] == list(range(1, 13))
    losses = [record["loss"] for record in run.records("step")]
    assert [record["query"] for record in told] == pytest.approx(losses)
    assert losses[-1] < 0.75 * losses[0]
    assert all(record["support_after"] < record["support_before"] for record in told)


def seen_weights(run: Run, monkeypatch) -> list[list[Tensor]]:
    """The adapter's weights at each forward pass."""
    seen, whole = [], module.states

    def watched(*args):
        seen.append(weights(run.lora))
        return whole(*args)

    monkeypatch.setattr(module, "states", watched)
    return seen


@pytest.mark.parametrize("meta", [MAML, ANIL], ids=["maml", "anil"])
def test_the_inner_loop_moves_what_adapts_and_puts_it_back_bit_for_bit(meta: Maml, monkeypatch):
    run = prepared(meta, dropout=0.1)
    run.lora.backbone.train()
    begin, seen = weights(run.lora), seen_weights(run, monkeypatch)
    _, gradients = run.model.compute(run.task())
    assert equal(weights(run.lora), begin)
    assert len(seen) == meta.inner_steps + 2 and equal(seen[0], begin)
    head = {id(parameter) for parameter in head_of(run.lora, 1)} if isinstance(meta, Anil) else None
    for at, (parameter, first, last) in enumerate(zip(run.lora.parameters(), begin, seen[-1], strict=True)):
        assert torch.equal(first, last) == (head is not None and id(parameter) not in head), at
    assert all(float(gradient.abs().max()) > 0 for gradient in gradients), "the body learns too, from the query"
    assert all(parameter.grad is None for parameter in run.lora.parameters())


def test_the_head_is_the_last_layers_that_the_adapter_is_on():
    lora = prepared(ANIL).lora
    named = {id(parameter): name for name, parameter in lora.named_parameters()}
    assert {named[id(parameter)].split("/")[2] for parameter in head_of(lora, 1)} == {"1"}
    with pytest.raises(StepwellError, match=r"the adapter is on 2 layers, and 2 of them are to be the head: there is"):
        prepared(Anil(head_layers=2))


@pytest.mark.parametrize("device", NO_MEMORY)
def test_a_failure_in_the_middle_leaves_the_first_weights(device: str, monkeypatch):
    run = prepared()
    begin, whole, calls = weights(run.lora), module.states, []

    def full(*args):
        calls.append(1)
        if len(calls) > MAML.inner_steps:
            raise NO_MEMORY[device]()
        return whole(*args)

    monkeypatch.setattr(module, "states", full)
    with pytest.raises(StageFailed, match="memory ran out on a single row"):
        run.model.objective(run.task())
    assert equal(weights(run.lora), begin) and len(calls) > MAML.inner_steps


@pytest.mark.parametrize("device", NO_MEMORY)
def test_out_of_memory_halves_support_and_query_with_the_same_result(device: str, monkeypatch):
    before = prepared().go()
    out_of_memory_above(1, monkeypatch, device)
    after = prepared().go()
    # Of two rows of support, and then of three of the query.
    told = [event for event in after.recorder.events if event["event"] == "oom"]
    assert told == [
        {"event": "oom", "step": 1, "rows": 1, "pieces": 2},
        {"event": "oom", "step": 1, "rows": 1, "pieces": 4},
    ]
    for one, other in zip(after.records("meta"), before.records("meta"), strict=True):
        assert one.keys() == other.keys()
        assert [one[name] for name in NUMBERS] == pytest.approx([other[name] for name in NUMBERS], rel=1e-3)


@pytest.mark.parametrize("meta", [MAML, ANIL], ids=["maml", "anil"])
def test_an_interrupted_training_goes_on_as_if_it_had_not_been(meta: Maml, monkeypatch):
    out_of_memory_above(2, monkeypatch)
    whole = prepared(meta, dropout=0.2).go()
    recorder = Memory()
    with pytest.raises(Interrupted):
        prepared(meta, dropout=0.2, recorder=recorder, stop=lambda: True).go()
    assert recorder.state is not None and len(recorder.records) == 4 and recorder.state["progress"]["step"] == 2
    rest = prepared(meta, dropout=0.2, recorder=recorder).go()
    assert recorder.records == whole.recorder.records and len(rest.records("meta")) == 4
    assert equal(weights(whole.lora), weights(rest.lora))


def test_records_are_written_as_often_as_steps_are():
    run = prepared(steps=5, log_every=3).go()
    assert [record["step"] for record in run.records("meta")] == [3, 5]
    assert [record["step"] for record in run.records("step")] == [3, 5]
    every = prepared(steps=5).go()
    assert run.records("meta") == [record for record in every.records("meta") if record["step"] in (3, 5)]


def test_autocast_reads_the_adapted_weights_and_not_its_copies_of_the_first():
    run = prepared(accumulation=1)
    batch = run.task()
    support, query = run.model.support(batch), run.model.learnt(batch)
    plain = SftModel(run.lora, ctx=context(Memory()))

    def half(rows) -> tuple[Tensor, list[Tensor]]:
        with torch.autocast("cpu", torch.bfloat16):  # one of its own for each pass, which keeps no copies
            return plain.compute(rows)

    begin = weights(run.lora)
    unadapted, _ = half(query)
    for _ in range(MAML.inner_steps):
        _, gradients = half(support)
        with torch.no_grad():
            for parameter, gradient in zip(run.lora.parameters(), gradients, strict=True):
                parameter.sub_(MAML.inner_lr / support.supervised * gradient)
    wanted, expected = half(query)
    with torch.no_grad():
        for parameter, held in zip(run.lora.parameters(), begin, strict=True):
            parameter.copy_(held)
    with torch.autocast("cpu", torch.bfloat16):
        nats, gradients = run.model.compute(batch)
        again, _ = plain.compute(query)
    assert torch.equal(nats, wanted) and equal(gradients, expected)
    assert torch.equal(again, unadapted) and not torch.equal(unadapted, wanted)


class Threads(Ranks):
    """Two processes, played by two threads that meet at each message."""

    def __init__(self, rank: int, table: dict[int, list[float]], gradients: dict[int, list], barrier: Barrier) -> None:
        super().__init__(rank=rank, size=2)
        for name, value in (("table", table), ("gradients", gradients), ("barrier", barrier)):
            object.__setattr__(self, name, value)

    def add_up(self, parameters: Iterable[Tensor], numbers: Sequence[float] = ()) -> list[float]:
        held = list(parameters)
        self.table[self.rank] = list(numbers)
        self.gradients[self.rank] = [None if each.grad is None else each.grad.clone() for each in held]
        self.barrier.wait()
        sums = [sum(pair) for pair in zip(*self.table.values(), strict=True)]
        for place, parameter in enumerate(held):
            known = [each[place] for each in self.gradients.values() if each[place] is not None]
            parameter.grad = sum(known[1:], known[0]) if known else None
        self.barrier.wait()
        return sums


def test_processes_adapt_each_to_its_own_and_add_up_queries_and_records():
    alone = prepared()
    alone.go()
    table, gradients, barrier = {}, {}, Barrier(2)
    both = [prepared(ranks=Threads(rank, table, gradients, barrier)) for rank in (0, 1)]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(Run.go, both))
    for run in both:
        for one, other in zip(alone.records("meta"), run.records("meta"), strict=True):
            assert [one[name] for name in NUMBERS] == pytest.approx([other[name] for name in NUMBERS], rel=1e-4)
            assert other["query_tokens"] == one["query_tokens"] and other["support_tokens"] == one["support_tokens"]
        for one, other in zip(weights(alone.lora), weights(run.lora), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
