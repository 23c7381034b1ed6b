"""Training an adapter: the loss against one written out here, pieces, processes, memory that runs out, and a resume."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from byte_chat import ByteChat
from sft_toys import LIMIT, NO_MEMORY, Run, context, out_of_memory_above, prepared, sums
from torch.nn import functional as F

from stepwell.adapt.frozen import weights_sha256
from stepwell.adapt.lora import LoRA
from stepwell.adapt.params import LoraParams
from stepwell.backbone import HFBackbone
from stepwell.decode import greedy_prompts
from stepwell.errors import Interrupted, StageFailed, StepwellError
from stepwell.memory import is_out_of_memory
from stepwell.sft.model import SftModel
from stepwell.sft.packing import Corpus, first_fit_decreasing, prove_packing
from stepwell.sft.render import ChatFormat
from stepwell.stage import Memory

FORM = ChatFormat.of(ByteChat())


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def written_out(lora: LoRA, conversations) -> tuple[torch.Tensor, int]:
    """The loss, one example and one token at a time, by the model's own forward pass."""
    nats, count = torch.zeros(()), 0
    for conversation in conversations:
        rendered = FORM.render(conversation, LIMIT)
        ids = torch.tensor([rendered.ids])
        logits = lora.backbone.model(input_ids=ids).logits[0]
        for place, wanted in enumerate(rendered.supervised):
            if wanted:
                nats = nats - F.log_softmax(logits[place - 1], -1)[rendered.ids[place]]
                count += 1
    return nats, count


@pytest.mark.parametrize("pack", [True, False])
def test_loss_and_gradient_are_those_of_each_example_alone(pack: bool):
    run = prepared(conversations=7, pack=pack, accumulation=1, batch_size=9, steps=1)
    with torch.no_grad():
        for parameter in run.lora.parameters():
            parameter.add_(0.05)
    (batch,) = run.stream.batches(0, lambda _: 0)
    assert sorted(set(batch.examples.flatten().tolist()) - {-1}) == list(range(7))
    nats, count = run.model.objective(batch)
    (nats / count).backward()
    wanted, tokens = written_out(run.lora, sums(7))
    expected = torch.autograd.grad(wanted / tokens, tuple(run.lora.parameters()))
    assert count == tokens == run.model.supervised(batch)
    torch.testing.assert_close(nats.detach(), wanted.detach(), rtol=1e-5, atol=1e-4)
    for parameter, gradient in zip(run.lora.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-6)


def test_what_is_learnt_is_what_is_asked():
    run = prepared(conversations=6, steps=60, lr=0.01, accumulation=1, batch_size=2, checkpoint_every=60).go()
    assert run.losses[-1] < 0.1 < 1 < run.losses[0]
    prompts = [FORM.prompt(conversation.messages[:-1]) for conversation in sums(6)]
    run.lora.backbone.eval()
    decoded = greedy_prompts(run.lora.backbone, prompts, stop=FORM.stops, limit=4)
    assert [FORM.decode(found.ids) for found in decoded] == [c.answers[0] for c in sums(6)]
    assert all(found.stopped for found in decoded)


def test_accumulation_is_one_large_batch():
    few, many = prepared(batch_size=4, accumulation=1).go(), prepared(batch_size=1, accumulation=4).go()
    assert few.losses == pytest.approx(many.losses, rel=1e-4)
    assert len(few.losses) == 6


@pytest.mark.parametrize("device", NO_MEMORY)
def test_out_of_memory_halves_the_batch_and_goes_on_with_the_same_result(device: str, monkeypatch):
    before = prepared(batch_size=4, accumulation=1).go()
    assert not [event for event in before.recorder.events if event["event"] == "oom"]
    out_of_memory_above(1, monkeypatch, device)
    after = prepared(batch_size=4, accumulation=1).go()
    told = [event for event in after.recorder.events if event["event"] == "oom"]
    assert told == [
        {"event": "oom", "step": 1, "rows": 2, "pieces": 2},
        {"event": "oom", "step": 1, "rows": 1, "pieces": 4},
    ]
    assert after.losses == pytest.approx(before.losses, rel=1e-4)


@pytest.mark.parametrize("device", NO_MEMORY)
def test_out_of_memory_on_one_row_says_what_to_do(device: str, monkeypatch):
    out_of_memory_above(0, monkeypatch, device)
    with pytest.raises(StageFailed, match=r"memory ran out on a single row of \d+ tokens\n.*lower `max_tokens`"):
        prepared().go()


def test_another_error_is_not_taken_for_memory(monkeypatch):
    monkeypatch.setitem(NO_MEMORY, "cpu", lambda: RuntimeError("shapes do not match"))
    out_of_memory_above(0, monkeypatch, "cpu")
    with pytest.raises(RuntimeError, match="shapes do not match"):
        prepared().go()


def test_what_torch_says_when_this_machine_has_no_memory():
    with pytest.raises(RuntimeError) as error:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(error.value) and not is_out_of_memory(RuntimeError("shapes do not match"))


