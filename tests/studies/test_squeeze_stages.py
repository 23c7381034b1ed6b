"""The shipped plan `squeeze` made tiny: to its end, with the records its kinds declare, and faults it finds."""

from __future__ import annotations

import string
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import events, records, started
from tiny_imprint import context
from tiny_squeeze import DIMS, WIDTH, letters_folder, tiny_squeeze

from stepwell import kinds
from stepwell.answers import answer_items
from stepwell.errors import StageFailed, StepwellError
from stepwell.latents.compressor import Compressor, token_counts
from stepwell.latents.contract import Contract
from stepwell.latents.restorer import Restorer
from stepwell.latents.restorer_specs import RestorerParams
from stepwell.plan import Plan, jobs
from stepwell.report import write_report
from stepwell.runner import run
from stepwell.shapes import embedding_table
from stepwell.studies.qa import data as qa_data
from stepwell.studies.qa.data import checks, read_split, split
from stepwell.studies.qa.models import loaded
from stepwell.studies.qa.params import QADataParams
from stepwell.studies.squeeze import answer as squeeze_answer
from stepwell.studies.squeeze.params import RefineParams
from stepwell.studies.squeeze.restore import FILE, prompts_of, refine, through
from stepwell.tasks.base import QA

TRAINED, SAMPLE = f"restore.residual.{DIMS}.0", 2
READ = ("data", "model", "text", "restore", "answer")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return letters_folder(tmp_path_factory.mktemp("model") / "letters")


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, Path]:
    """A run of all stages, quantised numbers among them."""
    plan, folder = tiny_squeeze(model), tmp_path_factory.mktemp("whole") / "run"
    run(plan, folder)
    return plan, folder


def asked(folder: Path, job: str) -> list[dict[str, Any]]:
    return records(folder, job, "item")


def answers(plan: Plan) -> list[str]:
    return [job.id for job in jobs(plan) if job.stage in ("answer", "answer-refined")]


# ---- the whole


def test_every_job_is_done_and_every_record_is_what_its_kind_declares(whole: tuple[Plan, Path]) -> None:
    plan, folder = whole
    assert sorted(started(folder)) == sorted(job.id for job in jobs(plan))
    seen = set()
    for job in jobs(plan):
        yields = kinds.kind(job.kind).yields
        for record in records(folder, job.id):
            wrong = set(record) ^ {"kind", *job.axes, *yields[record["kind"]]}
            assert not wrong, (job.id, record["kind"], wrong)
            assert {name: record[name] for name in job.axes} == dict(job.axes)
            seen.add((job.kind, record["kind"]))
    used = {job.kind for job in jobs(plan)}
    assert seen == {(kind, name) for kind in used for name in kinds.kind(kind).yields}, "declared and never written"


def test_the_compressor_is_fitted_on_every_token_of_the_training_set(whole: tuple[Plan, Path], tmp_path: Path) -> None:
    plan, folder = whole
    ctx, _ = context(plan, folder, TRAINED, tmp_path / "again")
    contract = loaded(ctx)
    prompts = [prompt[len(contract.bos) :] for prompt in prompts_of(contract, ctx, "train")]
    (told,) = records(folder, TRAINED, "compressor")
    assert len(prompts) == 24
    assert told["corpus_tokens"] == sum(map(len, prompts)) and told["distinct"] == len(set().union(*prompts))
    # Of all adapters that are linear, PCA's is the best: no control keeps more of the variance.
    kept = {arm: records(folder, f"restore.{arm}.{DIMS}.0", "compressor")[0]["explained"] for arm in
            ("pca", "random", "truncation")}  # fmt: skip
    assert 1 > kept["pca"] > max(kept["random"], kept["truncation"])


