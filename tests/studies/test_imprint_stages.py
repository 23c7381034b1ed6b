"""The plan `imprint` from end to end, tiny: what each stage must record, and what planted faults make it say."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import records
from tiny_imprint import DOUBLE, context, job_of, of_kind, tiny_imprint

from stepwell import kinds
from stepwell.fitting.result import Fitted, Record
from stepwell.gate import decide
from stepwell.latents import prompt as prompt_module
from stepwell.latents.prompt import Prompt
from stepwell.plan import Plan
from stepwell.report import write_report
from stepwell.runner import RunResult, run
from stepwell.stage import Input
from stepwell.studies.imprint.asking import Asked, Source
from stepwell.studies.imprint.controls import controls
from stepwell.studies.imprint.fits import VECTORS, fit_pairs
from stepwell.studies.imprint.measures import measures
from stepwell.studies.imprint.models import loaded
from stepwell.studies.imprint.outcomes import Outcomes
from stepwell.studies.imprint.pairs import examples
from stepwell.studies.imprint.params import ControlParams, FitParams, MeasureParams

PAIRS = ["arithmetic-9+7", "arithmetic-4+9", "arithmetic-0+5", "arithmetic-5+3"]
MODES = ("question", "answer")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, RunResult]:
    """All that is run where question and answer get along."""
    plan = tiny_imprint(model=DOUBLE)
    return plan, run(plan, tmp_path_factory.mktemp("imprint") / "run")


@pytest.fixture(scope="module")
def reworded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, RunResult]:
    """The other route: the share of pairs that converge lies between the bounds, and wordings are fitted together."""
    folder = tmp_path_factory.mktemp("reworded")
    lines = []
    for number, id in enumerate(PAIRS):
        lines.append({"id": id, "questions": [f"sum {number}", f"add {number}"], "answers": [f"is {number}"]})
    path = folder / "wordings.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    plan = tiny_imprint(
        f"paraphrase.source={{kind: file, path: {path}}}", "paraphrase.n=2", "gates.joint.bands=[]",
        "gates.joint.threshold=0.6", "gates.joint.routes={inconclusive: paraphrases}", model=DOUBLE,
    )  # fmt: skip
    return plan, run(plan, folder / "run")


def every_record(plan: Plan, result: RunResult) -> list[tuple[str, dict[str, Any]]]:
    done = [job for job, state in result.jobs.items() if state == "done"]
    return [(job, record) for job in done for record in records(result.folder, job)]


def test_the_plan_runs_to_its_end(whole: tuple[Plan, RunResult]) -> None:
    _, result = whole
    other = {"paraphrase.arithmetic", "paraphrased.arithmetic.tiny", "recheck.arithmetic.tiny"}
    assert {job for job, state in result.jobs.items() if state != "done"} == other
    assert {result.jobs[job] for job in other} == {"skipped"}
    found = {verdict.gate: verdict.decision for verdict in result.verdicts}
    assert found == {
        "setup": "go", "single": "inconclusive", "joint": "go", "leak": "go", "harmony": "go", "own": "inconclusive",
        "decoded": found["decoded"],
    }  # fmt: skip
    # Clean data, so no alarm: no target's loss is zero, and the losses of question and answer fall together.
    (leak,) = records(result.folder, "joint.arithmetic.tiny", "leak")
    (conflict,) = records(result.folder, "joint.arithmetic.tiny", "conflict")
    assert (leak["n"], leak["zero"], leak["alarm"], leak["fine"]) == (4, 0, False, True)
    assert (conflict["n"], conflict["undefined"], conflict["alarm"], conflict["fine"]) == (4, 0, False, True)
    assert conflict["mean"] > 0
    assert not list((result.folder / "artifacts").rglob("ended"))
    assert not list((result.folder / "checkpoints").glob("*/*"))


def test_the_report_page_is_written(whole: tuple[Plan, RunResult]) -> None:
    page = write_report(whole[1].folder).read_text()
    assert "Vectors fitted to one example" in page and "9+7=?" in page
    assert "Traceback" not in page


@pytest.mark.parametrize("route", ["whole", "reworded"])
def test_every_record_has_the_declared_fields_and_no_other(request: pytest.FixtureRequest, route: str) -> None:
    plan, result = request.getfixturevalue(route)
    seen: dict[str, set[str]] = {}
    for job, record in every_record(plan, result):
        stage = plan.stage(job.split(".")[0])
        yields = kinds.kind(stage.kind).yields
        seen.setdefault(stage.name, set()).add(record["kind"])
        assert set(record) == {"kind"} | set(stage.each) | yields[record["kind"]], f"{job}: {record}"
        assert not any(isinstance(value, float) and not math.isfinite(value) for value in record.values())
    wanted = {name: set(kinds.kind(plan.stage(name).kind).yields) for name in seen}
    lacking = {name: wanted[name] - seen[name] for name in seen if wanted[name] - seen[name]}
    # Vectors of each mode's own cannot be at odds, and no fit was given up.
    fits = {"single": {"alert", "conflict"}, "joint": {"alert"}, "sweep": {"alert"}}
    if route == "reworded":
        fits = {"single": {"alert", "conflict"}, "joint": {"alert"}, "paraphrased": {"alert"}}
    assert lacking == fits


def test_no_denominator_shrinks(whole: tuple[Plan, RunResult]) -> None:
    _, result = whole
    each = {(id, mode) for id in PAIRS for mode in MODES}

    def seen(job: str, kind: str, *keys: str) -> list[Any]:
        return [tuple(record[key] for key in keys) for record in records(result.folder, f"{job}.arithmetic.tiny", kind)]

    assert [id for (id,) in seen("joint", "pair", "id")] == PAIRS
    for job, kind in (
        ("baselines", "baseline"), ("single", "target"), ("joint", "target"), ("check", "spot"), ("measure", "gain")
    ):  # fmt: skip
        found = seen(job, kind, "id", "mode")
        assert len(found) == 8 and set(found) == each, (job, kind)
    for job in ("single", "joint"):
        restarts = seen(job, "restart", "id", "mode", "restart")
        assert len(restarts) == 16 and set(restarts) == {(*pair, restart) for pair in each for restart in (0, 1)}
    controls = Counter(seen("controls", "control", "control"))
    assert controls == {("own",): 8, ("random",): 8, ("shuffled",): 8}
    conditions = Counter(condition for (condition,) in seen("controls", "capability", "condition"))
    assert conditions == {"without": 4, "own": 8, "random": 8}  # 4 questions, each pair with 2 of the others
    for slots in (1, 2):
        found = records(result.folder, f"sweep.arithmetic.tiny.{slots}", "pair")
        assert [record["id"] for record in found] == PAIRS[:2] and {record["slots"] for record in found} == {slots}
    assert [id for (id,) in seen("smallest", "smallest", "id")] == PAIRS[:1]
    assert [id for (id,) in seen("measure", "storage", "id")] == PAIRS


def test_the_records_of_a_fit_agree_with_each_other(whole: tuple[Plan, RunResult]) -> None:
    _, result = whole
    for job in ("single", "joint"):
        name = f"{job}.arithmetic.tiny"
        rows = {(r["id"], r["mode"], r["restart"]): r for r in records(result.folder, name, "restart")}
        bars = {
            (r["id"], r["mode"]): r for r in records(result.folder, "baselines.arithmetic.tiny", "baseline")
        }  # fmt: skip
        targets = records(result.folder, name, "target")
        for target in targets:
            row, base = rows[target["id"], target["mode"], target["restart"]], bars[target["id"], target["mode"]]
            for key in ("nats", "exact", "held", "tokens", "steps", "zero", "health", "end"):
                assert target[key] == row[key]
            assert row["converged"] == (row["exact"] or row["nats"] < base["bar"])
            same = [r for (id, mode, _), r in rows.items() if (id, mode) == (target["id"], target["mode"])]
            assert target["converged"] == any(r["converged"] for r in same)
            assert target["ratio_to_random"] == pytest.approx(row["nats"] / base["random"])
            against = base["full_context"] if target["mode"] == "answer" else base["text_prompt"]
            assert target["ratio_to_baseline"] == pytest.approx(row["nats"] / against)
            assert row["exact"] == (row["held"] == row["tokens"]) == (row["lead"] > 0)
            if job == "single":  # one mode, so the fit retires when it is exact, and only then
                assert (row["end"] == "exact") == row["exact"]
        curves = {(r["id"], r["mode"]): r for r in records(result.folder, name, "curve")}
        assert len(curves) == 8
        for key, curve in curves.items():
            best = next(t for t in targets if (t["id"], t["mode"]) == key)
            assert curve["restart"] == best["restart"] and curve["steps"][0] == 0
            assert curve["steps"] == sorted(curve["steps"]) and len(curve["steps"]) == len(curve["nats"]) <= 60
        for pair in records(result.folder, name, "pair"):
            own = [t for t in targets if t["id"] == pair["id"]]
            assert pair["exact"] == all(t["exact"] for t in own)
            assert pair["converged"] == all(t["converged"] for t in own)
            assert (pair["gradient_cosine"] is None) == (pair["restart"] is None) == (job == "single")


def test_the_vectors_are_saved_with_the_fit(whole: tuple[Plan, RunResult]) -> None:
    _, result = whole
    for job, slots in (("joint.arithmetic.tiny", 6), ("sweep.arithmetic.tiny.2", 2)):
        found = Fitted.load(result.folder / "artifacts" / job / VECTORS)
        restarts = {"joint": 2, "sweep": 1}[job.split(".")[0]]
        assert {tuple(vectors.shape) for vectors in found.vectors.values()} == {(restarts, slots, 32)}
        rows = records(result.folder, job, "restart")
        nats = {(r.id, mode, r.restart): value for r in found.records for mode, value in (r.nats or {}).items()}
        assert {(r["id"], r["mode"], r["restart"]): r["nats"] for r in rows} == nats


def test_pairs_that_neither_converge_nor_fail_are_fitted_with_other_wordings(
    reworded: tuple[Plan, RunResult],
) -> None:
    _, result = reworded
    routes = {verdict.gate: verdict.route for verdict in result.verdicts}
    assert routes["joint"] == "paraphrases"
    states = {job.split(".")[0]: state for job, state in result.jobs.items()}
    assert [states[name] for name in ("paraphrase", "paraphrased", "recheck")] == ["done"] * 3
    assert [states[name] for name in ("check", "controls", "measure")] == ["done"] * 3  # whatever the verdict
    assert [states[name] for name in ("sweep", "smallest")] == ["skipped"] * 2
    texts = records(result.folder, "paraphrase.arithmetic", "paraphrase")
    assert Counter((r["mode"], len(r["texts"])) for r in texts) == {("question", 2): 4, ("answer", 1): 4}
    lacks = records(result.folder, "paraphrase.arithmetic", "lack")
    assert [(r["id"], r["mode"], r["wanted"], r["found"]) for r in lacks] == [(id, "answer", 2, 1) for id in PAIRS]
    assert [r["id"] for r in records(result.folder, "paraphrased.arithmetic.tiny", "pair")] == PAIRS
    # A target's tokens are those of the longest wording, the end token among them: "sum 0", and not "9+7=?".
    tokens = {(r["mode"], r["tokens"]) for r in records(result.folder, "paraphrased.arithmetic.tiny", "target")}
    assert tokens == {("question", 6), ("answer", 5)}


def by_hand(backbone: Any, mode: str, c: torch.Tensor, text: str) -> float:
    """Nats of a text and its end after [mode, c], by transformers alone, in float64."""
    table, ids = backbone.model.get_input_embeddings().weight.detach(), [*text.encode(), 256]
    rows = torch.cat((table[[255 - MODES.index(mode)]], c, table[ids[:-1]]))
    said = backbone.model(inputs_embeds=rows[None]).logits[0, len(c) :].log_softmax(-1)
    return -float(said[range(len(ids)), ids].sum().detach())


def test_bits_and_ratios_of_a_fit_over_wordings_are_of_the_pairs_own_text(
    reworded: tuple[Plan, RunResult], tmp_path: Path
) -> None:
    plan, result = reworded
    ctx, memory = context(plan, result.folder, "measure", tmp_path / "artifacts")
    job = job_of(plan, "paraphrased")
    fit = Input(job=job, folder=result.folder / "artifacts" / job.id,
                records_path=result.folder / "records" / f"{job.id}.jsonl")  # fmt: skip
    ctx = replace(ctx, inputs={**ctx.inputs, "paraphrased": (fit,)})
    measures(MeasureParams(items=1, draws=1, points=3), ctx)
    backbone, _ = loaded(ctx)
    found, gains = Fitted.load(fit.folder / VECTORS), of_kind(memory, "gain")
    targets = {(r["id"], r["mode"]): r for r in fit.records("target")}
    random = {
        (r["id"], r["mode"]): r["random"] for r in records(result.folder, "baselines.arithmetic.tiny", "baseline")
    }
    texts = {(item.id, mode): text for item in examples(ctx) for mode, text in item.targets().items()}
    assert {(row["id"], row["mode"]) for row in gains} == set(texts)
    for row in gains:
        key, c = (row["id"], row["mode"]), found.vectors[row["id"]][found.best(row["id"]).restart]
        tokens, own = len(texts[key].encode()) + 1, by_hand(backbone, row["mode"], c, texts[key])
        bits = (by_hand(backbone, row["mode"], c[:0], texts[key]) - own) / math.log(2)
        assert row["tokens"] == tokens and row["bits"] == pytest.approx(bits, rel=1e-9)
        assert (row["bits_per_slot"], row["bits_per_token"]) == pytest.approx((bits / 6, bits / tokens), rel=1e-9)
        assert targets[key]["own_nats"] == pytest.approx(own / tokens, rel=1e-9) != targets[key]["nats"]
        assert targets[key]["ratio_to_random"] == pytest.approx(own / tokens / random[key], rel=1e-9)
    for row in of_kind(memory, "storage"):
        assert row["text_bytes"] == sum(len(texts[row["id"], mode]) for mode in MODES)


# ---- planted faults


def test_a_planted_double_shift_is_seen_before_anything_is_fitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = prompt_module.supervised

    def planted(labels: torch.Tensor, first: int) -> tuple[torch.Tensor, torch.Tensor]:
        return right(torch.cat((labels[:, 1:], torch.full_like(labels[:, :1], -100)), 1), first)

    monkeypatch.setattr(prompt_module, "supervised", planted)
    plan = tiny_imprint()
    result = run(plan, tmp_path / "run")
    (check,) = [r for r in records(result.folder, "model.tiny", "check") if r["name"] == "self-test"]
    assert check["passed"] is False
    assert "a state is scored for another token than it predicts" in check["detail"]
    (verdict,) = result.verdicts
    assert (verdict.gate, verdict.decision, result.decision) == ("setup", "no-go", "no-go")
    done = {job for job, state in result.jobs.items() if state == "done"}
    assert done == {"data.arithmetic", "model.tiny"}, "something was fitted to labels that are known to be wrong"


@pytest.fixture
def leaky(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each state holds the token that it is to predict, whatever c is."""
    honest = Prompt.hidden

    def hidden(self: Prompt, backbone: Any, vectors: torch.Tensor) -> torch.Tensor:
        rows = backbone.model.get_output_embeddings().weight[self.tokens]
        return honest(self, backbone, vectors) + 1e4 * rows / rows.square().sum(1, keepdim=True)

    monkeypatch.setattr(Prompt, "hidden", hidden)


