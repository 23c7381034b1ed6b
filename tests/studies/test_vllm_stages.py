"""Stages that answer write the same records whether vLLM writes the answers or we do; or tell once why it did not."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from tiny_imprint import context
from tiny_squeeze import DIMS, letters_folder, tiny_squeeze
from tiny_wire import SHORT, tiny_wire, wire_model

from fake_vllm import FakeVLLM
from stepwell.plan import Plan
from stepwell.runner import run
from stepwell.stage import Memory, StageContext
from stepwell.studies.qa.params import TextParams
from stepwell.studies.qa.text import answer_text
from stepwell.studies.squeeze.answer import answer as squeeze_answer
from stepwell.studies.squeeze.params import AnswerParams as SqueezeParams
from stepwell.studies.wire.evaluation import answer as wire_answer
from stepwell.studies.wire.params import AnswerParams as WireParams
from stepwell.writing import ADAPTED, DEEP

ABSENT = "the package vllm is not installed"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage of a run that can be run again in memory, with vLLM or without."""

    again: Callable[[bool], Memory]
    model: Path

    def compare(self, conditions: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
        """With vLLM the records are the same; without it too, and each condition says once why."""
        alone = self.again(False)
        assert {row["condition"] for row in alone.records if row["kind"] == "item"} == conditions
        assert writers(alone) == []
        fake = FakeVLLM()
        monkeypatch.setitem(sys.modules, "vllm", fake)
        beside = self.again(True)
        assert beside.records == alone.records and writers(beside) == []
        items = [row for row in alone.records if row["kind"] == "item"]
        assert len(fake.given) == len(items) and any(row["prediction"] for row in items)
        (started,) = fake.started
        assert (started["model"], started["dtype"]) == (str(self.model), "float32")
        self.refused({name: ABSENT for name in conditions}, None, monkeypatch)

    def refused(self, why: dict[str, str], module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """Our own decoding writes the same records, and each condition says why."""
        monkeypatch.setitem(sys.modules, "vllm", module)
        found = self.again(True)
        assert found.records == self.again(False).records
        assert sorted(writers(found)) == sorted(("stepwell", *pair) for pair in why.items())


def writers(memory: Memory) -> list[tuple[str, str, str]]:
    return [(event["by"], event["condition"], event["why"]) for event in memory.events if event["event"] == "writer"]


def once(made: StageContext, memory: Memory, stage: Callable[[StageContext], None]) -> Memory:
    stage(made)
    return memory


@pytest.fixture(scope="module")
def squeezed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, Path, Path]:
    model, folder = letters_folder(tmp_path_factory.mktemp("model") / "letters"), tmp_path_factory.mktemp("run") / "run"
    plan = tiny_squeeze(model, "answer.bits=[32]", stages=("data", "model", "text", "restore", "answer"), arms=["pca"])
    run(plan, folder)
    return plan, folder, model


@pytest.fixture(scope="module")
def wired(tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, Path, Path]:
    model, folder = wire_model(tmp_path_factory.mktemp("model") / "tiny"), tmp_path_factory.mktemp("run") / "run"
    small = ("axes.arm=[bytes, deep]", "stage-a.losses={terms: {first_token: 3.0}}", "stage-a.recipe.steps=2")
    small = (*small, "stage-b.losses={terms: {first_token: 3.0, text: 1.0}}", "stage-b.recipe.steps=4")
    run(tiny_wire(model, *small, stages=SHORT[:-1]), folder)
    return tiny_wire(model, *small), folder, model


def test_the_text_as_tokens_as_embeddings_and_cut(
    squeezed: tuple[Plan, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, folder, model = squeezed

    def again(vllm: bool) -> Memory:
        params = TextParams(cut_tokens=(5,), batch_size=4, vllm=vllm)
        return once(*context(plan, folder, "text", tmp_path / "text"), lambda ctx: answer_text(params, ctx))

    Stage(again=again, model=model).compare({"text", "ceiling", "tokens-5"}, monkeypatch)


def test_prompts_through_the_bottleneck(
    squeezed: tuple[Plan, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, folder, model = squeezed

    def again(vllm: bool) -> Memory:
        made = context(plan, folder, f"answer.pca.{DIMS}.0", tmp_path / "answer")
        return once(*made, lambda ctx: squeeze_answer(SqueezeParams(bits=(32, 8), batch_size=4, vllm=vllm), ctx))

    stage = Stage(again=again, model=model)
    stage.compare({"pca", "pca-8bit"}, monkeypatch)
    why = "vLLM cannot run this model here: no GPU"
    stage.refused({"pca": why, "pca-8bit": why}, FakeVLLM(broken=RuntimeError("no GPU")), monkeypatch)


def test_latents_of_a_small_encoder(
    wired: tuple[Plan, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, folder, model = wired
    conditions = {"latent", "latent-8bit", "zeros", "other", "mean"}

    def stage(arm: str, *, spoken: bool) -> Stage:
        def again(vllm: bool) -> Memory:
            made, memory = context(plan, folder, f"answer.{arm}.3.0", tmp_path / "answer")
            if not spoken:  # after stage A, which has no LoRA
                before, _ = context(plan, folder, f"stage-b.{arm}.3.0", tmp_path / "before")
                rest = {name: inputs for name, inputs in made.inputs.items() if name != "stage-b"}
                made = replace(made, inputs=rest | {"stage-a": before.inputs["stage-a"]})
            params = WireParams(bits=(32, 8), batch_size=4, mean_of=4, vllm=vllm)
            return once(made, memory, lambda ctx: wire_answer(params, ctx))

        return Stage(again=again, model=model)

    stage("bytes", spoken=False).compare(conditions, monkeypatch)
    for arm, spoken, why in (("deep", False, DEEP), ("bytes", True, ADAPTED), ("deep", True, ADAPTED)):
        fake = FakeVLLM()
        stage(arm, spoken=spoken).refused(dict.fromkeys(conditions, why), fake, monkeypatch)
        assert fake.started == [], "an engine that is not used is not started"