def test_answers_are_looked_at_while_a_restorer_is_trained(whole: tuple[Plan, Path], tmp_path: Path) -> None:
    """At each checkpoint; the last look is what the saved restorer's answers come to, asked one by one."""
    plan, folder = whole
    for job, every in ((TRAINED, 5), (f"refine.residual.{DIMS}.0", 2)):
        looks, steps = records(folder, job, "look"), records(folder, job, "step")
        last = steps[-1]["step"]
        assert [one["step"] for one in looks] == [*range(every, last, every), last]
        ctx, _ = context(plan, folder, job, tmp_path / job)
        contract, (data,) = loaded(ctx), ctx.inputs["data"]
        restorer = Restorer.load(folder / "artifacts" / job / FILE)
        items = read_split(data.folder, "held", 8)
        ask = partial(through, contract, restorer, bits=32)
        found = [one for item in items for one in answer_items(contract.backbone, contract, [item], ask)]
        assert looks[-1]["n"] == len(items) > 0
        assert looks[-1]["f1"] == pytest.approx(sum(one.f1 for one in found) / len(found))
        assert looks[-1]["em"] == pytest.approx(sum(one.em for one in found) / len(found))


def test_reconstruction_is_that_of_a_slow_reference_in_float64(whole: tuple[Plan, Path], tmp_path: Path) -> None:
    plan, folder = whole
    for job in (TRAINED, f"refine.residual.{DIMS}.0"):
        ctx, _ = context(plan, folder, job, tmp_path / job)
        contract = loaded(ctx)
        restorer = Restorer.load(folder / "artifacts" / job / FILE)
        for told in records(folder, job, "reconstruction"):
            found = []
            for prompt in prompts_of(contract, ctx, told["set"]):
                for token in prompt[len(contract.bos) :]:
                    x = contract.backbone.embed(torch.tensor([[token]]))[0, 0].detach()
                    y = restorer(x).detach().double()
                    x = x.double()
                    found.append(
                        (((x - y) ** 2).mean(), x @ y / (x.norm() * y.norm()), (x - y).norm() / x.norm(),
                         y.norm() / x.norm())
                    )  # fmt: skip
            means = torch.tensor(found).mean(0).tolist()
            assert told["tokens"] == len(found)
            assert [told[name] for name in ("mse", "cosine", "relative_error", "norm_ratio")] == pytest.approx(
                means, rel=1e-4
            )


def test_all_dimensions_lose_nothing(model: Path, tmp_path: Path) -> None:
    """c = D: what is answered through the bottleneck is what is answered without it."""
    run(tiny_squeeze(model, f"axes.dims=[{WIDTH}]", "answer.bits=[32]", stages=READ, arms=["pca"]), tmp_path / "run")
    ceiling = {row["id"]: row for row in asked(tmp_path / "run", "text") if row["condition"] == "ceiling"}
    through = asked(tmp_path / "run", f"answer.pca.{WIDTH}.0")
    assert len(through) == 6
    for row in through:
        other = ceiling[row["id"]]
        assert (row["prediction"], row["first_token"]) == (other["prediction"], other["first_token"])
        assert row["nll_per_token"] == pytest.approx(other["nll_per_token"], abs=1e-3)


def test_bytes_are_those_of_the_numbers_and_of_the_text(whole: tuple[Plan, Path], tmp_path: Path) -> None:
    plan, folder = whole
    ctx, _ = context(plan, folder, f"answer.pca.{DIMS}.0", tmp_path / "again")
    contract = loaded(ctx)
    items = {item.id: item for item in read_split(folder / "artifacts" / "data", "test")}
    for row in asked(folder, f"answer.pca.{DIMS}.0"):
        item = items[row["id"]]
        sent = len(contract.prompt(item)) - len(contract.bos)
        scales = 0 if row["bits"] == 32 else 2 * sent
        assert row["bytes"] == sent * DIMS * row["bits"] // 8 + scales
        assert row["text_bytes"] == len(f"{item.context}{item.question}".encode())
    assert {row["bits"] for row in asked(folder, f"answer.pca.{DIMS}.0")} == {32, 8}


def test_the_report_of_a_run_draws(whole: tuple[Plan, Path]) -> None:
    text = write_report(whole[1]).read_text(encoding="utf-8")
    for key in ("contract", "answers", "reconstruction", "training", "browser"):
        assert f'<section id="{key}">' in text
    assert '<section id="probes">' not in text