def test_targets_that_leak_raise_the_leak_alarm(whole: tuple[Plan, RunResult], tmp_path: Path, leaky: None) -> None:
    plan, result = whole
    ctx, memory = context(plan, result.folder, "joint.arithmetic.tiny", tmp_path / "artifacts")
    fit_pairs(FitParams.model_validate(dict(ctx.job.params)), ctx)
    (leak,) = of_kind(memory, "leak")
    assert (leak["n"], leak["zero"], leak["share"], leak["alarm"], leak["fine"]) == (4, 4, 1.0, True, False)
    assert {record["health"] for record in of_kind(memory, "target")} == {"zero"}
    assert decide(plan.gate("leak"), {"joint": memory.records}).decision == "no-go"
    assert decide(plan.gate("leak"), {"joint": records(result.folder, "joint.arithmetic.tiny")}).decision == "go"


def test_a_model_that_writes_everything_shows_in_the_controls(
    whole: tuple[Plan, RunResult], tmp_path: Path, leaky: None
) -> None:
    plan, result = whole
    ctx, memory = context(plan, result.folder, "controls", tmp_path / "artifacts")
    controls(ControlParams.model_validate(dict(ctx.job.params)), ctx)
    for control in ("own", "random", "shuffled"):
        assert {r["exact"] for r in of_kind(memory, "control") if r["control"] == control} == {True}, control
    assert decide(plan.gate("own"), {"controls": memory.records}).decision == "no-go"


