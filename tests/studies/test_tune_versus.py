"""Win, tie or loss: a judge asked in both orders where ground truth is silent, and bands that shares are held to."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tiny import records
from tiny_wire import wire_model
from tune_answers import asked_at, data_stage, maths_file, open_file, plan_of, recorded, shown, stage

from fake_endpoint import own_environment, serving
from stepwell.errors import StageFailed, StepwellError
from stepwell.gate import decide
from stepwell.plan import Plan, checked, jobs, load_plan
from stepwell.runner import run
from stepwell.runner.schedule import Schedule
from stepwell.stage import StageContext
from stepwell.studies.tune import data

__all__ = ["own_environment"]


# ---- a judge


OURS = {f"o{i}": "good words" for i in range(6)}
THEIRS = {f"o{i}": "bad" if i else "very bad, and longer" for i in range(6)}
OUTCOMES = {"o0": "win", "o1": "loss", "o2": "tie", "o3": "tie", "o4": "undecided", "o5": "undecided"}


def verdict(request: Any) -> str:
    """Of o0 ours is better, of o1 theirs; o2 turns with the order; o3 is a tie; o4 and half of o5 cannot be read."""
    asked, first, _ = shown(request)
    ours_first = first == "good words"
    said = {
        "0": "[[A]]" if ours_first else "[[B]]", "1": "[[B]]" if ours_first else "[[A]]", "2": "[[A]]", "3": "[[C]]",
        "4": "Hard to say.", "5": "[[A]]" if ours_first else "Both are fine.",
    }  # fmt: skip
    return f"Words. {said[asked.removeprefix('Request ')[0]]}"


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """A run with a judge on an open-ended benchmark beside one with ground truth, and what the judge was asked."""
    here = tmp_path_factory.mktemp("judged")
    benchmarks = {
        "talk": {"kind": "open", "file": str(open_file(here / "o.jsonl", 6))},
        "maths": {"kind": "gsm8k", "file": str(maths_file(here / "m.jsonl", 3))},
    }
    ours, theirs = OURS | {"m0": "0", "m1": "8", "m2": "8"}, THEIRS | {"m0": "8", "m1": "1", "m2": "9"}
    with serving(verdict) as server:
        plan = plan_of(
            data_stage(here, benchmarks),
            stage("ours", "reference", ["data"], source=recorded(here / "ours.jsonl", ours, "we")),
            stage("theirs", "reference", ["data"], source=recorded(here / "theirs.jsonl", theirs, "they")),
            stage("versus", "versus", ["data", "ours", "theirs"], ours="ours", theirs="theirs",
                  judge=asked_at(server.port)),
            stage("silent", "versus", ["data", "ours", "theirs"], ours="ours", theirs="theirs"),
        )  # fmt: skip
        run(plan, here / "run")
        return here / "run", list(server.asked)


def test_both_orders_are_asked_and_flips_are_ties(judged: tuple[Path, list[Any]]) -> None:
    folder, asked = judged
    rows = {row["id"]: row for row in records(folder, "versus", "match") if row["benchmark"] == "talk"}
    assert {name: row["outcome"] for name, row in rows.items()} == OUTCOMES
    assert {name: row["by"] for name, row in rows.items()} == {
        name: "none" if outcome == "undecided" else "judge" for name, outcome in OUTCOMES.items()
    }
    assert rows["o2"]["why"] == "the verdict changes with the order" and rows["o0"]["gained"] == 1
    assert "no usable answer in 2 tries" in rows["o4"]["why"] and rows["o4"]["gained"] is None
    orders = Counter(tuple(shown(one)[1:]) for one in asked if "Request 0" in one["messages"][1]["content"])
    assert orders == {("good words", THEIRS["o0"]): 1, (THEIRS["o0"], "good words"): 1}
    # Two orders of six pairs, and once again for each of the three that could not be read.
    assert len(asked) == 12 + 3


def test_how_far_the_judge_is_to_be_believed_is_recorded(judged: tuple[Path, list[Any]]) -> None:
    (told,) = records(judged[0], "versus", "judge")
    assert (told["benchmark"], told["model"], told["pairs"], told["unparsed"]) == ("talk", "m", 6, 2)
    assert told["flips"] == 1 / 4 and told["flips_low"] < 1 / 4 < told["flips_high"]
    # Single verdicts other than ties, of the pairs that could be read: o0 A B, o1 B A, o2 A A.
    assert told["took_first"] == 4 / 6
    # o0: ours is the shorter and won; o1: ours is the longer and lost.
    assert told["took_longer"] == 0 and (told["length_wins"], told["length_losses"]) == (5, 1)
    (seen,) = [row for row in records(judged[0], "versus", "versus") if row["benchmark"] == "talk"]
    assert (seen["n"], seen["win"], seen["tie"], seen["loss"], seen["undecided"]) == (6, 1, 2, 1, 2)
    assert seen["undecided_share"] == 2 / 6 and (seen["ours"], seen["theirs"]) == ("we", "they")


def test_a_judge_is_not_asked_where_ground_truth_decides(judged: tuple[Path, list[Any]]) -> None:
    folder, asked = judged
    assert not any("nuts" in json.dumps(one) for one in asked)
    for job in ("versus", "silent"):
        rows = {row["id"]: row for row in records(folder, job, "match") if row["benchmark"] == "maths"}
        assert {name: (row["outcome"], row["by"]) for name, row in rows.items()} == {
            "m0": ("win", "truth"), "m1": ("loss", "truth"), "m2": ("tie", "truth"),
        }  # fmt: skip


def test_without_a_judge_what_has_no_ground_truth_is_undecided(judged: tuple[Path, list[Any]]) -> None:
    rows = [row for row in records(judged[0], "silent", "match") if row["benchmark"] == "talk"]
    assert {(row["outcome"], row["by"], row["why"]) for row in rows} == {
        ("undecided", "none", "ours: silent, theirs: silent")
    }
    assert records(judged[0], "silent", "judge") == []


def two_sets(here: Path, ours: Path, theirs: Path, port: int) -> Plan:
    """Each side on data of its own, and a judge."""

    def one(name: str, file: Path) -> list[dict[str, Any]]:
        data = data_stage(here, {"talk": {"kind": "open", "file": str(file)}}) | {"name": f"data-{name}"}
        answers = recorded(here / f"{name}.jsonl", {"o0": "a", "o1": name}, name)
        return [data, stage(name, "reference", [f"data-{name}"], source=answers)]

    compared = stage("versus", "versus", ["data-ours", "ours", "theirs"], ours="ours", theirs="theirs",
                     judge=asked_at(port))  # fmt: skip
    return plan_of(*one("ours", ours), *one("theirs", theirs), compared)


def test_a_judge_is_not_paid_for_what_cannot_be_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: between the two data stages the file is changed, which no plan can tell."""
    file, make = open_file(tmp_path / "o.jsonl", 2), data.make

    def changing(params: Any, ctx: StageContext) -> None:
        make(params, ctx)
        file.write_text(file.read_text().replace("greet me", "greet us"))

    monkeypatch.setattr(data, "make", changing)
    with serving("[[A]]".format) as server:
        with pytest.raises(StageFailed, match="the two results are of different protocols \\(items: "):
            run(two_sets(tmp_path, file, file, server.port), tmp_path / "run")
        assert server.asked == []


