"""The report of study `tune`: the merge's proof, regression, lineage, failures; records that are torn or foreign."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from imprint_records import EVIL, section, table
from tune_records import (
    BASE,
    LAYERS,
    MATRICES,
    OURS,
    RIGHT,
    N,
    chart,
    correcting,
    graded,
    interval,
    item,
    layers,
    line,
    merged,
    merging,
    mining,
    plan,
    records,
    regression,
    result,
    sha,
    start,
    tasks,
    training,
    versus,
    whole,
)

from stepwell.report import write_report
from stepwell.report.cells import DASH, TO
from stepwell.report.draw import page
from stepwell.report.folder import read_folder
from stepwell.report.tune import failures_section, stage_names, tune_sections
from stepwell.report.tune.failures import HEAD, TAIL, shown
from stepwell.report.view import Report, headline, view

NewRun = Callable[..., Any]


def test_the_merge_is_shown_layer_by_layer(new_run: NewRun) -> None:
    run = new_run()
    whole(run)
    found = section(run, "merge")
    heat = chart(run, "merge", "survived-merge.0").heat
    assert heat is not None and heat.x == ("0", "1", "2", "3") and heat.y == tuple(reversed(MATRICES))
    assert heat.values[-1] == pytest.approx([0.60, 0.59, 0.58, 0.57]) and heat.text[-1] == ("60", "59", "58", "57")
    rows = table(found, "What survived, by kind of matrix").rows
    assert len(rows) == 2 * len(MATRICES)
    last = line(table(found, "What survived, by kind of matrix"), 3)
    assert (last["matrix"].text, last["tensors"].text, last["least in"].text) == ("mlp.down_proj", "4", "layer 3")
    assert (last["survived % of the change"].text, last["survived % of the change"].interval) == ("52.5", f"51 {TO} 54")
    assert last["change % of the weights' norm"].text == "0.500"


def test_where_nothing_was_lost_no_layer_lost_the_most(new_run: NewRun) -> None:
    run = new_run()
    plan(run)
    run.job("merge.0", records("layer", [{**one, "survived": 0.9999} for one in layers()]))
    row = line(section(run, "merge").tables[0], 0)
    assert (row["least in"].text, row["least in"].why) == (DASH, "nothing was lost")
    drawn = chart(run, "merge", "survived")
    assert drawn.heat is not None and {text for row in drawn.heat.text for text in row} == {""} and drawn.note


def test_the_proof_stands_beside_what_the_adapter_does(new_run: NewRun) -> None:
    run = new_run()
    whole(run)
    row = line(table(section(run, "merge"), "Whether it computes the same"), 0)
    assert (row["logit difference largest"].text, row["logit difference largest"].interval) == (
        "0.0200", "largest logit 31.5",
    )  # fmt: skip
    assert (row["KL of the adapter nats"].text, row["ratio %"].text) == ("0.400", "0.000500")
    assert (row["same first choice %, n predictions"].text, row["same first choice %, n predictions"].count) == (
        "100", "n 162",
    )  # fmt: skip
    assert (row["same greedy text %, n tokens"].text, row["same greedy text %, n tokens"].count) == ("97.2", "n 72")
    texts = table(section(run, "merge"), "The texts that were compared").rows
    assert [row.cells[3].tone for row in texts[:2]] == ["no-go", ""] and texts[0].cells[3].text == "10 of 12"


def test_advice_against_a_merge_and_an_adapter_without_effect_are_seen(new_run: NewRun) -> None:
    run = new_run()
    plan(run)
    bad = {"advice": "do not merge", "reason": "little survived", "survived": None, "effect_kl_nats": 0.0}
    unchanged = [{**one, "survived": None} for one in layers()]
    told = records("layer", unchanged) + records("merged", [merged(BASE, sha(BASE), "merge.0", verified=False, **bad)])
    run.job("merge.0", told)
    row = line(table(section(run, "merge"), "What was written"), 0)
    assert (row["advice"].text, row["advice"].tone, row["advice"].why) == ("do not merge", "no-go", "little survived")
    assert (row["base, by its hash"].text, row["survived % of the change"].text) == ("not proved", DASH)
    same = line(table(section(run, "merge"), "Whether it computes the same"), 0)
    assert (same["ratio %"].text, same["ratio %"].why) == (DASH, "the adapter has no effect")
    heat = chart(run, "merge", "survived").heat
    assert heat is not None and {value for row in heat.values for value in row} == {None}


def test_mined_failures_and_the_regression_gate(new_run: NewRun) -> None:
    run = new_run()
    whole(run)
    found = section(run, "mined")
    mined = line(table(found, "Mined failures"), 0)
    assert (mined["asked problems"].text, mined["failures to train on"].text) == ("30", "17")
    assert mined["of those asked %"].interval == interval(17, 30) and mined["contaminated left out"].text == "1"
    gate = line(table(found, "Regression gate"), 0)
    assert [gate[name].text for name in ("right before items", "lost items", "gained items")] == ["22", "1", "4"]
    assert gate["lost % of right"].interval == interval(1, 22) and gate["difference points"].count == "margin 5.0"
    assert gate["verdict"].tone == "go"
    assert "Second training: kept; the model at the end is that of `after-b`." in found.lines
    assert all("pool" not in row.cells[0].text for row in section(run, "results").tables[0].rows)


def test_corrections_are_counted_and_stand_beside_the_failure(new_run: NewRun) -> None:
    run = new_run()
    plan(run)
    mining(run, ".0")
    correcting(run, ".0")
    row = line(table(section(run, "mined"), "Corrections"), 0)
    assert (row["failures answered anew"].text, row["right to train on"].text) == ("17", "6")
    assert row["of them %"].interval == interval(6, 17) and row["cut off % of answers"].interval == interval(1, 17)
    answers = {one.id: one.answers for one in section(run, "browser").items}
    assert [text for _, text in answers["train-013"]][1] == "✓ Anew: #### 0"
    assert [text for _, text in answers["train-022"]][1] == "✗ Anew: #### 9 (ended: length)"


def test_a_roll_back_is_said(new_run: NewRun) -> None:
    run = new_run()
    plan(run)
    regression(run, ".0")
    path = run.path / "records" / "regress.0.jsonl"
    path.write_text(
        path.read_text().replace('"rolled_back": false', '"rolled_back": true').replace('after-b"', 'after"')
    )
    assert "Second training: rolled back; the model at the end is that of `after`." in section(run, "mined").lines


def test_lineage_leads_from_the_base_to_the_results(new_run: NewRun) -> None:
    run = new_run()
    whole(run)
    rows = section(run, "lineage").tables[0].rows
    assert [row.cells[0].text for row in rows] == [BASE, "train.0", "merge.0", "train-b.0", "merge-b.0"]
    assert [row.cells[1].text for row in rows] == [DASH, BASE, BASE, "merge.0", "merge.0"]
    assert [row.cells[4].text for row in rows] == ["before", DASH, "after", DASH, "after-b"]
    assert (rows[4].cells[2].text, rows[4].cells[2].interval) == (sha("merge.0")[:12], "the same")
    assert rows[2].cells[5].text == "55.0" and rows[2].cells[6].text == sha("protocol")[:12]
    assert not any("broken" in one for one in section(run, "lineage").lines[1:])


def test_a_merge_into_other_weights_breaks_the_chain(new_run: NewRun) -> None:
    run = new_run()
    plan(run)
    start(run)
    merging(run, "merge", (BASE, sha("another revision")), "merge.0")
    found = section(run, "lineage")
    assert found.lines[-1] == "The chain is broken at `merge.0`."
    assert found.tables[0].rows[1].cells[2].tone == "no-go"


def test_a_training_on_other_weights_breaks_the_chain(new_run: NewRun) -> None:
    run = new_run()
    plan(run)
    training(run, "train", 0, ".0")
    start(run)
    assert section(run, "lineage").tables[0].rows[1].cells[2].interval == "the same"
    path = run.path / "records" / "train.0.jsonl"
    path.write_text(path.read_text().replace(sha(BASE), sha("another revision")))
    assert section(run, "lineage").lines[-1] == "The chain is broken at `train.0`."


def test_two_benchmarks_share_the_line_of_their_model(new_run: NewRun) -> None:
    run = new_run()
    plan(run)
    start(run)
    more = [item(place, place < 5, benchmark="second") for place in range(10)]
    run.lines("records/before.jsonl", records("item", more) + records("result", [result(more, BASE)]))
    rows = section(run, "lineage").tables[0].rows
    assert [len(row.cells) for row in rows] == [7, 3] and rows[0].cells[0].rows == 2
    assert len(section(run, "results").charts) == 2


def test_failures_begin_with_what_was_lost_and_have_every_answer(new_run: NewRun) -> None:
    run = new_run()
    whole(run)
    found = section(run, "browser")
    lost = (RIGHT["before"] | RIGHT["after"]) - RIGHT["after-b"]
    wrong = set(range(N)) - RIGHT["after-b"]
    assert [one.id for one in found.items[: len(wrong)]] == [
        f"test-{place:03d}" for place in [*sorted(lost), *sorted(wrong - lost)]
    ]
    first = found.items[0]
    assert first.about == "before ✓; reference ✓; after ✗; after-b ✗"
    assert first.answer == "0 + 2 = 2 ⏎ #### 2" and first.answers[2][1].endswith("(3 is not 2)")
    assert len(found.items) == len(wrong) + 17 and found.items[-1].about.startswith("mine: a training problem")


def test_the_end_of_a_long_answer_is_shown() -> None:
    text = "a" * 2000 + "#### 7"
    assert shown(text).endswith("#### 7") and len(shown(text)) == HEAD + TAIL + 3
    assert shown(None) == shown(" \n ") == "nothing" and shown("a\nb") == "a ⏎ b"


def test_html_of_a_model_is_inert(new_run: NewRun) -> None:
    run = new_run()
    plan(run)
    start(run)
    told = [item(place, False, prediction=EVIL, question=EVIL, reference=EVIL, why=EVIL, id=EVIL) for place in range(2)]
    run.job("after.0", records("item", told) + records("result", [result(told, EVIL, warning=EVIL, by=EVIL)]))
    run.job("merge.0", records("merged", [merged(EVIL, sha(BASE), "merge.0", reason=EVIL, advice=EVIL)])
            + records("layer", [{"name": EVIL, "delta_share": 0.1, "survived": 0.5}])
            + records("continuation", [{"prompt": EVIL, "text": EVIL, "agreed": 1, "tokens": 2}]))  # fmt: skip
    failure = {"id": EVIL, "category": EVIL, "question": EVIL, "prediction": EVIL, "reference": EVIL, "why": EVIL}
    run.job("mine.0", records("failure", [failure]))
    finding = {"code": EVIL, "meaning": EVIL, "count": 1, "of": 2, "example": EVIL, "allowed": False}
    run.lines("records/lint.jsonl", records("finding", [finding]))
    run.event("red-flag", job="train.0", monitor=EVIL, step=1, message=EVIL)
    drawn = write_report(run.path).read_text(encoding="utf-8")
    assert "<script>window.owned" not in drawn and "<img src=x" not in drawn
    assert drawn.count("&lt;script&gt;window.owned") > 20


def test_a_run_without_a_record_says_so_of_each_section(new_run: NewRun) -> None:
    run = new_run()
    plan(run)
    found = [one for one in view(run.path).sections if one.key in OURS]
    assert len(found) == len(OURS) and all(one.missing and not one.tables and not one.charts for one in found)
    write_report(run.path)


def test_where_the_plan_is_lost_the_records_say_whose_run_it_is(new_run: NewRun) -> None:
    run = new_run()
    whole(run)
    before = [section(run, key).tables for key in ("merge", "mined")]
    (run.path / "plan.yaml").unlink()
    shown_keys = [one.key for one in view(run.path).sections]
    assert set(OURS) <= set(shown_keys) and "convergence" not in shown_keys and "accuracy" not in shown_keys
    after = [section(run, key).tables for key in ("merge", "mined")]
    assert [len(one) for one in after] == [len(one) for one in before]
    rows = table(section(run, "results"), "Accuracy, with 95% intervals over items").rows
    assert sorted(row.cells[2].text for row in rows) == ["25.0", "55.0", "62.5", "75.0"], (
        "training problems are not there"
    )
    write_report(run.path)


@pytest.mark.parametrize("value", [None, True, -3, 0, 1e300, float("nan"), EVIL, [{"a": 1}]])
def test_no_field_of_any_record_can_break_a_section(new_run: NewRun, value: Any) -> None:
    """Every field of every kind of record in turn missing, and holding what it must not."""
    run = new_run()
    plan(run)
    at = {"seed": 0}
    start(run)
    training(run, "train", 0, ".0", alert=True)
    merging(run, "merge", (BASE, sha(BASE)), "merge.0", LAYERS, **at)
    run.job("after.0", graded("after", "merge.0", **at)[-4:])
    versus(run, ".0", **at)
    mining(run, ".0", **at)
    correcting(run, ".0", **at)
    tasks(run, "train.0", **at)
    regression(run, ".0", **at)
    for path in sorted((run.path / "records").glob("*.jsonl")):
        rows = {(one := json.loads(text))["kind"]: one for text in path.read_text().splitlines()}
        torn = []
        for record in rows.values():
            for field in record.keys() - {"kind", "seed"}:
                torn.append({**record, field: value})
                torn.append({name: kept for name, kept in record.items() if name != field})
        run.lines(f"records/{path.name}", torn)
    for name in ("throughput", "red-flag", "oom", "trained"):
        for field in ("step", "tokens_per_second", "monitor", "message", "pieces", "seconds", "tokens", "job"):
            run.lines("events.jsonl", [{"time": 1.0, "event": name, "job": "train.0", field: value}])
    with (run.path / "records" / "after.0.jsonl").open("a") as file:
        file.write('{"kind": "item", "id"')
    found = read_folder(run.path)
    sections = (*tune_sections(found), failures_section(found))
    assert [one.key for one in sections] == list(OURS) and not any(one.missing for one in sections)
    if value in (None, EVIL):  # drawing takes a second
        arms = stage_names(found)
        drawn = page(
            Report(title="", study="", rung="", question="", headline=headline(found), arms=arms, sections=sections)
        )
        assert "<script>window.owned" not in drawn and all(f'<section id="{key}">' in drawn for key in OURS)