def test_a_c_that_is_the_same_for_all_shows_in_the_shuffled_control(
    whole: tuple[Plan, RunResult], tmp_path: Path
) -> None:
    """Reading a pair from another's c then changes nothing, as a random c does."""
    plan, result = whole
    clean = records(result.folder, "controls.arithmetic.tiny", "control")
    ctx, memory = context(plan, result.folder, "controls", tmp_path / "artifacts")
    (given,) = ctx.inputs["joint"]
    found = Fitted.load(given.folder / VECTORS)
    one = found.vectors[PAIRS[0]][:1].expand(2, -1, -1)  # whichever restart is the best of a pair
    replace(found, vectors={id: one.clone() for id in PAIRS}).save(tmp_path / "joint" / VECTORS)
    ctx = replace(ctx, inputs={**ctx.inputs, "joint": (replace(given, folder=tmp_path / "joint"),)})
    controls(ControlParams.model_validate(dict(ctx.job.params)), ctx)

    def excess(rows: list[dict[str, Any]], control: str) -> list[float]:
        """Nats a token above those from the pair's own c."""
        nats = {(r["id"], r["mode"], r["control"]): r["nats"] for r in rows}
        return [nats[id, mode, control] - nats[id, mode, "own"] for id in PAIRS for mode in MODES]

    planted = of_kind(memory, "control")
    assert excess(planted, "shuffled") == pytest.approx([0.0] * 8, abs=1e-9)
    assert min(map(abs, excess(planted, "random"))) > 0.01
    # As fitted, each pair's own vectors are worth something to that pair alone.
    assert min(excess(clean, "shuffled")) > 0.5