def test_other_items_are_refused_with_the_plan(tmp_path: Path) -> None:
    here, there = (open_file(tmp_path / f"{name}.jsonl", 2) for name in ("here", "there"))
    checked(two_sets(tmp_path, here, here, 1))
    with pytest.raises(StepwellError) as error:
        run(two_sets(tmp_path, here, there, 1), tmp_path / "run")
    told = "stages.versus.params.theirs: `ours` and `theirs` cannot be compared: items of talk: the stages' data are of"
    assert told in error.value.cause and not (tmp_path / "run").exists()


# ---- two checkpoints of ours, and a reference


def test_checkpoints_of_ours_are_compared_under_one_protocol_only(tmp_path: Path) -> None:
    """The same model, allowed to write more: what it gains by that is no gain of a training."""
    theirs = recorded(tmp_path / "theirs.jsonl", {"m0": "0", "m1": "1"}, "they")
    graded = {name: {"max_tokens": most} for name, most in {"before": 4, "after": 4, "longer": 6}.items()}
    maths = {"maths": {"kind": "gsm8k", "file": str(maths_file(tmp_path / "m.jsonl", 2))}}
    stages = (
        data_stage(tmp_path, maths),
        stage("model", "model", name=str(wire_model(tmp_path / "tiny"))),
        *(stage(name, "grade", ["data", "model"], decoding=decoding) for name, decoding in graded.items()),
        stage("theirs", "reference", ["data"], source=theirs),
        stage("clean", "versus", ["data", "before", "after"]),
        stage("reference", "versus", ["data", "longer", "theirs"], ours="longer", theirs="theirs"),
    )
    planted = stage("planted", "versus", ["data", "before", "longer"], ours="longer")
    with pytest.raises(StepwellError) as error:
        run(plan_of(*stages, planted), tmp_path / "run")
    told = "planted.params.theirs: `longer` and `before` cannot be compared: decoding: max_tokens 6 and 4; grade both"
    assert told in error.value.cause and not (tmp_path / "run").exists(), "found before anything runs"
    run(plan_of(*stages), tmp_path / "run")
    (gain,) = records(tmp_path / "run", "clean", "gain")
    assert (gain["n"], gain["difference"]) == (2, 0)
    assert len(records(tmp_path / "run", "reference", "match")) == 2
    assert records(tmp_path / "run", "reference", "gain") == [], "a reference is no earlier checkpoint of ours"


