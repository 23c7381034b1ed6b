"""Answers that vLLM writes are those of our own decoding; where it cannot write them ours takes its place, and why."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from contract_models import ITEMS, contract_of, letters
from fake_vllm import FakeVLLM, Release
from stepwell.answers import Asked, answer_items
from stepwell.backbone import HFBackbone
from stepwell.decode import Decoded
from stepwell.errors import StepwellError
from stepwell.vllm_engine import Engine
from stepwell.writing import ADAPTED, DEEP, Writing, own

LENGTHS = (1, 7, 4, 12, 2)
LIMIT = 5


@pytest.fixture(params=["llama", "gpt2"])
def backbone(request: pytest.FixtureRequest) -> HFBackbone:
    return letters(request.param)


@pytest.fixture
def rows(backbone: HFBackbone) -> Asked:
    """Rows of several lengths that are no tokens' embeddings; not even their padding is 0."""
    generator = torch.Generator().manual_seed(3)
    asked = Asked.of_embeds([torch.randn(n, backbone.width, dtype=torch.float64, generator=generator) for n in LENGTHS])
    noise = torch.randn(asked.embeds.shape, dtype=torch.float64, generator=generator)
    return replace(asked, embeds=asked.embeds + noise * ~asked.mask[..., None])


@pytest.fixture
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def started(monkeypatch: pytest.MonkeyPatch, fake: FakeVLLM) -> Writing:
    monkeypatch.setitem(sys.modules, "vllm", fake)
    return Writing.of(lambda: Path("somewhere"), "bf16")


def silent(why: str) -> None:
    raise AssertionError(why)


@pytest.mark.usefixtures("no_grad")
@pytest.mark.parametrize("release", ["newest", "0.9", "without"])
def test_both_write_the_same_wherever_rows_stop(
    backbone: HFBackbone, rows: Asked, release: Release, monkeypatch: pytest.MonkeyPatch
):
    fake = FakeVLLM(backbone.model, release=release)
    writing = started(monkeypatch, fake)
    read = rows.read(backbone)
    free = own(backbone, read, rows.embeds, stop=(), limit=LIMIT)
    assert not any(one.stopped for one in free) and {len(one.ids) for one in free} == {LIMIT}
    # A first, a middle and a last token end rows.
    stop = {free[0].ids[0], free[1].ids[2], free[3].ids[-1]}
    wanted = own(backbone, read, rows.embeds, stop=stop, limit=LIMIT)
    found = writing.telling(silent)(backbone, read, rows.embeds, stop=stop, limit=LIMIT)
    assert found == wanted
    assert Decoded(ids=(), stopped=True) in found
    assert any(one.stopped and len(one.ids) == LIMIT - 1 for one in found), "a stop token in the last place"
    assert writing.telling(silent)(backbone, read, rows.embeds, stop=(), limit=LIMIT) == free


@pytest.mark.usefixtures("no_grad")
def test_what_vllm_is_given(backbone: HFBackbone, rows: Asked, monkeypatch: pytest.MonkeyPatch):
    fake = FakeVLLM(backbone.model)
    writing = started(monkeypatch, fake)
    writing.telling(silent)(backbone, rows.read(backbone), rows.embeds, stop=(), limit=1)
    assert [len(row) for row in fake.given] == list(LENGTHS)
    for row, given in enumerate(fake.given):
        assert torch.equal(given, rows.embeds[row, -LENGTHS[row] :])
    assert fake.started == [
        {"model": "somewhere", "dtype": "bfloat16", "seed": 0, "enable_prompt_embeds": True,
         "gpu_memory_utilization": 0.5}
    ]  # fmt: skip


def test_the_records_of_items_are_the_same(backbone: HFBackbone, monkeypatch: pytest.MonkeyPatch):
    contract = contract_of(backbone)
    fake = FakeVLLM(backbone.model)
    go_on = started(monkeypatch, fake).telling(silent)
    found = list(answer_items(backbone, contract, ITEMS, batch_size=3, go_on=go_on))
    assert found == list(answer_items(backbone, contract, ITEMS, batch_size=3))
    assert len(fake.given) == len(ITEMS) and any(one.prediction for one in found)


