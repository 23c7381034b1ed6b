"""Bad input to `imprint`: one clear message and an exit code, or a record of the pair that it concerns.

| bad input                                    | here: test_...                                        |
| -------------------------------------------- | ----------------------------------------------------- |
| plan: unknown key, K = 0, no such axis       | a_plan_that_cannot_be_is_refused                      |
| data file: missing                           | a_data_file_that_is_not_there                         |
| ... empty, not JSON, of another format       | a_bad_data_file_fails_the_data_stage                  |
| fewer pairs than asked for                   | fewer_pairs_than_asked_for                            |
| unknown tier, unknown model                  | a_name_that_the_plan_does_not_explain                 |
| K = 0 in an axis                             | no_slots_in_an_axis                                   |
| a mode that is not one token                 | a_mode_that_is_no_token                               |
| target too long, unknown token, no answer    | a_pair_that_cannot_be_fitted_is_a_record              |
| a mode missing                               | a_mode_that_is_missing                                |
| a paraphrase file that does not match        | a_paraphrase_file_that_does_not_match                 |
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from refusals import refused
from tiny import model_folder, records, started, write_plan
from tiny_imprint import DOUBLE, FIT, squad_file, tiny_imprint

from stepwell.cli import run
from stepwell.plan import Plan
from stepwell.runner import run as run_plan
from stepwell.studies.imprint.models import ByteTokenizer

MODES = ("question", "answer")


def command(plan: Plan, folder: str = "run") -> list[str]:
    return ["run", str(write_plan(plan, Path("tiny.yaml"))), "--out", folder, "--quiet"]


def of_squad(file: Path, n: int, *overrides: str, stages: tuple[str, ...] = FIT, model: str = DOUBLE) -> Plan:
    """A run on the pairs of a file."""
    tier = f"data.tiers.squad={{task: squad, file: {file}, n: {n}}}"
    return tiny_imprint("axes.tier=[squad]", tier, *overrides, model=model, stages=stages, gates=())


# ---- the plan


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("joint.slots=0", "override joint.slots=0: stages.joint.params.slots: must be greater than or equal to 1, "),
        ("baselines.slots=0", "stages.baselines.params.slots: must be greater than or equal to 1, found 0"),
        ("joint.slotz=4", "override joint.slotz=4: stages.joint.params.slotz: unknown key; allowed: together, slots, "),
        ("joint.slotz=4", "did you mean `slots`?"),
        ("joint.recipe.stepz=4", "stages.joint.params.recipe.stepz: unknown key; allowed: steps, "),
        ("data.tiers.facts.task=fact", "stages.data.params.tiers.facts"),
        ("data.tiers.facts.m=4", "unknown key"),
        ("data.tiers={}", "stages.data.params.tiers"),
        ("data.tiers.squad.file=gone.json", "no such file: "),
        ("data.tiers.facts.n=0", "must be greater than or equal to 1, found 0"),
        ("check.similarity={kind: taste}", "stages.check.params.similarity"),
        ("joint.abandon={below: 2}", "stages.joint.params.abandon.below: must be less than 1, found 2"),
        ("joint.recipe.weight_decay=0.1", "`weight_decay` goes with `optimizer: adamw`"),
        ("gates.joint.ladder=slots", "`ladder` names an axis of `each`, found `slots`"),
        ("gates.joint.each={tier: tiers}", "unknown axis `tiers`"),
        ("gates.leak.criteria.0.metric=fin", "stage joint (imprint.fit) yields no record with `fin`"),
    ],
)  # fmt: skip
def test_a_plan_that_cannot_be_is_refused(
    here: Path, capsys: pytest.CaptureFixture[str], override: str, message: str
) -> None:
    error = refused(capsys, ["run", "imprint", "--rung", "demo", "--out", "run", override], 3)
    assert message in error
    assert list(here.iterdir()) == [], "something was made before the plan was found sound"


# ---- the data


def test_a_data_file_that_is_not_there(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = squad_file(here / "pairs.jsonl", [("a", "who?", "me")])
    arguments = command(of_squad(path, 1, stages=("data",)))
    path.unlink()
    assert f"no such file: {path}" in refused(capsys, arguments, 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the file is empty"),
        (" \n", "the file is empty"),
        ("{", "not JSON: line 1, column 2"),
        ('{"id": "a", "question": "x", "context": "y", "answers": {"text": ["z"]}}\n{"id"', "not JSON: line 2"),
        ('{"id": "a"}\n', "another format: entry 1 has the fields id"),
        ("3", "another format: one int, not objects"),
        ('{"id": "a", "question": "x", "context": "y", "answers": {"text": []}}\n', "none of the 1 items has"),
        ('{"id": "a", "question": "x", "context": "y", "answers": {"text": [" "]}}\n', "none of the 1 items has"),
    ],
)  # fmt: skip
def test_a_bad_data_file_fails_the_data_stage(
    here: Path, capsys: pytest.CaptureFixture[str], content: str, message: str
) -> None:
    path = here / "pairs.jsonl"
    path.write_text(content)
    arguments = command(of_squad(path, 1, stages=("data",)))
    error = refused(capsys, arguments, 4)
    assert error.startswith("stepwell: stage data.squad: ") and message in error
    assert not (here / "run" / "jobs" / "data.squad.json").exists()
    squad_file(path, [("a", "who?", "me")])
    assert run(arguments) == 0


def test_fewer_pairs_than_asked_for(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = squad_file(here / "pairs.jsonl", [("a", "who?", "me"), ("b", "where?", "")])
    error = refused(capsys, command(of_squad(path, 2, stages=("data",))), 4)
    assert "2 items asked for, of 1" in error and "ask for 1 to 1 items" in error


def test_a_question_without_an_answer_is_left_out_and_counted(here: Path) -> None:
    path = squad_file(here / "pairs.jsonl", [("a", "who?", "me"), ("b", "where?", ""), ("c", "why?", "so")])
    run_plan(of_squad(path, 2, stages=("data",)), here / "run")
    (told,) = records(here / "run", "data.squad", "dataset")
    assert (told["n"], told["left_out"], told["source"]) == (2, 1, str(path))
    assert {record["id"] for record in records(here / "run", "data.squad", "example")} == {"a", "c"}


@pytest.mark.parametrize(
    ("overrides", "stage", "message", "way_out"),
    [
        (("axes.tier=[squat]",), "data.squat", "there is no tier `squat`; tiers: facts, squad, ", "`axes.tier`"),
        (("axes.model=[tinny]",), "model.tinny", "there is no model `tinny`; models: ", "`axes.model`"),
    ],
)
def test_a_name_that_the_plan_does_not_explain(
    here: Path, capsys: pytest.CaptureFixture[str], overrides: tuple[str, ...], stage: str, message: str, way_out: str
) -> None:
    error = refused(capsys, command(tiny_imprint(*overrides, stages=FIT, gates=())), 4)
    cause, _, found = error.partition("\n  Way out: ")
    assert f"stage {stage}: " in cause and message in cause and way_out in found
    # What does not depend on it was run and is kept.
    assert len(list((here / "run" / "jobs").glob("*.json"))) == 1


def test_no_slots_in_an_axis(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stages = ("data", "model", "baselines", "sweep")
    error = refused(capsys, command(tiny_imprint("axes.slots=[0, 1]", stages=stages, gates=())), 4)
    assert "stage sweep.arithmetic.tiny.0: " in error and "there are 0 slots" in error
    assert (here / "run" / "jobs" / "sweep.arithmetic.tiny.1.json").exists(), "the other size was fitted all the same"


def test_a_mode_that_is_no_token(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = model_folder(here / "model")
    plan = tiny_imprint("model.modes={question: Every, answer: zq}", model=f"{{name: {name}}}", stages=FIT, gates=())
    error = refused(capsys, command(plan), 4)
    assert "stage model.tiny: " in error and "is not one token of the model's " in error
    assert "give the id or the text of a single token, or a vector" in error


def test_a_model_that_is_nowhere_and_has_no_substitute(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = refused(capsys, command(tiny_imprint(model="{name: ./nowhere}", stages=FIT, gates=())), 4)
    assert "stage model.tiny: " in error and "there is no such model folder" in error
    assert started(here / "run") == ["data.arithmetic", "model.tiny"]


# ---- a pair


LONG = "x" * 70
SMALL = "{name: ./nowhere, otherwise: {architecture: gpt2, width: 32, max_positions: 72}}"
PAIRS = [("fine", "who?", "me"), ("long", "what?", LONG), ("odd", "a #?", "so"), ("also", "why?", "yes")]


def check_all_are_there(folder: Path) -> None:
    """Every pair in every denominator, in the order of the data."""
    ids = [record["id"] for record in records(folder, "data.squad", "example")]
    assert sorted(ids) == sorted(id for id, _, _ in PAIRS)
    for job in ("single", "joint"):
        name = f"{job}.squad.tiny"
        assert [r["id"] for r in records(folder, name, "pair")] == ids
        assert [(r["id"], r["mode"]) for r in records(folder, name, "target")] == [(i, m) for i in ids for m in MODES]
        assert len(records(folder, name, "restart")) == 16
    assert len(records(folder, "baselines.squad.tiny", "baseline")) == 8
    assert len(records(folder, "check.squad.tiny", "spot")) == 8
    assert len(records(folder, "measure.squad.tiny", "gain")) == 8


def test_a_pair_that_cannot_be_fitted_is_a_record(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ByteTokenizer, "unk_token_id", ord("#"))
    path = squad_file(here / "pairs.jsonl", PAIRS, context="y" * 60)
    plan = of_squad(path, 4, "controls.prompt='{question}'", "smallest.items=4", "smallest.highest=2", model=SMALL,
                    stages=(*FIT, "single", "check", "controls", "measure", "smallest"))  # fmt: skip
    assert set(run_plan(plan, here / "run").jobs.values()) == {"done"}
    check_all_are_there(here / "run")

    def of(job: str, kind: str, **fields: str) -> list[dict[str, object]]:
        rows = records(here / "run", f"{job}.squad.tiny", kind)
        return [row for row in rows if all(row[key] == value for key, value in fields.items())]

    why = {
        "long": "its target in mode `answer` needs 77 positions with its 6 slots, and the model knows 72",
        "odd": "the text 'a #?' has a character that the tokenizer does not know",
    }
    for id, cause in why.items():
        mode = "answer" if id == "long" else "question"
        (base,) = of("baselines", "baseline", id=id, mode=mode)
        assert base["why"] == cause and base["random"] is base["nothing"] is base["bar"] is None
        (pair,) = of("joint", "pair", id=id)
        assert (pair["end"], pair["detail"], pair["converged"], pair["exact"]) == ("impossible", cause, False, False)
        for target in of("joint", "target", id=id):
            assert (target["end"], target["detail"], target["nats"], target["converged"], target["exact"]) == (
                "impossible", cause, None, False, False,
            )  # fmt: skip
        # By itself, the other text can be held.
        ends = {str(row["mode"]): row["end"] for row in of("single", "target", id=id)}
        assert ends[mode] == "impossible" and ends[MODES[MODES[0] == mode]] in ("exact", "steps")
        assert [row["detail"] for row in of("single", "pair", id=id)] == [cause]
        for spot in of("check", "spot", id=id):
            assert (spot["written"], spot["verdict"], spot["passed"], spot["converged"]) == (None, "fail", False, False)
        assert {row["why"] for row in of("measure", "gain", id=id)} == {"the pair has no fitted vectors"}
        assert {(row["exact"], row["nats"]) for row in of("controls", "control", id=id)} == {(False, None)}
    assert {row["end"] for row in of("joint", "pair") if row["id"] in ("fine", "also")} <= {"exact", "steps"}
    searched = {str(row["id"]): row for row in of("smallest", "smallest")}
    assert searched["odd"]["slots"] is None and searched["odd"]["why"] == why["odd"]
    assert searched["long"]["slots"] is None and len(searched) == 4
    # A question is asked of nobody where c, the question and its answer have no room together.
    assert "long" not in {row["id"] for row in of("controls", "capability")}
    assert {row["id"] for row in of("controls", "capability")} >= {"fine", "also"}


def test_a_target_that_fits_without_the_baselines_vectors_only(here: Path) -> None:
    """The baselines have more slots than the fit: the long answer has no bar there, and yet is fitted."""
    path = squad_file(here / "pairs.jsonl", [("long", "what?", "x" * 66), ("fine", "who?", "me")])
    plan = of_squad(path, 2, "joint.slots=2", "joint.recipe.steps=2", model=SMALL)
    run_plan(plan, here / "run")
    bars = {(r["id"], r["mode"]): r["bar"] for r in records(here / "run", "baselines.squad.tiny", "baseline")}
    assert bars["long", "answer"] is None and bars["long", "question"] is not None
    (pair,) = [r for r in records(here / "run", "joint.squad.tiny", "pair") if r["id"] == "long"]
    assert (pair["end"], pair["converged"]) == ("steps", False), "fitted, and not known to converge"
    rows = [r for r in records(here / "run", "joint.squad.tiny", "restart") if r["id"] == "long"]
    assert all(r["nats"] is not None for r in rows)
    assert {(r["mode"], r["converged"] is None) for r in rows} == {("question", False), ("answer", True)}


def test_a_target_that_fills_the_context_is_decoded_to_its_end(here: Path) -> None:
    """K slots and the target take all positions; the end token is written, and needs none."""
    model = "{name: ./nowhere, otherwise: {width: 64, max_positions: 12}}"
    path = squad_file(here / "pairs.jsonl", [("full", "who?", "he+me")])
    recipe = "joint.recipe={steps: 150, restarts: 3, lr: 0.1, schedule: constant, init: table, until_exact: true}"
    plan = of_squad(path, 1, recipe, model=model, stages=(*FIT, "check"))
    run_plan(plan, here / "run")
    targets = records(here / "run", "joint.squad.tiny", "target")
    assert {(r["mode"], r["exact"]) for r in targets} == {("question", True), ("answer", True)}
    assert max(r["tokens"] for r in targets) + 6 == 12
    spots = records(here / "run", "check.squad.tiny", "spot")
    assert [(r["written"], r["stopped"], r["exact_decode"]) for r in spots] == [
        ("who?", True, True), ("he+me", True, True),
    ]  # fmt: skip


def test_a_mode_that_is_missing(here: Path) -> None:
    plan = tiny_imprint("model.modes={question: ' question'}", stages=(*FIT, "check"), gates=())
    run_plan(plan, here / "run")
    why = "its target in mode `answer` has no mode vector; modes: question"
    base = records(here / "run", "baselines.arithmetic.tiny", "baseline")
    assert {(r["mode"], r["why"]) for r in base if r["mode"] == "answer"} == {("answer", why)}
    assert {(r["end"], r["detail"]) for r in records(here / "run", "joint.arithmetic.tiny", "pair")} == {
        ("impossible", why)
    }
    assert len(records(here / "run", "joint.arithmetic.tiny", "pair")) == 4
    assert [r["passed"] for r in records(here / "run", "check.arithmetic.tiny", "spot")] == [False] * 8
    assert records(here / "run", "joint.arithmetic.tiny", "leak") == []  # nothing was fitted: nothing can be said


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "the file is empty"),
        ([{"id": "nobody", "questions": ["x"]}], "which is not in the set"),
        ([{"id": "arithmetic-9+7", "mode": "verse", "text": "x"}], "has the mode 'verse'"),
        ([{"id": "arithmetic-9+7", "questions": ["x"], "answers": ["y"]}], "has none for its question"),
    ],
)
def test_a_paraphrase_file_that_does_not_match(
    here: Path, capsys: pytest.CaptureFixture[str], lines: list[dict[str, object]], message: str
) -> None:
    path = here / "wordings.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    plan = tiny_imprint(f"paraphrase.source={{kind: file, path: {path}}}", stages=("data", "paraphrase"), gates=())
    stage = plan.stage("paraphrase").model_copy(update={"on": None})
    plan = Plan.model_validate(plan.model_copy(update={"stages": (plan.stages[0], stage)}).model_dump())
    error = refused(capsys, command(plan), 4)
    assert "stage paraphrase.arithmetic: " in error and str(path) in error and message in error


def test_controls_and_search_of_a_single_pair(here: Path) -> None:
    """No other pair: nothing is shuffled, and no other question is asked."""
    plan = tiny_imprint("data.tiers.arithmetic.n=1", stages=(*FIT, "controls", "smallest"), gates=())
    run_plan(plan, here / "run")
    controls = records(here / "run", "controls.arithmetic.tiny")
    assert {(r["kind"], r["control"]) for r in controls} == {("control", "own"), ("control", "random")}
    assert len(records(here / "run", "smallest.arithmetic.tiny")) == 1
