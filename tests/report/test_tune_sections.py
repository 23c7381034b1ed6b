"""The report of study `tune`: its numbers against hand counts and other implementations, and one drawn page."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from imprint_records import section, table
from scipy.stats import binomtest
from tune_records import (
    BASE,
    BENCHMARK,
    OURS,
    RIGHT,
    N,
    chart,
    graded,
    interval,
    item,
    line,
    plan,
    records,
    result,
    sha,
    tasks,
    training,
    versus,
    whole,
)

from stepwell.report import write_report
from stepwell.report.cells import DASH, MINUS, TIMES, TO, Cell
from stepwell.report.tune.merging import Place, place_of
from stepwell.report.view import view
from stepwell.studies.tune.kinds import KINDS

NewRun = Callable[..., Any]


def test_the_synthetic_records_have_no_field_that_the_study_does_not_write(new_run: NewRun) -> None:
    run = new_run()
    whole(run)
    known = {kind: fields for one in KINDS for kind, fields in one.yields.items()}
    for path in sorted((run.path / "records").glob("*.jsonl")):
        for record in map(json.loads, path.read_text().splitlines()):
            assert set(record) - {"kind", "seed"} <= known[record["kind"]], record["kind"]


def test_the_page_shows_this_study_and_draws_nothing_twice(new_run: NewRun) -> None:
    run = new_run()
    page = write_report(whole(run)).read_text(encoding="utf-8")
    for key in OURS:
        assert page.count(f'<section id="{key}">') == 1
    for key in ("accuracy", "answers", "convergence", "tokens"):
        assert f'<section id="{key}">' not in page
    found = view(run.path)
    keys = [one.key for part in found.sections for one in part.charts]
    assert len(keys) == len(set(keys))
    assert found.arms == ("before", "reference", "after", "after-b", "train", "train-b")


def test_accuracy_has_wilsons_interval_and_its_n(new_run: NewRun) -> None:
    run = new_run()
    whole(run)
    rows = table(section(run, "results"), "Accuracy, with 95% intervals over items").rows
    assert [row.cells[1].text for row in rows] == ["before", "reference", "after", "after-b"]
    for row in rows:
        right = len(RIGHT[row.cells[1].text])
        assert row.cells[2].text == f"{100 * right / N:.1f}" and row.cells[2].count == f"n {N}"
        assert row.cells[2].interval == interval(right, N)
    drawn = chart(run, "results", "accuracy-")
    assert drawn.series[2].label == "after" and drawn.series[2].x == pytest.approx((55.0,))


def test_one_protocol_is_said_and_a_differing_one_is_named(new_run: NewRun) -> None:
    run = new_run()
    whole(run)
    told = section(run, "results").lines
    assert f"All 3 results of ours on `{BENCHMARK}` have one protocol, `{sha('protocol')[:12]}`." in told
    other = new_run("other")
    plan(other)
    other.job("before", graded("before", BASE))
    items = [item(place, place in RIGHT["after"]) for place in range(N)]
    changed = [result(items, "merge.0", protocol=sha("changed"), scorer="final-number/2")]
    other.job("after.0", records("item", items) + records("result", changed))
    (told_other,) = [one for one in section(other, "results").lines if "differ" in one]
    assert "must not be compared" in told_other and sha("changed")[:12] in told_other and "`before`" in told_other


def test_a_reference_marked_by_another_scorer_is_named(new_run: NewRun) -> None:
    run = new_run()
    plan(run)
    run.job("before", graded("before", BASE))
    theirs = [{**one, "scorer": "by-eye/1"} if one["kind"] == "result" else one for one in graded("reference", "x")]
    run.job("reference", theirs)
    assert any("another scorer (final-number/1 and by-eye/1)" in one for one in section(run, "results").lines)


def test_what_was_cut_off_or_not_marked_is_counted_and_warned_of(new_run: NewRun) -> None:
    run = new_run()
    plan(run)
    items = [item(place, place < 4, stop="length" if place < 6 else "end") for place in range(16)]
    items += [item(20 + place, None, status="timeout") for place in range(4)]
    told = {"unmarked": 4, "warning": "4 of 20 answers could not be marked", "stops_warning": "6 of 20 were cut off"}
    run.job("before", records("item", items) + records("result", [result(items, BASE, **told)]))
    found = section(run, "results")
    row = line(table(found, "Accuracy, with 95% intervals over items"), 0)
    assert (row["right %"].text, row["right %"].count) == ("25.0", "n 16")
    assert row["not marked items"] == Cell(text="4", tone="alert")
    assert row["cut off % of answers"].interval == interval(6, 20) and row["cut off % of answers"].tone == "alert"
    assert {"`before` on `problems`: 4 of 20 answers could not be marked.",
            "`before` on `problems`: 6 of 20 were cut off."} <= set(found.lines)  # fmt: skip
    marks = line(table(found, "Marks and ends of all answers"), 0)
    assert [marks[name].text for name in ("right items", "wrong items", "timeout items")] == ["4", "12", "4"]
    assert (marks["ended: length answers"].text, marks["ended: end answers"].text) == ("6", "14")


def test_gains_are_paired_and_pooled_over_seeds(new_run: NewRun) -> None:
    run = new_run()
    whole(run, seeds=(0, 1, 2))
    rows = table(section(run, "results"), "Paired gains").rows
    assert [row.cells[0].interval for row in rows] == ["seed 0", "seed 1", "seed 2", "all 3 seeds"] * 2
    assert {row.cells[2].text for row in rows} == {"+30.0", "+7.5"}
    # McNemar's exact test is a fair coin over the pairs that differ.
    assert rows[0].cells[4].text == f"{binomtest(16, 20).pvalue:.2g}"
    assert rows[3].cells[3].interval == f"{TIMES} 3 seeds" and rows[3].cells[2].tone == "go"
    assert rows[0].cells[0].text == f"after {MINUS} before" and rows[7].cells[0].text == f"after-b {MINUS} after"


def test_several_answers_an_item_give_pass_at_k(new_run: NewRun) -> None:
    run = new_run()
    plan(run)
    items = [item(place, place < 2 and sample == 0, sample=sample) for place in range(10) for sample in range(3)]
    run.job("before", records("item", items))
    row = line(table(section(run, "results"), "One of k answers is right"), 0)
    assert (row["k"].text, row["pass@k %"].text, row["pass@k %"].count) == ("3", "20.0", "n 10")
    accuracy = line(table(section(run, "results"), "Accuracy, with 95% intervals over items"), 0)["right %"]
    assert (accuracy.text, accuracy.count) == ("20.0", "n 10, unfinished")


def test_outcomes_deciders_bands_and_the_judge(new_run: NewRun) -> None:
    run = new_run()
    whole(run)
    found = section(run, "versus")
    row = line(table(found, "Outcomes, with 95% intervals over items"), 0)
    for outcome, count in (("win", 16), ("tie", 20), ("loss", 4), ("undecided", 0)):
        assert row[f"{outcome} %"].interval == interval(count, N) and row[f"{outcome} %"].count == f"{count} items"
    why = line(table(found, "Who decided"), 0)
    assert why["decided by"].text == "ground truth" and "both wrong (14); both right (6)" in why["why"].text
    tie, win = (line(table(found, "Success bands"), place) for place in (0, 1))
    assert (tie["verdict"].text, tie["would decide items"].text, tie["red flag"].tone) == (
        "inconclusive",
        "93",
        "alert",
    )
    assert (win["band %"].text, win["verdict"].text, win["would decide items"].text) == (f"4{TO}8", "above", DASH)
    judge = line(table(found, "How far the judge can be believed"), 0)
    assert (judge["flips %"].text, judge["flips %"].interval, judge["flips %"].count) == (
        "33.3", interval(3, 9), "n 9",
    )  # fmt: skip
    drawn = chart(run, "versus", "versus-").series
    assert [(one.label, one.arm) for one in drawn] == [
        ("win", "after"), ("win", ""), ("tie", "after"), ("tie", ""), ("loss", "after"),
    ]  # fmt: skip


def test_answers_of_an_old_checkpoint_are_a_red_flag(new_run: NewRun) -> None:
    run = new_run()
    plan(run)
    versus(run, ".0")
    check = {"name": "differs-x", "passed": False, "detail": "all 40 answers are word for word those of smollm2"}
    run.lines("records/versus.0.jsonl", records("check", [check]))
    assert "Red flag: all 40 answers are word for word those of smollm2." in section(run, "versus").lines


def test_findings_have_their_example_and_clean_data_has_none(new_run: NewRun) -> None:
    run = new_run()
    plan(run)
    finding = {"code": "bos-twice", "meaning": "twice in a row", "count": 3, "of": 192, "example": "x: '<s><s>'",
               "allowed": False}  # fmt: skip
    check = {"name": "lint", "passed": False, "detail": "bos-twice (3 of 192)"}
    run.job("lint", records("finding", [finding]) + records("check", [check]))
    found = section(run, "lint")
    row = line(found.tables[0], 0)
    assert (row["conversations"].text, row["of"].text, row["state"].tone) == ("3", "192", "no-go")
    assert row["example"].text == "x: '<s><s>'" and "lint not passed: bos-twice (3 of 192)." in found.lines
    second = {"n": 24, "replayed": 12, "sha256": "0"}
    run.job("lint-b.0", records("linted", [second], seed=0) + records("finding", [{**finding, "of": 24}], seed=0))
    found = section(run, "lint")
    assert [line(found.tables[0], place)["linter"].text for place in (0, 1)] == ["lint", "lint-b"]
    assert "lint-b: 24 conversations, 12 of them replayed beside failures." in found.lines
    clean = new_run("clean")
    plan(clean)
    clean.job("lint", records("check", [{**check, "passed": True}]))
    found = section(clean, "lint")
    assert found.lines[0].endswith("None was found.") and not found.tables and len(found.lines) == 1


def test_training_shows_both_phases_flags_and_cost(new_run: NewRun) -> None:
    run = new_run()
    plan(run, hourly_price=3.6, currency="EUR")
    training(run, "train", 0, ".0", alert=True)
    training(run, "train-b", 0, ".0")
    run.event("red-flag", job="train.0", monitor="spike", step=12, message="loss 1.9 after a median of 0.9")  # resumed
    found = section(run, "training")
    assert [one.key for one in found.charts] == [
        f"{what}-{stage}" for what in ("loss", "held-out", "lr", "grad_norm") for stage in ("train", "train-b")
    ]
    assert set(chart(run, "training", "loss-train").series[0].marks) == {(12.0, "spike"), (40.0, "flat-loss")}
    assert max(y for y in chart(run, "training", "lr-train").series[0].y if y) == pytest.approx(9.333, abs=1e-3)
    row = line(table(found, "How it went"), 0)
    assert (row["steps of planned"].text, row["time s"].text, row["price"].text) == ("60 of 60", "36", "0.04 EUR")
    assert (row["rate tokens/s"].text, row["rate tokens/s"].count) == ("415", "n 2")
    assert (row["held-out tokens right last, %"].text, row["held out last, nats"].text) == ("90", "0.286")
    flags = [[cell.text for cell in row.cells[1:3]] for row in table(found, "Red flags").rows]
    assert flags == [["1", "oom"], ["12", "spike"]]
    sets = line(table(found, "What was trained on"), 1)
    assert (sets["conversations"].text, sets["replayed of them"].text) == ("24", "12")


def test_a_training_on_tasks_shows_what_adapting_gains(new_run: NewRun) -> None:
    run = new_run()
    plan(run)
    training(run, "train", 0, ".0")
    tasks(run, "train.0")
    drawn = chart(run, "training", "meta-")
    assert [one.y for one in drawn.series] == [
        pytest.approx([first / step for step in (2, 4, 6)]) for first in (2, 1.5, 1.8)
    ]
    row = line(table(section(run, "training"), "Tasks, by category"), 1)
    assert (row["category"].text, row["tasks"].text) == ("subtract", "10")


def test_what_was_said_before_a_rerun_is_void(new_run: NewRun) -> None:
    run = new_run()
    plan(run)
    training(run, "train", 0, ".0")
    run.event("job-rerun", job="train.0", reason="its records were changed")
    run.event("throughput", job="train.0", step=10, tokens_per_second=7.0)
    found = section(run, "training")
    assert [one.title for one in found.tables] == ["What was trained on", "How it went"]
    assert line(found.tables[1], 0)["rate tokens/s"].text == "7"


@pytest.mark.parametrize(
    ("name", "layer", "matrix"),
    [
        ("model.layers.12.self_attn.q_proj.weight", 12, "self_attn.q_proj"),
        ("transformer.h.3.attn.c_attn.bias", 3, "attn.c_attn.bias"),
        ("model.layers.0.mlp.experts.7.down_proj.weight", 0, "mlp.experts.*.down_proj"),
        ("lm_head.weight", None, "lm_head"),
        ("weight", None, "weight"),
        ("", None, "unnamed"),
        ("layers.4", None, "layers.4"),
    ],
)
def test_places_of_tensors(name: str, layer: int | None, matrix: str) -> None:
    assert place_of(name) == Place(layer=layer, matrix=matrix)
