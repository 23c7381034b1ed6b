"""What the report says: verdicts and their limits, estimates against independent counts, dashes instead of zeros."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from stepwell.errors import StepwellError
from stepwell.report.answer import headline
from stepwell.report.cells import DASH, Cell, Section, Table, digits_of, joined
from stepwell.report.curves import binned_means, last_attempt
from stepwell.report.folder import read_folder
from stepwell.report.progress import job_facts, wall_seconds
from stepwell.report.verdicts import verdict_rows
from stepwell.report.view import Report, view

NewRun = Callable[..., Any]
RULES = ["another-person", "lower-in-degree", "first-named"]


def section(report: Report, key: str) -> Section:
    return next(found for found in report.sections if found.key == key)


def line(table: Table, first: str) -> tuple[Cell, ...]:
    return next(row.cells for row in table.rows if row.cells[0].text == first)


def cells(report: Report) -> Iterator[Cell]:
    for found in report.sections:
        for table in [*found.tables, *(chart.table for chart in found.charts if chart.table)]:
            for row in table.rows:
                yield from row.cells


def wilson(right: float, n: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """The textbook formula, as the roots of (p - p0)^2 = z^2 p0 (1 - p0) / n."""
    p = right / n
    a, b, c = 1 + z * z / n, -(2 * p + z * z / n), p * p
    root = math.sqrt(b * b - 4 * a * c)
    return (-b - root) / (2 * a), (-b + root) / (2 * a)


# Verdicts and the answer.


def test_answer_quotes_the_closing_gate_and_counts_the_others(new_run: NewRun):
    told = headline(new_run().whole())
    assert told.tone == "go"
    assert told.answer == (
        "“Does `continuous` beat `shared` by 5 points or more?”: yes, at 95% confidence; "
        "of the other 3 gates, 2 say go and 1 is inconclusive."
    )
    assert told.may[0].startswith("Yes to “Is the data clean, and does every arm train?” (gate `set-up`, as a fact")
    assert any("Neither yes nor no" in text and "1,690 units" in text for text in told.may_not)
    assert told.may_not[-1].startswith("Nothing that no gate asked")


def test_the_scope_of_the_plan_stands_among_what_may_not_be_concluded(new_run: NewRun):
    run = new_run()
    run.whole()
    run.plan(scope="Anything about larger models.")
    assert headline(run.path).may_not[-2] == "Anything about larger models."


def test_the_answer_does_not_depend_on_measurements(new_run: NewRun):
    run = new_run()
    before = headline(run.whole())
    for path in (run.path / "records").glob("evaluate*"):
        flipped = [json.loads(text) for text in path.read_text().splitlines()]
        path.write_text("".join(json.dumps({**record, "correct": False}) + "\n" for record in flipped))
    assert headline(run.path) == before


def test_a_stop_is_the_answer_and_what_follows_was_not_reached(new_run: NewRun):
    run = new_run()
    run.plan()
    found = run.finding("correct", value=0.5, low=0.43, high=0.57, threshold=0.75, n=200, decision="no-go")
    run.lines("records/gates.jsonl", [run.verdict("set-up", "go", []), run.verdict("baselines", "no-go", [found])])
    told = headline(run.path)
    assert told.tone == "no-go"
    assert told.answer == (
        "“Does `cot` solve at least 75% of the test set?”: no, at 95% confidence, and there the run stopped; "
        "of the other 3 gates, 1 says go and 2 are not reached."
    )
    assert [row.decision for row in verdict_rows(run.path)] == ["go", "no-go", "not reached", "not reached"]
    assert sum("it was not decided" in text for text in told.may_not) == 2


def test_an_unfinished_run_has_no_answer_yet(new_run: NewRun):
    run = new_run()
    run.plan()
    assert headline(run.path).answer == "There is no answer yet: none of 4 gates has been decided."
    run.verdicts(upto=2)
    told = headline(run.path)
    assert (told.tone, told.answer) == (
        "muted",
        "There is no answer yet: 2 of the 4 gates are not decided; so far, 2 say go.",
    )


def test_a_gate_that_no_other_led_to_leaves_nothing_open(new_run: NewRun):
    run = new_run()
    gates = [{"name": "better", "asks": "Is it better?"}, {"name": "alike", "asks": "Is it alike?", "on": "doubt"}]
    run.plan(gates=gates)
    found = run.finding("accuracy", value=0.9, low=0.86, high=0.93, threshold=0.7, n=256)
    run.lines("records/gates.jsonl", [run.verdict("better", "go", [found])])
    run.lines("events.jsonl", [{"event": "run-done"}])
    told = headline(run.path)
    assert told.answer == "“Is it better?”: yes, at 95% confidence; the other gate is not asked."
    assert "Anything about “Is it alike?” (gate `alike`): it was not asked. No gate led to `doubt`." in told.may_not


def test_a_criterion_that_goes_at_any_layer_says_so(new_run: NewRun):
    run = new_run()
    run.plan(gates=[{"name": "sane", "asks": "Is it sane?"}])
    layers = [run.finding("effect", about=f"layer={n}", value=0.9, low=0.8, high=1.0, threshold=0.3) for n in (0, 1)]
    any_of = {**run.finding("effect", about="step 1", value=None, threshold=0.3, n=300, method="per"), "parts": layers}
    whole = {
        **run.finding("effect", about="arm=cot", value=None, threshold=0.3, n=300, method="per"),
        "parts": [any_of],
    }
    run.lines("records/gates.jsonl", [run.verdict("sane", "go", [whole])])
    (text,) = [text for text in headline(run.path).may if "sane" in text]
    assert "`effect` (arm=cot, step 1) ≥ 0.3 at one value of layer at least (n 300)" in text
    assert "in every record" not in text


def test_a_point_verdict_allows_no_conclusion(new_run: NewRun):
    run = new_run()
    run.plan(gates=[{"name": "early", "asks": "Is `cot` at 70%?"}])
    point = run.finding("accuracy", "train", "arm=cot", value=0.71, threshold=0.7, n=256, method="point", mode="point")
    run.lines("records/gates.jsonl", [run.verdict("early", "go", [point], mode="point")])
    told = headline(run.path)
    assert told.answer == "“Is `cot` at 70%?”: yes, by a point estimate without confidence."
    assert told.may == ()
    assert told.may_not[0].startswith("A sure go to “Is `cot` at 70%?”")
    asked, found = section(view(run.path), "verdicts").tables[0].rows
    assert "carries no confidence" in asked.cells[1].why
    assert (found.cells[1].text, found.cells[1].interval) == ("0.710", "a point")


def test_of_a_gate_that_is_partly_point_only_the_other_part_may_be_concluded(new_run: NewRun):
    run = new_run()
    run.plan(gates=[{"name": "baselines", "asks": "Is `cot` good, and no arm perfect?"}])
    sure = run.finding("accuracy", value=0.9, low=0.86, high=0.93, threshold=0.7, n=256, reason="accuracy is 0.9")
    point = run.finding("accuracy", value=0.5, threshold=1, n=256, method="point", mode="point", reason="below 1")
    parted = {**run.finding("accuracy", value=None), "parts": [sure]}
    run.lines("records/gates.jsonl", [run.verdict("baselines", "go", [parted, point], mode="point")])
    told = headline(run.path)
    assert told.answer.endswith("yes, at 95% confidence, in part by a point estimate without confidence.")
    assert told.may == (
        "Of “Is `cot` good, and no arm perfect?” (gate `baselines`) this part only: "
        "`accuracy` (arm=continuous) lies in 0.860 to 0.930 (wanted ≥ 0.7).",
    )
    assert told.may_not[0].startswith("A sure go to")


@pytest.mark.parametrize(
    ("combine", "decision", "sure"), [("all", "no-go", True), ("any", "go", True), ("any", "no-go", False)]
)
def test_one_interval_is_enough_where_one_criterion_is_enough(new_run: NewRun, combine: str, decision: str, sure: bool):
    run = new_run()
    run.plan(gates=[{"name": "early", "asks": "Is it?", "combine": combine}])
    found = [
        run.finding("accuracy", value=0.5, low=0.4, high=0.6, threshold=0.7, n=99, decision=decision),
        run.finding("accuracy", value=0.5, threshold=1, n=99, method="point", mode="point", decision=decision),
    ]
    run.lines("records/gates.jsonl", [run.verdict("early", decision, found, mode="point")])
    (row,) = verdict_rows(run.path)
    assert row.sure is sure
    assert any(text.startswith("A sure") for text in headline(run.path).may_not) is not sure


def test_parts_of_a_criterion_say_what_it_is_about(new_run: NewRun):
    run = new_run()
    run.plan(gates=[{"name": "early", "asks": "Is it?"}])
    part = run.finding("accuracy", about="seed=0", value=0.9, low=0.8, high=0.95, threshold=0.7, n=99)
    found = {**run.finding("accuracy", about="arm=cot"), "parts": [part, {**part, "about": "seed=1"}]}
    run.lines("records/gates.jsonl", [run.verdict("early", "go", [found])])
    rows = section(view(run.path), "verdicts").tables[0].rows
    assert [row.cells[0].count for row in rows[1:]] == ["arm=cot, seed=0", "arm=cot, seed=1"]


def test_checks_are_counted_by_name_and_failures_told(new_run: NewRun):
    run = new_run()
    run.whole()
    run.lines("records/check.cot.jsonl", [{"kind": "check", "arm": "cot", "name": "label self-test", "passed": False}])
    tables = section(view(run.path), "audits").tables
    short = line(next(table for table in tables if table.title == "Checks"), "label self-test")
    assert [cell.text for cell in short[1:]] == ["5 of 6 passed", "cot: no detail"] and short[1].tone == "no-go"
    assert next(table for table in tables if table.folded).title == "All 6 checks"


def test_an_override_is_shown_in_answer_verdict_and_section(new_run: NewRun):
    run = new_run()
    change = "gates.baselines.criteria.0.threshold: 0.9 -> 0.75"
    run.whole()
    (run.path / "records" / "gates.jsonl").unlink()
    run.verdicts(override={"reason": "too strict", "changes": [change]})
    run.policy([{"reason": "too strict", "changes": [change], "replaced_sha256": "0"}])
    report = view(run.path)
    assert any("changed after the start (“too strict”)" in text for text in report.headline.may_not)
    (asked,) = (row for row in section(report, "verdicts").tables[0].rows if "Overridden" in row.cells[1].why)
    assert asked.group == "baselines" and asked.cells[1].why.endswith("Overridden after the start: too strict.")
    assert [cell.text for cell in section(report, "overrides").tables[0].rows[0].cells] == ["too strict", change]


def test_no_override_says_so(new_run: NewRun):
    assert section(view(new_run().whole()), "overrides").missing.startswith("None: the gates stand as they were frozen")


def test_a_gate_that_could_not_be_decided_says_why(new_run: NewRun):
    run = new_run()
    run.plan()
    run.verdicts(upto=1)
    run.event("gate-failed", gate="baselines", cause="metric correct: not finite in 3 of 200 records")
    lines = section(view(run.path), "missing").lines
    assert "Gate `baselines` could not be decided: metric correct: not finite in 3 of 200 records." in lines


def test_criteria_of_one_gate_share_its_line_and_say_their_own_decision(new_run: NewRun):
    rows = [row for row in section(view(new_run().whole()), "verdicts").tables[0].rows if row.group == "curriculum"]
    assert rows[0].cells[0].rows == 3 and rows[0].cells[1].columns == 5
    assert [len(row.cells) for row in rows] == [2, 5, 5]
    assert rows[2].cells[1] == Cell(
        text="0.475", interval="0.388 to 0.562 at 97.5%", count="inconclusive", tone="inconclusive"
    )
    assert rows[2].cells[-1].text == "1,690"


# Estimates.


def test_accuracy_and_interval_match_an_independent_count(new_run: NewRun):
    run = new_run()
    report = view(run.whole())
    items = [json.loads(text) for text in (run.path / "records" / "evaluate.cot.0.jsonl").read_text().splitlines()]
    for title, field in (("free decoding", "correct"), ("forced choice", "forced_correct")):
        table = next(t for t in section(report, "accuracy").tables if title in t.title)
        shown = line(table, "cot")
        for place, hops in enumerate((None, 2, 3), start=1):
            chosen = [i for i in items if i["set"] == "test" and hops in (None, i["hops"])]
            right = sum(item[field] for item in chosen)
            low, high = wilson(right, len(chosen))
            assert shown[place].text == f"{100 * right / len(chosen):.1f}"
            assert shown[place].interval == f"{100 * low:.1f}\u2013{100 * high:.1f}"
            assert table.columns[place].note == f"n {len(chosen)}"


def test_seeds_are_not_taken_for_independent_items(new_run: NewRun):
    """The same answers under three seeds: three times the records, and not a narrower interval."""
    one, three = new_run("one"), new_run("three", seeds=(0, 1, 2))
    outcomes = [place % 10 < 7 for place in range(80)]
    for run in (one, three):
        run.plan()
        for seed in run.seeds:
            item = {"kind": "item", "arm": "cot", "seed": seed, "set": "test", "condition": "clean", "hops": 2}
            records = [{**item, "id": f"i{n}", "correct": right} for n, right in enumerate(outcomes)]
            run.job(f"evaluate.cot.{seed}", records)
    spans = []
    for run in (one, three):
        table = section(view(run.path), "accuracy").tables[0]
        shown = line(table, "cot")[1]
        assert shown.text == "70.0"
        low, high = map(float, shown.interval.split("\u2013"))
        spans.append(high - low)
    assert section(view(three.path), "accuracy").tables[0].columns[1].note == "n 80 \u00d7 3 seeds"
    assert spans[1] == pytest.approx(spans[0], rel=0.12)


def test_rules_stand_below_the_arms_with_half_points_for_silence(new_run: NewRun):
    report = view(new_run(items=200).whole())
    for table in section(report, "accuracy").tables:
        assert [row.group for row in table.rows] == ["arms"] * 5 + ["rules"] * 3
        assert line(table, "another-person")[1].text == "61.3"  # 122.5 of 200
        # By hops as well: half of the items have 2.
        low, high = wilson(61.25, 100)
        shown = line(table, "another-person")[2]
        assert (shown.text, shown.interval) == ("61.3", f"{100 * low:.1f}\u2013{100 * high:.1f}")
        assert all(cell.count == "" for cell in line(table, "another-person"))
    outside = section(report, "outside").tables
    assert line(outside[0], "first-named")[1].text == "50.0"
    by_hops = [table for table in outside if table.title.startswith("Set ")]
    assert [table.title.split(":")[0] for table in by_hops] == ["Set dag", "Set dag", *["Set no-shortcut"] * 2]
    for table in by_hops:
        assert [column.name for column in table.columns[:4]] == ["arm", "all", "2 hops", "3 hops"]
        assert [row.group for row in table.rows] == ["arms"] * 5 + ["rules"] * 3


def test_every_seed_stands_by_hops_above_the_rules(new_run: NewRun):
    run = new_run(items=40, seeds=(0, 1))
    tables = section(view(run.whole()), "seeds").tables
    items = [json.loads(text) for text in (run.path / "records" / "evaluate.cot.1.jsonl").read_text().splitlines()]
    table = next(t for t in tables if t.title == "Set test: free decoding of each seed, accuracy in %")
    assert [row.cells[1].text for row in table.rows if row.cells[0].text == "cot"] == ["0", "1"]
    shown = next(row.cells for row in table.rows if [c.text for c in row.cells[:2]] == ["cot", "1"])
    for place, hops in enumerate((None, 2, 3), start=2):
        right = [i["correct"] for i in items if i["set"] == "test" and hops in (None, i["hops"])]
        low, high = wilson(sum(right), len(right))
        assert shown[place].text == f"{100 * sum(right) / len(right):.1f}"
        assert shown[place].interval == f"{100 * low:.1f}\u2013{100 * high:.1f}"
    for each in tables:
        if each.title.startswith("Set ") or each.title == "Each arm and seed":
            assert [row.cells[0].text for row in each.rows if row.group == "rules"] == RULES
    # Validation asks the steering split, the next column the test set: 24.5 of 40 in both.
    rule = line(tables[0], "another-person")
    assert [cell.text for cell in rule[2:4]] == ["61.3", "61.3"]
    assert sum(cell.columns for cell in rule) == len(tables[0].columns)


def test_one_seed_is_not_told_twice_and_records_without_hops_leave_a_dash(new_run: NewRun):
    run = new_run(items=40)
    folder = run.whole()
    path = folder / "records" / "audit.jsonl"
    records = [json.loads(text) for text in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({k: v for k, v in r.items() if k != "by_hops"}) + "\n" for r in records))
    report = view(folder)
    assert not [t.title for t in section(report, "seeds").tables if t.title.startswith("Set ")]
    rule = line(section(report, "accuracy").tables[0], "another-person")
    assert [cell.why for cell in rule[1:4]] == ["", "not counted by hops", "not counted by hops"]


def test_other_families_are_kept_apart(new_run: NewRun):
    report = view(new_run().whole())
    assert {chart.title for chart in section(report, "accuracy").charts} == {"Set test"}
    assert [column.name for column in section(report, "outside").tables[0].columns] == [
        "arm",
        "7hop",
        "dag",
        "no-shortcut",
    ]


# Training.


def test_bins_hold_the_mean_and_never_hide_what_is_not_finite():
    numbers = random.Random(3)
    records = [{"step": step, "loss": numbers.random()} for step in range(1000)]
    binned, width = binned_means(records, "loss", points=100)
    assert (width, len(binned)) == (10, 100)
    for place, (step, value) in enumerate(binned):
        chosen = [record["loss"] for record in records[10 * place : 10 * place + 10]]
        assert (step, value) == (10 * place + 9, pytest.approx(sum(chosen) / 10))
    records[555]["loss"] = None
    holes = [step for step, value in binned_means(records, "loss", points=100)[0] if value is None]
    assert holes == [559]


def test_restarts_are_counted_and_only_the_last_attempt_is_drawn(new_run: NewRun):
    run = new_run()
    run.plan()
    axes = {"arm": "cot", "seed": 0}
    first = [{"kind": "step", **axes, "step": step, "loss": 2.0} for step in range(50)]
    second = [{"kind": "step", **axes, "step": step, "loss": 1.0} for step in range(30)]
    run.job("train.cot.0", [*first, {"kind": "restart", **axes, "attempt": 1, "reason": "flat"}, *second])
    report = view(run.path)
    assert section(report, "seeds").tables[0].note.startswith("1 restart in all")
    (chart,) = section(report, "curves").charts
    assert set(chart.series[0].y) == {1.0}
    assert last_attempt(first) == first


def test_stage_boundaries_are_marked_on_the_line(new_run: NewRun):
    charts = section(view(new_run().whole()), "curves").charts
    chart = next(chart for chart in charts if chart.key == "validation-continuous")
    assert chart.series[0].marks == ((150.0, "stage 1"), (330.0, "stage 2"))
    assert next(chart for chart in charts if chart.key == "validation-cot").series[0].marks == ()


def test_lost_losses_are_told(new_run: NewRun):
    run = new_run()
    run.plan()
    axes = {"kind": "step", "arm": "cot", "seed": 0}
    run.job("train.cot.0", [{**axes, "step": n, "loss": None if n > 6 else 1.0} for n in range(10)])
    report = view(run.path)
    assert section(report, "curves").charts[0].note == "3 losses are not finite, and not drawn."
    assert line(section(report, "seeds").tables[0], "cot")[5] == Cell(text=DASH, why="not finite", tone="muted")


# The log.


def test_time_adds_attempts_up_and_leaves_pauses_out(new_run: NewRun):
    run = new_run()
    run.plan()
    run.event("run-started")
    run.event("job-started", job="data")
    run.event("progress", after=7, job="data", done=1, total=2)  # then killed
    run.event("run-started", after=1000)
    run.event("job-started", job="data")
    run.event("job-stopped", after=5, job="data", seconds=5.0)
    run.event("run-started", after=1000)
    run.event("job-started", job="data")
    run.event("job-done", after=8, job="data", seconds=8.0)
    data = read_folder(run.path)
    assert job_facts(data)["data"].seconds == pytest.approx(20)
    assert wall_seconds(data) == pytest.approx(20)
    run.event("job-rerun", job="data", reason="its parameters were changed")
    run.event("job-started", job="data")
    run.event("job-done", after=3, job="data", seconds=3.0)
    assert job_facts(read_folder(run.path))["data"].seconds == pytest.approx(3)


def test_cost_names_price_and_estimate(new_run: NewRun):
    told = " ".join(section(view(new_run().whole()), "cost").lines)
    assert "At 0.12 USD an hour that is 0.02 USD." in told
    assert "Estimated before the run: 6.6 min and 0.01 USD on 2 CPU cores; it came to 1.4 times that." in told


def test_without_price_and_estimate_none_is_made_up(new_run: NewRun):
    run = new_run()
    run.plan(hourly_price=None)
    run.data()
    told = " ".join(section(view(run.path), "cost").lines)
    assert "No hourly price was given." in told and "No estimate was logged" in told


# What is missing.


def test_a_failed_run_shows_what_is_missing_and_no_zero(new_run: NewRun):
    run = new_run()
    run.plan()
    run.data()
    run.train("cot", 0)
    run.event("job-started", job="train.direct.0")
    run.event("job-failed", after=9, job="train.direct.0", cause="loss is not finite at step 41", seconds=9.0)
    run.event("job-blocked", job="evaluate.direct.0", reason="it needs train.direct.0, which failed")
    report = view(run.path)
    lines = section(report, "missing").lines
    assert "Job `train.direct.0` failed (loss is not finite at step 41)." in lines
    assert "Job `evaluate.direct.0` could not run (it needs train.direct.0, which failed)." in lines
    assert "Gate `baselines` was not reached." in lines
    assert "policy.json is missing." in lines and "env.json is missing." in lines
    assert section(report, "accuracy").missing == "No evaluated items: no evaluation has finished."
    # Nobody measured an accuracy, so none is shown; 0 stands only where something was counted.
    assert line(section(report, "seeds").tables[0], "cot")[7] == Cell(text=DASH, why="not evaluated", tone="muted")
    assert all(cell.text not in ("0.0", "nan", "None", "inf") for cell in cells(report))


def test_a_whole_run_lacks_nothing(new_run: NewRun):
    report = view(new_run().whole())
    assert all(found.key != "missing" for found in report.sections)
    assert not [cell for cell in cells(report) if cell.text == DASH and not cell.why]


def test_a_torn_line_is_left_out_and_told(new_run: NewRun):
    run = new_run()
    run.whole()
    with (run.path / "records" / "train.cot.0.jsonl").open("a") as file:
        file.write('{"kind": "step", "st')
    assert section(view(run.path), "missing").lines == ("train.cot.0.jsonl: 1 unreadable line left out.",)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Any):
    with pytest.raises(StepwellError) as refused:
        view(tmp_path / "nothing")
    assert "no such run folder" in str(refused.value) and "Way out: name a folder" in str(refused.value)
    with pytest.raises(StepwellError, match=r"it holds neither plan\.yaml nor records/"):
        view(tmp_path)


def test_jobs_of_the_plan_are_expanded_as_the_planner_does(new_run: NewRun):
    run = new_run(seeds=(0, 1))
    run.plan()
    planned = read_folder(run.path).planned_jobs()
    assert len(planned) == 2 + 5 + 10 + 10
    assert planned[:3] == ("data", "audit", "check.cot") and planned[-1] == "evaluate.removal.1"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (17886, "17,886"),
        (0.9543, "0.954"),
        (1234.6, "1,235"),
        (12.34, "12.3"),
        (2.1e-5, "2.1e-05"),
        (-0.05, "\u22120.0500"),
    ],
)
def test_numbers_as_printed(value: float, text: str):
    assert digits_of(value) == text


def test_lists_as_printed():
    assert [joined(parts) for parts in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == ["", "a", "a and b", "a, b and c"]