# ---- bands


def bands_of(here: Path, *, wins: int, ties: int, n: int, bands: bool = True) -> Path:
    """A comparison with so many wins and ties of n, the rest lost."""
    ours = {f"m{i}": str(i if i < wins + ties // 2 else -1) for i in range(n)}
    theirs = {f"m{i}": str(i if wins <= i < wins + ties // 2 or i >= wins + ties else -1) for i in range(n)}
    benchmarks = {
        "maths": {"kind": "gsm8k", "file": str(maths_file(here / "m.jsonl", n))},
        "talk": {"kind": "open", "file": str(open_file(here / "o.jsonl", 1))},
    }
    plan = plan_of(
        data_stage(here, benchmarks),
        stage("ours", "reference", ["data"], source=recorded(here / "ours.jsonl", ours | {"o0": "a"}, "we")),
        stage("theirs", "reference", ["data"], source=recorded(here / "theirs.jsonl", theirs | {"o0": "b"}, "they")),
        stage("versus", "versus", ["data", "ours", "theirs"], ours="ours", theirs="theirs", bands=bands),
    )
    run(plan, here / "run")
    (told,) = [row for row in records(here / "run", "versus", "versus") if row["benchmark"] == "maths"]
    assert (told["win"], told["tie"], told["loss"]) == (wins, ties, n - wins - ties)
    return here / "run"


def test_a_ruined_model_is_below_its_band(tmp_path: Path) -> None:
    rows = {row["outcome"]: row for row in records(bands_of(tmp_path, wins=3, ties=18, n=60), "versus", "band")}
    assert rows.keys() == {"tie", "win"} and {row["benchmark"] for row in rows.values()} == {"maths"}
    tie = rows["tie"]
    assert (tie["share"], tie["n"], tie["low"], tie["high"], tie["verdict"]) == (0.3, 60, 0.6, 0.8, "below")
    assert tie["red_flag"] == "tie 30% of 60, below 50% (the whole interval lies below it); a ruined merge had 28%"
    win = rows["win"]
    assert (win["share"], win["verdict"], win["red_flag"]) == (0.05, "inconclusive", "") and win["needed"] > 60


def test_a_sound_model_is_inside_without_alarm(tmp_path: Path) -> None:
    rows = {row["outcome"]: row for row in records(bands_of(tmp_path, wins=30, ties=350, n=500), "versus", "band")}
    assert (rows["tie"]["verdict"], rows["tie"]["red_flag"], rows["tie"]["needed"]) == ("inside", "", None)
    # Wilson (1927), by hand: the interval of 350 of 500.
    z, n, p = 1.959963984540054, 500, 0.7
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    assert math.isclose(rows["tie"]["share_low"], middle - half) and math.isclose(
        rows["tie"]["share_high"], middle + half
    )


# ---- the gates of the shipped plan


def outcomes(category: str, n: int, *, wins: float, ties: float, seed: int = 0) -> list[dict[str, Any]]:
    won, tied = round(wins * n), round(ties * n)
    told = ["win"] * won + ["tie"] * tied + ["loss"] * (n - won - tied)
    return [{"kind": "match", "category": category, "id": f"{category}{place}", "seed": seed}
            | {name: name == one for name in ("win", "tie", "loss")} for place, one in enumerate(told)]  # fmt: skip


def decisions(maths: tuple[int, float, float], code: tuple[int, float, float], *, same: bool = False) -> dict[str, str]:
    """Of the gates of the rung `hero` that look at the reference, by (n, wins, ties)."""
    against = [row for category, (n, wins, ties) in {"maths": maths, "code": code}.items()
               for row in outcomes(category, n, wins=wins, ties=ties)]  # fmt: skip
    seen = {"against": against, "versus": [{"kind": "check", "name": "differs-mbpp", "passed": not same}]}
    gates = {gate.name: gate for gate in load_plan("tune", rung="hero").gates}
    return {name: decide(gates[name], seen).decision for name in ("red-flags", "band-maths", "band-code")}


GOOD = {"maths": (1319, 0.06, 0.7), "code": (664, 0.48, 0.22)}
GO = {"red-flags": "go", "band-maths": "go", "band-code": "go"}


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({}, {}),
        ({"maths": (1319, 0.04, 0.28)}, {"red-flags": "no-go", "band-maths": "no-go"}),
        ({"code": (664, 0.12, 0.0)}, {"red-flags": "no-go", "band-code": "no-go"}),
        ({"same": True}, {"red-flags": "no-go"}),
        ({"maths": (50, 0.06, 0.7), "code": (50, 0.48, 0.24)},
         {"band-maths": "inconclusive", "band-code": "inconclusive"}),
    ],
    ids=["of the original", "ruined maths", "ruined code", "the old checkpoint", "50 items"],
)  # fmt: skip
def test_the_bands_of_the_original_are_gates_of_hero(changed: dict[str, Any], told: dict[str, str]) -> None:
    """With as many items as the rung has; 50 of each, as the original had, tell a ruin and nothing of the bands."""
    assert decisions(**(GOOD | changed)) == GO | told


def test_hero_compares_with_a_reference_and_other_rungs_do_not() -> None:
    hero, demo = (load_plan("tune", rung=rung) for rung in ("hero", "demo"))
    graded = hero.stage("data").params["benchmarks"]
    assert {one["kind"] for one in graded.values()} == {"gsm8k", "humaneval", "mbpp", "squad"}
    assert hero.stage("reference").on is hero.stage("against").on is None and hero.stage("against").params["bands"]
    assert {one.stage for one in hero.gate("red-flags").before} == {"mine", "train-b"}
    assert "reference" in {one.stage for one in hero.gate("proved").before}, "nobody is paid before the merge is proved"
    whole = jobs(demo)
    schedule = Schedule(demo, whole)
    schedule.settle()
    assert {name for name, state in schedule.state.items() if state == "skipped"} == {"reference", "against.0"}
    for job in whole:
        if schedule.state[job.id] == "waiting":
            schedule.state[job.id] = "done"
    assert not {"red-flags", "band-maths", "band-code"} & {gate.name for gate in schedule.to_decide()}


def test_bands_are_told_only_where_asked_for(tmp_path: Path) -> None:
    assert records(bands_of(tmp_path, wins=0, ties=2, n=4, bands=False), "versus", "band") == []
