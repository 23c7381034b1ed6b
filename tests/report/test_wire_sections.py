"""The report of study `wire`: its numbers against hand counts, what is missing or torn, and one drawn page."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from imprint_records import EVIL, section, student, table
from wire_records import (
    BYTES,
    F1,
    TEST,
    TEXT_BYTES,
    answered,
    at,
    data,
    item,
    job,
    plan,
    step,
    trained,
    training,
    whole,
)

from stepwell.report import write_report
from stepwell.report.answered.reading import lines_of
from stepwell.report.cells import DASH, Cell, Chart, Table
from stepwell.report.folder import read_folder
from stepwell.report.view import view
from stepwell.report.wire import wire_sections
from stepwell.report.wire.tokens import first_word

NewRun = Callable[..., Any]
OURS = ("contract", "answers", "bytes", "training", "losses", "tokens", "forecast", "browser")


def chart(run: Any, key: str, start: str) -> Chart:
    return next(one for one in section(run, key).charts if one.key.startswith(start))


def line(found: Table, place: int) -> dict[str, Cell]:
    return dict(zip([column.name for column in found.columns], found.rows[place].cells, strict=True))


def test_the_page_shows_this_study_and_draws_nothing_twice(new_run: NewRun) -> None:
    run = new_run()
    page = write_report(whole(run)).read_text(encoding="utf-8")
    for key in OURS:
        assert page.count(f'<section id="{key}">') == 1
    for key in ("reconstruction", "accuracy", "convergence"):
        assert f'<section id="{key}">' not in page
    keys = [one.key for found in view(run.path).sections for one in found.charts]
    assert len(keys) == len(set(keys))


def test_arms_are_not_pooled_and_say_whose_they_are(new_run: NewRun) -> None:
    run = new_run()
    whole(run)
    names = [one.name for one in lines_of(read_folder(run.path))]
    assert "bytes: latent (answer)" in names and "lm: zeros (answer-sweep)" in names and len(names) == len(set(names))
    shown = [one.label for one in chart(run, "answers", "f1").series]
    assert "bytes: latent (answer), vectors 16" in shown and not any("bit" in name or "zeros" in name for name in shown)


def test_one_encoder_that_serves_several_m_has_a_line_for_each(new_run: NewRun) -> None:
    run = new_run()
    plan(run)
    records = [item(i, "latent", float(m > 4), 9, arm="lm", seed=0, vectors=m) for m in (4, 16) for i in range(5)]
    run.job("answer.lm.0", records, seconds=1)
    found = {one.label: one.records for one in lines_of(read_folder(run.path))}
    assert found.keys() == {"lm: latent, vectors 4", "lm: latent, vectors 16"}
    assert all(len(records) == 5 for records in found.values())


def test_f1_stands_against_bytes_for_the_arm_and_every_control(new_run: NewRun) -> None:
    run = new_run()
    whole(run)
    drawn = chart(run, "bytes", "bytes-answer-bytes")
    places = {one.label: (one.x[0], one.y[0]) for one in drawn.series}
    assert places == {
        **{name: (BYTES[name], pytest.approx(100 * F1[name])) for name in F1},
        "text, ceiling": (TEXT_BYTES["text"], 80), "tokens-16": (70, 20),
        "bytes-600": (600, 30),
    }  # fmt: skip
    assert drawn.form == "points" and all(one.low[0] is not None for one in drawn.series)


def test_each_control_is_subtracted_item_by_item(new_run: NewRun) -> None:
    run = new_run()
    whole(run)
    found = line(table(section(run, "bytes"), "Against the four controls, with 95% intervals over items"), 0)
    for name, f1 in {"minus text cut to M": 0.2, "minus zeros": 0.05, "minus other": 0.1, "minus mean": 0.05}.items():
        apart = round((0.5 - f1) * TEST)
        assert float(found[name].text) == pytest.approx(100 * apart / TEST) and found[name].tone == "go"
        low = float(found[name].interval.split(" to ")[0])
        assert low == pytest.approx(100 * student([1.0] * apart + [0.0] * (TEST - apart))[1], abs=4)
    assert found["surely above"].text == "4 of 4"
    same = line(table(section(run, "bytes"), "Against the text of as many bytes"), 1)
    assert (same["sent as"].text, same["text"].text, same["bytes"].text) == ("latent-8bit", "text", "4,128")
    assert same["difference"].tone == "no-go" and float(same["difference"].text.replace("\u2212", "-")) == -35


def test_the_largest_text_that_fits_is_what_bytes_are_compared_with(new_run: NewRun) -> None:
    run = new_run()
    plan(run)
    data(run)
    run.job(job("answer"), answered({"latent": 0.5}, {"latent": 700}, **at()), seconds=1)
    run.job(job("answer", seed=1), answered({"latent-4bit": 0.5}, {"latent-4bit": 60}, **at(seed=1)), seconds=1)
    rows = table(section(run, "bytes"), "Against the text of as many bytes").rows
    assert [row.cells[4].text for row in rows] == ["bytes-600", DASH], "600 fits in 700, and nothing in 60"
    controls = line(table(section(run, "bytes"), "Against the four controls, with 95% intervals over items"), 0)
    assert controls["minus zeros"].text == DASH and controls["surely above"].text == "1 of 4"


def test_the_timeline_puts_b_behind_a_and_marks_peaks_and_alerts(new_run: NewRun) -> None:
    run = new_run()
    plan(run)
    data(run)
    training(run, "stage-a")
    training(run, "stage-b", peak=0.3, f1=0.2)
    training(run, "sampling")
    drawn = chart(run, "training", "first_acc")
    assert drawn.rules == ((0.0, "A"), (100.0, "B"), (260.0, "sampling"))
    a, b, sampling, level = drawn.series
    assert (a.x[-1], b.x[0], b.x[-1], sampling.x[0]) == (100, 116, 260, 292)
    assert level.y == (6.0, 6.0) and level.arm == ""
    peak = max(zip(b.x, b.y, strict=True), key=lambda pair: pair[1] or 0)
    assert (peak[0], f"peak {peak[1]:.1f}") in b.marks and (180.0, "alert first-f1") in b.marks
    assert chart(run, "training", "loss").log and not chart(run, "training", "grad_norm").log


def test_peaks_final_values_and_breakthroughs_are_those_of_the_analysis(new_run: NewRun) -> None:
    run = new_run()
    plan(run)
    looks = {16: 0.05, 48: 0.4, 80: 0.5, 160: 0.1}
    run.job(job("stage-b"), trained("stage-b", looks, {80: 0.0, 160: 0.25}, axes=at(), ended=False), seconds=1)
    told = section(run, "training")
    first = line(table(told, "First token: peak and end"), 0)
    assert first["steps"].interval == "unfinished" and first["training"].text == "stage-b, seed 0"
    assert (first["peak"].text, first["peak"].count) == ("50.0", "step 80")
    assert (first["final"].text, first["final"].count) == ("10.0", "20% of the peak")
    answers = line(table(told, "F1 of held-out answers, and health"), 0)
    assert (answers["first F1 > 0"].text, answers["gradient"].text) == ("160", "2.06")
    rows = [[cell.text for cell in row.cells[1:]] for row in table(told, "Breakthroughs and regressions").rows]
    assert rows == [
        ["48", "breakthrough, first token", "6.0", "40.0"],
        ["160", "regression, first token, to the end", "50.0", "10.0"],
    ]


def test_loss_shares_add_up_and_change_where_the_terms_do(new_run: NewRun) -> None:
    run = new_run()
    whole(run)
    heat = chart(run, "losses", "shares-stage-b-bytes").heat
    assert heat is not None and heat.y == ("answer from text", "teacher's words", "whole answer", "first token")
    for column in zip(*heat.values, strict=True):
        assert sum(v for v in column if v is not None) == pytest.approx(1)
    assert [row[0] for row in heat.values] == pytest.approx([0, 0.1, 0.3, 0.6])
    assert [row[-1] for row in heat.values] == pytest.approx([5 / 15, 1 / 15, 3 / 15, 6 / 15])


def test_histograms_show_what_is_said_beside_gold(new_run: NewRun) -> None:
    run = new_run()
    whole(run)
    heat = chart(run, "tokens", "first-stage-b-bytes").heat
    assert heat is not None and heat.x == ("gold", "40", "80", "120", "160")
    the = dict(zip(heat.y, heat.values, strict=True))["\u2423the *"]
    assert the == pytest.approx((0.06, (190 - 8) / 200, (190 - 16) / 200, (190 - 24) / 200, (190 - 32) / 200))
    words = chart(run, "tokens", "words-answer-bytes").heat
    assert words is not None and words.x == ("gold", "text", "latent")
    assert dict(zip(words.y, words.values, strict=True))["the"] == pytest.approx((0.25, 0.2 + 0.2, 0.5 + 0.125))


@pytest.mark.parametrize(
    ("text", "word"), [("The end", "the"), (" “Ada,” ", "“ada,”"), ("...", ""), ("", ""), ("'1584'.", "1584")]
)
def test_first_words(text: str, word: str) -> None:
    assert first_word(text) == word


def test_gold_tokens_that_were_not_recorded_are_a_dash_and_not_zero(new_run: NewRun) -> None:
    run = new_run()
    plan(run)
    records = [r for r in trained("stage-b", {16: 0.1}, {80: 0.0}, axes=at())]
    records = [{k: v for k, v in r.items() if not k.startswith("gold")} for r in records]
    run.job(job("stage-b"), records, seconds=1)
    drawn = chart(run, "tokens", "first-stage-b")
    assert drawn.heat is not None and {row[0] for row in drawn.heat.values} == {None}
    assert drawn.table is not None and drawn.table.rows[0].cells[1].text == DASH


def test_the_forecast_is_made_or_refused_with_its_reason(new_run: NewRun) -> None:
    run = new_run()
    plan(run, seeds=(0, 1, 2), steps=960)
    data(run)
    f1 = {"stage-b": 0.2, "sampling": 0.3, "sweep": 0.35}
    for place, (stage, value) in enumerate(f1.items()):
        for seed in (0, 1, 2):
            training(run, stage, seed=seed, peak=0.2 + 0.05 * place)
            answering = "answer" if stage == "stage-b" else f"answer-{stage}"
            run.job(job(answering, seed=seed), answered({"latent": value + seed / 40}, BYTES, **at(seed=seed)))
    rows = section(run, "forecast").tables[0].rows
    assert [cell.text for cell in rows[0].cells[:5]] == ["bytes", "F1", "9", "2,560, 7,680, 10,240", "15,360"]
    assert rows[0].cells[5].text != "cannot be forecast" and " to " in rows[0].cells[5].interval
    other = new_run("other")
    plan(other)
    training(other, "stage-b")
    (row,) = section(other, "forecast").tables[0].rows
    assert row.cells[5].text == "cannot be forecast" and "3 lengths of training are needed" in row.cells[5].why


def test_alerts_say_of_which_stage_they_are(new_run: NewRun) -> None:
    run = new_run()
    whole(run)
    found = section(run, "alerts").tables[0]
    assert [column.name for column in found.columns] == [
        "stage",
        "arm",
        "vectors",
        "seed",
        "monitor",
        "step",
        "message",
    ]
    assert {row.cells[0].text for row in found.rows} == {"stage-b", "sweep"}


def test_a_run_without_a_record_says_so_of_each_section(new_run: NewRun) -> None:
    run = new_run()
    plan(run)
    found = [one for one in view(run.path).sections if one.key in OURS]
    assert len(found) == len(OURS) and all(one.missing and not one.tables and not one.charts for one in found)
    write_report(run.path)


def test_where_the_plan_is_lost_the_records_say_whose_run_it_is(new_run: NewRun) -> None:
    run = new_run()
    whole(run)
    (run.path / "plan.yaml").unlink()
    shown = [one.key for one in view(run.path).sections]
    assert {"bytes", "training", "losses"} <= set(shown) and "accuracy" not in shown
    assert chart(run, "training", "first_acc").rules == ((0.0, "A"), (100.0, "B / sweep"))


@pytest.mark.parametrize("value", [None, "x", True, -3, 1e300, float("nan"), [1], {"a": 1}, EVIL])
def test_no_field_of_any_record_can_break_the_page(new_run: NewRun, value: Any) -> None:
    """Every field of every kind of record in turn missing, and holding what it must not."""
    run = new_run()
    plan(run)
    jobs = {
        "text": [item(i, "tokens-16", 0.5, 70) for i in range(3)],
        job("stage-a"): trained("stage-a", {50: 0.1}, {50: 0.0}, axes=at()),
        job("stage-b"): [*trained("stage-b", {80: 0.1, 160: 0.3}, {80: 0.5}, axes=at()), {**step(9), **at()}],
        job("answer"): [item(i, "latent", 0.5, 9, **at()) for i in range(3)],
    }
    for name, records in jobs.items():
        torn = list(records)
        for field in dict.fromkeys(field for record in records for field in record if field != "kind"):
            torn += [{**record, field: value} for record in records]
            torn += [{key: kept for key, kept in record.items() if key != field} for record in records]
        run.lines(f"records/{name}.jsonl", torn)
    with (run.path / "records" / f"{job('stage-b')}.jsonl").open("a") as file:
        file.write(json.dumps(step(200))[:40])
    assert len(wire_sections(read_folder(run.path))) == len(OURS) - 1
    if value == EVIL:
        page = write_report(run.path).read_text(encoding="utf-8")
        assert "<script>window.owned" not in page and '<section id="training">' in page
