"""The faults of the study that `wire` repeats: each is planted, and found; none is seen where there is none."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import events
from tiny_imprint import context, of_kind
from tiny_wire import tiny_wire, wire_model

from stepwell.answers import answer_items
from stepwell.backbone import HFBackbone
from stepwell.errors import StageFailed, StepwellError
from stepwell.latents.contract import Contract
from stepwell.latents.contract_specs import ContractParams
from stepwell.losses import Answers, Reading, Targets, Weighing
from stepwell.plan import Plan
from stepwell.runner import run
from stepwell.studies.qa.data import read_split
from stepwell.studies.wire import evaluation, held, training
from stepwell.studies.wire.model import Wire
from stepwell.studies.wire.objective import Objective, Rows, answers_of, read_answers
from stepwell.studies.wire.params import AnswerParams, EncoderParams, HeldParams, StageAParams, StageBParams
from stepwell.tasks.base import QA

B = "stage-b.bytes.3.0"
CONTRACT = {"max_prompt_tokens": 500, "max_answer_tokens": 10, "instruction": "Be brief."}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, Path]:
    """A run up to stage B."""
    folder = tmp_path_factory.mktemp("faults")
    plan = tiny_wire(wire_model(folder / "tiny"))
    run(plan, folder / "run")
    return plan, folder / "run"


@pytest.fixture
def items(made: tuple[Plan, Path]) -> list[QA]:
    return read_split(made[1] / "artifacts" / "data", "train")


def contract_of(made: tuple[Plan, Path], **changes: Any) -> Contract:
    backbone = HFBackbone.load(str(made[1].parent / "tiny"), precision="fp32", device="cpu")
    return Contract.of(backbone, ContractParams(**CONTRACT, **changes))


@pytest.fixture
def wire(made: tuple[Plan, Path]) -> Iterator[Wire]:
    """Of stage B, its LoRA far from zero."""
    found = Wire.load(contract_of(made), made[1] / "artifacts" / B / "wire")
    assert found.speaker is not None
    with torch.no_grad():
        for name, weight in found.speaker.named_parameters():
            if ".B." in name:
                weight.normal_(generator=torch.Generator().manual_seed(3))
    found.train(False)
    yield found


def objective(wire: Wire, *names: str) -> Objective:
    return Objective(wire, StageBParams.model_validate({"recipe": {"steps": 1}}), names, seed=0)


def answers(wire: Wire, items: list[QA]) -> Answers:
    return answers_of(wire.contract, [wire.contract.target(item) for item in items])


def read(wire: Wire, items: list[QA]) -> Reading:
    """What the losses of latents are made of."""
    with torch.no_grad(), wire.speaking():
        return read_answers(wire.backbone, wire.asked(wire.prefix(wire.latents(items))), answers(wire, items))


def of_items(reading: Reading) -> list[float]:
    """Nats a token, by item."""
    return [float(nats.mean()) for nats in reading.nats.split([len(row) for row in reading.targets.rows])]


def scored(wire: Wire, items: list[QA]) -> list[float]:
    """The same by what scores answers, which builds rows of its own, over a cache."""
    with torch.no_grad(), wire.speaking():
        prompts = partial(answer_items, wire.backbone, wire.contract, items)
        return [one.nll_per_token for one in prompts(lambda some: wire.asked(wire.prefix(wire.latents(some))), 2)]


def trained_on(wire: Wire, items: list[QA]) -> torch.Tensor:
    """The loss over all tokens, as a step of training has it."""
    rows = Rows(latent=tuple(items), text=(), number=0)
    with torch.no_grad(), wire.speaking():
        term = objective(wire, "teacher_forced").terms(rows, 3, step=0, gold=1.0)["teacher_forced"]
    return term.sum / term.count


def test_01_04_every_token_is_predicted_from_the_state_before_it_and_eos_is_learnt(wire: Wire, items: list[QA]) -> None:
    reading = read(wire, items[:4])
    assert of_items(reading) == pytest.approx(scored(wire, items[:4]), rel=1e-4)
    for item, row in zip(items, reading.targets.rows, strict=False):
        assert row == wire.contract.target(item) and wire.contract.bos[0] not in row
        assert row[-1] == wire.contract.eos or len(row) == 10


@pytest.mark.parametrize("by", [-1, 1])
def test_01_a_second_shift_in_what_the_loss_reads_is_found(
    wire: Wire, items: list[QA], monkeypatch: pytest.MonkeyPatch, by: int
) -> None:
    """Each token is predicted from its neighbour's state: the loss then differs from the answers' own score."""
    honest, score = Targets.of, scored(wire, items[:4])
    sound = float(trained_on(wire, items[:4]))

    def shifted(labels: torch.Tensor, real: torch.Tensor, *, skip: int = 0) -> Targets:
        made = honest(labels, real, skip=skip)
        return replace(made, index=(made.index + by) % (len(made.rows) * made.columns))

    monkeypatch.setattr(Targets, "of", shifted)
    planted = of_items(read(wire, items[:4]))
    assert all(ours != pytest.approx(theirs, rel=1e-2) for ours, theirs in zip(planted, score, strict=True))
    assert float(trained_on(wire, items[:4])) != pytest.approx(sound, rel=1e-2), "and it is what training reads"


def test_02_micro_batches_make_the_step_of_one_large_batch(wire: Wire, items: list[QA]) -> None:
    names = ("first_token", "teacher_forced", "k_token", "kd", "alignment", "manifold", "text")
    weights = StageBParams.model_validate({"recipe": {"steps": 1}, "losses": {"terms": dict.fromkeys(names, 1.0)}})
    found = Objective(wire, weights, names, seed=0)
    found.learn_teacher(items[:6], 4, lambda done: None)

    def step(*batches: Rows) -> tuple[dict[str, Any], list[torch.Tensor]]:
        weighed = Weighing(weights.weights()).step(1.0, found.counts(batches, 3))
        for part in wire.parts().values():
            part.zero_grad(set_to_none=True)
        with wire.speaking():
            for rows in batches:
                weighed.loss(found.terms(rows, 3, step=0, gold=1.0)).backward()
        grads = [p.grad for part in wire.parts().values() for p in part.parameters() if p.grad is not None]
        return weighed.close().fields(), [grad.clone() for grad in grads]

    one, whole = step(Rows(latent=tuple(items[:4]), text=tuple(items[4:6]), number=0))
    parts = (
        Rows(latent=tuple(items[:1]), text=tuple(items[4:6]), number=0),
        Rows(latent=tuple(items[1:4]), text=(), number=1),
    )
    # As processes that hold the model in parts share it: each with passes over latents and over text.
    alike = Rows(latent=tuple(items[:4]), text=tuple(items[4:6]), number=0).parts(3, alike=True)
    shapes = [(len(rows.latent), len(rows.text), rows.idle) for rows in alike]
    assert shapes == [(1, 1, None), (1, 1, None), (2, 1, "text")]
    for some in (parts, alike):
        two, summed = step(*some)
        assert one == pytest.approx(two, rel=1e-4)
        for a, b in zip(whole, summed, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("latent", "text"), [(5, 0), (0, 5), (1, 4), (4, 1), (3, 3), (1, 1), (2, 0)])
@pytest.mark.parametrize("count", [2, 3])
def test_parts_of_a_micro_batch_have_each_row_once_and_passes_alike(
    items: list[QA], latent: int, text: int, count: int
) -> None:
    whole = Rows(latent=tuple(items[:latent]), text=tuple(items[latent : latent + text]), number=7)
    parts, alike = whole.parts(count), whole.parts(count, alike=True)
    for found in (parts, alike):
        assert len(found) == min(count, latent + text) == len({rows.number for rows in found})
        for kind in ("latent", "text"):
            own = [item for rows in found if rows.idle != kind for item in getattr(rows, kind)]
            assert sorted(item.id for item in own) == sorted(item.id for item in getattr(whole, kind))
    sizes = [len(rows.latent) + len(rows.text) for rows in parts]
    assert max(sizes) - min(sizes) <= 1 and min(sizes) > 0
    assert all(bool(rows.latent) == bool(latent) and bool(rows.text) == bool(text) for rows in alike)


def test_03_the_held_split_is_not_trained_on(made: tuple[Plan, Path], items: list[QA]) -> None:
    other = read_split(made[1] / "artifacts" / "data", "held")
    assert not {item.context for item in other} & {item.context for item in items}


def test_05_the_teacher_is_the_model_without_lora_and_the_student_with_it(wire: Wire, items: list[QA]) -> None:
    found = objective(wire, "kd")
    found.learn_teacher(items[:3], 2, lambda done: None)
    with torch.no_grad():
        with wire.speaking():
            student = read_answers(
                wire.backbone, wire.asked(wire.prefix(wire.latents(items[:3]))), answers(wire, items[:3])
            )
        teacher = found._remembered(items[:3], student)
        plain = [
            record.nll_per_token
            for record in _with(wire, False, lambda: answer_items(wire.backbone, wire.contract, items[:3]))
        ]
        adapted = [
            record.nll_per_token
            for record in _with(wire, True, lambda: answer_items(wire.backbone, wire.contract, items[:3]))
        ]
    nats = [float(each.mean()) for each in teacher.nats.split([len(row) for row in teacher.targets.rows])]
    assert nats == pytest.approx(plain, rel=1e-4), "the teacher reads the text, without LoRA"
    assert nats != pytest.approx(adapted, rel=1e-2), "and with LoRA it would say something else"
    assert student.targets.rows == teacher.targets.rows
    with pytest.raises(StepwellError, match="the teacher was not asked about an item"):
        found._remembered([replace(item, id=f"new {item.id}") for item in items[:3]], student)


def _with(wire: Wire, adapted: bool, asked: Any) -> list[Any]:
    assert wire.speaker is not None
    with wire.speaker.teacher(adapted=adapted):
        return list(asked())


def test_06_07_latents_know_nothing_of_answers_and_the_question_is_whole(wire: Wire, items: list[QA]) -> None:
    item = items[0]
    with torch.no_grad():
        one, two = (wire.latents([replace(item, answers=golds)]) for golds in (item.answers, ("another", "x" * 50)))
        assert torch.equal(one, two)
        long = replace(item, context="word " * 400 + (item.context or ""))
        assert wire.encoder.prompt(long.context or "", long.question).endswith(item.question)
        assert not torch.equal(wire.latents([long]), wire.latents([replace(long, question="Who else?")]))


def test_10_an_artifact_without_its_lora_is_refused(made: tuple[Plan, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made[1] / "artifacts" / B / "wire", tmp_path / "wire"))
    Wire.load(contract_of(made), folder)
    manifest = json.loads((folder / "artifact.json").read_text())
    manifest["parts"].pop("speaker")
    (folder / "artifact.json").write_text(json.dumps(manifest))
    with pytest.raises(StepwellError, match="part speaker is missing from it"):
        Wire.load(contract_of(made), folder)


def test_10_a_part_outside_the_optimizer_is_refused(
    made: tuple[Plan, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ctx, _ = context(made[0], made[1], "stage-a", tmp_path / "a")
    honest = torch.optim.AdamW

    def forgetful(params: Any, **options: Any) -> Any:
        return honest(params[:-1], **options)

    monkeypatch.setattr(torch.optim, "AdamW", forgetful)
    with pytest.raises(StepwellError, match="trained parameters are in no optimizer"):
        training.stage_a(StageAParams.model_validate(dict(ctx.job.params)), ctx)


def test_10_a_model_that_is_not_frozen_is_found(
    made: tuple[Plan, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ctx, _ = context(made[0], made[1], "stage-a", tmp_path / "a")
    honest = held.Held.answer

    def meddling(self: held.Held, step: int, last: bool) -> None:
        honest(self, step, last)
        with torch.no_grad():
            next(self.wire.backbone.parameters()).add_(1e-3)

    monkeypatch.setattr(held.Held, "answer", meddling)
    with pytest.raises(StepwellError, match="frozen tensors have changed"):
        training.stage_a(StageAParams.model_validate(dict(ctx.job.params)), ctx)
    assert not (tmp_path / "a" / "wire").exists()


def test_08_11_another_contract_than_in_training_is_refused(made: tuple[Plan, Path]) -> None:
    with pytest.raises(StepwellError, match="the prompt contracts differ in anchor"):
        Wire.load(contract_of(made, anchor="Say: "), made[1] / "artifacts" / B / "wire")


def test_09_12_the_alert_is_of_the_latent_arm_and_once(
    made: tuple[Plan, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, asked = held.answer_items, []

    def lucky(*args: Any, **options: Any) -> Iterator[Any]:
        asked.append(options["prefix_of"])
        for record in honest(*args, **options):
            yield replace(record, f1=0.5)

    monkeypatch.setattr(held, "answer_items", lucky)
    ctx, memory = context(made[0], made[1], "stage-a", tmp_path / "a")
    params = StageAParams.model_validate(dict(ctx.job.params))
    hook = HeldParams.model_validate({**params.held.model_dump(), "webhook": "http://127.0.0.1:9/none"})
    training.stage_a(params.model_copy(update={"held": hook}), ctx)
    (alert,) = of_kind(memory, "alert")
    assert (
        alert["monitor"] == "first-f1" and alert["step"] == 3 and "the latent arm has its first F1" in alert["message"]
    )
    assert len(asked) == 2 and None not in asked, "what is answered for the alert is asked by latents"
    assert [event["event"] for event in memory.events if event["event"] in ("alert", "webhook-failed")] == [
        "alert", "webhook-failed",
    ]  # fmt: skip


def test_12_what_is_timed_encodes_too_and_no_alert_comes_without_a_hit(made: tuple[Plan, Path]) -> None:
    answered = [event for event in events(made[1], "answered") if event["job"].startswith("answer")]
    assert len(answered) == 7 and all(event["seconds"] > 0 and event["n"] == 6 for event in answered)
    hits = [row["f1"] for row in _records(made[1], B, "validation") if row["best_f1"] > 0]
    assert bool(_records(made[1], B, "alert")) == bool(hits)


def test_12_the_time_to_answer_has_the_encoder_in_it(
    made: tuple[Plan, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, pause = Wire.latents, 0.25

    def slow(self: Wire, some: Any, vectors: int | None = None) -> torch.Tensor:
        time.sleep(pause)
        return honest(self, some, vectors)

    monkeypatch.setattr(Wire, "latents", slow)
    ctx, memory = context(made[0], made[1], "answer", tmp_path / "answer")
    params = AnswerParams.model_validate({**ctx.job.params, "bits": [32, 8], "batch_size": 3})
    evaluation.answer(params, ctx)
    told = {event["condition"]: event["seconds"] for event in memory.events if event["event"] == "answered"}
    assert told.keys() == {"latent", "latent-8bit", "zeros", "other", "mean"}
    for condition in ("latent", "latent-8bit", "other"):
        assert told[condition] >= 2 * pause, "two batches of three"
    # Nothing is encoded for the others, so that what is found above is the pause.
    assert max(told["zeros"], told["mean"]) < min(told[name] for name in ("latent", "latent-8bit", "other"))


def test_a_stage_whose_items_are_fewer_than_planned_for_is_refused_as_it_begins(
    made: tuple[Plan, Path], tmp_path: Path
) -> None:
    """24 items of 4 a step: 6 steps are an epoch, and no step comes after a warm-up of one."""
    ctx, memory = context(made[0], made[1], "stage-b", tmp_path / "b")
    params = StageBParams.model_validate(dict(ctx.job.params))
    endless = params.model_copy(update={"mixing": params.mixing.model_copy(update={"warmup_epochs": 1.0})})
    with pytest.raises(StepwellError, match=r"no step would read latents.* 6 steps are 1 epochs of 24 items"):
        training.stage_b(endless, ctx)
    assert not memory.records, "before anything is done"


def _records(folder: Path, job: str, kind: str) -> list[dict[str, Any]]:
    lines = (folder / "records" / f"{job}.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == kind]


def test_numbers_that_are_not_finite_are_skipped_counted_and_end_it(
    made: tuple[Plan, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = Wire.latents

    def broken(self: Wire, some: Any, vectors: int | None = None) -> torch.Tensor:
        return honest(self, some, vectors) * (float("nan") if torch.is_grad_enabled() else 1.0)

    monkeypatch.setattr(Wire, "latents", broken)
    ctx, memory = context(made[0], made[1], "stage-a", tmp_path / "a")
    with pytest.raises(StageFailed, match="3 of 3 optimizer steps were skipped"):
        training.stage_a(StageAParams.model_validate(dict(ctx.job.params)), ctx)
    assert [row["skipped"] for row in of_kind(memory, "step")] == [True, True, True]
    assert len({row["scale"] for row in of_kind(memory, "step")}) == 1, "no step was made"


def test_controls_are_of_other_contexts_and_need_the_cut_text(made: tuple[Plan, Path], tmp_path: Path) -> None:
    items = read_split(made[1] / "artifacts" / "data", "test")
    for item in items:
        assert evaluation.others(items)[item.id].context != item.context
    with pytest.raises(StepwellError, match="all items of the test set have one context"):
        evaluation.others([replace(item, context="one") for item in items])
    ctx, _ = context(made[0], made[1], "answer", tmp_path / "answer")
    (text,) = ctx.inputs["text"]
    cut = tmp_path / "text.jsonl"
    cut.write_text("".join(line for line in text.records_path.read_text().splitlines(True) if '"tokens-3"' not in line))
    bad = replace(ctx, inputs={**ctx.inputs, "text": (replace(text, records_path=cut),)})
    with pytest.raises(StepwellError, match="no condition `tokens-3`"):
        evaluation.answer(AnswerParams.model_validate(dict(ctx.job.params)), bad)


@pytest.mark.parametrize(
    ("model", "given", "said"),
    [
        (StageAParams, {"losses": {"terms": {"text": 1}}}, "there is no loss text here"),
        (StageBParams, {"losses": {"terms": {"kd": 1}}}, "no loss is theirs: name `text`"),
        (StageBParams, {"losses": {"terms": {"kd": {"start": 0}, "text": 1}}}, "`latent` is the ramp of this stage"),
        (StageBParams, {"recipe": {"steps": 1, "epochs": 1}}, "give either `steps` or `epochs`"),
        (
            EncoderParams,
            {"arms": {"x": {"encoder": {"kind": "bytes"}, "reader": {}}}},
            "`reader` is LoRA of an encoder",
        ),
        (EncoderParams, {"arms": {"x": {"encoder": {"kind": "bytes"}, "deep": {}}}}, "either `adapter` or `deep`"),
    ],
)
def test_plans_that_make_no_sense_are_refused(model: Any, given: dict[str, Any], said: str) -> None:
    base: dict[str, Any] = {} if model is EncoderParams else {"recipe": {"steps": 1}}
    with pytest.raises(ValueError, match=said):
        model.model_validate(base | given)