def test_an_interrupted_training_goes_on_as_if_it_had_not_been(monkeypatch):
    held = (Corpus.of(sums(3), FORM, LIMIT).batch([(0,), (1, 2)]),)
    options = {"dropout": 0.2, "held_out": held, "validate_every": 2}
    out_of_memory_above(1, monkeypatch)
    whole = prepared(**options).go()
    recorder = Memory()
    with pytest.raises(Interrupted):
        prepared(**options, recorder=recorder, stop=lambda: True).go()
    assert recorder.state["progress"]["step"] == 3
    rest = prepared(**options, recorder=recorder).go()
    assert recorder.records == whole.recorder.records
    assert len([record for record in recorder.records if record["kind"] == "held-out"]) == 3
    for one, other in zip(whole.lora.parameters(), rest.lora.parameters(), strict=True):
        assert torch.equal(one, other)
    # The pieces that memory asked for are known again, and asked for once.
    assert len([event for event in recorder.events if event["event"] == "oom"]) == 1


def test_a_checkpoint_of_another_base_is_refused():
    recorder = Memory()
    with pytest.raises(Interrupted):
        prepared(recorder=recorder, stop=lambda: True).go()
    other = prepared(recorder=recorder)
    with torch.no_grad():
        other.lora.backbone.model.get_input_embeddings().weight[3, 3] += 1
    found = SftModel(other.lora, ctx=context(Memory()))
    assert found.base_sha256 != other.model.base_sha256
    with pytest.raises(StepwellError, match=r"the adapter belongs to the base \w{12}..., and this one is"):
        found.module.load_state_dict(recorder.state["model"])
    with pytest.raises(StepwellError, match=f"belongs to the base {other.model.base_sha256[:12]}"):
        SftModel(other.lora, ctx=context(Memory()), base=other.model.base_sha256)


def test_held_out_answers_are_measured_token_by_token():
    conversations = sums(5)
    held = Corpus.of(conversations, FORM, LIMIT).batch([(0, 1), (2, 3, 4)])
    run = prepared(held_out=(held,))
    right, n = run.model.validate(0)
    with torch.no_grad():
        nats, count = written_out(run.lora, conversations)
    (record,) = run.recorder.records
    assert n == count and record["tokens"] == n and record["right"] == right
    assert record["loss"] == pytest.approx(float(nats) / count, rel=1e-4)
    assert prepared().model.validate(0) == (0, 0)


def test_an_epoch_shows_every_row_at_most_once_and_another_order_next():
    run = prepared(conversations=40, batch_size=2, accumulation=2)
    stream = run.stream

    def shown(step: int) -> list[tuple[int, ...]]:
        return [tuple(row) for batch in stream.batches(step, lambda _: 0) for row in batch.examples.tolist()]

    epochs = [[row for step in range(stream.steps_per_epoch) for row in shown(step + e * stream.steps_per_epoch)]
              for e in range(2)]  # fmt: skip
    rows = stream.steps_per_epoch * 4
    assert len(set(epochs[0])) == len(set(epochs[1])) == rows and epochs[0] != epochs[1]
    assert rows <= len(stream.rows) < rows + 4
    again = prepared(conversations=40).stream.batches(3, lambda _: 0)
    assert all(torch.equal(a.ids, b.ids) for a, b in zip(again, stream.batches(3, lambda _: 0), strict=True))


def test_too_little_data_is_refused():
    with pytest.raises(StepwellError, match=r"2 conversations fill 1 rows, and a step has 4 micro-batches"):
        prepared(conversations=2, accumulation=4)


@pytest.mark.slow
def test_a_real_model_in_half_precision():
    backbone = HFBackbone.load("smollm2-135m", precision="bf16", device="cpu", gradient_checkpointing=True)
    prove_packing(backbone)
    form = ChatFormat.of(backbone.tokenizer)
    corpus = Corpus.of(sums(8), form, 128)
    lora = LoRA(backbone, LoraParams(rank=8, dropout=0.05))
    model = SftModel(lora, ctx=context(Memory()))
    (row, *_) = first_fit_decreasing(corpus.lengths, 128)
    optimizer = torch.optim.AdamW(lora.parameters(), lr=1e-3)
    losses = []
    for _ in range(4):
        nats, count = model.objective(corpus.batch([row]))
        optimizer.zero_grad()
        (nats / count).backward()
        optimizer.step()
        losses.append(float(nats.detach()) / count)
    assert nats.dtype == torch.float32 and losses[-1] < losses[0]
    assert model.base_sha256 == weights_sha256(backbone)


WHOLE_BATCHES = {"accumulation": 4, "batch_size": 1, "dropout": 0.1}
PARTS_OF_A_BATCH = {"accumulation": 1, "batch_size": 4, "dropout": 0.0}


def test_two_processes_are_one(tmp_path):
    """A step is the plan's: what one process accumulates, two compute side by side."""
    here, settings = Path(__file__).parent, [WHOLE_BATCHES, PARTS_OF_A_BATCH]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(here), str(here.parent), *sys.path])}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
               str(here / "torchrun_worker.py"), str(tmp_path), json.dumps(settings)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=280)
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    for told, setting in zip(first, settings, strict=True):
        alone: Run = prepared(**setting).go()
        assert told["losses"] == pytest.approx(alone.losses, rel=1e-4)
        assert len(set(alone.losses)) == 6
        weights = [float(parameter.detach().double().sum()) for parameter in alone.lora.parameters()]
        assert told["weights"] == pytest.approx(weights, rel=1e-3, abs=1e-3)
