"""The recipe, the cost, the room on disk and the red flags."""

from __future__ import annotations

import json
import math
import random
from collections import namedtuple
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from pydantic import ValidationError
from sft_toys import prepared

from stepwell.errors import StepwellError
from stepwell.sft import cost as costs
from stepwell.sft import model as module
from stepwell.sft.cost import cost, measured_throughput, need_free_disk
from stepwell.sft.flags import Flags
from stepwell.sft.model import need_full_precision
from stepwell.sft.recipe import LORA, SftRecipe


def test_the_recipe_of_the_original():
    recipe = SftRecipe(epochs=3)
    assert (recipe.lr, recipe.warmup_steps, recipe.batch_size, recipe.accumulation) == (2e-4, 100, 8, 4)
    assert (recipe.max_tokens, recipe.clip, LORA.rank, LORA.alpha, LORA.dropout) == (2048, 1.0, 64, 16, 0.05)


def test_the_learning_rate_warms_up_and_falls_as_a_cosine():
    recipe = SftRecipe(steps=300)
    factors = [recipe.lr_factor(step, 300) for step in range(300)]
    assert factors[0] == 0.01 and factors[99] == 1.0 and factors[100] == 1.0
    assert factors[200] == pytest.approx(0.5) and factors[250] == pytest.approx((1 - math.sqrt(0.5)) / 2)
    assert all(a >= b > 0 for a, b in pairwise(factors[99:]))
    assert SftRecipe(steps=300, cosine=False).lr_factor(250, 300) == 1.0


def test_two_schedules_are_refused():
    with pytest.raises(ValidationError, match="`cosine` takes the place of `schedule`"):
        SftRecipe(steps=3, schedule="decay")


def test_the_cost_is_that_of_what_is_shown():
    run = prepared(conversations=40, steps=None, epochs=2)
    stream = run.stream
    shown = [batch for step in range(2 * stream.steps_per_epoch) for batch in stream.batches(step, lambda _: 0)]
    tokens = sum(batch.real_tokens for batch in shown)
    found = cost(stream, run.training.recipe, tokens_per_second=100.0, hourly_price=36.0)
    assert found.steps == 2 * stream.steps_per_epoch == run.training.total_steps
    # Which rows an epoch leaves is drawn: the cost takes their mean.
    assert found.tokens == pytest.approx(tokens, rel=0.05)
    assert found.supervised_tokens == pytest.approx(sum(batch.supervised for batch in shown), rel=0.05)
    assert found.hours == pytest.approx(found.tokens / 100 / 3600)
    assert found.price == pytest.approx(found.tokens / 100 / 100)
    assert 0 <= found.padding_share < 0.4
    assert cost(stream, run.training.recipe, steps_done=found.steps).tokens == 0
    unknown = cost(stream, run.training.recipe, hourly_price=3.0)
    assert unknown.hours is None and unknown.price is None


def test_throughput_is_measured_without_changing_a_weight():
    run = prepared(conversations=40)
    before = [parameter.clone() for parameter in run.lora.parameters()]
    batches = run.stream.batches(0, lambda _: 0)
    assert measured_throughput(run.model, batches) > 0
    assert all(torch.equal(a, b) for a, b in zip(before, run.lora.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in run.lora.parameters())
    with pytest.raises(StepwellError, match="to be measured on one batch or none"):
        measured_throughput(run.model, batches[:1])


def test_a_full_disk_is_told_first(tmp_path, monkeypatch):
    lora = prepared().lora
    need_free_disk(tmp_path, lora)
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(costs.shutil, "disk_usage", lambda folder: usage(7 * 4 * lora.parameter_count() - 1))
    with pytest.raises(
        StepwellError, match=r"the disk has .* GB free, and checkpoints and adapter need .*\n.*lower the rank"
    ):
        need_free_disk(tmp_path, lora)


def test_a_quantised_base_is_refused_unless_it_is_allowed(tmp_path):
    backbone = prepared().lora.backbone
    backbone.tokenizer = None  # a stand-in, which cannot be saved
    backbone.save(tmp_path / "base")
    assert not need_full_precision(tmp_path / "base")
    config = tmp_path / "base" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"quantization_config": {"bits": 4}}))
    with pytest.raises(StepwellError, match=r"the base is quantised: .* ruined by a merge\n.*name a base in bf16"):
        need_full_precision(tmp_path / "base")
    assert need_full_precision(tmp_path / "base", allowed=True)