# ---- the splits


def of_context(id: str, context: str) -> QA:
    return QA(id=id, question="What is it?", answers=("red",), context=context)


def test_a_context_that_two_splits_share_is_seen() -> None:
    clean = {"train": [of_context("a", "It is red.")], "held": [of_context("b", "It was red.")],
             "test": [of_context("c", "They are red.")]}  # fmt: skip
    assert all(passed for _, passed, _ in checks(clean))
    for name in ("held", "test"):
        planted = {**clean, name: [of_context("d", "it is  RED")]}
        found = {check: (passed, detail) for check, passed, detail in checks(planted)}
        assert not found["no-shared-context"][0] and f"'train/{name}': 1" in found["no-shared-context"][1]
        assert found["answers-in-context"][0] and found["one-id-each"][0]
    found = dict((name, passed) for name, passed, _ in checks({**clean, "test": [of_context("a", "It is blue.")]}))
    assert not found["answers-in-context"] and not found["one-id-each"]


def test_contexts_that_differ_in_form_only_are_in_one_split() -> None:
    items = [of_context(f"{form}{i}", text.format(i)) for i in range(40) for form, text in
             (("a", "Number {} is red."), ("b", "The number  {} is RED"))]  # fmt: skip
    for draw in range(5):
        made = split(items, QADataParams(n_train=20, n_held=10, n_test=10, draw=draw))
        assert [len(made[name]) for name in ("train", "held", "test")] == [20, 10, 10]
        assert all(passed for _, passed, _ in checks(made))


