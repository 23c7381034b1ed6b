"""Answers in batches are those of one at a time; what ended each is told; samples are drawn from the model's shares."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from grading_models import Form, benchmark, model

from stepwell.decode import Sampling, drawn, greedy_prompts
from stepwell.errors import StepwellError
from stepwell.grading.decoding import OwnWriter, Written, answer, loops, seed_of
from stepwell.grading.protocol import Decoding
from stepwell.grading.stops import Stops
from stepwell.grading.vllm import VLLMWriter, writer

FORM: Any = Form()
PROMPTS = [[5, 7, 11], [3], [22, 8, 40, 12, 6, 33], [2, 2], list(range(2, 32)), [50] * 45]
SEEDS = list(range(len(PROMPTS)))


@pytest.fixture(scope="module")
def backbone() -> Iterator[Any]:
    yield model()


def test_greedy_answers_and_how_they_end(backbone: Any):
    found = OwnWriter(backbone=backbone, form=FORM, batch_size=4).write(PROMPTS, SEEDS, Decoding(max_tokens=20))
    assert found[5] == Written(text="", stop="no room", tokens=0)
    wanted = greedy_prompts(backbone, PROMPTS[:5], stop=FORM.stops, limit=[20, 20, 20, 20, 11], batch_size=1)
    for one, ids in zip(found, wanted, strict=False):
        assert one.text == "".join(chr(60 + number) for number in ids.ids) and one.tokens == len(ids.ids)
        assert (one.stop == "end") == ids.stopped
    assert found[4].stop in ("end", "positions") and found[4].tokens <= 11
    cut = OwnWriter(backbone=backbone, form=FORM).write(PROMPTS[:1], [0], Decoding(max_tokens=2))
    assert cut[0].stop == "length" and cut[0].tokens == 2


def test_samples_do_not_depend_on_the_batch(backbone: Any):
    decoding = Decoding(temperature=1.0, top_p=0.9, max_tokens=8)
    one = OwnWriter(backbone=backbone, form=FORM, batch_size=1).write(PROMPTS, SEEDS, decoding)
    for size in (2, 16):
        assert OwnWriter(backbone=backbone, form=FORM, batch_size=size).write(PROMPTS, SEEDS, decoding) == one
    order = [3, 1, 0]
    some = OwnWriter(backbone=backbone, form=FORM).write([PROMPTS[i] for i in order], order, decoding)
    assert some == [one[i] for i in order]
    assert OwnWriter(backbone=backbone, form=FORM).write(PROMPTS, [9] * 6, decoding) != one


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (1.0, 0.7)])
def test_tokens_are_drawn_as_often_as_they_should(temperature: float, top_p: float):
    logits = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0])
    shares = (logits.double() / temperature).softmax(-1)
    kept = shares.clone()
    if top_p < 1:  # .57, .21, ...: two tokens reach .7
        kept[2:] = 0
    kept = kept / kept.sum()
    n = 4000
    choose = drawn(Sampling(temperature=temperature, top_p=top_p, seeds=range(n)), range(n))
    found = Counter(choose(logits.repeat(n, 1), list(range(n))).tolist())
    for token, share in enumerate(kept.tolist()):
        assert abs(found[token] / n - share) <= 4 * (share * (1 - share) / n) ** 0.5


def test_sampling_that_means_nothing():
    with pytest.raises(StepwellError, match="a temperature of 0 and top_p of 1 cannot be sampled with"):
        Sampling(temperature=0.0, top_p=1.0, seeds=[])


def test_a_stop_text_is_cut_off(backbone: Any):
    decoding = Decoding(max_tokens=12)
    whole = OwnWriter(backbone=backbone, form=FORM).write(PROMPTS[:1], [0], decoding)[0]
    assert len(whole.text) >= 3
    stop = whole.text[2]
    place = whole.text.index(stop)
    one = OwnWriter(backbone=backbone, form=FORM).write(
        PROMPTS[:1], [0], decoding.model_copy(update={"stop": (stop,)})
    )[0]
    assert (one.text, one.stop, one.tokens) == (whole.text[:place], "text", whole.tokens)


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8")],
    ids=["cuda", "cpu"],
)
def test_too_little_memory_halves_the_batch(error: RuntimeError, backbone: Any, monkeypatch: pytest.MonkeyPatch):
    decoding, sizes = Decoding(max_tokens=4), []
    wanted = OwnWriter(backbone=backbone, form=FORM).write(PROMPTS, SEEDS, decoding)

    def small(backbone: Any, prompts: Any, **options: Any) -> Any:
        sizes.append(len(prompts))
        if len(prompts) > most:
            raise error
        return greedy_prompts(backbone, prompts, **options)

    monkeypatch.setattr("stepwell.decode.greedy_prompts", small)
    most = 1
    assert OwnWriter(backbone=backbone, form=FORM, batch_size=8).write(PROMPTS, SEEDS, decoding) == wanted
    assert sizes == [5, 2, 1, 1, 1, 1, 1]
    most = 0
    with pytest.raises(StepwellError, match="too little memory for an answer to one prompt of 1 ids"):
        OwnWriter(backbone=backbone, form=FORM).write(PROMPTS, SEEDS, decoding)


def test_the_precision_of_the_protocol(backbone: Any):
    with pytest.raises(StepwellError, match="the model computes in fp32, the protocol says bf16"):
        OwnWriter(backbone=backbone, form=FORM).write(PROMPTS, SEEDS, Decoding(precision="bf16"))


def test_a_benchmark_is_answered(backbone: Any):
    decoding = Decoding(temperature=0.8, samples=3, max_tokens=5)
    by = OwnWriter(backbone=backbone, form=FORM)
    found = answer(benchmark(4), FORM, decoding, by)
    assert list(found.texts) == ["p000", "p001", "p002", "p003"] and found.by == "stepwell"
    assert all(len(texts) == 3 for texts in found.texts.values()) and set(found.stops) == set(found.written)
    fewer = answer(benchmark(2), FORM, decoding, by)
    assert fewer.texts == {name: found.texts[name] for name in ("p000", "p001")}
    assert seed_of(0, "a", 1) != seed_of(0, "a", 2) and seed_of(0, "a", 11) != seed_of(0, "a1", 1)


def test_what_the_ends_tell():
    def some(n: int, stop: Any, text: str = "x", looping: bool = False) -> list[Written]:
        return [Written(text=text, stop=stop, tokens=7, looping=looping)] * n

    original = Stops.of([*some(16, "end"), *some(80, "length"), *some(4, "length", looping=True)])
    assert original.counts == {"end": 16, "length": 84} and original.looping == 4 and original.longest == 7
    assert original.red_flag == (
        "84 of 100 answers (84%) were cut off by a limit, 4 of them while they repeated themselves: see that the end "
        "of turn is learnt"
    )
    clean = Stops.of([*some(95, "end"), *some(1, "text"), *some(3, "length"), *some(1, "end", "")])
    assert clean.red_flag == "" and clean.empty == 1
    assert Stops.of([]).red_flag == "" and Stops.of([]).cut.value is None
    assert "raise max_tokens" in Stops.of(some(1, "positions")).red_flag


def test_loops():
    assert loops([5, 6, 1, 2, 3, 1, 2, 3, 1, 2, 3]) and loops([4, 4, 4]) and not loops([1, 2, 3, 1, 2, 3, 1, 2])
    assert not loops([]) and not loops(list(range(50)))


class FakeVLLM:
    """What of vLLM is used: the classes and fields of its documentation."""

    def __init__(self, found: Any) -> None:
        self.found, self.given = found, {}

    def LLM(self, **options: Any) -> Any:
        self.given["engine"] = options
        if isinstance(self.found, Exception):
            raise self.found
        config = SimpleNamespace(model_config=SimpleNamespace(max_model_len=40))
        return SimpleNamespace(llm_engine=config, generate=self.generate)

    def SamplingParams(self, **options: Any) -> dict[str, Any]:
        return options

    def generate(self, prompts: Any, params: Any, use_tqdm: bool) -> Any:
        self.given |= {"prompts": prompts, "params": params}
        ids, reason = self.found
        return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=ids, finish_reason=reason)]) for _ in prompts]


def test_vllm_behind_the_seam(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    fake = FakeVLLM(((30, 31, 9), "stop"))
    monkeypatch.setitem(sys.modules, "vllm", fake)
    decoding = Decoding(temperature=0.5, max_tokens=8)
    by, why = writer(tmp_path, FORM, decoding, own=lambda: pytest.fail("not asked for"), vllm=True)
    assert (by.name, why) == ("vllm", "") and fake.given["engine"]["dtype"] == "float32"
    found = by.write([[1, 2], [3] * 50], [7, 8], decoding)
    assert found == [Written(text="Z[", stop="end", tokens=2), Written(text="", stop="no room", tokens=0)]
    assert fake.given["prompts"] == [{"prompt_token_ids": [1, 2]}]
    (params,) = fake.given["params"]
    assert params["seed"] == 7 and params["max_tokens"] == 8 and params["stop_token_ids"] == [1, 9, 17]
    fake.found = ((30,) * 8, "length")
    assert by.write([[1]], [0], decoding)[0].stop == "length"


def test_without_vllm_ours_takes_its_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, backbone: Any):
    own = OwnWriter(backbone=backbone, form=FORM)
    assert writer(tmp_path, FORM, Decoding(), own=lambda: own) == (own, "")
    monkeypatch.setitem(sys.modules, "vllm", None)
    assert writer(tmp_path, FORM, Decoding(), own=lambda: own, vllm=True) == (own, "the package vllm is not installed")
    monkeypatch.setitem(sys.modules, "vllm", FakeVLLM(RuntimeError("no GPU\nmore")))
    with pytest.raises(StepwellError, match="vLLM cannot run this model here: no GPU"):
        VLLMWriter.of(tmp_path, FORM, Decoding())