def made(curves: list[dict[str, list[float]]]) -> tuple[Asked, Fitted, FitParams]:
    """A fit of one restart with such losses."""
    from stepwell.latents.prompt import Problem, Target
    from stepwell.tasks.base import QA

    items = [QA(id=f"p{i}", question="a", answers=("b",)) for i in range(len(curves))]
    problems = [Problem(id=i.id, targets=tuple(Target(ids=(1, 2), mode=m) for m in MODES)) for i in items]
    fitted = [
        Record(
            id=item.id, restart=0, seed=0, identity="", end="steps", steps=60, exact=dict.fromkeys(MODES, False),
            nats={mode: curve[-1] for mode, curve in given.items()}, own=dict.fromkeys(MODES, 1.0),
            held=dict.fromkeys(MODES, 0), lead=dict.fromkeys(MODES, -1.0), tokens=dict.fromkeys(MODES, 2),
            converged=True, curve={mode: tuple(enumerate(curve)) for mode, curve in given.items()},
        )
        for item, given in zip(items, curves, strict=True)
    ]  # fmt: skip
    params = FitParams.model_validate({"recipe": {"restarts": 1, "curve_every": 1}})
    found = Fitted(vectors={}, records=tuple(fitted), modes={}, stops=(2,), recipe=params.recipe, slots=1, seed=0)
    return Asked(items=items, problems=problems, faults={}, bars={}, baselines={}), found, params