def test_a_planted_overlap_stops_the_run(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = qa_data.split

    def leaking(*arguments: Any) -> dict[str, list[QA]]:
        made = honest(*arguments)
        return {**made, "test": [made["train"][0], *made["test"][1:]]}

    monkeypatch.setattr(qa_data, "split", leaking)
    found = run(tiny_squeeze(model), tmp_path / "run")
    assert [(verdict.gate, verdict.decision) for verdict in found.verdicts] == [("setup", "no-go")]
    assert set(started(tmp_path / "run")) == {"data", "model"}


# ---- faults 07, 08, 11, 12


def test_every_condition_reads_the_same_columns_and_the_whole_question(
    model: Path, tmp_path: Path, whole: tuple[Plan, Path]
) -> None:
    """07 and 11: contexts are cut, questions never, and alike for text, ceiling and arms."""
    plan = tiny_squeeze(model, "model.contract.max_prompt_tokens=150", stages=READ, arms=["residual", "pca"])
    run(plan, tmp_path / "run")
    for row in records(tmp_path / "run", "model", "coverage"):
        assert row["contexts_cut"] == row["n"] > 0
    ctx, _ = context(plan, tmp_path / "run", TRAINED, tmp_path / "again")
    contract = loaded(ctx)
    for name in ("train", "held", "test"):
        for item, prompt in zip(read_split(tmp_path / "run/artifacts/data", name), prompts_of(contract, ctx, name),
                                strict=True):  # fmt: skip
            said = contract.backbone.tokenizer.decode(list(prompt), skip_special_tokens=True).rstrip()
            assert len(prompt) == 150 and said.endswith(f"Question: {item.question}")
    columns: dict[str, set[int]] = {}
    for job in ("text", *answers(plan)):
        for row in asked(tmp_path / "run", job):
            columns.setdefault(row["id"], set()).add(row["columns"])
    assert set(map(tuple, columns.values())) == {(150 + len(contract.anchor),)}
    # What was cut away does not go over the wire.
    cut = asked(tmp_path / "run", f"answer.pca.{DIMS}.0")[0]
    (uncut,) = [row for row in asked(whole[1], f"answer.pca.{DIMS}.0") if row["id"] == cut["id"] and row["bits"] == 32]
    assert cut["text_bytes"] < uncut["text_bytes"] and cut["bytes"] < uncut["bytes"]


def test_a_question_without_room_fails_by_its_name(model: Path, tmp_path: Path) -> None:
    plan = tiny_squeeze(model, "model.contract.max_prompt_tokens=40", stages=("data", "model"))
    with pytest.raises(StageFailed, match="tokens, and 40 are allowed") as caught:
        run(plan, tmp_path / "run")
    assert "a question is never cut" in str(caught.value) and caught.value.exit_code == 4


def test_the_scale_of_an_item_is_the_same_model_in_the_same_template(whole: tuple[Plan, Path]) -> None:
    """08: the ceiling is read from uncompressed embeddings, answers as the text does, and is what judges the arms."""
    plan, folder = whole
    by = {(row["condition"], row["id"]): row for row in asked(folder, "text")}
    ceiling = {id: row for (condition, id), row in by.items() if condition == "ceiling"}
    assert len(ceiling) == 6
    for id, row in ceiling.items():
        text = by["text", id]
        assert (row["prediction"], row["columns"]) == (text["prediction"], text["columns"])
        assert row["nll_per_token"] == pytest.approx(text["nll_per_token"], abs=1e-4)
    for job in answers(plan):
        for row in asked(folder, job):
            assert row["ceiling_f1"] == ceiling[row["id"]]["f1"]
            assert row["above_share"] == pytest.approx(row["f1"] - 0.7 * row["ceiling_f1"])
            assert row["above_floor"] == pytest.approx(row["f1"] - 0.5 * row["ceiling_f1"])
            assert set(row["answers"]) == set(by["text", row["id"]]["answers"])


def test_another_anchor_for_embeddings_is_found_before_anything_is_compared(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = Contract.around

    def other(self: Contract, prefix: torch.Tensor) -> torch.Tensor:
        return honest(self, prefix)[:, :-1]  # an anchor that lacks its last token

    monkeypatch.setattr(Contract, "around", other)
    found = run(tiny_squeeze(model), tmp_path / "run")
    (check,) = records(tmp_path / "run", "model", "check")
    assert check["name"] == "embeddings-as-text" and check["passed"] is False
    assert found.verdicts[0].decision == "no-go" and "text" not in started(tmp_path / "run")


def reference_f1(prediction: str, golds: tuple[str, ...]) -> float:
    """SQuAD's F1 from its definition: words counted as often as they occur, the best gold answer."""

    def words(text: str) -> Counter[str]:
        bare = "".join(letter for letter in text.lower() if letter not in string.punctuation)
        return Counter(word for word in bare.split() if word not in ("a", "an", "the"))

    def one(gold: str) -> float:
        said, wanted = words(prediction), words(gold)
        common = sum((said & wanted).values())
        return 2 * common / (sum(said.values()) + sum(wanted.values())) if common else 0.0

    return max(map(one, golds))


def test_one_scorer_for_text_and_arms_over_all_gold_answers(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """12: F1 counts words as often as they occur, takes the best gold answer, and is that of the arm itself."""
    golds = (("blue",), ("the fox", "Fox, red"), ("fox fox red", "no"), ("A fox", "fox fox"))
    lines = "".join(
        f'{{"id": "q{i}", "question": "Which is it, {i}?", "context": "Text {i}: {", ".join(golds[i % 4])}", '
        f'"answers": {{"text": {list(golds[i % 4])}}}}}\n'.replace("'", '"')
        for i in range(16)
    )
    (tmp_path / "pairs.jsonl").write_text(lines)
    calls: list[str] = []

    def said(self: Contract, ids: Any, stopped: bool) -> tuple[str, bool]:
        calls.append("x")
        return ("fox fox red", True) if "arm" not in state else ("a red Fox!", True)

    state: set[str] = set()
    honest = squeeze_answer.answer

    def of_arm(params: Any, ctx: Any) -> None:
        state.add("arm")
        honest(params, ctx)

    monkeypatch.setattr(Contract, "said", said)
    monkeypatch.setattr(squeeze_answer, "answer", of_arm)
    source = f"data.source={{kind: squad, file: {tmp_path / 'pairs.jsonl'}}}"
    sizes = ("data.n_train=6", "data.n_held=2", "data.n_test=8", "answer.bits=[32]")
    run(tiny_squeeze(model, source, *sizes, stages=READ, arms=["pca"]), tmp_path / "run")
    for job, prediction in (("text", "fox fox red"), (f"answer.pca.{DIMS}.0", "a red Fox!")):
        rows = asked(tmp_path / "run", job)
        assert rows and {row["prediction"] for row in rows} == {prediction}
        for row in rows:
            assert row["f1"] == pytest.approx(reference_f1(prediction, tuple(row["answers"])), abs=1e-12)
        assert len({row["f1"] for row in rows}) >= 3
    own = {row["id"]: row for row in asked(tmp_path / "run", f"answer.pca.{DIMS}.0")}
    scale = {row["id"]: row["f1"] for row in asked(tmp_path / "run", "text") if row["condition"] == "ceiling"}
    assert any(row["f1"] != row["ceiling_f1"] for row in own.values())
    assert all(row["ceiling_f1"] == scale[id] for id, row in own.items())


def test_the_time_to_answer_has_the_compressor_in_it(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, pause = squeeze_answer.through, 0.25

    def slow(*arguments: Any) -> Any:
        time.sleep(pause)
        return honest(*arguments)

    monkeypatch.setattr(squeeze_answer, "through", slow)
    run(tiny_squeeze(model, "answer.bits=[32]", stages=READ, arms=["pca"]), tmp_path / "run")
    (told,) = [event for event in events(tmp_path / "run", "answered") if event["condition"] == "pca"]
    assert told["n"] == 6 and told["seconds"] >= 2 * pause, "two batches of four"


# ---- the compressor of phase 2


def test_a_compressor_of_a_sample_is_refused_in_phase_2(whole: tuple[Plan, Path], tmp_path: Path) -> None:
    """Fitted on a hundred samples and trained on ten thousand: the fault that counts of all tokens mend."""
    plan, folder = whole
    ctx, _ = context(plan, folder, f"refine.residual.{DIMS}.0", tmp_path / "again")
    contract = loaded(ctx)
    prompts = [prompt[len(contract.bos) :] for prompt in prompts_of(contract, ctx, "train")]
    (given,) = ctx.inputs["restore"]

    def fitted_on(some: list[tuple[int, ...]]) -> None:
        counts = token_counts(some, contract.backbone.vocabulary)
        compressor = Compressor.fit(embedding_table(contract.backbone), counts, DIMS)
        planted = type(given)(job=given.job, folder=tmp_path / "planted", records_path=given.records_path)
        Restorer(compressor, RestorerParams(adapter="residual")).save(planted.folder / FILE)
        ctx.inputs = {**ctx.inputs, "restore": (planted,)}

    params = RefineParams.model_validate(dict(ctx.job.params))
    fitted_on(prompts[:SAMPLE])
    with pytest.raises(StepwellError, match="less than half of the"):
        refine(params, ctx)
    fitted_on(prompts[: len(prompts) * 3 // 4])
    refine(params, ctx)


# ---- a real model


@pytest.mark.slow
def test_a_real_model_keeps_its_answers_where_nothing_is_lost(tmp_path: Path) -> None:
    from stepwell.errors import StepwellError
    from stepwell.models import locate

    try:
        locate("smollm2-135m")
    except StepwellError:
        pytest.skip("smollm2-135m is not on this machine")
    plan = tiny_squeeze(
        "smollm2-135m", "axes.dims=[576, 64]", "answer.bits=[32]", "data.n_train=80",
        "data.source={kind: generated, sentences: 6}", "model.contract={max_prompt_tokens: 256, max_answer_tokens: 12}",
        stages=READ, arms=["pca"],
    )  # fmt: skip
    run(plan, tmp_path / "run")
    ceiling = {row["id"]: row["prediction"] for row in asked(tmp_path / "run", "text") if row["condition"] == "ceiling"}
    assert {row["id"]: row["prediction"] for row in asked(tmp_path / "run", "answer.pca.576.0")} == ceiling
    losses = [sum(row["nll_per_token"] for row in asked(tmp_path / "run", f"answer.pca.{c}.0")) for c in (576, 64)]
    assert losses[0] < losses[1]