def test_a_spike_is_told_and_noise_is_not():
    draw, flags = random.Random(2), Flags()
    quiet = [flags.loss(step, 3 * math.exp(-step / 60) + draw.gauss(0, 0.05)) for step in range(300)]
    assert not any(quiet)
    (alert,) = flags.loss(300, 2.0)
    assert (alert.monitor, alert.step, alert.stop) == ("spike", 300, False)
    assert "loss 2.000 after a median of" in alert.message
    assert not flags.loss(301, 0.05)


def test_a_device_that_waits_is_told_once():
    flags = Flags()
    assert not any(flags.time(step, 0.8, 1.0) for step in range(30))
    told = [alert for step in range(30, 60) for alert in flags.time(step, 0.3, 1.0)]
    assert len(told) == 1 and told[0].monitor == "idle" and "of the last 10 steps" in told[0].message


class Queue:
    """The clocks of a host and of a device that works through what it is told behind the host's back."""

    def __init__(self) -> None:
        self.host = self.device = 0.0

    def perf_counter(self) -> float:
        return self.host

    def told(self, seconds: float) -> None:
        """Work that is only launched: the host goes on at once."""
        self.device = max(self.device, self.host) + seconds

    def read(self) -> None:
        """The host waits for a value."""
        self.host = max(self.host, self.device)

    def event(self, enable_timing: bool) -> SimpleNamespace:
        assert enable_timing
        made = SimpleNamespace(at=None)
        made.record = lambda: setattr(made, "at", max(self.device, self.host))

        def elapsed_time(other: SimpleNamespace) -> float:
            assert other.at <= self.host, "it is read before the device has come so far: that would wait"
            return 1000 * (other.at - made.at)

        made.elapsed_time = elapsed_time
        return made


@pytest.mark.parametrize(("data_seconds", "alarm"), [(0.01, False), (1.0, True)], ids=["busy", "waits for data"])
def test_a_device_is_idle_where_it_waits_and_not_where_the_host_does(monkeypatch, data_seconds, alarm):
    """A step of two micro-batches of .5 s each on a device whose calls return at once."""
    run, queue = prepared(conversations=40), Queue()
    monkeypatch.setattr(module, "time", queue)
    monkeypatch.setattr(torch.cuda, "Event", queue.event)
    mark = module._mark
    monkeypatch.setattr(module, "_mark", lambda device: mark(torch.device("cuda")))
    real = run.model.compute
    monkeypatch.setattr(run.model, "compute", lambda batch: queue.told(0.5) or real(batch))
    batches = run.stream.batches(0, lambda _: 0)
    for _ in range(12):
        queue.host += data_seconds
        for batch in batches[:2]:
            run.model.objective(batch)
            queue.read()
        run.model.stepped(1.0)
    told = [event for event in run.recorder.events if event["event"] == "red-flag"]
    assert [event["monitor"] for event in told] == (["idle"] if alarm else [])
    if alarm:
        assert "the device waited 50% of the last 10 steps" in told[0]["message"]


def test_red_flags_and_throughput_are_events(monkeypatch):
    run = prepared(conversations=40, steps=14, checkpoint_every=14)
    losses = iter([1.0] * 12 + [9.0, 1.0])
    whole = run.model.compute

    again = {}

    def per_step(batch):
        # Both micro-batches of a step have its loss.
        number = len(run.losses)
        if number not in again:
            again[number] = next(losses)
        nats, gradients = whole(batch)
        return nats * 0 + again[number] * batch.supervised, gradients

    monkeypatch.setattr(run.model, "compute", per_step)
    run.go()
    flagged = [event for event in run.recorder.events if event["event"] == "red-flag" and event["monitor"] == "spike"]
    assert [event["step"] for event in flagged] == [13]
    rates = [event for event in run.recorder.events if event["event"] == "throughput"]
    assert len(rates) >= 5 and all(event["tokens_per_second"] > 0 for event in rates)