def test_losses_that_move_against_each_other_raise_the_conflict_alarm(
    whole: tuple[Plan, RunResult], tmp_path: Path
) -> None:
    plan, result = whole
    generator = torch.Generator().manual_seed(3)
    against, along = [], []
    for _ in range(6):
        walk = torch.randn(60, generator=generator, dtype=torch.float64).cumsum(0)
        noise = torch.randn(60, generator=generator, dtype=torch.float64) * 0.2
        against.append({"question": (60 + walk).tolist(), "answer": (60 - walk + noise).tolist()})
        along.append({"question": (60 + walk).tolist(), "answer": (60 + walk + noise).tolist()})
    decisions = []
    for name, curves in (("against", against), ("along", along)):
        asked, found, params = made(curves)
        ctx, memory = context(plan, result.folder, "joint.arithmetic.tiny", tmp_path / name)
        outcomes = Outcomes(params=params, ctx=ctx)
        outcomes.write(asked, found)
        outcomes.close()
        (conflict,) = of_kind(memory, "conflict")
        assert (conflict["n"], conflict["undefined"]) == (6, 0)
        assert (conflict["mean"] < -0.8) == conflict["alarm"] == (name == "against") != conflict["fine"]
        assert [r["conflict"] for r in of_kind(memory, "pair")] == pytest.approx(
            [conflict["mean"]] * 6, abs=0.4
        )  # fmt: skip
        decisions.append(decide(plan.gate("harmony"), {"joint": memory.records}).decision)
    assert decisions == ["no-go", "go"]


def test_a_fit_without_hope_is_given_up_and_counts_all_its_pairs(whole: tuple[Plan, RunResult], tmp_path: Path) -> None:
    """One slot and one step hold nothing: the first two pairs say so, and the others are stopped."""
    plan, result = whole
    ctx, memory = context(plan, result.folder, "joint.arithmetic.tiny", tmp_path / "artifacts")
    params = FitParams.model_validate(
        {
            "slots": 1, "columns": 1, "abandon": {"below": 0.95, "after": 2, "confidence": 0.5},
            "recipe": {"steps": 1, "restarts": 1, "lr": 1e-6},
        }
    )  # fmt: skip
    backbone, _ = loaded(ctx)
    assert len(Source.of(params, ctx, backbone).asked().problems) == len(examples(ctx)) == 4
    fit_pairs(params, ctx)
    (alert,) = of_kind(memory, "alert")
    assert alert["monitor"] == "convergence" and alert["stopped"] is True
    assert f"0 of {alert['step']} pairs converged, at most " in alert["message"]
    assert "below 95% the fit is given up" in alert["message"]
    assert [r["id"] for r in of_kind(memory, "pair")] == PAIRS
    assert not any(r["converged"] or r["exact"] for r in of_kind(memory, "pair"))
    assert len(of_kind(memory, "target")) == 8