@pytest.mark.usefixtures("no_grad")
def test_ours_takes_its_place_and_says_why(backbone: HFBackbone, rows: Asked, monkeypatch: pytest.MonkeyPatch):
    read = rows.read(backbone)
    wanted = own(backbone, read, rows.embeds, stop=(), limit=LIMIT)

    def reasons(writing: Writing, asked: Asked = rows) -> list[str]:
        told: list[str] = []
        found = writing.telling(told.append)(backbone, asked.read(backbone), asked.embeds, stop=(), limit=LIMIT)
        assert found == wanted
        return told

    assert reasons(Writing()) == []
    monkeypatch.setitem(sys.modules, "vllm", None)
    assert reasons(Writing.of(lambda: Path("m"), "fp32")) == ["the package vllm is not installed"]
    broken = FakeVLLM(broken=RuntimeError("no GPU\nmore"))
    assert reasons(started(monkeypatch, broken)) == ["vLLM cannot run this model here: no GPU"]
    unknown = FakeVLLM(broken=ValueError())
    assert reasons(started(monkeypatch, unknown)) == ["vLLM cannot run this model here: ValueError"]
    dead = FakeVLLM(backbone.model, dies=RuntimeError("the engine is gone"))
    assert reasons(started(monkeypatch, dead)) == ["vLLM failed while it wrote: the engine is gone"]
    short = FakeVLLM(backbone.model, most=max(LENGTHS) + LIMIT - 1)
    assert reasons(started(monkeypatch, short)) == [
        "vLLM knows 16 columns, and a prompt of 12 with 5 tokens of answer has more"
    ]
    other = FakeVLLM(letters("gpt2" if backbone is letters("llama") else "llama").model)
    (told,) = reasons(started(monkeypatch, other))
    assert re.fullmatch(
        r"vLLM does not read these embeddings as we do: an answer begins with a token \d+\.\d nats below the likeliest",
        told,
    )
    whole = FakeVLLM(backbone.model, most=max(LENGTHS) + LIMIT)
    assert reasons(started(monkeypatch, whole)) == []

    cache = backbone.new_cache()
    columns = rows.embeds.shape[1] - 1
    before, here = rows.mask[:, :-1], rows.positions[:, :-1]
    backbone(rows.embeds[:, :-1], positions=here, mask=before, cache=cache)
    deep = Asked(embeds=rows.embeds[:, -1:], mask=rows.mask, positions=rows.positions[:, -1:], cache=cache)
    assert deep.cache.length == columns
    fake = FakeVLLM(backbone.model)
    assert reasons(started(monkeypatch, fake), deep) == [DEEP] and fake.given == []


def test_a_model_that_vllm_is_not_fit_for_is_not_started(monkeypatch: pytest.MonkeyPatch):
    fake = FakeVLLM()
    monkeypatch.setitem(sys.modules, "vllm", fake)
    found = Writing.of(lambda: pytest.fail("not looked for"), "fp32", unless=ADAPTED)
    assert found == Writing(why=ADAPTED) and fake.started == []

    def lost() -> Path:
        raise StepwellError("there is no such model folder", "give one")

    assert Writing.of(lost, "fp32").why == "there is no such model folder" and fake.started == []


def test_nothing_to_write_and_no_fp64(monkeypatch: pytest.MonkeyPatch):
    fake: Any = FakeVLLM(object(), dies=RuntimeError("was asked"))
    monkeypatch.setitem(sys.modules, "vllm", fake)
    assert Engine.start(Path("m"), "fp32").write([], limits=[], stop=()) == []
    assert fake.started == [{"model": "m", "dtype": "float32", "seed": 0}], "token ids need no option"
    with pytest.raises(StepwellError, match="vLLM cannot run this model here: it has no fp64"):
        Engine.start(Path("m"), "fp64")
